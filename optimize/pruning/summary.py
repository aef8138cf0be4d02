"""Text of a pruning result."""

from __future__ import annotations

from collections.abc import Mapping

from ...console.tables import percent, record, table
from ...train.run_info import RunInfo
from .tasks import registry as tasks

FASTER = 1.05
"""A smaller ratio does not count as a gain: repeated measurements differ by as much."""
SHOWN = 40
"""Largest number of channel groups in `prune_text`."""
_TITLES = {"sparsity": "unstructured sparsity", "macs": "fewer channels"}


def verdict(kind: str, size: Mapping[str, int], latency: Mapping[str, float]) -> list[str]:
    """Gain in latency and size, in sentences; for the arguments see `edgeall.train.run_info.PrunedInfo`."""
    before, after = latency["parent_float32_p50_ms"], latency["float32_p50_ms"]
    speed = f"{before / after:.2f} times as fast" if before / after >= FASTER else "no faster"
    lines = [f"{_TITLES[kind]}: {speed} ({before:.2f} ms before, {after:.2f} ms after, float32, one thread)"]
    for name, key in (("file", "float32_bytes"), ("compressed file", "float32_gzip_bytes")):
        whole, left = size[f"parent_{key}"], size[key]
        if whole / left >= FASTER:
            lines.append(f"{name}: {left / 1e6:.2f} of {whole / 1e6:.2f} MB")
        else:
            lines.append(f"{name}: no smaller ({whole / 1e6:.2f} MB before, {left / 1e6:.2f} MB after)")
    return lines


def prune_text(run: RunInfo) -> str:
    """What ``edgeall prune`` prints of the pruned run."""
    pruned = run.pruned
    assert pruned is not None
    task, before = tasks.of_run(run), pruned.parent_dice or pruned.parent_accuracy
    facts = {
        "run": pruned.parent,
        pruned.kind: f"{percent(pruned.found)} found, {percent(pruned.asked)} asked for",
        "parameters": f"{pruned.parameters:,} of {pruned.parent_parameters:,}",
        "MACs": f"{pruned.macs:,} of {pruned.parent_macs:,}",
        **{
            f"{name} {task.figure}": f"{task.shown(figure)}, before {task.shown(before.get(name))}"
            for name, figure in task.figures(run).items()
        },
    }
    parts = [record(facts), "\n".join(pruned.verdict)]
    changed = [[name, *counts] for name, counts in (pruned.channels or {}).items()]
    if changed:
        more = [f"and {len(changed) - SHOWN} more (--json has all)"] if len(changed) > SHOWN else []
        parts.append("\n".join([table(["channels of", "before", "after"], changed[:SHOWN]), *more]))
    return "\n\n".join(parts)
