"""A health check: the new release judges images on the device for a while, before it is activated."""

from __future__ import annotations

from dataclasses import dataclass

from ..edge_runtime.errors import EdgeallError, GateError
from ..edge_runtime.results import Result
from ..edge_runtime.tools.bench_result import SPREAD, BenchResult
from .remote import Installed, bench
from .shell import Reporter, Shell
from .target import DeviceError

SLICE_S = 5.0
"""The check is measured in slices of this many seconds: a device that slows down shows it in the slowest. When the
connection is closed, the program on the device ends with its slice."""
MIN_QUERIES = 3


@dataclass(frozen=True)
class HealthConfig:
    """How long, and what is accepted.

    Attributes:
        seconds: minimum duration.
        max_regression_percent: by how much the network may be slower than that of the release before.
    """

    seconds: float = 60.0
    max_regression_percent: float = 100.0

    @property
    def slices(self) -> int:
        """Number of slices, at least one."""
        return max(1, round(self.seconds / SLICE_S))


@dataclass(frozen=True)
class Health(Result):
    """What the health check measured on the device, on the golden images. Times are of the network alone.

    Attributes:
        seconds: minimum duration.
        queries: number of images judged.
        invoke_p50_ms: median latency over the check.
        slowest_invoke_p50_ms: median latency of the slowest slice.
        before_invoke_p50_ms: median latency of the release before, measured directly before the check; None if there is
            none or it does not run.
        warnings: reasons to doubt the figures, see `BenchResult.warnings`; and why the release before was not measured.
    """

    seconds: float
    queries: int
    invoke_p50_ms: float
    slowest_invoke_p50_ms: float
    before_invoke_p50_ms: float | None
    warnings: list[str]

    def __str__(self) -> str:
        before = "" if self.before_invoke_p50_ms is None else f", before {self.before_invoke_p50_ms:.1f} ms"
        return f"{self.queries:,} images, p50 {self.invoke_p50_ms:.1f} ms{before}"


def check_health(
    shell: Shell, config: HealthConfig, release: Installed, before: Installed | None, progress: Reporter
) -> Health:
    """Measure the release in use, then let the new one judge its golden images again and again.

    Args:
        shell: the device.
        config: duration and limit.
        release: the new release.
        before: the release in use; None if there is none.
        progress: shows the slices, and warnings.

    Raises:
        DeviceError: the new release crashes, or its answers change.
        GateError: it is slower than allowed.
    """
    expected, problems = _expected_ms(shell, config, before)
    with progress.task(f"{shell.name}: health check", config.slices) as advance:
        lines = 0

        def show(_line: str) -> None:  # bench prints one line at the start of each slice
            nonlocal lines
            advance(min(lines, config.slices), "slices")
            lines += 1

        options = _options(config.seconds / config.slices, config.slices)
        measured = bench(shell, release, *options, on_line=show)
    health = judge(shell.name, measured, expected, config)
    health.warnings.extend(problems)
    for warning in health.warnings:
        progress.note(f"warning: {shell.name}: {warning}")
    return health


def judge(device: str, measured: BenchResult, before_ms: float | None, config: HealthConfig) -> Health:
    """Compare a measurement with the release before.

    Args:
        device: its name, for errors.
        measured: of the new release, one repetition for each slice.
        before_ms: median latency of the network of the release before; None compares nothing.
        config: the limit.

    Raises:
        DeviceError: answers to the same image differ.
        GateError: the slowest slice is slower than allowed.
    """
    health = Health(
        seconds=config.seconds,
        queries=measured.queries,
        invoke_p50_ms=measured.stages["invoke"].p50_ms,
        slowest_invoke_p50_ms=max(slice_.invoke_p50_ms for slice_ in measured.repetitions),
        before_invoke_p50_ms=before_ms,
        # Slices may differ: the slowest is reported and has its limit.
        warnings=[warning for warning in measured.warnings if not warning.startswith(SPREAD)],
    )
    if measured.answers_differ is None:
        health.warnings.append("answers are not compared: the edgeall of --wheel is too old")
    elif measured.answers_differ:
        raise DeviceError(
            f"{device}: {measured.answers_differ:,} of {measured.queries:,} answers differ from the first answer to "
            "the same golden image",
            hint="check the power supply, the clock and the memory of the device",
        )
    if before_ms is None:
        return health
    worse_percent = 100 * (health.slowest_invoke_p50_ms / before_ms - 1)
    if worse_percent > config.max_regression_percent:
        raise GateError(
            f"{device}: the new release takes up to {health.slowest_invoke_p50_ms:.1f} ms an image, the one before "
            f"{before_ms:.1f} ms: {worse_percent:.0f} % more (allowed {config.max_regression_percent:g} %)",
            hint=f"if it is meant to be slower: --max-regression {_rounded_up(worse_percent)}%",
        )
    return health


def _expected_ms(shell: Shell, config: HealthConfig, before: Installed | None) -> tuple[float | None, list[str]]:
    """Median latency of the network of the release in use; or None and the reason."""
    if before is None:
        return None, []
    options = _options(min(SLICE_S, config.seconds), 1)
    try:
        measured = bench(shell, before, *options, on_line=lambda _: None)
    except EdgeallError as error:  # a broken release must not keep its successor away
        return None, [f"latency is not compared: the release before does not run ({error.message})"]
    return measured.stages["invoke"].p50_ms, []


def _options(seconds: float, repetitions: int) -> list[object]:
    measured = ["--seconds", f"{seconds:g}", "--repetitions", repetitions, "--min-queries", MIN_QUERIES]
    return [*measured, "--no-sweep"]


def _rounded_up(percent: float) -> int:
    """With room for the next measurement: half as much again, in steps of ten."""
    return int(-(-percent * 1.5 // 10)) * 10
