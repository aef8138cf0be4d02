"""Compares two results of `edgeall bench` and reports regressions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...console.tables import table
from ..errors import DataError, UsageError
from ..results import Result, from_json
from .bench_result import BenchResult
from .device import Device

DEVICE = ("machine", "board", "cpu", "cores")
"""Facts that must be equal for two devices to be comparable."""
VERSIONS = ("os", "python", "runtime")

Figure = Callable[[BenchResult], "float | None"]

FIGURES: dict[str, tuple[bool, Figure]] = {
    "invoke p50, ms": (False, lambda result: result.stages["invoke"].p50_ms),
    "image p50, ms": (False, lambda result: result.stages["end_to_end"].p50_ms),
    "image p90, ms": (False, lambda result: result.stages["end_to_end"].p90_ms),
    "single stream, images/s": (True, lambda result: result.images_per_s),
    "offline, images/s": (True, lambda result: max((row.images_per_s for row in result.offline or ()), default=None)),
    "peak memory, MB": (False, lambda result: result.peak_rss_bytes / 1e6),
    "accuracy": (True, lambda result: result.accuracy),
}
"""By name: whether more is better, and the value, None if not measured. Load time and first image are missing: a run
measures them only once."""


@dataclass(frozen=True)
class FigureChange(Result):
    """One figure that both files have. ``worse_percent`` is negative if it is better."""

    figure: str
    before: float
    after: float
    worse_percent: float
    regression: bool


@dataclass(frozen=True)
class BenchComparison(Result):
    """Two results of `edgeall bench`.

    Attributes:
        before: path, like ``after``.
        max_regression_percent: allowed for each figure.
        differences: the allowed ones, in words.
        regressions: names of the figures that are worse by more than allowed.
    """

    before: str
    after: str
    max_regression_percent: float
    differences: list[str]
    figures: list[FigureChange]
    regressions: list[str]


def compare_bench(
    before: Path,
    after: Path,
    max_regression: str,
    *,
    across_models: bool = False,
    across_images: bool = False,
    across_devices: bool = False,
) -> BenchComparison:
    """Compare two files of ``edgeall bench --json``.

    Args:
        before: the reference.
        after: the new result.
        max_regression: the allowed regression of each figure in percent, as ``5%`` or ``5``. The accuracy of the same
            model on the same images may not decrease at all.
        across_models: compare different model files.
        across_images: compare different images.
        across_devices: compare different devices.

    Raises:
        UsageError: ``max_regression`` is not a percentage, or the results are not comparable.
        DataError: a file does not exist, or was not written by ``edgeall bench``.
    """
    allowed = percentage(max_regression)
    old, new = _load(before), _load(after)
    differences = _differences(old, new, models=across_models, images=across_images, devices=across_devices)
    same = old.model_sha256 == new.model_sha256 and old.images_sha256 == new.images_sha256
    figures = []
    for name, (more_is_better, figure) in FIGURES.items():
        was, now = figure(old), figure(new)
        if was is None or now is None or was <= 0:
            continue
        worse = 100 * ((was - now) if more_is_better else (now - was)) / was
        limit = 0.0 if name == "accuracy" and same else allowed
        figures.append(FigureChange(name, was, now, worse, worse > limit))
    worse_ones = [row.figure for row in figures if row.regression]
    return BenchComparison(str(before), str(after), allowed, differences, figures, worse_ones)


def compare_text(result: BenchComparison) -> str:
    """The result of `compare_bench` as text."""
    rows = [
        [
            row.figure,
            f"{row.before:.4g}",
            f"{row.after:.4g}",
            f"{-row.worse_percent:+.1f} %",
            "WORSE" if row.regression else "ok",
        ]
        for row in result.figures
    ]
    lines = [table(["figure", "before", "after", "better by", ""], rows)]
    return "\n".join([*lines, *(f"differs: {difference}" for difference in result.differences)])


def percentage(text: str) -> float:
    """The value of ``--max-regression``: ``5%`` or ``5``. Raises UsageError for anything else."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"--max-regression {text}: not a percentage", hint="for instance --max-regression 5%")
    return value


def _load(path: Path) -> BenchResult:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != 1:
            raise DataError(
                f"{path}: unknown schema {found['schema']}, this version reads 1", hint="update edgeall here"
            )
        result = from_json(BenchResult, found)
        for _, figure in FIGURES.values():
            figure(result)
        wanted = ("model_sha256", "images_sha256", "threads")
        missing = [name for name in wanted if name not in found] + [n for n in DEVICE if n not in found["device"]]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", hint="write it with `edgeall bench --json`") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not written by `edgeall bench --json` ({error})", hint="measure again and store the output"
        ) from error
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}", hint="measure again with this version of edgeall")
    return result


def _differences(old: BenchResult, new: BenchResult, *, models: bool, images: bool, devices: bool) -> list[str]:
    """The differences in words. Raises UsageError for a difference that is not allowed."""
    if old.threads != new.threads:
        raise UsageError(f"{old.threads} threads and {new.threads}", hint="measure both with the same --threads")
    device = _changes(old.device, new.device, DEVICE)
    refused = [
        ("model_sha256", models, "the models differ", "--across-models"),
        ("images_sha256", images, "the images differ", "--across-images"),
    ]
    found = []
    for key, allowed, what, flag in refused:
        was, now = getattr(old, key), getattr(new, key)
        if was != now:
            if not allowed:
                raise UsageError(f"{what} ({key} {was[:12]} and {now[:12]})", hint=f"{flag} compares them")
            found.append(what)
    if device and not devices:
        raise UsageError(f"the devices differ ({'; '.join(device)})", hint="--across-devices compares them")
    return [*found, *device, *_changes(old.device, new.device, VERSIONS)]


def _changes(old: Device, new: Device, names: Sequence[str]) -> list[str]:
    values = [(name, getattr(old, name), getattr(new, name)) for name in names]
    return [f"{name} {was} and {now}" for name, was, now in values if was != now]
