"""Chooses the golden images of a packed model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...edge_runtime.classifier import Classifier
from ...edge_runtime.images import decode_rgb
from ...edge_runtime.preprocess import preprocess
from .pack import golden_png

TARGET = 0.98
"""Preferred top probability of a golden image. The integer kernels of tflite-runtime differ by up to five steps of a
logit (measured, MobileNetV2 0.35). Between two equal classes this changes a probability by 16 units of 1/256, at 0.98
by less than three. At 1.0 a difference would not show at all."""


def choose_golden(
    classifier: Classifier, images: Iterable[Image.Image], count: int = 3
) -> list[tuple[str, bytes, NDArray[np.float32]]]:
    """Choose one image of each predicted class, the one whose top probability is nearest to `TARGET`.

    Args:
        classifier: the model that will be packed.
        images: candidates, mode RGB; a few dozen test images.
        count: largest number of golden images.

    Returns:
        File name, PNG file and the model's probabilities of each, as `pack` takes them.
    """
    best: dict[int, tuple[float, bytes, NDArray[np.float32]]] = {}
    for image in images:
        file = golden_png(image, classifier.input)
        probabilities = classifier.predict(preprocess(decode_rgb(file, "golden image"), classifier.input))
        label = int(probabilities.argmax())
        distance = abs(float(probabilities[label]) - TARGET)
        if label not in best or distance < best[label][0]:
            best[label] = (distance, file, probabilities)
    chosen = sorted(best.values(), key=lambda item: item[0])[:count]
    return [(f"{index}.png", file, probabilities) for index, (_, file, probabilities) in enumerate(chosen)]
