"""What the optimizations can do with a backbone, asked of the network itself."""

from __future__ import annotations

from typing import Any

from edgeall.edge_runtime.errors import UsageError
from edgeall.models.head import add_head
from edgeall.models.narrow import groups
from edgeall.optimize.fold import fold_batch_normalization
from edgeall.optimize.placement import place
from edgeall.optimize.sparsity import prunable


def support(backbone: Any) -> dict[str, Any]:
    """What quantization and pruning find in a backbone with a head on it.

    Args:
        backbone: as the registry builds it.

    Returns:
        ``int8``: whether every layer can be quantized, by PTQ and by QAT alike; ``int8_obstacle``: which can't, or
        None; ``sparsity_weights``: how many weights ``prune --sparsity`` works on; ``channel_groups``: in how many
        places ``prune --macs`` can remove channels.
    """
    model = add_head(backbone, 2, 0.0)
    obstacle = None
    try:
        place(fold_batch_normalization(model), (-1.0, 1.0))
    except UsageError as error:
        obstacle = error.message
    return {
        "int8": obstacle is None,
        "int8_obstacle": obstacle,
        "sparsity_weights": sum(int(layer.kernel.shape.num_elements()) for layer in prunable(model)),
        "channel_groups": len(groups(model)),
    }
