"""The refitted last layer in numpy: its optimum, what is left out, and what it is judged by."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeall.edge_runtime.adaptation import fit
from edgeall.edge_runtime.adaptation.fit import Examples, refit
from edgeall.edge_runtime.adaptation.head import Head
from edgeall.edge_runtime.adaptation.verdict import figures, gain, wilson

FEATURES, LABELS = 40, 4
ALL = np.ones(LABELS, bool)


def drawn(count: int, seed: int = 0, noise: float = 1.0) -> tuple[Head, Examples]:
    """An old layer, and images of another laboratory that it partly gets wrong."""
    centres = np.random.default_rng(7).normal(0, 1, (LABELS, FEATURES))
    random = np.random.default_rng(seed)
    truth = np.arange(count) % LABELS
    features = centres[truth] + random.normal(0, noise, (count, FEATURES)) + 0.8 * centres[0] + 2
    return Head(0.2 * centres, np.zeros(LABELS)), Examples(features, truth)


def log_loss(head: Head, examples: Examples) -> NDArray[np.float64]:
    scores = _log_softmax(head.logits(examples.features))
    return np.asarray(-scores[np.arange(len(examples)), examples.truth])


def objective(head: Head, old: Head, examples: Examples, strength: float) -> float:
    """The objective as the module's text states it, in the space of the features."""
    counts = np.bincount(examples.truth, minlength=LABELS)
    weight = len(examples) / LABELS / counts[examples.truth]
    middle = weight @ examples.features / weight.sum()
    scale = np.sqrt(weight @ np.square(examples.features - middle).sum(axis=1) / weight.sum())
    moved = (head.weights - old.weights) * scale
    at_middle = head.bias - old.bias + (head.weights - old.weights) @ middle
    return float(
        weight @ log_loss(head, examples) + strength / 2 * (np.square(moved).sum() + np.square(at_middle).sum())
    )


@pytest.mark.parametrize("strength", [3.0, 0.1])
def test_it_is_the_minimum_of_the_objective(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "TOLERANCE", 1e-7)
    monkeypatch.setattr(fit, "STEPS", 5000)
    old, examples = drawn(30)
    found = refit(old, examples, ALL, [strength]).head
    least = objective(found, old, examples, strength)
    assert least < objective(old, old, examples, strength)
    random = np.random.default_rng(1)
    for size in (1e-2, 1e-3):
        for _ in range(30):
            other = Head(
                found.weights + size * random.normal(0, 0.1, found.weights.shape),
                found.bias + size * random.normal(0, 1, LABELS),
            )
            assert objective(other, old, examples, strength) > least


def test_what_was_left_out_is_judged_by_a_layer_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "TOLERANCE", 1e-6)
    old, examples = drawn(24, noise=3)
    found = refit(old, examples, ALL, [0.3])
    assert found.folds == 24
    inside, outside = (
        np.take_along_axis(_log_softmax(outputs), examples.truth[:, None], axis=1)[:, 0]
        for outputs in (found.head.logits(examples.features), found.left_out)
    )
    assert (outside < inside).all(), "an image that is fitted is more probable than one that is left out"
    for image in np.argsort(outside - inside)[:3]:  # those that matter most to the layer
        others = np.arange(24) != image
        alone = refit(old, Examples(examples.features[others], examples.truth[others]), ALL, [0.3]).head
        # Weights of the classes and the middle of the features come from all images: close, but not equal.
        expected = alone.logits(examples.features[image])
        assert (
            np.abs(found.left_out[image] - expected).max()
            < np.abs(found.left_out[image] - found.head.logits(examples.features[image])).max()
        )


def test_no_image_of_its_own_fold_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "MOST_FOLDS", 8)
    old, examples = drawn(80)
    found = refit(old, examples, ALL)
    assert found.folds == 8
    assert (found.left_out.argmax(axis=1) == examples.truth).mean() <= (
        found.head.logits(examples.features).argmax(axis=1) == examples.truth
    ).mean()


def test_labels_at_random_are_not_learned() -> None:
    """Left out, they are guessed as badly as chance would; the strongest regularization wins, or nothing is gained."""
    old, examples = drawn(60)
    shuffled = Examples(examples.features, np.random.default_rng(3).permutation(examples.truth))
    found = refit(old, shuffled, ALL)
    before, after = old.logits(examples.features).argmax(axis=1), found.left_out.argmax(axis=1)
    assert not gain(before, after, shuffled.truth).is_better


def test_a_class_with_few_images_is_left_as_it_is() -> None:
    old, examples = drawn(40)
    kept = (examples.truth != 2) | (np.arange(40) < 8)
    few = Examples(examples.features[kept], examples.truth[kept])
    found = refit(old, few, np.array([True, True, False, True]))
    np.testing.assert_array_equal(found.head.weights[2], old.weights[2])
    assert found.head.bias[2] == old.bias[2]
    assert np.abs(found.head.weights[0] - old.weights[0]).max() > 0


def test_how_often_a_class_occurs_is_not_learned() -> None:
    """The same images three times over in one class: the layer stays nearly the same."""
    old, examples = drawn(40)
    many = np.concatenate([np.arange(40), *[np.flatnonzero(examples.truth == 0)] * 2])
    one = refit(old, examples, ALL, [1.0]).head
    other = refit(old, Examples(examples.features[many], examples.truth[many]), ALL, [1.0]).head
    fresh = drawn(400, seed=9)[1]
    shares = [np.mean(head.logits(fresh.features).argmax(axis=1) == 0) for head in (one, other)]
    assert abs(shares[0] - shares[1]) < 0.05


def test_figures_of_predictions() -> None:
    truth = np.array([0] * 8 + [1] * 2)
    predicted = np.array([0] * 8 + [0, 1])
    found = figures(predicted, truth, ("a", "b", "c"))
    assert (found.images, found.accuracy, found.balanced_accuracy) == (10, 0.9, 0.75)
    assert found.recall == {"a": 1.0, "b": 0.5, "c": None}
    assert found.accuracy_ci95 == pytest.approx((0.5958, 0.9821), abs=1e-3)
    assert found.balanced_accuracy_ci95 == (0.5, 1.0)
    assert wilson(0, 5)[0] == 0


def test_a_gain_is_more_than_chance_or_not() -> None:
    truth = np.arange(40) % 4
    wrong = (truth + 1) % 4
    six, five = (np.where(np.arange(40) < count, truth, wrong) for count in (6, 5))
    assert gain(wrong, truth, truth).is_better
    # McNemar's: of all signs only one combination gains as much.
    assert gain(wrong, six, truth).accuracy.p == pytest.approx(1 / 64)
    assert gain(wrong, six, truth).is_better
    assert not gain(wrong, five, truth).is_better
    assert not gain(truth, truth, truth).is_better
    assert not gain(truth, wrong, truth).is_better
    assert (gain(wrong, five, truth).gained, gain(five, wrong, truth).lost) == (5, 5)


def test_what_gains_in_a_common_class_and_loses_a_rare_one_is_not_better() -> None:
    """100 of 300 common images gained, all 20 of a rare class lost: more accurate, less balanced."""
    truth = np.array([0] * 300 + [1] * 20)
    before, after = np.array([1] * 320), np.array([0] * 100 + [1] * 200 + [0] * 20)
    found = gain(before, after, truth)
    assert found.accuracy.points > 0 and found.accuracy.p < 0.025
    assert found.balanced_accuracy.points < 0 and found.balanced_accuracy.p_loss < 0.025
    assert not found.is_better
    kept = np.where(truth == 1, 1, after)
    assert gain(before, kept, truth).is_better


def _log_softmax(outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
