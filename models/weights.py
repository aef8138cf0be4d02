"""Backbone weights: downloaded by Keras, read from a file, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..edge_runtime.errors import DISK_FULL, DataError
from .registry import BuildArgs


def load_application(name: str, args: BuildArgs) -> Any:
    """A network of ``tf_keras.applications`` up to its pooled features, with weights; see `load_weights`."""
    from .keras_compat import keras
    from .rewrite import image_input

    def backbone(height: int, width: int, weights: str | None) -> Any:
        return getattr(keras.applications, name)(
            input_tensor=image_input(height, width),
            input_shape=(height, width, 3),
            include_top=False,
            weights=weights,
            pooling="avg",
        )

    return load_weights(backbone, args, name)


def load_weights(backbone: Callable[[int, int, str | None], Any], args: BuildArgs, what: str) -> Any:
    """Build a backbone and load its weights.

    Args:
        backbone: called as ``backbone(height, width, weights)`` with weights ``"imagenet"`` or None.
        args: size and the ``weights`` setting.
        what: name of the network, for errors.

    Raises:
        DataError: the download failed, or the file has the weights of another network.
    """
    if args.weights == "imagenet":
        try:
            return backbone(args.height, args.width, "imagenet")
        except Exception as error:  # Keras wraps the errors of urllib in a bare Exception
            if isinstance(error, OSError) and error.errno in DISK_FULL:  # the disk of Keras' cache
                raise
            raise DataError(
                f"{what}: the ImageNet weights could not be downloaded ({str(error).splitlines()[0]})",
                hint="give a file with --weights FILE, or train from scratch with --weights none",
            ) from error
    model = backbone(args.height, args.width, None)
    if args.weights != "none":
        try:
            model.load_weights(args.weights)
        except (ValueError, OSError, KeyError) as error:
            raise DataError(
                f"{args.weights}: not the weights of {what} without its top ({str(error).splitlines()[0]})",
                hint="check --alpha and --model against the file",
            ) from error
    return model
