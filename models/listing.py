"""`edgeall models`: size and cost of every backbone, without building a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..console.tables import percent, table
from . import registry


def describe(name: str) -> dict[str, Any]:
    """Size and cost of one backbone without a head, at the input size it was designed for.

    Args:
        name: in the registry.

    Returns:
        ``name``, ``alpha`` (of the figures; None if it has none), ``parameters``, ``macs`` (multiply-accumulate
        operations for one image), ``float32_bytes``, ``features`` (output width), ``input_hw``, ``sizes`` (smallest and
        largest height and width), ``alphas``, ``pretrained``, ``unfreeze`` (see `ModelSpec`), ``layers``,
        ``reference``, ``int8`` (whether PTQ and QAT can quantize every layer), ``int8_obstacle``, ``sparsity_weights``
        and ``channel_groups`` (see `Facts`).

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
    """The rows of `listing` as a table.

    Figures are at alpha 1.0 and the default input size. The last columns are the share of weights for sparsity, and the
    number of channel groups.
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
