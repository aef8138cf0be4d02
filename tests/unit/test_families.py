"""Every backbone: its layers, equality with the original network, and training."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_models import grainy_image
from numpy.typing import NDArray

from edgeall.edge_runtime.errors import DataError
from edgeall.edge_runtime.preprocess import InputSpec, normalize, preprocess
from edgeall.models import listing, registry
from edgeall.models.registry import BuildArgs

IMAGES = 12
TOLERANCE = 1e-4
ORIGINALS = {
    "vgg16": ("vgg16", "vgg16"),
    "vgg19": ("vgg19", "vgg19"),
    "resnet50": ("resnet", "resnet50"),
    "resnet101v2": ("resnet_v2", "resnet101v2"),
    "inception_v3": ("inception_v3", "inception_v3"),
    "inception_resnet_v2": ("inception_resnet_v2", "inception_resnet_v2"),
    "nasnet_large": ("nasnet", "NASNet"),
    "efficientnet_b0": ("efficientnet", "efficientnetb0"),
    "densenet121": ("densenet", "densenet121"),
    "mobilenet_v2": ("mobilenet_v2", "mobilenetv2_0.35_96"),
}
"""Module of ``tf_keras.applications`` and Keras' name of the network; the other backbones are our own."""
FIRST_TRAINED = {
    "vgg16": "block5_conv1",
    "vgg19": "block5_conv1",
    "resnet101v2": "conv5_block1_preact_bn",
    "inception_resnet_v2": "mixed_7a",
    "nasnet_large": "reduction_concat_reduce_12",
}
LARGE = ("densenet121", "inception_v3", "inception_resnet_v2", "nasnet_large", "resnet101v2")
LIKE_OTHERS = ("vgg19", "resnet50")
"""Those whose facts take seconds, with no layer that others lack."""


def _marks(name: str, long: tuple[str, ...], slow: tuple[str, ...]) -> Any:
    return pytest.mark.slow if name in slow else pytest.mark.long if name in long else ()


EVERY = [pytest.param(name, marks=_marks(name, (*LARGE, "vgg19"), ("nasnet_large",))) for name in registry.names()]


@dataclass(frozen=True)
class Pair:
    """A backbone at its smallest size with non-trivial weights, and its original.

    Attributes:
        ours: from the registry.
        original: from ``tf_keras.applications``, of the same weights; None for our own networks.
        pixels: uint8 images.
        images: the same, normalized for `ours`.
    """

    ours: Any
    original: Any
    pixels: NDArray[np.uint8]
    images: NDArray[np.float32]


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Pair:
    """The `Pair` of a name. Tests with the same pair run consecutively, so only one is in memory.

    Keras builds its network for the ImageNet weights, but loads random weights instead.
    """
    from edgeall.models.keras_compat import keras

    name = request.param
    spec = registry.get(name)
    size = spec.sizes[0]
    args = BuildArgs(size, size, spec.alphas[0] if spec.alphas else None, "imagenet" if spec.pretrained else "none")
    pixels = _pixels(size)
    originals = []

    def fill(model: Any, path: str) -> None:
        _randomize(model, _preprocessed(name, pixels))
        originals.append(model)

    keras.utils.set_random_seed(0)
    for kind in ("Add", "BatchNormalization", "Concatenate", "GlobalAveragePooling2D", "MaxPooling2D", "ZeroPadding2D"):
        getattr(keras.layers, kind)()  # Keras counts on from here
    keras.layers.Conv2D(1, 1)
    keras.layers.Activation("relu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tf_keras.src.utils.data_utils.get_file", lambda *args, **kwargs: "imagenet.h5")
        patch.setattr(keras.Model, "load_weights", fill)
        ours = spec.build(args)
    if not originals:
        _randomize(ours, _images(pixels))
    return Pair(ours, originals[0] if originals else None, pixels, _images(pixels))


def _pixels(size: int) -> NDArray[np.uint8]:
    """Images with different colours and brightness, because BatchNormalization removes what they have in common."""
    spec = InputSpec(size, size)
    images = np.stack([preprocess(grainy_image(seed), spec) for seed in range(IMAGES)])
    random = np.random.default_rng(1)
    low = random.uniform(0, 0.7, (IMAGES, 1, 1, 3))
    high = random.uniform(low + 0.1, 1.0)
    return (255 * low + (high - low) * images).astype(np.uint8)


