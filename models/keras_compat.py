"""The only door to Keras.

tfmot refuses Keras 3 (model-optimization #1119), so everything here is Keras 2 from ``tf-keras``. The switch
``TF_USE_LEGACY_KERAS`` is read once, when TensorFlow is first imported: hence this one module, which every
other one imports ``tf``, ``keras`` and ``tfmot`` from.
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
# TensorFlow takes oneDNN's kernels by itself only where a processor has AVX512 or AMX. With AVX2 alone they train
# MobileNetV2 twice as fast: 55 images/s against 27 (alpha 0.35, 224 pixels, two cores of an AMD EPYC).
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep native libraries' logs off the terminal: they write to file descriptor 2, past Python.

    ``TF_CPP_MIN_LOG_LEVEL``, set by the user, shows them again.
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

    tf.config.list_physical_devices("GPU")  # complains at length where there is none

tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 products in float32: recent GPUs otherwise use TF32, which keeps three digits."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def load_tfmot() -> Any:
    """tensorflow_model_optimization, imported on first use (it costs two seconds)."""
    with quiet():
        import tensorflow_model_optimization as tfmot
    return tfmot


__all__ = ["exact_float32", "keras", "load_tfmot", "quiet", "tf"]
