"""Measures latency, throughput, memory and accuracy of a model on this device.

Uses two scenarios of MLPerf Inference: *single stream* starts a query when the previous one is done; *offline* has all
images at hand and counts images per second.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import interpreter
from ..bundle import open_bundle
from ..classifier import Classifier
from ..errors import DataError, ImageError, UsageError
from ..network import Network, cores
from ..parallel import Pool
from ..preprocess import preprocess
from ..tasks import ForeignFacts, open_given
from .bench_config import BenchConfig
from .bench_images import Decode, accuracy, decoders, images_digest, list_files, true_labels
from .bench_result import SPREAD, BenchResult, Conditions, OfflineRow, Repetition, StageTimes, ThreadRow, Unreadable
from .device import MachineState, condition_warnings, describe_device, machine_state, peak_rss_bytes, rss_bytes
from .layout import layouts_in_memory, measure_throughput, possible_layouts
from .profile import OperatorProfile, profile_model

__all__ = ["MAX_SPREAD_PERCENT", "STAGES", "BenchConfig", "BenchResult", "bench"]

STAGES = ("decode", "preprocess", "invoke", "end_to_end")
WARM_UP_QUERIES = 10
MAX_SPREAD_PERCENT = 5.0
"""Largest spread of the repetitions without a warning: above it, other activity on the device disturbs the figures."""


def bench(
    path: str | os.PathLike[str],
    config: BenchConfig | None = None,
    *,
    note: Callable[[str], None] = lambda _: None,
    root: Path = Path("/"),
) -> BenchResult:
    """Measure one model on this device.

    Args:
        path: a packed model, or a foreign one with known or given labels and normalization.
        config: None takes the defaults.
        note: called with one line before each measurement.
        root: folder that holds ``proc`` and ``sys``.

    Raises:
        BundleError: the model cannot be opened.
        UsageError: invalid labels, normalization or input size, see `Classifier.open`; or ``profile`` for a model
            without a fixed input size.
        DataError: the images do not exist, or none of them can be read; or there are none.
        EdgeallError: this interpreter cannot time operators.
    """
    config = config or BenchConfig()
    samples = [machine_state(root)]
    network, load_ms = _open(path, config)
    files = list_files(config.images)
    sources = decoders(files, network)
    problems: dict[str, str] = {}
    first_ms = _warm_up(network, sources, problems) / 1e6
    loop = _Loop(network, list(sources.values()), config, note)
    streams = []
    for _ in loop.repetitions():
        streams.append(loop.single_stream(network))
        samples.append(machine_state(root))
    peak, steady = peak_rss_bytes(), rss_bytes()
    sweep = (loop.thread_sweep(streams[-1]), loop.offline()) if config.sweep else (None, None)
    operators = loop.operators(path)
    samples.append(machine_state(root))
    rate, counted = _accuracy(network, config, files, problems)
    return BenchResult(
        device=describe_device(),
        conditions=Conditions(samples[0], samples[-1]),
        model=os.path.basename(path),
        model_sha256=hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        images_sha256=images_digest(network, files),
        runtime=interpreter.runtime_version(),
        threads=config.threads,
        images=len(sources),
        load_ms=load_ms,
        first_ms=first_ms,
        **_summary(streams, samples, loop.answers.differ),
        thread_sweep=sweep[0],
        offline=sweep[1],
        peak_rss_bytes=peak,
        steady_rss_bytes=steady,
        accuracy=rate,
        accuracy_images=counted,
        profile=operators,
        problems=[Unreadable(image, reason) for image, reason in problems.items()],
    )


def _open(path: str | os.PathLike[str], config: BenchConfig) -> tuple[Network[Any], float]:
    """Open the model. Returns it with the load time in ms, without the import of the interpreter."""
    if config.profile and config.input_size is not None:
        raise UsageError(f"{path}: --profile does not support --input-size", hint="leave --profile out")
    interpreter.runtime_package()
    start = time.perf_counter_ns()
    facts = ForeignFacts(config.labels_file, config.mean, config.std, config.input_size)
    network = open_given(open_bundle(path), config.threads, facts)
    return network, (time.perf_counter_ns() - start) / 1e6


def _accuracy(
    network: Network[Any], config: BenchConfig, files: Sequence[str], problems: dict[str, str]
) -> tuple[float | None, int]:
    """Accuracy of a classifier over the labelled files, and their number; None for another task."""
    if not isinstance(network, Classifier):
        return None, 0
    return accuracy(network, true_labels(config.images, files, network.labels), problems)


@dataclass(frozen=True)
class _Stream:
    """One timed single stream: nanoseconds of each of `STAGES` for every query, and the duration of the loop."""

    times: list[tuple[int, int, int, int]]
    seconds: float

    @property
    def images_per_s(self) -> float:
        return len(self.times) / self.seconds

    def p50_ms(self, stage: str) -> float:
        column = STAGES.index(stage)
        return statistics.median(query[column] for query in self.times) / 1e6

    def repetition(self) -> Repetition:
        return Repetition(len(self.times), self.images_per_s, self.p50_ms("invoke"), self.p50_ms("end_to_end"))


class _Answers:
    """Compares each answer with the first one to the same image: the same computation gives the same bits.

    Attributes:
        differ: number of answers that differ.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self.differ = 0

    def check(self, image: int, answer: NDArray[np.generic]) -> None:
        checksum = zlib.crc32(np.ascontiguousarray(answer).data)
        self.differ += self._first.setdefault(image, checksum) != checksum