def _images(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return normalize(pixels, InputSpec(*pixels.shape[1:3]))


def _preprocessed(name: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    from edgeall.models.keras_compat import keras

    return getattr(keras.applications, ORIGINALS[name][0]).preprocess_input(pixels.astype(np.float32))


def _randomize(model: Any, images: NDArray[np.float32]) -> None:
    """Random weights that all affect the output, with features that depend on the image but not on rounding.

    A network of random kernels and the BatchNormalization statistics of its own activations makes any small difference
    a fifth larger in every layer (Yang et al. 2019, "A mean field theory of batch normalization"), thousands of times
    in all. Variances somewhat above those of the activations hold that back.
    """
    from edgeall.models.keras_compat import keras

    random = np.random.default_rng(0)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in model.layers:
        if getattr(layer, "use_bias", False):
            layer.bias.assign(random.normal(0, 0.05, layer.bias.shape))
        if isinstance(layer, keras.layers.Normalization):  # EfficientNet: as in Keras' weight file
            layer.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.int64(0)])
            layer.finalize_state()
    for norm in norms:
        norm.momentum = 0.0
        norm.beta.assign(random.normal(0, 0.2, norm.beta.shape))
        if norm.scale:
            norm.gamma.assign(random.uniform(0.5, 1.5, norm.gamma.shape))
    model(images, training=True)  # leaves the statistics of these images
    for norm in norms:
        variance = norm.moving_variance.numpy()
        variance = np.maximum(variance, 0.1 * variance.mean())
        norm.moving_variance.assign(variance * random.uniform(0.9, 1.1, len(variance)))
        norm.moving_mean.assign_add(random.normal(0, 0.05, len(variance)) * np.sqrt(variance))
    while norms and _spread(model(images, training=False).numpy()) > 0.1:
        for norm in norms:
            norm.moving_variance.assign(1.1 * norm.moving_variance)


def _spread(features: NDArray[np.float32]) -> float:
    """Variation of the features between images."""
    return float(features.std(axis=0).mean())


@pytest.mark.parametrize("pair", EVERY, indirect=True)
def test_it_is_one_flat_graph_of_known_layers_up_to_the_pooled_features(pair: Pair) -> None:
    from edgeall.models.graph import sources, targets
    from edgeall.models.keras_compat import keras
    from edgeall.models.rewrite import vocabulary

    ours = pair.ours
    assert ours.input_shape[1:] == pair.images.shape[1:]
    assert len(ours.output_shape) == 2
    for layer in ours.layers:
        assert type(layer) in vocabulary(), layer.name
        if type(layer) is keras.layers.Conv2D:
            assert layer.groups == 1 and layer.activation in (keras.activations.linear, keras.activations.relu)
        if type(layer) is keras.layers.Activation:
            assert layer.activation is keras.activations.sigmoid
        if type(layer) is keras.layers.ReLU:
            assert layer.max_value in (None, 6.0) and layer.negative_slope == layer.threshold == 0
        if type(layer) is keras.layers.Rescaling:
            (source,) = sources(layer)
            assert np.ndim(layer.scale) == 0 and layer.offset == 0
            assert type(source) is keras.layers.Conv2D and source.activation is keras.activations.linear
            assert len(targets(source)) == 1


@pytest.mark.parametrize("pair", EVERY, indirect=True)
def test_layer_names_count_from_none_and_survive_saving_in_their_order(pair: Pair) -> None:
    from edgeall.models.keras_compat import keras

    names = [layer.name for layer in pair.ours.layers]
    assert names[0] == "image"
    counted: dict[str, set[int]] = {}
    for layer in pair.ours.layers:
        stem, number = re.fullmatch(r"(.*?)(?:_(\d+))?", layer.name).groups()  # type: ignore[union-attr]
        if stem.replace("_", "") == type(layer).__name__.lower():
            counted.setdefault(stem, set()).add(int(number or 0))
    assert all(found == set(range(len(found))) for found in counted.values()), counted
    restored = keras.Model.from_config(pair.ours.get_config())  # as load_model does
    assert [layer.name for layer in restored.layers] == names
    assert [weights.shape for weights in restored.weights] == [weights.shape for weights in pair.ours.weights]


@pytest.mark.parametrize("pair", [param for param in EVERY if param.values[0] in ORIGINALS], indirect=True)
def test_it_computes_what_the_original_does_of_its_own_preprocessing(
    pair: Pair, request: pytest.FixtureRequest, record_property: Any
) -> None:
    name = request.node.callspec.params["pair"]
    assert pair.original.name == ORIGINALS[name][1]
    wanted = pair.original(_preprocessed(name, pair.pixels), training=False).numpy()
    if wanted.ndim == 4:  # MobileNetV2, with a separate pooling layer
        wanted = wanted.mean(axis=(1, 2))
    found = pair.ours(pair.images, training=False).numpy()
    record_property("difference", float(np.abs(found - wanted).max()))
    assert _spread(wanted) > 10 * TOLERANCE, "features that hardly depend on the image"
    assert np.abs(found - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("pair", EVERY, indirect=True)
def test_a_training_step_lowers_the_loss_of_its_batch(pair: Pair) -> None:
    from edgeall.models.head import add_head
    from edgeall.models.keras_compat import keras, tf

    model = add_head(pair.ours, 2, 0.2)
    labels = np.arange(IMAGES) % 2

    def loss() -> Any:
        keras.utils.set_random_seed(1)  # the same dropout every time
        return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, model(pair.images, training=True)))

    with tf.GradientTape() as tape:
        before = loss()
    gradients = tape.gradient(before, model.trainable_variables)
    assert not any(gradient is None for gradient in gradients)
    assert loss().numpy() == pytest.approx(before.numpy(), rel=1e-5)
    rate = (
        0.02 * before / sum(tf.reduce_sum(gradient**2) for gradient in gradients)
    )  # two per cent lower for a linear network
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        variable.assign_sub(rate * gradient)
    assert loss().numpy() < before.numpy()


