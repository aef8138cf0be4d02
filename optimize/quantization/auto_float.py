"""Mixed precision by accuracy: as few layers in float as an allowed drop takes, the worst of the layer report first.

The number of layers is doubled until the validation subset loses no more than the allowed drop, and then bisected.
Every candidate is converted from the same weights and ranges; ``qat-int8`` trains only the chosen one again. The test
subset decides nothing: it is the gate of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ...edge_runtime.errors import EdgeallError, UsageError
from .gate import gate_error
from .job import Converted, Folded, Job, convert_integer, convert_network, measure_layers
from .placement import Range, input_range, place
from .result import DROP_UNITS, AutoFloat, Trial


def leave_in_float(job: Job, network: Folded, converted: Converted) -> tuple[Job, Folded, Converted]:
    """Search for float layers, and convert as if they had been named.

    Args:
        job: of an integer scheme, with ``max_drop``; its ``float_layers`` stay in float in every candidate.
        network: of the job.
        converted: the candidate without further float layers.

    Returns:
        The same, with the layers that were found. If ``converted`` loses no more than the allowed drop, it is returned.

    Raises:
        GateError: every candidate loses more.
    """
    config, limit = job.config, job.config.max_drop
    assert limit is not None and network.placement is not None and converted.integer is not None
    integer, bounds = converted.integer, input_range(job.spec)
    lost = job.task.validation_drop(job, network)
    trials = [_measured(job, 0, lost(converted.flatbuffer))]
    if trials[0].within(limit):
        return job, network, replace(converted, auto_float=AutoFloat([*config.float_layers], trials))
    rows = measure_layers(job, integer, network.placement)
    names = candidates(network.folded, bounds, [row.layer for row in rows], config.float_layers)

    def meets(count: int) -> bool:
        placement = place(network.folded, bounds, (*config.float_layers, *names[:count]))
        try:
            trial = _measured(job, count, lost(convert_integer(job, integer, placement)[0]))
        except EdgeallError as error:  # of the converter; more layers may be converted
            job.progress.note(f"{_shown(count)}: {error.message}")
            trial = Trial(count, None)
        trials.append(trial)
        return trial.within(limit)

    count = fewest(len(names), meets)
    found = AutoFloat([*config.float_layers, *names[: count or 0]], trials)
    if count is None:
        least = min(trial.drop_points for trial in trials if trial.drop_points is not None)
        raise gate_error(config, f"{least:.2f} {DROP_UNITS[job.task.name]} at best", job.task.name, found)
    job.progress.note(f"{found.argument} meets --max-drop {limit:g} on the validation subset")
    job = replace(job, config=replace(config, float_layers=tuple(found.layers)))
    network = replace(network, placement=place(network.folded, bounds, found.layers))
    return job, network, replace(convert_network(job, network), auto_float=found)


def candidates(folded: Any, bounds: Range, worst: Iterable[str], given: Iterable[str] = ()) -> list[str]:
    """The layers that can be left in float, in the order of ``worst``.

    Left out are layers whose output cannot stay in float, such as a softmax, and those that change nothing because they
    share a scale with a layer before them.

    Args:
        folded: the network.
        bounds: from `edgeall.optimize.quantization.placement.input_range`.
        worst: names of layers.
        given: layers that are in float already.
    """
    kept = list(given)
    found: list[str] = []
    placement = place(folded, bounds, kept)
    for name in worst:
        try:
            further = place(folded, bounds, [*kept, name])
        except UsageError:
            continue
        if further != placement:
            kept.append(name)
            found.append(name)
            placement = further
    return found


def fewest(most: int, meets: Callable[[int], bool]) -> int | None:
    """The smallest number from 1 to ``most`` that ``meets`` accepts, if it accepts all larger ones too.

    Doubles until it does, then bisects: at most ``2 log2(most) + 1`` calls. None if it does not accept ``most``.
    """
    low, high = 0, min(1, most)
    while high > low and not meets(high):
        low, high = high, min(2 * high, most)
    if high == low:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _measured(job: Job, count: int, drop: float) -> Trial:
    job.progress.note(f"{_shown(count)}: drop of {drop:.2f} {DROP_UNITS[job.task.name]}")
    return Trial(count, drop)


def _shown(count: int) -> str:
    return "1 layer in float" if count == 1 else f"{count} layers in float"
