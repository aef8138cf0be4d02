"""Class-activation maps: the regions of an image that support its label.

For a network that ends in global average pooling and one dense layer, each logit is the mean of a map over the image.
This class-activation map is exact, no estimate. The last feature map is the second output of a model packed with
``quantize --explain``; the weights are in its flatbuffer.

Source: Zhou et al. 2016, "Learning Deep Features for Discriminative Localization".
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..classifier import Classifier
from ..errors import BundleError, DataError, UsageError
from ..files import file_name
from ..flatbuffer import Graph, Tensor
from ..images import mark_output
from ..manifest import RESEARCH_USE
from ..pipeline import Prediction, prediction
from ..preprocess import load_input, preprocess

HIGHLIGHT = (255, 90, 0)
STRONGEST = 0.55
"""Opacity of the highlight at the maximum of the map."""
SIDE = 448
"""Minimum length of the shorter side of an overlay, pixels."""
_CAPTION = 34
_DTYPES = {"INT8": np.int8, "INT32": np.int32, "FLOAT32": np.float32, "FLOAT16": np.float16}


def dense_head(graph: Graph, flatbuffer: bytes, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights ``(labels, features)`` and bias ``(labels,)`` of the dense layer before the softmax, dequantized.

    Raises:
        BundleError: the model has no such layer.
    """
    main = graph.main
    softmax = next((operator for operator in main.operators if operator.name == "SOFTMAX"), None)
    operator = main.producer(softmax.inputs[0]) if softmax else None
    while operator is not None and operator.name in ("DEQUANTIZE", "QUANTIZE", "RESHAPE"):
        operator = main.producer(operator.inputs[0])
    if operator is None or operator.name != "FULLY_CONNECTED":
        raise BundleError(f"{name}: doesn't end in a dense layer and a softmax, so it has no class-activation map")

    def constant(index: int) -> NDArray[np.float32]:
        unpacked = main.producer(index)  # a float16 weight's DEQUANTIZE
        return _values(main.tensors[unpacked.inputs[0] if unpacked else index], flatbuffer, name)

    weights = constant(operator.inputs[1])
    given = len(operator.inputs) > 2 and operator.inputs[2] >= 0
    return weights, constant(operator.inputs[2]) if given else np.zeros(len(weights), np.float32)


