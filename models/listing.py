"""What there is to choose from: size and cost of every backbone, without building a network."""

from __future__ import annotations

from typing import Any

from edgeall.models import registry


def describe(name: str) -> dict[str, Any]:
    """Size and cost of one backbone at the input size it was designed for, without a head.

    Args:
        name: of the registry.

    Returns:
        ``name``, ``alpha`` (of the figures; None where there is none), ``parameters``, ``macs`` (multiply-accumulates
        of one image), ``float32_bytes``, ``features`` (output width), ``input_hw``, ``sizes`` (smallest and largest
        input side), ``alphas``, ``pretrained``, ``unfreeze`` (see `ModelSpec`), ``layers``, ``reference``, ``int8``
        (whether every layer can be quantized, by PTQ and by QAT alike), ``int8_obstacle``, ``sparsity_weights`` and
        ``channel_groups`` (see `Facts`).

    Raises:
        UsageError: there is no such backbone.
    """
    spec = registry.get(name)
    facts = spec.facts
    return {
        "name": spec.name,
        "alpha": 1.0 if spec.alphas else None,
        "parameters": facts.parameters,
        "macs": facts.macs,
        "float32_bytes": 4 * facts.parameters,
        "features": facts.features,
        "input_hw": list(spec.input_hw),
        "sizes": list(spec.sizes),
        "alphas": list(spec.alphas),
        "pretrained": spec.pretrained,
        "unfreeze": spec.unfreeze,
        "layers": facts.layers,
        "reference": spec.reference,
        "int8": facts.int8_obstacle is None,
        "int8_obstacle": facts.int8_obstacle,
        "sparsity_weights": facts.sparsity_weights,
        "channel_groups": facts.channel_groups,
    }


def listing() -> list[dict[str, Any]]:
    """`describe` of every backbone, by name."""
    return [describe(name) for name in registry.names()]