@dataclass(frozen=True)
class _Loop:
    """The timed loops over one set of images. ``answers`` are those of ``network``."""

    network: Network[Any]
    decoders: Sequence[Decode]
    config: BenchConfig
    note: Callable[[str], None]
    answers: _Answers = field(default_factory=_Answers)

    def repetitions(self) -> Iterator[int]:
        """The number of each repetition of the single stream, from 1."""
        for number in range(1, self.config.repetitions + 1):
            self.note(f"single stream, {number} of {self.config.repetitions}")
            yield number

    def single_stream(self, network: Network[Any]) -> _Stream:
        answers = self.answers if network is self.network else _Answers()
        times: list[tuple[int, int, int, int]] = []
        begin = time.perf_counter_ns()
        elapsed_ns = 0
        while elapsed_ns < self.config.seconds * 1e9 or len(times) < self.config.min_queries:
            image = len(times) % len(self.decoders)
            query, answer = _query(network, self.decoders[image])
            times.append(query)
            elapsed_ns = time.perf_counter_ns() - begin
            answers.check(image, answer)
            begin += time.perf_counter_ns() - begin - elapsed_ns  # the check is not part of the measurement
        return _Stream(times, elapsed_ns / 1e9)

    def thread_sweep(self, measured: _Stream) -> list[ThreadRow]:
        """The single stream with 1, 2 and 4 threads; ``measured`` is the one with the configured number."""
        rows = []
        own = self.network.threads
        for threads in sorted({own, *(threads for threads in (1, 2, 4) if threads <= cores())}):
            stream = measured
            if threads != own:
                self.note(f"single stream, {threads} threads")
                other = self.network.clone(threads)
                for decode in self.decoders[:WARM_UP_QUERIES]:
                    _query(other, decode)
                stream = self.single_stream(other)
            rows.append(ThreadRow(threads, stream.p50_ms("invoke"), stream.p50_ms("end_to_end"), stream.images_per_s))
        return rows

    def offline(self) -> list[OfflineRow]:
        """Throughput of every layout that fits the memory."""

        def load(decode: Decode) -> NDArray[np.uint8]:
            return preprocess(decode(), self.network.input)

        rows = []
        for layout in layouts_in_memory(self.network, possible_layouts(cores())):
            self.note(f"offline, interpreters x threads: {layout}")
            with Pool(self.network, layout) as pool:
                measure_throughput(pool, load, self.decoders, 0, max(WARM_UP_QUERIES, 4 * layout.interpreters))
                done, elapsed = measure_throughput(
                    pool, load, self.decoders, self.config.seconds, self.config.min_queries
                )
            rows.append(OfflineRow(layout.interpreters, layout.threads, done / elapsed))
        return rows

    def operators(self, path: str | os.PathLike[str]) -> OperatorProfile | None:
        """The time of each operator; None if not requested."""
        if not self.config.profile:
            return None
        self.note("operators")
        return profile_model(path, self.config.threads)


