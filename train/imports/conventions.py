"""Finds the normalization and the order of the labels that a foreign model was trained with, by its accuracy.

Nothing is guessed: what the user names is taken, and anything else must be better than every alternative by a test that
sampling error does not explain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ...console.tables import percent, table
from ...edge_runtime.errors import UsageError
from ...edge_runtime.results import Result
from ...models.keras_files.input_map import InputMap, grey, per_channel
from ...models.rewrite import CAFFE, TORCH, Preprocessing
from ..evaluation.mcnemar import mcnemar

T = TypeVar("T")

SIGNIFICANT = 0.01
"""Largest p-value of McNemar's test at which one alternative counts as better than another."""
TRIED = 256
"""Images on which the normalizations are tried."""
GIVEN = "as given"
"""Name of a normalization given as mean and standard deviation."""
INSIDE = "0..255"


def _of_application(preprocessing: Preprocessing) -> InputMap:
    scale = 1 / np.asarray(preprocessing.std)
    found = per_channel(scale, -np.asarray(preprocessing.mean) * scale)
    reverse = InputMap(np.eye(3)[::-1].copy(), np.zeros(3))
    return found.then(reverse) if preprocessing.bgr else found


CONVENTIONS: Mapping[str, InputMap] = {
    "0..1": per_channel(1 / 255),
    "-1..1": per_channel(1 / 127.5, -1.0),
    "caffe": _of_application(CAFFE),
    "torch": _of_application(TORCH),
    INSIDE: per_channel(1.0),
}
"""What Keras' applications and tutorials do to pixels in 0..255. ``caffe`` is BGR minus ImageNet's mean."""


@dataclass(frozen=True)
class Trial(Result):
    """A model under one normalization.

    Attributes:
        normalization: its name.
        accuracy: with the labels in the order that is assumed, 0..1.
        best_accuracy: with the labels in the order that fits best.
        log_loss: mean, in nats, with the order that is assumed.
        order: for each output the index of the label that fits best.
    """

    normalization: str
    accuracy: float
    best_accuracy: float
    log_loss: float
    order: tuple[int, ...]


@dataclass(frozen=True)
class Trials:
    """All normalizations on the same images.

    Attributes:
        trials: one for each.
        right: by normalization, bool ``(images,)``: whether the label is right in the order that fits best.
        named_right: the same in the order that is assumed.
        images: their number.
    """

    trials: tuple[Trial, ...]
    right: Mapping[str, NDArray[np.bool_]]
    named_right: Mapping[str, NDArray[np.bool_]]
    images: int

    def of(self, normalization: str) -> Trial:
        """The trial of a normalization."""
        return next(trial for trial in self.trials if trial.normalization == normalization)


def applicable(channels: int, given: InputMap | None = None) -> dict[str, InputMap]:
    """The normalizations for a model with this number of input channels; the given one first."""
    if channels == 1:
        found = {name: CONVENTIONS[name] for name in ("0..1", "-1..1", INSIDE)}
        found = {name: grey().then(per_channel(one.matrix[0, 0], one.offset[0], 1)) for name, one in found.items()}
    else:
        found = dict(CONVENTIONS)
    return found if given is None else {GIVEN: given, **found}


def given_map(mean: str | None, std: str | None, channels: int) -> InputMap | None:
    """The map of ``--mean`` and ``--std``; None if neither is given.

    Raises:
        UsageError: only one of them, values that are not numbers, or as many values as the model has no channels.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UsageError("--mean and --std must be given together", hint="give both or neither")
    means, stds = (numbers_of(name, text) for name, text in (("--mean", mean), ("--std", std)))
    if any(value <= 0 for value in stds):
        raise UsageError(f"--std {std} must be above 0")
    for name, values in (("--mean", means), ("--std", stds)):
        if len(values) not in (1, channels):
            raise UsageError(f"{name}: {len(values)} values for {channels} channels", hint="give one, or one for each")
    scale = 1 / np.asarray(stds)
    found = per_channel(scale, -np.asarray(means) * scale, channels)
    return grey().then(found) if channels == 1 else found


def numbers_of(name: str, text: str) -> tuple[float, ...]:
    """One number, or several with commas between them. Raises UsageError for anything else."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not np.isfinite(values).all():
        raise UsageError(f"{name} {text}: not one or three numbers", hint="as in 127.5, or 123.7,116.3,103.5")
    return values


