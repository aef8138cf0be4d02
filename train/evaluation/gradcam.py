"""Grad-CAM of a Keras classifier, and overlays of the images where it is wrong or least certain.

Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization". Two
things differ from it: the weights are sums over positions, not means, and negative evidence is kept. For a network that
ends in global average pooling and a dense layer the result is the class activation map, as in
`edgeall.edge_runtime.tools.explain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...console.progress import Progress
from ...edge_runtime.files import file_name, output_lock
from ...edge_runtime.images import mark_output
from ...edge_runtime.preprocess import InputSpec, normalize
from ...edge_runtime.tools.explain import captioned, overlay
from ...models.head import LOGITS
from ...models.keras_compat import keras, tf
from ..data.synth import TRUTH

SHOWN = 8
"""Overlays of each kind: most confidently wrong, and least certain."""
_BATCH = 16


@dataclass(frozen=True)
class Explained:
    """A Keras classifier with its predictions.

    Attributes:
        model: flat, with a layer `LOGITS`.
        spec: the input contract of the model.
        pixels: uint8 ``(n, height, width, 3)``, preprocessed.
        probabilities: of the model, ``(n, labels)``.
        names: paths of the images, relative to the data's root.
    """

    model: Any
    spec: InputSpec
    pixels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    names: Sequence[str]

    def grad_cam(self, images: slice, classes: Sequence[int]) -> NDArray[np.float32]:
        """`grad_cam` of some images."""
        return grad_cam(self.model, normalize(self.pixels[images], self.spec), classes)


def explain(
    folder: Path, images: Explained, truth: NDArray[np.int64], labels: Sequence[str], root: Path, progress: Progress
) -> dict[str, float] | None:
    """Write overlays, and return how much evidence lies on cells. Arguments: see `write_overlays` and `on_cells`."""
    written = write_overlays(folder, images, truth, labels)
    progress.note(f"{folder}: {len(written)} images explained")
    cells = on_cells(images, root)
    if cells is not None:
        progress.note(
            f"{100 * cells['evidence']:.1f} % of the evidence for the predicted labels lies on nucleated cells, "
            f"which cover {100 * cells['area']:.1f} % of the images"
        )
    return cells


def grad_cam(model: Any, images: NDArray[np.float32], classes: Sequence[int]) -> NDArray[np.float32]:
    """The evidence for one class of each image, at each position of the last feature map.

    Args:
        model: a flat Keras classifier with a layer `LOGITS`.
        images: normalized, ``(n, height, width, 3)``.
        classes: the class to explain, for each image.

    Returns:
        ``(n, rows, columns)``. With global average pooling after the map, its mean and the bias add up to the logit.
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


def select_examples(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> list[tuple[int, str]]:
    """Up to `SHOWN` wrong images, the most confident first, and as many with the lowest top probability.

    Returns:
        (index, ``wrong`` or ``unsure``) of each. No index occurs twice.
    """
    top, called = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = [int(index) for index in np.argsort(-top, kind="stable") if called[index] != truth[index]][:SHOWN]
    unsure = [int(index) for index in np.argsort(top, kind="stable") if index not in wrong][:SHOWN]
    return [(index, "wrong") for index in wrong] + [(index, "unsure") for index in unsure]


def on_cells(images: Explained, root: Path) -> dict[str, float] | None:
    """The share of the evidence for the predicted labels that lies on nucleated cells.

    Args:
        images: with the predictions.
        root: of the data. Synthetic data sets (`edgeall.train.data.synth`) have masks of the cells there.

    Returns:
        ``evidence``, the share of the positive evidence of all images that lies on cells; and ``area``, the share of
        the images that cells cover, which is what uniform evidence would give. None without masks.
    """
    masks = [(root / TRUTH / name).with_suffix(".mask.png") for name in images.names]
    if not all(mask.is_file() for mask in masks):
        return None
    on, everywhere, area = 0.0, 0.0, 0.0
    size = (images.spec.width, images.spec.height)
    for start in range(0, len(masks), _BATCH):
        some = slice(start, start + _BATCH)
        found = images.grad_cam(some, images.probabilities[some].argmax(axis=1).tolist())
        for one, path in zip(found, masks[some], strict=True):
            with Image.open(path) as mask:
                cell = np.asarray(mask.resize(size, Image.Resampling.NEAREST)) > 0
            spread = Image.fromarray(np.maximum(one, 0)).resize(size, Image.Resampling.BILINEAR)
            positive = np.asarray(spread, np.float64)
            on, everywhere, area = on + positive[cell].sum(), everywhere + positive.sum(), area + cell.mean()
    return {"evidence": float(on / everywhere) if everywhere else 0.0, "area": float(area / len(masks))}


def write_overlays(folder: Path, images: Explained, truth: NDArray[np.int64], labels: Sequence[str]) -> list[Path]:
    """Draw the evidence for the predicted label on the images of `select_examples`.

    Args:
        folder: created if missing.
        images: with the predictions.
        truth: class index of each image, ``(n,)``.
        labels: class names.

    Returns:
        The files, ``<wrong|unsure>-<rank>-<image>.png``.
    """
    written = []
    with output_lock(folder, "evaluate"):
        folder.mkdir(parents=True, exist_ok=True)
        mark_output(folder)
        for rank, (index, kind) in enumerate(select_examples(images.probabilities, truth), start=1):
            called = int(images.probabilities[index].argmax())
            found = images.grad_cam(slice(index, index + 1), [called])[0]
            share = 100 * images.probabilities[index, called]
            caption = f"{labels[called]} {share:.1f} %, labelled {labels[truth[index]]}"
            written.append(folder / file_name(f"{kind}-{rank:02d}-", Path(images.names[index]).stem, ".png"))
            captioned(overlay(images.pixels[index], found), caption).save(written[-1])
    return written
