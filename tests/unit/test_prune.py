"""Pruning: masks, the importance of channels, the budget of MACs, and the verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeall.edge_runtime.errors import UsageError
from edgeall.models.graph import sources
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras
from edgeall.optimize.pruning.channels import SLOW, Budget, importance, round_up
from edgeall.optimize.pruning.sparsity import Masks, prunable, sparsity_of
from edgeall.optimize.pruning.summary import verdict
from edgeall.train.checkpoint import TrainingState

layers = keras.layers


def test_settling_weights_are_not_kept_however_good() -> None:
    inputs = layers.Input((1,))
    model = keras.Model(inputs, layers.Dense(1)(inputs))
    state = TrainingState.fresh(model, 0.0)
    for epoch, (loss, settling) in enumerate(((0.1, True), (0.9, True), (0.95, False), (5.0, False)), start=1):
        state = state.after({"epoch": epoch, "val_loss": loss}, settling)
        assert state.kept_epoch == min(epoch, 2), "epochs 3 and 4 are worse than 2, the best that is settled"


def _deep() -> Any:
    """Every kind of layer with weights."""
    inputs = layers.Input((16, 16, 3))
    x = layers.BatchNormalization()(layers.Conv2D(16, 3, name="first")(inputs))
    x = layers.DepthwiseConv2D(3, name="depthwise")(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(32, 1, activation="relu", name="wide")(x))
    return add_head(keras.Model(inputs, layers.Dense(24, activation="relu", name="dense")(x)), 3, 0.0)


def test_the_sparsity_rises_and_what_is_zero_stays_zero() -> None:
    keras.utils.set_random_seed(0)
    model, steps = _deep(), 200
    masks = Masks(model, 0.8, steps)
    average = model.get_weights()
    generator = np.random.default_rng(0)
    shares, before = [], {}
    for done in range(steps + 1):
        masks.after_step(done, average)
        kernels = {layer.name: layer.kernel.numpy() for layer in prunable(model)}
        for name, kernel in kernels.items():
            assert (kernel[before.get(name, kernel) == 0] == 0).all()
        index = [id(variable) for variable in model.weights].index(id(model.get_layer("wide").kernel))
        assert ((average[index] == 0) == (kernels["wide"] == 0)).all(), "the running average too"
        shares.append(sparsity_of(model))
        before = kernels
        for layer in prunable(model):  # an optimizer knows nothing of the masks
            layer.kernel.assign_add(generator.normal(0, 0.01, layer.kernel.shape))
        average = [value + 0.001 for value in average]
    assert shares[0] == 0
    assert (np.diff(shares) >= 0).all()
    assert shares[60] == pytest.approx(0.8 * (1 - 0.5**3), abs=0.02), "half way through the cubic rise"
    assert masks.settled == 120
    assert np.ptp(shares[masks.settled :]) == 0
    assert shares[-1] == pytest.approx(0.8, abs=0.005)
    assert {layer.name for layer in prunable(model)} == {"wide", "dense"}
    assert all((model.get_layer(name).get_weights()[0] != 0).all() for name in ("first", "depthwise", "logits"))


def test_after_a_restart_the_weights_tell_the_masks() -> None:
    keras.utils.set_random_seed(0)
    model = _deep()
    first = Masks(model, 0.8, 200)
    for done in range(41):
        first.after_step(done, model.get_weights())
    zeros = {layer.name: layer.kernel.numpy() == 0 for layer in prunable(model)}
    again = Masks(model, 0.8, 200)
    again.after_step(41, model.get_weights())
    for layer in prunable(model):
        layer.kernel.assign_add(np.ones(layer.kernel.shape))
    again.after_step(42 if 42 % 3 else 43, model.get_weights())
    for layer in prunable(model):
        np.testing.assert_array_equal(layer.kernel.numpy() == 0, zeros[layer.name])


def _linear() -> Any:
    """Logits that are linear in eight channels, which follow the image, or not at all: the last two."""
    inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(8, 1, name="made")(inputs)
    model = add_head(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)), 3, 0.0)
    generator = np.random.default_rng(3)
    kernel = generator.normal(0, 1, (1, 1, 3, 8)) * np.array([1, 2, 3, 4, 5, 6, 0, 7])
    bias = np.array([0, 9, 0, 0, 0, 0, 50, 0])  # a constant is no information, however large
    model.get_layer("made").set_weights([kernel, bias])
    read = generator.normal(0, 1, (8, 3))
    read[7] = 0
    model.get_layer("logits").set_weights([read, np.zeros(3)])
    return model


def test_importance_is_how_far_the_logits_move() -> None:
    """Linear logits: the first order is all there is, and can be worked out by hand."""
    model = _linear()
    images = np.random.default_rng(0).normal(0, 1, (4096, 6, 6, 3)).astype(np.float32)
    pooled = keras.Model(model.input, sources(sources(model.get_layer("logits"))[0])[0].output).predict(
        images, verbose=0
    )
    reading = model.get_layer("logits").get_weights()[0]
    moved = pooled.var(axis=0) * (reading**2).sum(axis=1)
    found = importance(model, lambda: iter(np.split(images, 64)), np.random.default_rng(1))["made"]
    np.testing.assert_allclose(found[:6], moved[:6], rtol=0.15)
    assert found[6] < 1e-6 and found[7] == 0


def test_the_best_channels_for_their_time_are_kept() -> None:
    inputs = layers.Input((16, 16, 3))
    x = layers.Conv2D(32, 3, padding="same", name="dear")(inputs)
    x = layers.Conv2D(40, 3, strides=4, padding="same", name="cheap")(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 1, name="few")(layers.ReLU()(x)))
    budget = Budget(add_head(keras.Model(inputs, x), 2, 0.0))
    assert budget.macs({}) == budget.total
    generator = np.random.default_rng(0)
    scores = {group.name: generator.uniform(0.5, 1, group.channels) for group in budget.groups}
    for share in (0.9, 0.6, 0.4):
        keep = budget.allocate(scores, share)
        counts = {name: len(kept) for name, kept in keep.items()}
        assert budget.macs(counts) <= share * budget.total
        assert counts["dear"] % 8 == 0 and counts["cheap"] % 8 == 0 and counts["few"] >= 8
        for name, kept in keep.items():
            dropped = np.setdiff1d(np.arange(len(scores[name])), kept)
            assert not dropped.size or scores[name][dropped].max() <= scores[name][kept].min()
    saved = budget.time_saved
    worthless = {**scores, "cheap": scores["cheap"] * saved["cheap"] / saved["dear"] * 1e-3}
    counts = {name: len(kept) for name, kept in budget.allocate(worthless, 0.9).items()}
    assert counts["cheap"] < 40 and counts["dear"] == 32 and counts["few"] == 12
    assert [round_up(40, 0), round_up(40, 17), round_up(12, 9), round_up(500, 0), round_up(4, 0)] == [8, 24, 9, 56, 4]
    with pytest.raises(UsageError, match="can't be reached"):
        budget.allocate(scores, budget.smallest() * 0.99)


def test_a_depthwise_mac_and_a_value_moved_take_longer_than_a_dense_mac() -> None:
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(16, 1, use_bias=False, name="made")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 1, name="read")(x))
    budget = Budget(add_head(keras.Model(inputs, x), 2, 0.0))
    dense = 64 * (3 + 12)
    moved = 64 * (1 + 2 + 1)  # written once, read and written by the depthwise convolution, read once
    assert budget.time_saved["made"] == dense + SLOW * (64 * 9 + moved)


def _verdict(latency_ms: float, size: int, packed: int) -> list[str]:
    sizes = {"parent_float32_bytes": 8_000_000, "float32_bytes": size}
    sizes |= {"parent_float32_gzip_bytes": 7_000_000, "float32_gzip_bytes": packed}
    return verdict("sparsity", sizes, {"parent_float32_p50_ms": 10.0, "float32_p50_ms": latency_ms})


def test_the_verdict_says_so_when_nothing_was_gained() -> None:
    speed, size, packed = _verdict(9.8, 8_000_000, 2_000_000)
    assert "no faster (10.00 ms before, 9.80 ms after" in speed
    assert size == "file: no smaller (8.00 MB before, 8.00 MB after)"
    assert packed == "compressed file: 2.00 of 7.00 MB"
    assert "2.00 times as fast" in _verdict(5.0, 4_000_000, 3_000_000)[0]