def evidence(features: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """The class-activation maps, float32 ``(height, width, labels)``. Their spatial mean plus the bias is the logit.

    Args:
        features: the feature map, float32 ``(height, width, features)``.
        weights: from `dense_head`, float32 ``(labels, features)``.
    """
    return np.asarray(features @ weights.T, np.float32)


class Explainer:
    """Writes an overlay for each prediction of one model.

    Args:
        classifier: of a model packed with a feature map.
        folder: created if missing.

    Raises:
        UsageError: the model has no feature map.
        DataError: the folder cannot be created.
    """

    def __init__(self, classifier: Classifier, folder: Path) -> None:
        self.classifier = classifier
        self.folder = folder
        self._weights = _weights(classifier)
        self._drawn = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark_output(folder)
        except OSError as error:
            raise DataError(f"{folder}: can't be created ({error.strerror})", hint="choose another folder") from error

    def draw(self, prediction: Prediction) -> Path:
        """Write ``<number>-<image>.png``: the model's input with the class-activation map of the label.

        Raises:
            DataError: the file cannot be written.
        """
        pixels = load_input(prediction.image, self.classifier.input)
        self._drawn += 1
        out = self.folder / file_name(f"{self._drawn:05d}-", Path(prediction.image).stem, ".png")
        try:
            _drawing(self.classifier, self._weights, pixels, prediction).save(out)
        except OSError as error:
            raise DataError(f"{out}: can't be written ({error.strerror})", hint="check the disk") from error
        return out


def explains(classifier: Classifier) -> bool:
    """Whether the model was packed with a feature map."""
    second = classifier.model.second
    return classifier.bundle is not None and second is not None and len(second.shape) == 4


def overlay_renderer(model: Path) -> Callable[[Image.Image], bytes]:
    """A function that turns an image (a field or a cell, as the model takes it) into a PNG of its overlay. Thread-safe.

    Opens the model a second time, so that it does not disturb a running classifier.

    Raises:
        BundleError: as `Classifier.open`.
        UsageError: the model has no feature map.
    """
    classifier = Classifier.open(model, threads=1)
    weights, lock = _weights(classifier), threading.Lock()

    def render(image: Image.Image) -> bytes:
        pixels = preprocess(image, classifier.input)
        with lock:
            found = prediction(classifier, "image", classifier.infer(pixels))
            if found.error:
                raise DataError(found.error)
            drawn = _drawing(classifier, weights, pixels, found)
        file = io.BytesIO()
        drawn.save(file, "PNG")
        return file.getvalue()

    return render


def _weights(classifier: Classifier) -> NDArray[np.float32]:
    if not explains(classifier):
        raise UsageError(
            f"{classifier.model.name}: has no feature map to explain its labels",
            hint="pack it with `edgeall quantize --explain`",
        )
    assert classifier.bundle is not None
    return dense_head(classifier.bundle.graph, classifier.bundle.flatbuffer, classifier.bundle.path)[0]


def _drawing(
    classifier: Classifier, weights: NDArray[np.float32], pixels: NDArray[np.uint8], found: Prediction
) -> Image.Image:
    """The model's input, the class-activation map of the label, and the label."""
    assert found.units is not None
    activation = evidence(classifier.features(found.units), weights)[:, :, classifier.labels.index(found.label)]
    review = f", review: {found.reason}" if found.review else ""
    return captioned(overlay(pixels, activation), f"{found.label} {100 * found.probability:.1f} %{review}")


def overlay(pixels: NDArray[np.uint8], activation: NDArray[np.float32]) -> Image.Image:
    """The enlarged image, with the positive part of a map as a highlight: the larger the value, the more opaque.

    Args:
        pixels: uint8 ``(height, width, 3)``.
        activation: float32 ``(rows, columns)``, of any scale.
    """
    height, width = pixels.shape[:2]
    factor = max(1, -(-SIDE // min(height, width)))
    size = (width * factor, height * factor)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    positive = np.maximum(activation, 0)
    opacity = Image.fromarray(positive / max(float(positive.max()), 1e-9) * STRONGEST)
    smooth = np.asarray(opacity.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    mask = Image.fromarray(np.rint(255 * smooth).astype(np.uint8))
    return Image.composite(Image.new("RGB", size, HIGHLIGHT), image, mask)


def captioned(image: Image.Image, text: str) -> Image.Image:
    """The image above two lines: the text, and the notice of research use."""
    whole = Image.new("RGB", (image.width, image.height + _CAPTION), "white")
    whole.paste(image, (0, 0))
    latin = text.encode("latin-1", "replace").decode("latin-1")  # the built-in font has no other characters
    ImageDraw.Draw(whole).multiline_text((6, image.height + 4), f"{latin}\n{RESEARCH_USE}", "black", spacing=2)
    return whole


def _values(tensor: Tensor, flatbuffer: bytes, name: str) -> NDArray[np.float32]:
    kind = _DTYPES.get(tensor.type)
    if kind is None or not tensor.constant_bytes:
        raise BundleError(f"{name}: the weights of its last layer can't be read ({tensor.type})")
    count = tensor.constant_bytes // np.dtype(kind).itemsize
    values = np.frombuffer(flatbuffer, kind, count, tensor.constant_at).reshape(tensor.shape).astype(np.float32)
    if tensor.scale:
        scale = np.array(tensor.scale, np.float32)
        values = values * scale.reshape(-1, *[1] * (values.ndim - 1)) if scale.size > 1 else values * scale
    return values
