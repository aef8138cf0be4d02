"""The only module that imports TensorFlow, Keras and tfmot. Other modules import ``tf`` and ``keras`` from here.

tfmot does not support Keras 3 (model-optimization #1119), so this is Keras 2 from ``tf-keras``. TensorFlow reads the
switch ``TF_USE_LEGACY_KERAS`` only once, at its first import.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from typing import Any

if "tensorflow" in sys.modules and os.environ.get("TF_USE_LEGACY_KERAS") != "1":
    raise ImportError("tensorflow was imported with Keras 3; import edgeall.models.keras_compat before it")

os.environ["TF_USE_LEGACY_KERAS"] = "1"
# By default TensorFlow uses oneDNN's kernels only on processors with AVX512 or AMX. With AVX2 they also train
# MobileNetV2 twice as fast: 55 images/s instead of 27 (alpha 0.35, 224 pixels, two cores of an AMD EPYC).
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the logs of native libraries, which write directly to file descriptor 2.

    If the user sets ``TF_CPP_MIN_LOG_LEVEL``, the logs are shown.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in _USERS:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as null, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


_USERS = dict(os.environ)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

with quiet():
    import tensorflow as tf
    import tf_keras as keras

    tf.config.list_physical_devices("GPU")  # logs many lines if there is none

tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 products in float32: recent GPUs otherwise use TF32, with three decimal digits."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def load_tfmot() -> Any:
    """tensorflow_model_optimization, imported on first use: the import takes two seconds."""
    with quiet():
        import tensorflow_model_optimization as tfmot
    return tfmot


def load_quantizer() -> tuple[Any, Any]:
    """``Calibrator`` and ``mlir_quantize``, by which TensorFlow's converter quantizes a float flatbuffer."""
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.python.optimize.calibrator import Calibrator

    return Calibrator, mlir_quantize


def saved_metadata(content: bytes) -> Any:
    """The message in a SavedModel's ``keras_metadata.pb``. Raises protobuf's DecodeError."""
    from tf_keras.protobuf import saved_metadata_pb2

    message = saved_metadata_pb2.SavedMetadata()
    message.ParseFromString(content)
    return message


def object_graph(content: bytes) -> Any:
    """The message with the objects of a checkpoint. Raises protobuf's DecodeError."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    message = trackable_object_graph_pb2.TrackableObjectGraph()
    message.ParseFromString(content)
    return message


__all__ = ["exact_float32", "keras", "load_tfmot", "object_graph", "quiet", "saved_metadata", "tf"]
