"""Chooses the images that travel with a model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...edge_runtime.classifier import Classifier
from ...edge_runtime.images import decode_rgb
from ...edge_runtime.preprocess import preprocess
from .pack import golden_png

SURE = 0.98
"""The top probability that a golden image should have. tflite-runtime's integer kernels are off by up to five
steps of a logit (measured, MobileNetV2 0.35); where two classes are even, that moves a probability by 16 units of
1/256, here by less than three. At 1.0 nothing at all would show."""


def choose_golden(
    classifier: Classifier, images: Iterable[Image.Image], count: int = 3
) -> list[tuple[str, bytes, NDArray[np.float32]]]:
    """Of many images, one each of the classes the model sees, nearest to `SURE`; as `pack` takes them.

    Args:
        classifier: the model that will be packed.
        images: candidates, mode RGB; a few dozen of the test side.
        count: at most so many.

    Returns:
        (file name, PNG file, the model's probabilities) of each.
    """
    best: dict[int, tuple[float, bytes, NDArray[np.float32]]] = {}
    for image in images:
        file = golden_png(image, classifier.input)
        probabilities = classifier.predict(preprocess(decode_rgb(file, "golden image"), classifier.input))
        label = int(probabilities.argmax())
        distance = abs(float(probabilities[label]) - SURE)
        if label not in best or distance < best[label][0]:
            best[label] = (distance, file, probabilities)
    chosen = sorted(best.values(), key=lambda item: item[0])[:count]
    return [(f"{index}.png", file, probabilities) for index, (_, file, probabilities) in enumerate(chosen)]
