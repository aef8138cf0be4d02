"""Why this label: which places of an image speak for it.

A network that ends in global average pooling and one dense layer adds up, for every label, what each place of its last
feature map says: a class-activation map is no estimate but the sum itself, taken apart. The map is the second output of
a model packed with ``quantize --explain``, the weights are those in its flatbuffer.

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
"""Opacity of the highlight where the evidence is strongest."""
SIDE = 448
"""Pixels of an overlay's shorter side, at least."""
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
        raise BundleError(f"{name}: doesn't end in a dense layer and a softmax, so there is nothing to take apart")

    def constant(index: int) -> NDArray[np.float32]:
        unpacked = main.producer(index)  # a float16 weight's DEQUANTIZE
        return _values(main.tensors[unpacked.inputs[0] if unpacked else index], flatbuffer, name)

    weights = constant(operator.inputs[1])
    given = len(operator.inputs) > 2 and operator.inputs[2] >= 0
    return weights, constant(operator.inputs[2]) if given else np.zeros(len(weights), np.float32)


def evidence(features: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """What every place says for a label, ``(height, width, labels)``: mean over places plus bias is the logit.

    Args:
        features: the map ``(height, width, features)``.
        weights: from `dense_head`.
    """
    return np.asarray(features @ weights.T, np.float32)


class Explainer:
    """Writes an overlay for each prediction of one model.

    Args:
        classifier: of a model packed with a feature map.
        folder: made when missing.

    Raises:
        UsageError: the model carries no map.
        DataError: the folder can't be made.
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
            raise DataError(f"{folder}: can't be made ({error.strerror})", hint="choose another folder") from error

    def draw(self, prediction: Prediction) -> Path:
        """Write ``<number>-<image>.png``: what the model saw, and on it what speaks for the label.

        Raises:
            DataError: the file can't be written.
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
    """What turns an image, a field or a cell as the model judges it, into a PNG of its overlay; any thread may call it.

    It opens the model once more: asking does not disturb whoever is judging.

    Raises:
        BundleError: as `Classifier.open`.
        UsageError: the model carries no map.
    """
    classifier = Classifier.open(model, threads=1)
    weights, one_at_a_time = _weights(classifier), threading.Lock()

    def explained(image: Image.Image) -> bytes:
        pixels = preprocess(image, classifier.input)
        with one_at_a_time:
            said = prediction(classifier, "image", classifier.infer(pixels))
            if said.error:
                raise DataError(said.error)
            drawn = _drawing(classifier, weights, pixels, said)
        file = io.BytesIO()
        drawn.save(file, "PNG")
        return file.getvalue()

    return explained


def _weights(classifier: Classifier) -> NDArray[np.float32]:
    if not explains(classifier):
        raise UsageError(
            f"{classifier.model.name}: carries no feature map to explain its labels with",
            hint="pack it with `edgeall quantize --explain`",
        )
    assert classifier.bundle is not None
    return dense_head(classifier.bundle.graph, classifier.bundle.flatbuffer, classifier.bundle.path)[0]


def _drawing(
    classifier: Classifier, weights: NDArray[np.float32], pixels: NDArray[np.uint8], said: Prediction
) -> Image.Image:
    """What the model saw, what speaks for its label, and the label."""
    assert said.units is not None
    found = evidence(classifier.features(said.units), weights)[:, :, classifier.labels.index(said.label)]
    doubt = f", review: {said.reason}" if said.review else ""
    return captioned(overlay(pixels, found), f"{said.label} {100 * said.probability:.1f} %{doubt}")


def overlay(pixels: NDArray[np.uint8], found: NDArray[np.float32]) -> Image.Image:
    """The image, enlarged, under the positive part of a map: the stronger, the more opaque.

    Args:
        pixels: uint8 ``(height, width, 3)``.
        found: float32 ``(rows, columns)``, of any scale; where nothing is positive, nothing is marked.
    """
    height, width = pixels.shape[:2]
    factor = max(1, -(-SIDE // min(height, width)))
    size = (width * factor, height * factor)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    positive = np.maximum(found, 0)
    opacity = Image.fromarray(positive / max(float(positive.max()), 1e-9) * STRONGEST)
    smooth = np.asarray(opacity.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    mask = Image.fromarray(np.rint(255 * smooth).astype(np.uint8))
    return Image.composite(Image.new("RGB", size, HIGHLIGHT), image, mask)


def captioned(image: Image.Image, text: str) -> Image.Image:
    """The image over two lines: what is said of it, and what that is not."""
    whole = Image.new("RGB", (image.width, image.height + _CAPTION), "white")
    whole.paste(image, (0, 0))
    said = text.encode("latin-1", "replace").decode("latin-1")  # what the built-in font can write
    ImageDraw.Draw(whole).multiline_text((6, image.height + 4), f"{said}\n{RESEARCH_USE}", "black", spacing=2)
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
