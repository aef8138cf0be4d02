"""What there is to choose from: size and cost of every backbone, without building a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..console.tables import percent, table
from . import registry


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


def models_text(models: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `edgeall.models.listing.listing`.

    Figures are at alpha 1.0 and the input size of the design; the last columns say which share of the weights can be
    zeroed, and in how many places channels can be removed.
    """
    rows = [
        [
            model["name"],
            f"{model['input_hw'][0]}",
            f"{model['sizes'][0]}-{model['sizes'][1]}",
            f"{model['parameters'] / 1e6:.2f} M",
            f"{model['macs'] / 1e6:,.0f} M",
            f"{model['float32_bytes'] / 1e6:.1f} MB",
            "yes" if model["pretrained"] else "no",
            "all" if model["unfreeze"] is None else f"last {model['unfreeze']}",
            "yes" if model["int8"] else "no",
            percent(model["sparsity_weights"] / model["parameters"]),
            model["channel_groups"],
        ]
        for model in models
    ]
    heads = ["backbone", "input", "takes", "weights", "MACs", "float32", "ImageNet", "fine-tunes", "int8"]
    heads += ["--sparsity on", "--macs in"]
    return table(heads, rows)
