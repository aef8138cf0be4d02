"""The normalization and the order of the labels of a foreign model: named, or told by the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeall.edge_runtime.errors import UsageError
from edgeall.models.keras_files.input_map import InputMap
from edgeall.train.imports.conventions import (
    CONVENTIONS,
    GIVEN,
    Trials,
    applicable,
    check_order,
    choose,
    compare,
    given_map,
)

LABELS = ("a", "b", "c")


def trials(accuracies: dict[str, float], order: tuple[int, ...] = (0, 1, 2), images: int = 300) -> Trials:
    """Trials of a model that is right for these shares of the images, with its outputs in another order."""
    truth = np.arange(images) % 3
    place = {name: index for index, name in enumerate(accuracies)}

    def predict(one: InputMap) -> Any:
        (name,) = (name for name, known in CONVENTIONS.items() if known is one)
        wrong = np.random.default_rng(place[name]).permutation(images) >= accuracies[name] * images
        predicted = np.where(wrong, (truth + 1) % 3, truth)
        return np.eye(3, dtype=np.float32)[np.argsort(order)[predicted]] * 0.9 + 0.03

    return compare(predict, {name: CONVENTIONS[name] for name in accuracies}, truth)


def test_the_conventions_are_those_of_keras() -> None:
    from edgeall.models.keras_compat import keras

    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3)).astype(np.float32)
    applications = {"-1..1": "mobilenet_v2", "caffe": "resnet", "torch": "densenet", "0..255": "efficientnet"}
    for name, module in applications.items():
        wanted = getattr(keras.applications, module).preprocess_input(pixels.copy())
        np.testing.assert_allclose(CONVENTIONS[name](pixels), wanted, atol=1e-4)


def test_a_clear_winner_needs_no_name() -> None:
    choice = choose(trials({"0..1": 0.9, "-1..1": 0.5, "torch": 0.4}), None, False, "m.h5")
    assert (choice.normalization, choice.how, choice.warning) == ("0..1", "measured", None)


def test_a_tie_must_be_named() -> None:
    tied = trials({"0..1": 0.9, "-1..1": 0.89})
    with pytest.raises(UsageError, match=r"0\.\.1 90\.00 %, -1\.\.1 89\.00 %"):
        choose(tied, None, False, "m.h5")
    assert choose(tied, "-1..1", False, "m.h5").how == "named"


def test_a_name_that_the_data_contradict_is_taken_with_a_warning() -> None:
    choice = choose(trials({"0..1": 0.9, "-1..1": 0.5}), "-1..1", False, "m.h5")
    assert choice.normalization == "-1..1" and "0..1 90.00 %" in (choice.warning or "")


def test_first_layers_that_normalize_take_raw_pixels() -> None:
    assert choose(trials({"0..1": 0.9, "0..255": 0.9}), None, True, "m.h5").how == "inside"
    with pytest.raises(UsageError, match=r"its first layers normalize, but 0\.\.1"):
        choose(trials({"0..1": 0.9, "0..255": 0.4}), None, True, "m.h5")


def test_another_order_of_the_labels_is_found() -> None:
    mixed = trials({"0..1": 0.9, "-1..1": 0.4}, order=(2, 0, 1))
    assert mixed.of("0..1").order == (2, 0, 1)
    assert choose(mixed, None, False, "m.h5").normalization == "0..1"
    with pytest.raises(UsageError, match=r"in the order c, a, b \(90\.00 %\)"):
        check_order(mixed, "0..1", LABELS, False, "m.h5")
    assert "c, a, b" in (check_order(mixed, "0..1", LABELS, True, "m.h5") or "")
    assert check_order(trials({"0..1": 0.9}), "0..1", LABELS, False, "m.h5") is None


def test_mean_and_std_may_differ_by_channel() -> None:
    one = given_map("123.7,116.3,103.5", "58.4,57.1,57.4", 3)
    assert one is not None
    pixels = np.array([[[123.7, 116.3, 103.5], [182.1, 173.4, 160.9]]])
    np.testing.assert_allclose(one(pixels), [[[0, 0, 0], [1, 1, 1]]], atol=1e-6)
    assert list(applicable(3, one)) == [GIVEN, *CONVENTIONS]
    assert list(applicable(1)) == ["0..1", "-1..1", "0..255"]
    for mean, std in (("1", None), ("1,2", "1"), ("x", "1"), ("1", "0"), ("1,2,3", "nan")):
        with pytest.raises(UsageError):
            given_map(mean, std, 3)
