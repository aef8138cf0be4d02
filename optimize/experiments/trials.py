"""Trials of a search, kept by Optuna in a storage that survives a kill and that several machines can share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import numpy as np

from ...edge_runtime.errors import UsageError
from ...edge_runtime.results import SPREAD, Result, from_json
from .candidate import Candidate
from .liveness import is_silent, release_dead, sign_of_life
from .storage import differences, first_line, storage_errors

STALE_S = 6 * 3600.0
"""A running trial of another machine without a sign of life for so long counts as dead."""
MAX_ATTEMPTS = 3
"""A candidate is tried at most so often if its process dies, as one that always runs out of memory does."""
STARTUP_TRIALS = 8
"""Trials drawn at random before the sampler has results to learn from."""
KEPT_PERCENT = 75.0
"""A trial continues while its best accuracy so far is in this top percentage of the trials at the same epoch."""


@dataclass(frozen=True)
class Axes:
    """The choices for one backbone, in rising order."""

    model: str
    alphas: tuple[float | None, ...]
    sizes: tuple[int, ...]
    macs: tuple[float, ...]


@dataclass(frozen=True)
class Space:
    """All candidates of a search.

    Attributes:
        axes: one for each backbone.
        schemes: conversion schemes.
        training: choices for the settings of the training that are searched, by the name of their field of `Candidate`.
    """

    axes: tuple[Axes, ...]
    schemes: tuple[str, ...]
    training: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def candidates(self) -> list[Candidate]:
        """Every candidate; the smallest of each backbone first."""
        trainings = [dict(zip(self.training, values, strict=True)) for values in product(*self.training.values())]
        return [
            Candidate(axes.model, alpha, size, share, scheme, **training)
            for axes in self.axes
            for alpha, size, share, scheme in product(axes.alphas, axes.sizes, axes.macs, self.schemes)
            for training in trainings
        ]

    def suggest(self, trial: Any) -> Candidate:
        """The candidate that the sampler proposes. Ordered values are drawn by their index."""
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
            **{
                name: values[trial.suggest_int(name.replace("_", " "), 0, len(values) - 1)]
                for name, values in self.training.items()
            },
        )

    def parameters(self, candidate: Candidate) -> dict[str, Any]:
        """The Optuna parameters with which `suggest` gives this candidate."""
        model = candidate.model
        axes = next(axes for axes in self.axes if axes.model == model)
        return {
            "model": model,
            f"{model} alpha": axes.alphas.index(candidate.alpha),
            f"{model} input size": axes.sizes.index(candidate.input_size),
            f"{model} macs": axes.macs.index(candidate.macs),
            "scheme": candidate.scheme,
            **{
                name.replace("_", " "): values.index(getattr(candidate, name)) for name, values in self.training.items()
            },
        }


@dataclass(frozen=True)
class Cost(Result):
    """Cost of a network on this machine.

    Attributes:
        file_bytes_at_most: upper bound of the packed model.
        overshoot: share of the budget, above 1 if the network exceeds it.
    """

    latency_ms: float
    flatbuffer_bytes: int
    file_bytes_at_most: int
    overshoot: float


@dataclass(frozen=True)
class Measurement(Result):
    """What was measured of a trained candidate. ``accuracy`` is of the ``images`` of the validation subset; ``run`` is
    the folder's name.
    """

    accuracy: float
    float_accuracy: float
    images: int
    latency_ms: float
    flatbuffer_bytes: int
    file_bytes: int
    parameters: int
    run: str

    def __str__(self) -> str:
        """Latency and size, as text."""
        return f"{self.latency_ms:.2f} ms, {self.file_bytes:,} bytes"


@dataclass(frozen=True, kw_only=True)
class Tried(Result):
    """A trial that counts; for ``outcome`` see `Trials`. ``overshoot`` is that of the measured network."""

    trial: int
    outcome: str
    candidate: Candidate
    worker: str
    host: str | None = None
    folder: str | None = None
    untrained: Cost | None = None
    measured: Measurement | None = field(default=None, metadata=SPREAD)
    overshoot: float | None = None
    reason: str = ""
    seconds: float | None = None


class Trials:
    """A study in a storage that outlives the process.

    An outcome is ``measured``; ``stopped``: training ended early; ``refused``: too slow or too large, never trained;
    ``failed``: could not be built; ``running``: here or on another machine. A trial whose process died is dropped and
    its candidate tried again.

    Args:
        storage: from `edgeall.optimize.experiments.storage.open_storage`.
        name: name of the study in the storage.
        space: candidates.
        identity: what must be equal for two processes to work on one study; plain JSON.
        worker: ``worker``, ``host`` and ``folder`` of this process. A running trial of the same worker was left by a
            kill.
        seed: seed of the sampler.
        free_epochs: first epochs in which no trial is stopped.

    Raises:
        UsageError: the storage holds a study of this name with another identity, or cannot be read.
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
            raise UsageError(f"--storage: {first_line(error)}", hint="check the URL or the path") from error
        # Other random numbers after a restart; the same ones would draw the same candidates.
        self._random = np.random.default_rng((seed, begun))
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS, seed=int(self._random.integers(2**31))
        )
        self._join(identity, name)
        self._take_over()
        if not begun:
            for axes in space.axes:
                smallest = next(item for item in space.candidates() if item.model == axes.model)
                self._study.enqueue_trial(space.parameters(smallest))

    def rows(self) -> list[Tried]:
        """Every trial that counts."""
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            facts = trial.user_attrs
            outcome = "running" if trial.state.name == "RUNNING" else facts.get("outcome")
            if "candidate" in facts and outcome in ("measured", "stopped", "refused", "failed", "running"):
                found.append(from_json(Tried, {**facts, "trial": trial.number, "outcome": outcome}))
        return found

    def next(self) -> tuple[Any, Candidate] | None:
        """The next trial and its candidate; None when every candidate has been tried.

        A candidate that was tried before is replaced with one that was not.
        """
        while True:
            trial = self._study.ask()
            sign_of_life(trial)
            self.note(trial, **self._worker)
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

    def note(self, trial: Any, **facts: Any) -> None:
        """Store facts of a trial, plain JSON."""
        for key, value in facts.items():
            trial.set_user_attr(key, value)

    def end(self, trial: Any, outcome: str, accuracy: float | None = None) -> None:
        """Finish a trial.

        Args:
            outcome: see `Trials`.
            accuracy: result for the sampler; None: a bad candidate.
        """
        states = self._optuna.trial.TrialState
        self.note(trial, outcome=outcome)
        if accuracy is not None:
            self._study.tell(trial, accuracy)
        else:
            self._study.tell(trial, state=states.FAIL if outcome == "failed" else states.PRUNED)

    def _tried(self, before: int) -> set[Candidate]:
        done = {row.candidate for row in self.rows() if row.trial < before}
        deaths = self._deaths()
        return done | {candidate for candidate, count in deaths.items() if count >= MAX_ATTEMPTS}

    def _deaths(self) -> dict[Candidate, int]:
        """How often the process died in a trial of each candidate."""
        counts: dict[Candidate, int] = {}
        for trial in self._study.get_trials(deepcopy=False):
            facts = trial.user_attrs
            if trial.state.name == "FAIL" and "outcome" not in facts and "candidate" in facts:
                candidate = Candidate(**facts["candidate"])
                counts[candidate] = counts.get(candidate, 0) + 1
        return counts

    def _take_over(self) -> None:
        """Queue again the candidates of dead processes."""
        for trial in release_dead(self._study, self._is_dead):
            if "candidate" in trial.user_attrs:
                candidate = Candidate(**trial.user_attrs["candidate"])
                if self._deaths()[candidate] < MAX_ATTEMPTS:
                    self._study.enqueue_trial(self._space.parameters(candidate))

    def _is_dead(self, trial: Any) -> bool:
        """A running trial of this worker was left by a kill: a worker runs one trial at a time."""
        return trial.user_attrs.get("worker") == self._worker["worker"] or is_silent(trial, STALE_S)

    def _join(self, identity: Mapping[str, Any], name: str) -> None:
        wanted = json.loads(json.dumps(identity))
        if "identity" not in self._study.user_attrs:
            self._study.set_user_attr("identity", wanted)
        differing = differences(self._study.user_attrs["identity"], wanted)
        if differing:
            raise UsageError(
                f"--study {name}: its storage holds a study with other settings ({differing})",
                hint="repeat its settings to resume it, or choose another --study",
            )
