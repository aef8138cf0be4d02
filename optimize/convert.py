"""Keras to TFLite flatbuffers, and the first questions asked of the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeall.edge_runtime.errors import EdgeallError
from edgeall.edge_runtime.flatbuffer import read_graph
from edgeall.edge_runtime.preprocess import InputSpec, normalize
from edgeall.models.keras_compat import quiet, tf

SCHEMES = ("float32", "float16", "dynamic", "ptq-int8", "qat-int8")
INTEGER_SCHEMES = ("ptq-int8", "qat-int8")
"""Fully integer: uint8 in, uint8 out, no float tensor in between."""


def convert(model: Any, scheme: str, spec: InputSpec, representative: Iterable[NDArray[np.uint8]] = ()) -> bytes:
    """Convert a flat Keras model with a batch of one.

    Args:
        model: float input, normalized; for ``qat-int8`` from `edgeall.optimize.qat.for_conversion`.
        scheme: one of `SCHEMES`.
        spec: the input contract.
        representative: for ``ptq-int8``: uint8 images ``(h, w, 3)`` of the training side.

    Raises:
        EdgeallError: the converter failed, or an integer scheme left something in float.
    """
    shape = tf.TensorSpec((1, spec.height, spec.width, 3), tf.float32, name="image")
    function = tf.function(lambda image: model(image, training=False)).get_concrete_function(shape)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    if scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme in INTEGER_SCHEMES:
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
    if scheme == "ptq-int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: _full_range(representative, spec)
    try:
        with quiet():
            flatbuffer: bytes = converter.convert()
    except Exception as error:  # the converter wraps whatever MLIR says in exceptions of many kinds
        raise EdgeallError(f"conversion to {scheme} failed: {str(error).strip().splitlines()[0]}") from error
    if scheme in INTEGER_SCHEMES:
        left = float_tensors(flatbuffer)
        if left:
            raise EdgeallError(f"conversion to {scheme} left {len(left)} tensors in float: {', '.join(left[:5])}")
    return flatbuffer


def float_tensors(flatbuffer: bytes) -> list[str]:
    """Names of the tensors that aren't integers; a fully integer model has none."""
    graph = read_graph(flatbuffer, "model")
    return [tensor.name for part in graph.subgraphs for tensor in part.tensors if tensor.type.startswith("FLOAT")]


def _full_range(images: Iterable[NDArray[np.uint8]], spec: InputSpec) -> Iterator[list[NDArray[np.float32]]]:
    """Calibration inputs. One pixel each of 0 and 255 is written into the first image's corners.

    The converter takes the input's scale from what it sees; the contract needs exactly 0..255.
    """
    for index, image in enumerate(images):
        if index == 0:
            image = image.copy()
            image[0, 0], image[-1, -1] = 0, 255
        yield [normalize(image[np.newaxis], spec)]
