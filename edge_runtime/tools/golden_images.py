"""Makes and chooses the golden images of a packed model."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..classifier import Classifier
from ..images import decode_rgb
from ..preprocess import InputSpec, preprocess

TARGET = 0.98
"""Preferred top probability of a golden image. The integer kernels of tflite-runtime differ by up to five steps of a
logit (measured, MobileNetV2 0.35). Between two equal classes this changes a probability by 16 units of 1/256, at 0.98
by less than three. At 1.0 a difference would not show at all."""


@dataclass(frozen=True)
class RawScores:
    """The answer of a classifier whose outputs are no probabilities: those that it gives, and the raw ones."""

    probabilities: NDArray[np.float32]
    units: NDArray[np.generic]


def golden_png(image: Image.Image, spec: InputSpec) -> bytes:
    """A small PNG of an image, as a golden image of a packed model.

    Its size and aspect ratio differ from the model's input, so that the golden check covers fitting and resizing. At
    224 pixels it takes about 20 KB.

    Args:
        image: mode ``RGB``, any size.
        spec: the model's input contract.
    """
    small = image.resize((max(spec.width // 2, 8), max(spec.height * 3 // 8, 6)), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    return file.getvalue()


def choose_golden(
    classifier: Classifier, images: Iterable[Image.Image], count: int = 3
) -> list[tuple[str, bytes, NDArray[np.float32] | RawScores]]:
    """Choose one image of each predicted class, the one whose top probability is nearest to `TARGET`.

    Args:
        classifier: the model that will be packed.
        images: candidates, mode RGB; a few dozen test images.
        count: largest number of golden images.

    Returns:
        File name, PNG file and the model's answer for each, as `pack` takes them.
    """
    best: dict[int, tuple[float, bytes, NDArray[np.float32] | RawScores]] = {}
    for image in images:
        file = golden_png(image, classifier.input)
        units = classifier.predict_units(preprocess(decode_rgb(file, "golden image"), classifier.input))
        probabilities = classifier.probabilities(units)
        raw = classifier.logits or classifier.sigmoid
        label = int(probabilities.argmax())
        distance = abs(float(probabilities[label]) - TARGET)
        if label not in best or distance < best[label][0]:
            best[label] = (distance, file, RawScores(probabilities, units) if raw else probabilities)
    chosen = sorted(best.values(), key=lambda item: item[0])[:count]
    return [(f"{index}.png", file, answer) for index, (_, file, answer) in enumerate(chosen)]
