"""What `edgeall.edge_runtime.tools.bench.bench` measures."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..results import OPTIONAL, Result
from .device import Device, MachineState
from .profile import OperatorProfile

SPREAD = "repetitions differ by"
"""Begins the warning of a wide spread of the repetitions."""


@dataclass(frozen=True)
class StageTimes(Result):
    """Percentiles of the time of one stage, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Repetition(Result):
    """One single stream."""

    queries: int
    images_per_s: float
    invoke_p50_ms: float
    end_to_end_p50_ms: float


@dataclass(frozen=True)
class ThreadRow(Result):
    """One single stream with a number of threads."""

    threads: int
    invoke_p50_ms: float
    end_to_end_p50_ms: float
    images_per_s: float


@dataclass(frozen=True)
class OfflineRow(Result):
    """Throughput of one layout: ``interpreters`` in parallel, each with ``threads``."""

    interpreters: int
    threads: int
    images_per_s: float


@dataclass(frozen=True)
class Unreadable(Result):
    """An image that could not be read or classified."""

    path: str
    reason: str


@dataclass(frozen=True)
class Conditions(Result):
    """The state of the machine before and after."""

    before: MachineState
    after: MachineState


@dataclass(frozen=True, kw_only=True)
class BenchResult(Result):
    """What `bench` measured.

    Attributes:
        schema: 1.
        model: name of the file.
        model_sha256: digest of the whole file.
        images_sha256: digest of the contents of all images given, in order.
        runtime: interpreter package and version.
        threads: of the interpreter in the single stream.
        images: number of different images timed.
        queries: number of timed queries.
        load_ms: time to open, check and allocate the model, without the import of the interpreter.
        first_ms: latency of the first image after that, from file to probabilities. It includes the packing of the
            weights and the start of the decoder.
        stages: of the single stream, for each of decode (file to RGB), preprocess (fit, resize), invoke (normalization
            if needed, model, dequantization) and end_to_end (all three).
        images_per_s: of the single stream, queries per wall time of the loops.
        repetitions: of the single stream.
        spread_percent: largest minus smallest end_to_end_p50_ms of the repetitions, divided by their median; None for
            one repetition.
        thread_sweep: single streams with several numbers of threads; None without sweep.
        offline: throughput of each layout; None without sweep.
        peak_rss_bytes: of the whole process with Python and interpreter, up to the end of the single stream.
        steady_rss_bytes: at the end of the single stream.
        accuracy: 0..1, over the images in folders with the name of a label; None if there are none.
        accuracy_images: number of those images.
        answers_differ: number of timed queries of the single stream whose answer is not bit for bit the first answer to
            the same image. Not 0 means a faulty device or interpreter. None: an older version that did not compare.
        profile: time of each operator; None if not requested.
        warnings: reasons to doubt the figures: throttling, other programs, repetitions that differ much.
        problems: images that could not be read or classified.
    """

    schema: int = 1
    device: Device
    conditions: Conditions
    model: str
    model_sha256: str
    images_sha256: str
    runtime: str
    threads: int
    images: int
    queries: int
    load_ms: float
    first_ms: float
    stages: dict[str, StageTimes]
    images_per_s: float
    repetitions: list[Repetition]
    spread_percent: float | None
    thread_sweep: list[ThreadRow] | None
    offline: list[OfflineRow] | None
    peak_rss_bytes: int
    steady_rss_bytes: int | None
    accuracy: float | None
    accuracy_images: int
    answers_differ: int | None = field(default=None, metadata=OPTIONAL)
    profile: OperatorProfile | None
    warnings: list[str]
    problems: list[Unreadable]
