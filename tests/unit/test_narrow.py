"""Removable channel groups; a network without channels that had no effect computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgeall.edge_runtime.errors import UsageError
from edgeall.models import registry
from edgeall.models.graph import sources
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras
from edgeall.models.macs import macs
from edgeall.models.narrow import Group, groups, narrow, with_channels
from edgeall.models.registry import BuildArgs

layers = keras.layers


@pytest.fixture
def _double() -> Iterator[None]:
    """Float64, so that rounding in a network of fifty layers cannot hide an error."""
    keras.mixed_precision.set_global_policy("float64")
    yield
    keras.mixed_precision.set_global_policy("float32")


def _random(model: Any, seed: int = 0) -> Any:
    """``model`` with random weights and statistics."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        values = [generator.normal(0, 0.3, value.shape) for value in layer.get_weights()]
        if isinstance(layer, layers.BatchNormalization):
            values[0], values[-1] = 1 + values[0], np.abs(values[-1]) + 0.5
        elif values:
            depthwise = isinstance(layer, layers.DepthwiseConv2D)
            values[0] *= 6 / np.sqrt(np.prod(values[0].shape[: 2 if depthwise else -1]))
        layer.set_weights(values)
    return model


def _flattened() -> Any:
    """Channels that reach a dense layer through Flatten, with several values each, and BatchNormalization."""
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, activation="relu", name="one")(inputs)
    x = layers.ZeroPadding2D(1)(layers.AveragePooling2D(2)(layers.Dropout(0.1)(x)))
    x = layers.BatchNormalization(name="behind")(layers.Flatten()(layers.Cropping2D(1)(x)))
    x = layers.Dense(20, activation="relu", name="two")(x)
    return add_head(keras.Model(inputs, x, name="flattened"), 3, 0.1)


def _squeezed() -> Any:
    """Squeeze and excitation, with swish: the products tie the channels of both branches together."""

    def swish(x: Any) -> Any:
        return layers.Multiply()([x, layers.Activation("sigmoid")(x)])

    inputs = layers.Input((8, 8, 3))
    x = swish(layers.BatchNormalization()(layers.Conv2D(12, 1, name="expand")(inputs)))
    x = swish(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)))
    y = layers.Reshape((1, 1, 12))(layers.GlobalAveragePooling2D()(x))
    y = layers.Conv2D(12, 1, activation="sigmoid", name="excite")(swish(layers.Conv2D(4, 1, name="squeeze")(y)))
    x = layers.Conv2D(7, 1, name="project")(layers.Multiply(name="weigh")([x, y]))
    return add_head(keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="squeezed"), 3, 0.0)


def _joined() -> Any:
    """A sum and a concatenation: their inputs keep all channels."""
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="stem")(inputs)
    y = layers.Conv2D(8, 3, padding="same", name="outer")(layers.Conv2D(5, 1, name="inner")(x))
    x = layers.Add()([x, y])
    x = layers.Concatenate()([x, layers.Conv2D(4, 1, name="grown")(x)])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(9, 1, name="last")(x))
    return add_head(keras.Model(inputs, x, name="joined"), 3, 0.0)


def _backbone(name: str, size: int) -> Any:
    alpha = 0.35 if name == "mobilenet_v2" else None
    return add_head(registry.get(name).build(BuildArgs(size, size, alpha, "none")), 3, 0.2)


def _without_effect(model: Any, group: Group, removed: np.ndarray) -> None:
    """Set the weights of all consumers to zero for some channels of a group."""
    for name in group.consumers:
        layer = model.get_layer(name)
        kernel, *rest = layer.get_weights()
        inputs = kernel.shape[-2]
        positions = np.arange(inputs // group.channels)[:, None] * group.channels
        kernel[..., (positions + removed).ravel(), :] = 0
        layer.set_weights([kernel, *rest])


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize(
    ("build", "size"),
    [
        (_flattened, 8),
        (_squeezed, 8),
        (_joined, 8),
        (lambda: _backbone("basic_cnn", 32), 32),
        pytest.param(lambda: _backbone("mobilenet_v2", 96), 96, marks=pytest.mark.long),
    ],
    ids=["flattened", "squeezed", "joined", "basic_cnn", "mobilenet_v2"],
)
def test_channels_without_effect_can_go_and_nothing_changes(build: Any, size: int) -> None:
    model = _random(build())
    generator = np.random.default_rng(1)
    keep = {}
    for group in groups(model):
        keep[group.name] = np.sort(generator.permutation(group.channels)[: group.channels // 2 + 1])
        _without_effect(model, group, np.setdiff1d(np.arange(group.channels), keep[group.name]))
    smaller = narrow(model, keep)
    images = generator.normal(0, 1, (4, size, size, 3)).astype(np.float32)
    expected = model.predict(images, verbose=0)
    assert expected.std(axis=0).max() > 1e-3, "answers that don't depend on the image prove nothing"
    np.testing.assert_allclose(smaller.predict(images, verbose=0), expected, atol=1e-6)
    assert {group.name: group.channels for group in groups(smaller)} == {name: len(kept) for name, kept in keep.items()}
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]
    assert macs(smaller) < macs(model)
    rebuilt = with_channels(build(), {name: len(kept) for name, kept in keep.items()})
    rebuilt.set_weights(smaller.get_weights())
    np.testing.assert_allclose(rebuilt.predict(images, verbose=0), expected, atol=1e-6)


def test_which_channels_go_together() -> None:
    (tied,) = [group for group in groups(_squeezed()) if group.name == "expand"]
    assert tied.producers == ("expand", "excite")
    assert tied.consumers == ("squeeze", "project")
    assert {"depthwise", "weigh"} < set(tied.members)
    assert [group.name for group in groups(_joined())] == ["inner", "last"]
    assert [(group.name, group.channels) for group in groups(_flattened())] == [("one", 6), ("two", 20)]


def test_every_hidden_layer_of_mobilenet_v2_can_be_narrowed() -> None:
    model = _backbone("mobilenet_v2", 96)
    names = {group.name for group in groups(model)}
    assert {f"block_{number}_expand" for number in range(1, 17)} | {"Conv1", "Conv_1"} < names
    residual = {sources(source)[0].name for layer in model.layers for source in _summands(layer)}
    assert not names & residual


def _summands(layer: Any) -> list[Any]:
    found = sources(layer) if isinstance(layer, layers.Add) else []
    return [source for source in found if isinstance(source, layers.BatchNormalization)]


def test_what_is_not_a_group_is_refused() -> None:
    model = _joined()
    for name, kept in (("outer", [0]), ("logits", [0]), ("inner", []), ("inner", [0, 5]), ("inner", [2, 1])):
        with pytest.raises(UsageError, match=name):
            narrow(model, {name: np.array(kept, int)})
