"""Why this label, of a Keras network of any shape: Grad-CAM, and the test images worth looking at with it.

Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization". The
weights here are sums over places, not means, and what speaks against the label stays negative: so the map of a network
that ends in global average pooling and a dense layer is its class-activation map itself, as
`edgeall.edge_runtime.explain` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...edge_runtime.explain import captioned, overlay
from ...edge_runtime.files import file_name, held
from ...edge_runtime.images import mark_output
from ...edge_runtime.preprocess import InputSpec, normalize
from ...models.head import LOGITS
from ...models.keras_compat import keras, tf
from ..data.synth import TRUTH

SHOWN = 8
"""Of each kind: surely wrong, and hardly decided."""
_BATCH = 16


def grad_cam(model: Any, images: NDArray[np.float32], classes: Sequence[int]) -> NDArray[np.float32]:
    """What each place of the last feature map says for one class of each image.

    Args:
        model: a flat Keras classifier with a layer `LOGITS`.
        images: normalized, ``(n, height, width, 3)``.
        classes: of each image, the class asked about.

    Returns:
        ``(n, rows, columns)``: with global average pooling behind the map, its mean and the bias are the logit.
    """
    last = [layer for layer in model.layers if len(layer.output_shape) == 4][-1]
    probe = keras.Model(model.input, [last.output, model.get_layer(LOGITS).output])
    with tf.GradientTape() as tape:
        batch = tf.constant(images)
        tape.watch(batch)
        features, logits = probe(batch, training=False)
        chosen = tf.gather(logits, tf.constant(list(classes)), batch_dims=1)
    weights = tf.reduce_sum(tape.gradient(chosen, features), axis=(1, 2), keepdims=True)
    found: NDArray[np.float32] = tf.reduce_sum(weights * features, axis=-1).numpy()
    return found


def worth_seeing(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> list[tuple[int, str]]:
    """Indices of up to `SHOWN` images that are wrong, the surest first, and of as many that the model is least sure of.

    Returns:
        (index, ``wrong`` or ``unsure``) of each, none twice.
    """
    top, called = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = [int(index) for index in np.argsort(-top, kind="stable") if called[index] != truth[index]][:SHOWN]
    unsure = [int(index) for index in np.argsort(top, kind="stable") if index not in wrong][:SHOWN]
    return [(index, "wrong") for index in wrong] + [(index, "unsure") for index in unsure]


def on_cells(
    model: Any,
    pixels: NDArray[np.uint8],
    spec: InputSpec,
    probabilities: NDArray[np.float32],
    root: Path,
    names: Sequence[str],
) -> dict[str, float] | None:
    """How much of what speaks for the given labels lies on nucleated cells, where masks tell where those are.

    Args:
        root: of the data; drawn sets (`edgeall.train.data.synth`) have their masks there.
        names: of the images, below ``root``.

    Returns:
        ``evidence``, the share of the positive evidence of all images that lies on cells, and ``area``, the share of
        the images that cells cover: what evidence spread evenly would have; None without masks.
    """
    masks = [(root / TRUTH / name).with_suffix(".mask.png") for name in names]
    if not all(mask.is_file() for mask in masks):
        return None
    on, everywhere, area = 0.0, 0.0, 0.0
    size = (spec.width, spec.height)
    for at in range(0, len(names), _BATCH):
        called = probabilities[at : at + _BATCH].argmax(axis=1)
        found = grad_cam(model, normalize(pixels[at : at + _BATCH], spec), called.tolist())
        for one, path in zip(found, masks[at : at + _BATCH], strict=True):
            with Image.open(path) as mask:
                cell = np.asarray(mask.resize(size, Image.Resampling.NEAREST)) > 0
            spread = Image.fromarray(np.maximum(one, 0)).resize(size, Image.Resampling.BILINEAR)
            positive = np.asarray(spread, np.float64)
            on, everywhere, area = on + positive[cell].sum(), everywhere + positive.sum(), area + cell.mean()
    return {"evidence": float(on / everywhere) if everywhere else 0.0, "area": float(area / len(names))}


def write_overlays(
    folder: Path,
    model: Any,
    pixels: NDArray[np.uint8],
    spec: InputSpec,
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    labels: Sequence[str],
    names: Sequence[str],
) -> list[Path]:
    """Draw on the images of `worth_seeing` what speaks for the label the model gives.

    Args:
        folder: made when missing.
        model: as for `grad_cam`.
        pixels: uint8 ``(n, height, width, 3)``, preprocessed.
        spec: the contract they were made with.
        probabilities: the model's, ``(n, labels)``.
        truth: ``(n,)``.
        labels: class names.
        names: of the images, for the files.

    Returns:
        The files, ``<wrong|unsure>-<rank>-<image>.png``.
    """
    with held(folder, "evaluate"):
        return _write_overlays(folder, model, pixels, spec, probabilities, truth, labels, names)


def _write_overlays(
    folder: Path,
    model: Any,
    pixels: NDArray[np.uint8],
    spec: InputSpec,
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    labels: Sequence[str],
    names: Sequence[str],
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    mark_output(folder)
    written = []
    for rank, (index, kind) in enumerate(worth_seeing(probabilities, truth), start=1):
        called = int(probabilities[index].argmax())
        found = grad_cam(model, normalize(pixels[index : index + 1], spec), [called])[0]
        said = f"{labels[called]} {100 * probabilities[index, called]:.1f} %, labelled {labels[truth[index]]}"
        written.append(folder / file_name(f"{kind}-{rank:02d}-", Path(names[index]).stem, ".png"))
        captioned(overlay(pixels[index], found), said).save(written[-1])
    return written
