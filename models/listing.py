"""What there is to choose from: size and cost of every backbone, from the networks themselves."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

from edgeall.models import registry
from edgeall.models.registry import BuildArgs


def describe(name: str, also: Callable[[Any], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Size and cost of one backbone at the input size it was designed for, without a head.

    Builds the network, which takes a second, of the largest ten.

    Args:
        name: of the registry.
        also: more facts of the built network, `edgeall.optimize.support.support` for one.

    Returns:
        ``name``, ``alpha`` (of the figures; None where there is none), ``parameters``, ``macs`` (multiply-accumulates
        of one image), ``float32_bytes``, ``features`` (output width), ``input_hw``, ``sizes`` (smallest and largest
        input side), ``alphas``, ``pretrained``, ``unfreeze`` (see `ModelSpec`), ``layers`` and ``reference``.

    Raises:
        UsageError: there is no such backbone.
    """
    from edgeall.models.macs import macs

    spec = registry.get(name)
    height, width = spec.input_hw
    alpha = 1.0 if spec.alphas else None
    model = spec.build(BuildArgs(height, width, alpha, "none"))
    parameters = int(model.count_params())
    return {
        "name": spec.name,
        "alpha": alpha,
        "parameters": parameters,
        "macs": macs(model),
        "float32_bytes": 4 * parameters,
        "features": int(model.output_shape[-1]),
        "input_hw": list(spec.input_hw),
        "sizes": list(spec.sizes),
        "alphas": list(spec.alphas),
        "pretrained": spec.pretrained,
        "unfreeze": spec.unfreeze,
        "layers": len(model.layers),
        "reference": spec.reference,
        **(also(model) if also else {}),
    }


def listing(also: Callable[[Any], dict[str, Any]] | None = None) -> Iterator[dict[str, Any]]:
    """`describe` of every backbone, one at a time: the largest take seconds to build."""
    for name in registry.names():
        yield describe(name, also)
        gc.collect()  # Keras models are cycles: without it, all twelve would be in memory at the end
