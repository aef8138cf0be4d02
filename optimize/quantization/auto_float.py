"""Mixed precision by accuracy: as few layers in float as an allowed drop takes, the worst of the layer report first.

The number of layers is doubled until the validation subset loses no more than the allowed drop, and then bisected.
Every candidate is converted from the same weights and ranges; ``qat-int8`` trains only the chosen one again. The test
subset decides nothing: it is the gate of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ...console.progress import Progress
from ...edge_runtime.errors import EdgeallError, UsageError
from .gate import Gated, gate_error
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
    config, given = job.config, job.config.float_layers
    assert network.placement is not None and converted.integer is not None
    placement, integer, bounds = network.placement, converted.integer, input_range(job.spec)
    measured = job.task.validation_drop(job, network)

    def worst() -> list[str]:
        rows = measure_layers(job, integer, placement)
        return candidates(network.folded, bounds, [row.layer for row in rows], given)

    def lost(names: Sequence[str]) -> float:
        if not names:
            return measured(converted.flatbuffer)
        return measured(convert_integer(job, integer, place(network.folded, bounds, (*given, *names)))[0])

    found = search(config, worst, lost, job.task.name, job.progress)
    found = replace(found, layers=[*given, *found.layers])
    if len(found.layers) == len(given):
        return job, network, replace(converted, auto_float=found)
    job.progress.note(f"{found.argument} meets --max-drop {config.max_drop:g} on the validation subset")
    job = replace(job, config=replace(config, float_layers=tuple(found.layers)))
    network = replace(network, placement=place(network.folded, bounds, found.layers))
    return job, network, replace(convert_network(job, network), auto_float=found)


def search(
    config: Gated,
    worst: Callable[[], Sequence[str]],
    lost: Callable[[Sequence[str]], float],
    task: str,
    progress: Progress,
) -> AutoFloat:
    """As few layers in float as ``config.max_drop`` takes on the validation subset.

    Args:
        config: of the quantization.
        worst: gives the layers, the worst first. Not called if no layer has to stay in float.
        lost: gives the drop with these layers in float, in `DROP_UNITS` of the task. It must know the drop without
            any. An EdgeallError says that the model cannot be converted with these; with more, it may be.
        task: its name.
        progress: told about every trial.

    Raises:
        GateError: every trial loses more.
    """
    limit, trials = config.max_drop, list[Trial]()
    assert limit is not None

    def meets(names: Sequence[str]) -> bool:
        shown = "1 layer in float" if len(names) == 1 else f"{len(names)} layers in float"
        try:
            drop: float | None = lost(names)
            progress.note(f"{shown}: drop of {drop:.2f} {DROP_UNITS[task]}")
        except EdgeallError as error:
            drop = None
            progress.note(f"{shown}: {error.message}")
        trials.append(Trial(len(names), drop))
        return trials[-1].within(limit)

    if meets(()):
        return AutoFloat([], trials)
    names = worst()
    count = fewest(len(names), lambda count: meets(names[:count]))
    if count is not None:
        return AutoFloat(list(names[:count]), trials)
    least = min(trial.drop_points for trial in trials if trial.drop_points is not None)
    raise gate_error(config, f"{least:.2f} {DROP_UNITS[task]} at best", task, AutoFloat([], trials))


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
