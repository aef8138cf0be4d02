"""The trials of a search, kept by Optuna where a kill doesn't reach them and several machines can share them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from ...edge_runtime.errors import UsageError
from .candidate import Candidate
from .storage import storage_errors

STALE_S = 6 * 3600.0
"""A running trial of another machine that has given no sign of life for so long is taken for dead."""
MOST_ATTEMPTS = 3
"""Times that a trial is taken up again after the process died in it: what always runs out of memory must end."""
STARTUP_TRIALS = 8
"""Drawn at random before the sampler has anything to learn from."""
KEPT_PERCENT = 75.0
"""A trial is stopped when its best accuracy so far is not among so many of the others' at the same epoch."""


@dataclass(frozen=True)
class Axes:
    """What can be chosen for one backbone, each rising."""

    model: str
    alphas: tuple[float | None, ...]
    sizes: tuple[int, ...]
    macs: tuple[float, ...]


@dataclass(frozen=True)
class Space:
    """All candidates of a search."""

    axes: tuple[Axes, ...]
    schemes: tuple[str, ...]

    def candidates(self) -> list[Candidate]:
        """Every one of them; of each backbone the smallest first."""
        return [
            Candidate(axes.model, alpha, size, share, scheme)
            for axes in self.axes
            for alpha, size, share, scheme in product(axes.alphas, axes.sizes, axes.macs, self.schemes)
        ]

    def suggest(self, trial: Any) -> Candidate:
        """The candidate that the sampler wants tried. What has an order is drawn by its place in it."""
        model = trial.suggest_categorical("model", [axes.model for axes in self.axes])
        axes = next(axes for axes in self.axes if axes.model == model)

        def pick(name: str, values: Sequence[Any]) -> Any:
            return values[trial.suggest_int(f"{model} {name}", 0, len(values) - 1)]

        return Candidate(
            model,
            pick("alpha", axes.alphas),
            pick("input size", axes.sizes),
            pick("macs", axes.macs),
            trial.suggest_categorical("scheme", self.schemes),
        )

    def parameters(self, candidate: Candidate) -> dict[str, Any]:
        """What `suggest` would have drawn to get this candidate."""
        model = candidate.model
        axes = next(axes for axes in self.axes if axes.model == model)
        return {
            "model": model,
            f"{model} alpha": axes.alphas.index(candidate.alpha),
            f"{model} input size": axes.sizes.index(candidate.input_size),
            f"{model} macs": axes.macs.index(candidate.macs),
            "scheme": candidate.scheme,
        }