def _summary(streams: Sequence[_Stream], samples: Sequence[MachineState], differ: int) -> dict[str, Any]:
    """The fields of `BenchResult` that come from the single streams; ``differ`` counts answers, see `_Answers`."""
    times = [query for stream in streams for query in stream.times]
    spread = _spread_percent([stream.p50_ms("end_to_end") for stream in streams])
    return {
        "queries": len(times),
        "stages": _percentiles(times),
        "images_per_s": len(times) / sum(stream.seconds for stream in streams),
        "repetitions": [stream.repetition() for stream in streams],
        "spread_percent": spread,
        "answers_differ": differ,
        "warnings": [
            *condition_warnings(samples),
            *_spread_warnings(spread, samples),
            *_answer_warnings(differ, len(times)),
        ],
    }


def _spread_percent(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return 100 * (max(values) - min(values)) / statistics.median(values)


def _spread_warnings(spread: float | None, samples: Sequence[MachineState]) -> list[str]:
    if spread is None or spread <= MAX_SPREAD_PERCENT:
        return []
    governor = samples[0].governor
    clock = f" (CPU frequency governor: {governor})" if governor not in (None, "performance") else ""
    return [f"{SPREAD} {spread:.1f} %: stop other programs, or increase --seconds{clock}"]


def _answer_warnings(differ: int, queries: int) -> list[str]:
    if not differ:
        return []
    return [
        f"{differ:,} of {queries:,} answers differ from the first answer to the same image: check the power supply, "
        "the clock and the memory of the device"
    ]


def _query(network: Network[Any], decode: Decode) -> tuple[tuple[int, int, int, int], NDArray[np.generic]]:
    """Nanoseconds of each of `STAGES` for one image, and the answer."""
    start = time.perf_counter_ns()
    image = decode()
    decoded = time.perf_counter_ns()
    pixels = preprocess(image, network.input)
    ready = time.perf_counter_ns()
    answer = network.predict(pixels)
    done = time.perf_counter_ns()
    return (decoded - start, ready - decoded, done - ready, done - start), answer


def _warm_up(network: Network[Any], sources: dict[str, Decode], problems: dict[str, str]) -> int:
    """Run every image once, at least `WARM_UP_QUERIES` queries. Move images that cannot be read to ``problems``.

    Returns:
        Nanoseconds of the first image.
    """
    first_ns = 0
    for name, decode in list(sources.items()):
        try:
            end_to_end = _query(network, decode)[0][-1]
        except ImageError as error:
            problems[name] = error.message
            del sources[name]
            continue
        first_ns = first_ns or end_to_end
    if not sources:
        raise DataError(f"none of the {len(problems)} images can be read", hint="see `edgeall data ls`")
    for decode in itertools.islice(itertools.cycle(sources.values()), max(0, WARM_UP_QUERIES - len(sources))):
        _query(network, decode)
    return first_ns


def _percentiles(times: Sequence[tuple[int, ...]]) -> dict[str, StageTimes]:
    values = np.percentile(np.array(times) / 1e6, (50, 90, 99), axis=0)
    return {stage: StageTimes(*map(float, values[:, column])) for column, stage in enumerate(STAGES)}
