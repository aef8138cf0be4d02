"""`Segmenter`: opens a segmentation model, and computes the classes of a tile's pixels and the size of a red cell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import interpreter
from .bundle import Bundle, open_bundle
from .errors import BundleError
from .flatbuffer import Graph, read_graph
from .messages import message
from .network import Network, default_threads, dequantized
from .preprocess import InputSpec

STEPS = 256
"""Probabilities are given in units of 1/256, as an integer network computes them: TFLite's scale of a softmax."""


@dataclass(frozen=True)
class Segmentation:
    """The outputs of a segmentation model for one tile.

    Attributes:
        probabilities: uint8 ``(height, width, classes)`` in units of 1/256 (255 also stands for 1).
        red_cell: log2 of a red cell's diameter in the tile, divided by `Segmenter.red_cell_px`: 0 at the scale that
            the network was trained for.
    """

    probabilities: NDArray[np.uint8]
    red_cell: float

    @property
    def classes(self) -> NDArray[np.uint8]:
        """Index of the most probable class of every pixel, uint8 ``(height, width)``; the first of equal ones."""
        found: NDArray[np.uint8] = self.probabilities.argmax(axis=2).astype(np.uint8)
        return found


class Segmenter(Network[Segmentation]):
    """Runs a segmentation model.

    Attributes:
        labels: the classes, in the order of the probabilities.
        red_cell_px: diameter in pixels that a red cell must have in a tile.
    """

    def __init__(
        self,
        model: interpreter.Model,
        labels: Sequence[str],
        spec: InputSpec,
        *,
        red_cell_px: float,
        threads: int,
        bundle: Bundle | None = None,
    ) -> None:
        super().__init__(model, labels, spec, threads=threads, bundle=bundle)
        self.red_cell_px = red_cell_px
        shape = (1, spec.height, spec.width, len(self.labels))
        if model.output.shape != shape:
            raise BundleError(f"{model.name}: its mask is {model.output.shape}, the manifest says {shape}")
        if model.second is None or int(np.prod(model.second.shape)) != 1:
            raise BundleError(f"{model.name}: a segmentation model has a second output, the size of a red cell")
        output = model.output
        if output.dtype != np.float32 and (
            output.dtype != np.uint8 or output.zero_point or abs(output.scale * STEPS - 1) > 1e-6
        ):
            raise BundleError(f"{model.name}: the probabilities of an integer model must be uint8 in units of 1/256")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        public_key: str | os.PathLike[str] | None = None,
    ) -> Segmenter:
        """Open a packed segmentation model.

        Args:
            path: the model file.
            threads: of the interpreter; None takes the available cores, at most `network.MAX_DEFAULT_THREADS`.
            public_key: if given, the model must be signed, see `open_bundle`.

        Raises:
            BundleError: see `open_bundle`; or it is a model of another task.
        """
        return cls.from_bundle(open_bundle(path, public_key), threads=threads)

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, threads: int | None = None) -> Segmenter:
        """`open` for a bundle that is already open."""
        manifest = bundle.manifest
        if manifest is None or manifest.task != "segmentation":
            what = "a foreign model" if manifest is None else f"a {manifest.task} model"
            raise BundleError(
                f"{bundle.path}: {what}, not a segmentation model",
                hint="train one with `edgeall train --task segmentation`",
            )
        threads = default_threads() if threads is None else threads
        output = mask_index(bundle.graph, bundle.path)
        model = interpreter.load(bundle.flatbuffer, threads, bundle.path, output)
        red_cell_px = float(manifest.segmentation["red_cell_px"])
        return cls(model, manifest.labels, manifest.input, red_cell_px=red_cell_px, threads=threads, bundle=bundle)

    @classmethod
    def from_flatbuffer(
        cls,
        flatbuffer: bytes,
        labels: Sequence[str],
        spec: InputSpec,
        *,
        red_cell_px: float,
        threads: int = 1,
        name: str = "model",
    ) -> Segmenter:
        """Open a converted model that is not packed. Raises BundleError as `open` does."""
        output = mask_index(read_graph(flatbuffer, name), name)
        model = interpreter.load(flatbuffer, threads, name, output)
        return cls(model, labels, spec, red_cell_px=red_cell_px, threads=threads)

    def predict(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The probabilities of `infer`."""
        return self.infer(pixels).probabilities

    def infer(self, pixels: NDArray[np.uint8], /) -> Segmentation:
        """Segment one tile.

        Args:
            pixels: uint8 RGB, ``(height, width, 3)`` of the input, with a red cell of about `red_cell_px`.

        Raises:
            BundleError: an output is NaN or infinite.
        """
        return self.meaning(self.invoke(pixels)[0], self.model.second_units())

    def meaning(self, mask: NDArray[np.generic], second: NDArray[np.generic]) -> Segmentation:
        """The segmentation in raw outputs: the mask ``(height, width, classes)``, and the second output."""
        assert self.model.second is not None
        red_cell = float(dequantized(second, self.model.second).reshape(-1)[0])
        if mask.dtype == np.float32:
            if not np.isfinite(mask).all() or not np.isfinite(red_cell):
                raise BundleError(message("{file}: its outputs are not finite numbers", file=self.model.name))
            mask = np.clip(np.rint(mask * np.float32(STEPS)), 0, STEPS - 1).astype(np.uint8)
        return Segmentation(mask.astype(np.uint8, copy=False), red_cell)

    def clone(self, threads: int) -> Segmenter:
        """A segmenter of the same file with its own interpreter."""
        assert self.bundle is not None, "only a model that was opened from a file can be cloned"
        return self.from_bundle(self.bundle, threads=threads)


def mask_index(graph: Graph, name: str) -> int:
    """Index of the tensor with the probabilities of the classes: the first output with four dimensions.

    Raises:
        BundleError: there is none, or there are not two outputs.
    """
    main = graph.main
    found = [output for output in main.outputs if len(main.tensors[output].shape) == 4]
    if not found or len(main.outputs) != 2:
        raise BundleError(f"{name}: a segmentation model has two outputs, a mask and the size of a red cell")
    return found[0]
