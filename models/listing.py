"""`edgeall models`: size and cost of every backbone, without building a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..console.tables import percent, table
from . import registry


@dataclass(frozen=True)
class ModelRow:
    """Size and cost of one backbone without a head, at the input size it was designed for.

    Attributes:
        alpha: of the figures; None if it has none.
        macs: multiply-accumulate operations for one image.
        features: output width.
        sizes: smallest and largest height and width.
        unfreeze: see `ModelSpec`.
        int8: whether PTQ and QAT can quantize every layer; ``int8_obstacle`` is why not.
        sparsity_weights: see `Facts`, also for ``channel_groups``.
    """

    name: str
    alpha: float | None
    parameters: int
    macs: int
    float32_bytes: int
    features: int
    input_hw: tuple[int, int]
    sizes: tuple[int, int]
    alphas: tuple[float, ...]
    pretrained: bool
    unfreeze: int | None
    layers: int
    reference: str
    int8: bool
    int8_obstacle: str | None
    sparsity_weights: int
    channel_groups: int


def describe(name: str) -> ModelRow:
    """One backbone of the registry. Raises UsageError if there is none of this name."""
    spec = registry.get(name)
    taken = ("name", "input_hw", "sizes", "alphas", "pretrained", "unfreeze", "reference")
    return ModelRow(
        **{field: getattr(spec, field) for field in taken},
        **vars(spec.facts),
        alpha=1.0 if spec.alphas else None,
        float32_bytes=4 * spec.facts.parameters,
        int8=spec.facts.int8_obstacle is None,
    )


def listing() -> list[ModelRow]:
    """`describe` of every backbone, by name."""
    return [describe(name) for name in registry.names()]


def models_text(models: Sequence[ModelRow]) -> str:
    """The rows of `listing` as a table.

    Figures are at alpha 1.0 and the default input size. The last columns are the share of weights for sparsity, and the
    number of channel groups.
    """
    rows = [
        [
            model.name,
            f"{model.input_hw[0]}",
            f"{model.sizes[0]}-{model.sizes[1]}",
            f"{model.parameters / 1e6:.2f} M",
            f"{model.macs / 1e6:,.0f} M",
            f"{model.float32_bytes / 1e6:.1f} MB",
            "yes" if model.pretrained else "no",
            "all" if model.unfreeze is None else f"last {model.unfreeze}",
            "yes" if model.int8 else "no",
            percent(model.sparsity_weights / model.parameters),
            model.channel_groups,
        ]
        for model in models
    ]
    heads = ["backbone", "input", "takes", "weights", "MACs", "float32", "ImageNet", "fine-tunes", "int8"]
    heads += ["--sparsity on", "--macs in"]
    return table(heads, rows)