class Trials:
    """A study in a storage that outlives the process.

    An outcome is ``measured``; ``stopped``: trained, but given up early; ``refused``: too slow or too large, never
    trained; ``failed``: could not be built; ``running``: here, or on another machine. A trial whose process died is
    forgotten and its candidate tried again.

    Args:
        storage: from `edgeall.optimize.experiments.storage.open_storage`.
        name: of the study in it.
        space: what to draw from.
        identity: whatever must be the same for two processes to work on one study; plain JSON.
        worker: who this process works for; a running trial of the same worker was left by a kill.
        seed: of the sampler.
        free_epochs: epochs at the start in which no trial is stopped.

    Raises:
        UsageError: the storage holds a study of this name with another identity, or can't be read.
    """

    def __init__(
        self,
        storage: Any,
        name: str,
        space: Space,
        identity: Mapping[str, Any],
        worker: Mapping[str, str],
        seed: int,
        free_epochs: int,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        expected: tuple[type[Exception], ...] = (OSError, *storage_errors())
        self._optuna = optuna
        self._space = space
        self._worker = dict(worker)
        try:
            self._study = optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.PercentilePruner(
                    KEPT_PERCENT, n_startup_trials=4, n_warmup_steps=free_epochs, n_min_trials=3
                ),
            )
            begun = len(self._study.get_trials(deepcopy=False))
        except expected as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"--storage: {said}", hint="check the URL or the path") from error
        # Not the same numbers again after a restart, which would draw the same candidates.
        self._random = np.random.default_rng((seed, begun))
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS, seed=int(self._random.integers(2**31))
        )
        self._join(identity, name)
        self._take_up()
        if not begun:
            for axes in space.axes:
                smallest = next(item for item in space.candidates() if item.model == axes.model)
                self._study.enqueue_trial(space.parameters(smallest))

    def rows(self) -> list[dict[str, Any]]:
        """Every trial that counts, by number: trial, outcome, candidate (a `Candidate`), and what `note` added."""
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            facts = trial.user_attrs
            outcome = "running" if trial.state.name == "RUNNING" else facts.get("outcome")
            if "candidate" in facts and outcome in ("measured", "stopped", "refused", "failed", "running"):
                candidate = Candidate(**facts["candidate"])
                found.append({**facts, "trial": trial.number, "outcome": outcome, "candidate": candidate})
        return found

    def next(self) -> tuple[Any, Candidate] | None:
        """The next trial and its candidate; None when every candidate has been tried.

        A small space is soon known: a candidate that was tried before gives way to one that wasn't.
        """
        while True:
            trial = self._study.ask()
            self.note(trial, alive=time.time(), **self._worker)
            candidate = self._space.suggest(trial)
            tried = self._tried(before=trial.number)
            if candidate not in tried:
                self.note(trial, candidate=asdict(candidate))
                return trial, candidate
            self.note(trial, outcome="repeated")
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            left = [other for other in self._space.candidates() if other not in tried]
            if not left:
                return None
            self._study.enqueue_trial(self._space.parameters(left[self._random.integers(len(left))]))

    def sign_of_life(self, trial: Any) -> None:
        """To be given now and then while a trial runs; see `STALE_S`."""
        self.note(trial, alive=time.time())

    def note(self, trial: Any, **facts: Any) -> None:
        """Keep plain facts of a trial."""
        for key, value in facts.items():
            trial.set_user_attr(key, value)

    def end(self, trial: Any, outcome: str, accuracy: float | None = None) -> None:
        """Finish a trial.

        Args:
            outcome: see `Trials`.
            accuracy: what the sampler is to learn; None: that it was no good.
        """
        states = self._optuna.trial.TrialState
        self.note(trial, outcome=outcome)
        if accuracy is not None:
            self._study.tell(trial, accuracy)
        else:
            self._study.tell(trial, state=states.FAIL if outcome == "failed" else states.PRUNED)

    def _tried(self, before: int) -> set[Candidate]:
        done = {row["candidate"] for row in self.rows() if row["trial"] < before}
        deaths = self._deaths()
        return done | {candidate for candidate, count in deaths.items() if count >= MOST_ATTEMPTS}

    def _deaths(self) -> dict[Candidate, int]:
        """How often the process died in a trial of each candidate."""
        counts: dict[Candidate, int] = {}
        for trial in self._study.get_trials(deepcopy=False):
            facts = trial.user_attrs
            if trial.state.name == "FAIL" and "outcome" not in facts and "candidate" in facts:
                candidate = Candidate(**facts["candidate"])
                counts[candidate] = counts.get(candidate, 0) + 1
        return counts

    def _take_up(self) -> None:
        """Queue again what a dead process left running."""
        for trial in self._study.get_trials(deepcopy=False):
            facts = trial.user_attrs
            if trial.state.name != "RUNNING":
                continue
            # One that was only just begun has not said yet whose it is.
            alive = facts.get("alive", trial.datetime_start.timestamp())
            if facts.get("worker") != self._worker["worker"] and time.time() - alive <= STALE_S:
                continue
            with contextlib.suppress(ValueError):  # another machine was faster
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
                if "candidate" in facts:
                    candidate = Candidate(**facts["candidate"])
                    if self._deaths()[candidate] < MOST_ATTEMPTS:
                        self._study.enqueue_trial(self._space.parameters(candidate))

    def _join(self, identity: Mapping[str, Any], name: str) -> None:
        wanted = json.loads(json.dumps(identity))
        if "identity" not in self._study.user_attrs:
            self._study.set_user_attr("identity", wanted)
        differing = differences(self._study.user_attrs["identity"], wanted)
        if differing:
            raise UsageError(
                f"--study {name}: its storage holds one that differs ({differing})",
                hint="repeat its settings to go on with it, or choose another --study",
            )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which settings differ, for people; empty where none does."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return ", ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in keys)