def compare(predict: Callable[[T], NDArray[np.float32]], maps: Mapping[str, T], truth: NDArray[np.int64]) -> Trials:
    """Try each normalization on the same images.

    Args:
        predict: probabilities ``(images, outputs)`` under a normalization.
        maps: the normalizations by name.
        truth: index of the output of each image's label, in the order that is assumed, ``(images,)``.
    """
    found, best_right, right = [], {}, {}
    for name, one in maps.items():
        probabilities = predict(one)
        predicted = probabilities.argmax(axis=1)
        order = _best_order(predicted, truth, probabilities.shape[1])
        best_right[name], right[name] = np.asarray(order)[predicted] == truth, predicted == truth
        of_truth = probabilities[np.arange(len(truth)), truth].astype(np.float64)
        loss = float(-np.log(np.clip(np.nan_to_num(of_truth), 1e-7, 1.0)).mean())
        found.append(Trial(name, float(right[name].mean()), float(best_right[name].mean()), loss, order))
    return Trials(tuple(found), best_right, right, len(truth))


def _best_order(predicted: NDArray[np.int64], truth: NDArray[np.int64], outputs: int) -> tuple[int, ...]:
    counts = np.zeros((outputs, outputs), np.int64)
    np.add.at(counts, (predicted, truth), 1)
    # Where nothing decides, an output keeps its place.
    return tuple(int(label) for label in linear_sum_assignment(2 * counts + np.eye(outputs), maximize=True)[1])


@dataclass(frozen=True)
class Choice:
    """The normalization that is taken, and how it is known: ``named``, ``inside`` or ``measured``; with a warning."""

    normalization: str
    how: str
    warning: str | None = None


def choose(trials: Trials, named: str | None, inside: bool, shown: str) -> Choice:
    """Choose the normalization.

    Args:
        trials: of `compare`.
        named: what the user named; None for nothing.
        inside: whether the first layers of the model normalize.
        shown: the model, for messages.

    Raises:
        UsageError: nothing is named, and the data do not tell.
    """
    best = max(trials.trials, key=lambda trial: (trial.best_accuracy, -trial.log_loss)).normalization
    if named is not None:
        better = _better(trials.right[best], trials.right[named])
        text = f"the data fit {best} better: {_pair(trials, best, named)}" if better else None
        return Choice(named, "named", text)
    if inside:
        if _better(trials.right[best], trials.right[INSIDE]):
            raise UsageError(
                f"{shown}: its first layers normalize, but {best} fits the data better: {_pair(trials, best, INSIDE)}",
                hint="name it: --normalized-inside, --normalization, or --mean and --std",
            )
        return Choice(INSIDE, "inside")
    rivals = [name for name in trials.right if name != best and not _better(trials.right[best], trials.right[name])]
    if rivals:
        raise UsageError(
            f"{shown}: the data do not tell its normalization: {_pair(trials, best, *rivals)}, {trials.images} images",
            hint="name what it was trained with: --normalization, --mean and --std, or --normalized-inside",
        )
    return Choice(best, "measured")


def check_order(trials: Trials, normalization: str, labels: Sequence[str], named: bool, shown: str) -> str | None:
    """Check the order of the labels against the data.

    Args:
        trials: of `compare`.
        normalization: the one that was chosen.
        labels: in the order that is assumed.
        named: whether the user gave them.
        shown: the model, for messages.

    Returns:
        A warning, or None.

    Raises:
        UsageError: another order fits better, and the user named none.
    """
    trial = trials.of(normalization)
    if not _better(trials.right[normalization], trials.named_right[normalization]):
        return None
    better = ", ".join(labels[index] for index in trial.order)
    text = (
        f"{shown}: its outputs fit the labels in the order {better} ({percent(trial.best_accuracy)}) better than in "
        f"the order {', '.join(labels)} ({percent(trial.accuracy)})"
    )
    if named:
        return text
    raise UsageError(text, hint="give the labels in the order of its outputs, one per line: --labels FILE")


def _better(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> bool:
    return bool(first.mean() > second.mean() and mcnemar(first, second).p_value < SIGNIFICANT)


def _pair(trials: Trials, *names: str) -> str:
    return ", ".join(f"{name} {percent(trials.of(name).best_accuracy)}" for name in names)


def trials_text(trials: Sequence[Trial], images: int, chosen: str, of: str = "the train and validation subsets") -> str:
    """The normalizations side by side, as a table; ``of`` names the images."""
    rows = [
        [
            f"{trial.normalization}{'  <-' if trial.normalization == chosen else ''}",
            percent(trial.accuracy),
            percent(trial.best_accuracy),
            f"{trial.log_loss:.3f}",
        ]
        for trial in trials
    ]
    heads = ["normalization", "accuracy", "best order of labels", "log loss"]
    return f"{table(heads, rows)}\n\n{images:,} images of {of}"
