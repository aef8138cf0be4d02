"""`Classifier`: opens a model file and computes probabilities from pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import interpreter
from .bundle import Bundle, open_bundle
from .errors import BundleError, UsageError
from .flatbuffer import Graph, read_graph
from .manifest import TASKS, Manifest
from .network import Network, default_threads, dequantized, last_operator
from .ood import ood_score
from .preprocess import Channels, InputSpec


@dataclass(frozen=True)
class Inference:
    """All outputs of a model for one image.

    Attributes:
        probabilities: float32 ``(labels,)``, as returned by `Classifier.predict`.
        novelty: out-of-distribution score, above 1 for an out-of-distribution image; None if the model has no detector.
        units: the raw second output: features ``(features,)``, or the feature map ``(height, width, features)`` with
            these features as its mean; None for a model with one output.
    """

    probabilities: NDArray[np.float32]
    novelty: float | None = None
    units: NDArray[np.generic] | None = None


class Classifier(Network[Inference]):
    """Runs a classifier.

    Attributes:
        labels: one per output, all different; two for a model with one sigmoid output.
        ood_detector: the out-of-distribution detector; None for a model without one.
        logits: True for a model that does not end in SOFTMAX: the softmax is applied here.
        sigmoid: True for a model with one output p from a LOGISTIC: the probability of the second label. The first
            label has 1 - p.
    """

    def __init__(
        self,
        model: interpreter.Model,
        labels: Sequence[str],
        spec: InputSpec,
        *,
        threads: int,
        logits: bool = False,
        sigmoid: bool = False,
        bundle: Bundle | None = None,
    ) -> None:
        super().__init__(model, labels, spec, threads=threads, bundle=bundle)
        self.logits = logits
        self.sigmoid = sigmoid
        self.ood_detector = bundle.ood_detector if bundle else None
        name = model.name
        outputs = int(np.prod(model.output.shape))
        if max(model.output.shape, default=1) != outputs:
            raise BundleError(
                f"{name}: its output is {model.output.shape}, a map instead of one score per label",
                hint="a classifier ends in one vector; give a smaller --input-size if its size is variable",
            )
        if self.sigmoid and outputs == 1:
            if len(self.labels) != 2:
                raise BundleError(
                    f"{name}: one sigmoid output needs two labels, but there are {len(self.labels)}",
                    hint="--labels FILE with two lines: first the label of output 0, then the label of output 1",
                )
        elif outputs != len(self.labels):
            raise BundleError(
                f"{name}: the model has {outputs} outputs but there are {len(self.labels)} labels",
                hint="give the label file that belongs to this model with --labels",
            )
        detector = self.ood_detector
        if detector is not None and (model.second is None or model.second.shape[-1] != len(detector.mean)):
            raise BundleError(f"{name}: its novelty score does not match its features", hint="quantize the run again")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        labels_file: str | os.PathLike[str] | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
        input_size: int | None = None,
        public_key: str | os.PathLike[str] | None = None,
    ) -> Classifier:
        """Open a packed model; or a foreign ``.tflite``, with labels and normalization if the file has none.

        Args:
            path: the model file.
            threads: of the interpreter; None takes the available cores, at most `MAX_DEFAULT_THREADS`.
            labels_file: foreign models only: one label per line; overrides the labels in the file.
            mean: foreign models only, with ``std``: the network's input is ``(pixel - mean) / std``; overrides the
                normalization in the file. A quantized uint8 input needs neither.
            std: see ``mean``.
            input_size: foreign models without a fixed input size only: height and width in pixels.
            public_key: if given, the model must be signed, see `open_bundle`.

        Raises:
            BundleError: see `open_bundle`; or labels, normalization or input size are unknown or contradict the
                model; or the interpreter crashes on a foreign model (`edgeall.edge_runtime.probe`).
            UsageError: labels, normalization or input size given for a packed model; an input size for a model with a
                fixed one; only one of mean and std; or a value that is not finite.
        """
        normalization = None
        if mean is not None or std is not None:
            from .foreign import given_normalization

            normalization = given_normalization(mean, std)
        bundle = open_bundle(path, public_key)
        return cls.from_bundle(
            bundle, threads=threads, labels_file=labels_file, normalization=normalization, input_size=input_size
        )

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        threads: int | None = None,
        labels_file: str | os.PathLike[str] | None = None,
        normalization: tuple[Channels, Channels] | None = None,
        input_size: int | None = None,
    ) -> Classifier:
        """`open` for a bundle that is already open; ``normalization`` is ``(mean, std)``."""
        threads = default_threads() if threads is None else threads
        if bundle.manifest is None:
            from .foreign import open_foreign  # packed models start without it

            return open_foreign(bundle, threads, labels_file, normalization, input_size)
        if labels_file is not None or normalization is not None or input_size is not None:
            raise UsageError(
                f"{bundle.path}: a packed model has its own labels, normalization and input size",
                hint="leave --labels, --mean, --std and --input-size out",
            )
        if bundle.task != TASKS[0]:
            raise UsageError(
                f"{bundle.path}: a {bundle.task} model, where a classifier is needed",
                hint="`edgeall inspect` shows a model's task; give a file made from a classification run",
            )
        manifest = bundle.manifest
        return cls(
            load_packed(bundle, manifest, threads),
            manifest.labels,
            manifest.input,
            threads=threads,
            logits=manifest.scores == "logits",
            sigmoid=manifest.scores == "sigmoid",
            bundle=bundle,
        )

    @classmethod
    def from_flatbuffer(
        cls, flatbuffer: bytes, labels: Sequence[str], spec: InputSpec, *, threads: int = 1, name: str = "model"
    ) -> Classifier:
        """Open a converted model that is not packed; it must end in SOFTMAX. Raises BundleError as `open` does."""
        output = probabilities_index(read_graph(flatbuffer, name), name)
        return cls(interpreter.load(flatbuffer, threads, name, output), labels, spec, threads=threads)

    def predict(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify one preprocessed image.

        Args:
            pixels: uint8, ``(height, width, 3)``, as `preprocess` returns.

        Returns:
            float32 probabilities of shape ``(len(labels),)``; NaN if the weights of a float model produce it.
        """
        return self.probabilities(self.predict_units(pixels))

    def probabilities(self, units: NDArray[np.generic]) -> NDArray[np.float32]:
        """Probabilities ``(len(labels),)`` from the raw output."""
        scores = self.dequantize(units)
        if self.sigmoid:
            return np.concatenate((1 - scores, scores))
        return _softmax(scores) if self.logits else scores

    def infer(self, pixels: NDArray[np.uint8], /) -> Inference:
        """`predict`, with the model's second output if it has one."""
        probabilities = self.predict(pixels)
        if self.model.second is None:
            return Inference(probabilities)
        units = self.model.second_units()[0]
        known = self.ood_detector is not None and np.isfinite(probabilities).all()
        score = ood_score(self.pooled(units), self.ood_detector) if known and self.ood_detector else None
        return Inference(probabilities, score, units)

    def clone(self, threads: int) -> Classifier:
        """A classifier of the same model with its own interpreter; shares the bytes of the file."""
        assert self.bundle is not None, "only a classifier that was opened from a file can be cloned"
        bundle, name = self.bundle, self.model.name
        if bundle.manifest is None:
            model = interpreter.load(bundle.flatbuffer, threads, name, None, self.model.input.shape)
        else:
            model = load_packed(bundle, bundle.manifest, threads)
        return Classifier(
            model,
            self.labels,
            self.input,
            threads=threads,
            logits=self.logits,
            sigmoid=self.sigmoid,
            bundle=bundle,
        )

    def features(self, units: NDArray[np.generic]) -> NDArray[np.float32]:
        """`Inference.units` as float32."""
        assert self.model.second is not None
        return dequantized(units, self.model.second)

    def pooled(self, units: NDArray[np.generic]) -> NDArray[np.float32]:
        """`Inference.units` as a float32 vector: the spatial mean of a map, summed before dequantization."""
        if units.ndim == 1:
            return self.features(units)
        places = units.reshape(-1, units.shape[-1])
        kind = np.float32 if units.dtype == np.float32 else np.int32
        return self.features(np.add.reduce(places, axis=0, dtype=kind) / np.float32(len(places)))

    def predict_units(self, pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
        """The raw output for one image, in the type of the output tensor, ``(outputs,)``."""
        return self.invoke(pixels).reshape(-1)

    def dequantize(self, units: NDArray[np.generic]) -> NDArray[np.float32]:
        """Raw outputs as float32: ``(unit - zero_point) * scale`` where the output is quantized."""
        return dequantized(units, self.model.output)


def load_packed(bundle: Bundle, manifest: Manifest, threads: int) -> interpreter.Model:
    """An interpreter of a packed classifier. A model without a fixed input size gets that of its contract."""
    spec, main = manifest.input, bundle.graph.main
    shape = (1, spec.height, spec.width, spec.channels)
    fixed = len(main.inputs) != 1 or main.tensors[main.inputs[0]].shape == shape
    output = probabilities_index(bundle.graph, bundle.path) if manifest.scores == "probabilities" else main.outputs[0]
    return interpreter.load(bundle.flatbuffer, threads, bundle.path, output, None if fixed else shape)


def probabilities_index(graph: Graph, name: str) -> int:
    """Index of the tensor with the probabilities: the first output from a SOFTMAX.

    Raises:
        BundleError: none does, or there are more than two outputs.
    """
    found = [output for output in graph.main.outputs if last_operator(graph, output) == "SOFTMAX"]
    if not found or len(graph.main.outputs) > 2:
        raise BundleError(f"{name}: a packed model must end in SOFTMAX")
    return found[0]


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):  # NaN stays NaN; the caller checks for it
        powers = np.exp(scores - scores.max())
    result: NDArray[np.float32] = powers / powers.sum()
    return result