@pytest.mark.parametrize("pair", EVERY, indirect=True)
def test_fine_tuning_begins_at_the_start_of_a_stage(pair: Pair, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["pair"]
    unfreeze = registry.get(name).unfreeze
    first = None if unfreeze is None else pair.ours.layers[-unfreeze].name
    assert first == FIRST_TRAINED.get(name)


def test_an_efficientnet_that_normalizes_its_input_in_another_way_is_refused(tmp_path: Path) -> None:
    from edgeall.models.keras_compat import keras

    file = tmp_path / "own.h5"
    keras.applications.EfficientNetB0(input_shape=(32, 32, 3), include_top=False, weights=None).save_weights(file)
    with pytest.raises(DataError, match=r"own\.h5: an EfficientNetB0 with another input normalization"):
        registry.get("efficientnet_b0").build(BuildArgs(32, 32, None, str(file)))


def test_macs_are_those_of_the_kernels_at_every_position() -> None:
    from edgeall.models.keras_compat import keras
    from edgeall.models.macs import layer_macs, macs

    layers = keras.layers
    inputs = layers.Input((9, 7, 3))
    x = layers.Conv2D(5, (3, 1), strides=2, padding="same", name="conv")(inputs)  # 5 x 4 positions
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(layers.ReLU()(x))  # 3 x 2
    model = keras.Model(inputs, layers.Dense(11, name="dense")(layers.Flatten()(x)))
    wanted = {"conv": 5 * 4 * 3 * 3 * 5, "depthwise": 3 * 2 * 9 * 5 * 2, "dense": 60 * 11}
    assert layer_macs(model) == wanted
    assert macs(model) == sum(wanted.values())


@pytest.mark.parametrize(
    "name",
    [
        # These take minutes to build and to place, the others a few seconds each.
        pytest.param(name, marks=_marks(name, LIKE_OTHERS, LARGE))
        for name in registry.names()
    ],
)
def test_the_facts_of_the_registry_are_those_of_the_built_network(name: str) -> None:
    from edgeall.models.head import add_head
    from edgeall.models.macs import macs
    from edgeall.models.narrow import groups
    from edgeall.optimize.pruning.sparsity import prunable
    from edgeall.optimize.quantization.fold import fold_batch_normalization
    from edgeall.optimize.quantization.placement import place

    spec = registry.get(name)
    backbone = spec.build(BuildArgs(*spec.input_hw, 1.0 if spec.alphas else None, "none"))
    model = add_head(backbone, 2, 0.0)
    place(fold_batch_normalization(model), (-1.0, 1.0))  # a UsageError where a layer can't be quantized
    assert spec.facts == registry.Facts(
        parameters=backbone.count_params(),
        macs=macs(backbone),
        features=backbone.output_shape[-1],
        layers=len(backbone.layers),
        sparsity_weights=sum(int(layer.kernel.shape.num_elements()) for layer in prunable(model)),
        channel_groups=len(groups(model)),
    )


def test_a_backbone_is_described_by_what_it_is() -> None:
    row = listing.describe("basic_cnn")
    assert row.parameters == 27 * 32 + 9 * 32 * 64 + 9 * 64 * 128 + 4 * (32 + 64 + 128)
    assert row.macs == 128**2 * (27 * 32 + 9 * 32 * 64 // 4 + 9 * 64 * 128 // 16)
    assert row.float32_bytes == 4 * row.parameters
    assert row.int8 is True
    assert [row.name for row in listing.listing()] == list(registry.names())


def test_the_cells_of_a_small_nasnet_are_rewritten() -> None:
    """All types of NASNet cells in a quarter of its layers, so that quick test runs include them."""
    from edgeall.models.keras_compat import keras
    from edgeall.models.nasnet import _separable
    from edgeall.models.rewrite import image_input, rewrite

    keras.utils.set_random_seed(0)
    images = _images(_pixels(64))
    original = importlib.import_module(keras.applications.NASNetLarge.__module__).NASNet(
        (64, 64, 3),
        penultimate_filters=192,
        num_blocks=1,
        stem_block_filters=8,
        include_top=False,
        weights=None,
        input_tensor=image_input(64, 64),
        pooling="avg",
    )
    _randomize(original, images)
    ours = rewrite(original, rule=_separable)
    wanted = original(images, training=False).numpy()
    assert _spread(wanted) > 10 * TOLERANCE
    assert np.abs(ours(images, training=False).numpy() - wanted).max() <= TOLERANCE
