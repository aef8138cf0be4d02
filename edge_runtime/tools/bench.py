"""How fast, how large in memory and how right a model is on this device.

Two of MLPerf Inference's scenarios: *single stream*, where the next query is given when the last is answered, and
*offline*, where all images are there and only images per second count.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import interpreter
from ..classifier import Classifier
from ..errors import DataError, ImageError, UsageError
from ..images import decode_rgb, open_rgb
from ..parallel import Pool, clone
from ..pipeline import expand, prediction
from ..preprocess import load_input, preprocess
from .device import (
    condition_warnings,
    conditions,
    cores,
    describe_device,
    peak_rss_bytes,
    rss_bytes,
)
from .layout import layouts_in_memory, measure_throughput, possible_layouts

STAGES = ("decode", "preprocess", "invoke", "end_to_end")
WARM_UP_QUERIES = 10
MAX_TIMED_IMAGES = 200
"""Taken evenly from the folder; enough to see its sizes and formats, few enough to stay in the page cache."""
MAX_SPREAD_PERCENT = 5.0
"""Of repetitions; figures that differ by more say too much of what else happened."""

Decode = Callable[[], Image.Image]


def bench(
    path: str | os.PathLike[str],
    images: Path | None = None,
    threads: int = 1,
    seconds: float = 5.0,
    min_queries: int = 50,
    *,
    repetitions: int = 1,
    sweep: bool = False,
    profile: bool = False,
    labels_file: str | os.PathLike[str] | None = None,
    mean: float | None = None,
    std: float | None = None,
    input_size: int | None = None,
    note: Callable[[str], None] = lambda _: None,
    root: Path = Path("/"),
) -> dict[str, Any]:
    """Measure one model on this device.

    Args:
        path: a packed model, or a foreign one that knows its labels and normalization or is given them.
        images: a folder (or one image); those in folders named like the labels, however deep, give accuracy too,
            in a pass of its own over all of them, untimed. None times the model's golden images.
        threads: of the interpreter in the single stream.
        seconds: each timed loop lasts at least so long.
        min_queries: and takes at least so many images.
        repetitions: of the single stream.
        sweep: also the single stream with other numbers of threads, and the offline scenario with every way to
            spread the cores.
        profile: also the time of each operator, see `edgeall.edge_runtime.tools.profile`.
        labels_file: foreign models only, as the three below: see `Classifier.open`.
        mean: see there.
        std: see there.
        input_size: see there.
        note: told what is going on, in one line.
        root: where ``proc`` and ``sys`` are.

    Returns:
        schema: 1.
        device: `describe_device`.
        conditions: ``before`` and ``after``, see `conditions`.
        model, model_sha256: name and digest of the whole file.
        images_sha256: of the contents of all images given, in order: whether two figures are of the same images.
        runtime: interpreter package and version.
        threads: as asked.
        images: how many different ones were timed.
        queries: how many were timed in all.
        load_ms: opening, checking and allocating the model, the interpreter's import left out.
        first_ms: the first image after that, from file to probabilities, before anything is warm: the
            interpreter's first run packs weights, and the decoder is loaded. What a user waits for after start.
        stages: single stream, for each of decode (file to RGB), preprocess (fit, resize), invoke (normalization
            where the model needs it, the model, dequantization) and end_to_end (all three): p50_ms, p90_ms, p99_ms.
        images_per_s: single stream, queries by the wall time of the loops.
        repetitions: queries, images_per_s, invoke_p50_ms and end_to_end_p50_ms of each.
        spread_percent: of their end_to_end_p50_ms, largest less smallest, by the median; None for one repetition.
        thread_sweep: threads, invoke_p50_ms, end_to_end_p50_ms, images_per_s of a single stream; None without.
        offline: interpreters, threads, images_per_s of each way to spread the cores; None without a sweep.
        peak_rss_bytes: of the whole process, Python and interpreter included, up to the end of the single stream.
        steady_rss_bytes: at its end.
        accuracy: 0..1, over the images in folders named like a label; None when there is none.
        accuracy_images: how many those are.
        profile: see `edgeall.edge_runtime.tools.profile`; None without.
        warnings: what casts doubt on the figures: throttling, other programs, a spread over `MAX_SPREAD_PERCENT`.
        problems: images that could not be read or classified.

    Raises:
        BundleError: the model can't be opened.
        UsageError: labels, normalization or input size make no sense, see `Classifier.open`; or ``profile`` of a model
            without a fixed input size.
        DataError: ``images`` doesn't exist, holds no image or none that can be read; or there are none.
        EdgeallError: operators can't be timed with this interpreter.
    """
    if profile and input_size is not None:
        raise UsageError(f"{path}: --profile can't set an input size", hint="leave --profile out")
    samples = [conditions(root)]
    interpreter.runtime_package()
    start = time.perf_counter_ns()
    classifier = Classifier.open(
        path, threads=threads, labels_file=labels_file, mean=mean, std=std, input_size=input_size
    )
    load_ns = time.perf_counter_ns() - start
    files = list(expand([images])) if images is not None else []
    sources = _timed_files(files) if files else _golden_images(classifier)
    problems: dict[str, str] = {}

    first_ns = _warm_up(classifier, sources, problems)
    decoders = list(sources.values())
    streams = []
    for number in range(repetitions):
        note(f"single stream, {number + 1} of {repetitions}")
        streams.append(_Stream(classifier, decoders, seconds, min_queries))
        samples.append(conditions(root))
    steady, peak = rss_bytes(), peak_rss_bytes()
    spread = _spread_percent([stream.p50_ms("end_to_end") for stream in streams])
    thread_sweep = _thread_sweep(classifier, streams, decoders, seconds, min_queries, note) if sweep else None
    offline = _offline(classifier, decoders, seconds, min_queries, note) if sweep else None
    operators = None
    if profile:
        from .profile import profile_model

        note("operators")
        operators = profile_model(path, threads)
    samples.append(conditions(root))
    accuracy, counted = _accuracy(classifier, _truths(images, files, classifier.labels), problems)
    times = [query for stream in streams for query in stream.times]
    return {
        "schema": 1,
        "device": describe_device(),
        "conditions": {"before": samples[0], "after": samples[-1]},
        "model": os.path.basename(path),
        "model_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "images_sha256": _images_digest(classifier, files),
        "runtime": interpreter.runtime_version(),
        "threads": threads,
        "images": len(decoders),
        "queries": len(times),
        "load_ms": load_ns / 1e6,
        "first_ms": first_ns / 1e6,
        "stages": _percentiles(times),
        "images_per_s": len(times) / sum(stream.seconds for stream in streams),
        "repetitions": [
            {
                "queries": len(stream.times),
                "images_per_s": stream.images_per_s,
                "invoke_p50_ms": stream.p50_ms("invoke"),
                "end_to_end_p50_ms": stream.p50_ms("end_to_end"),
            }
            for stream in streams
        ],
        "spread_percent": spread,
        "thread_sweep": thread_sweep,
        "offline": offline,
        "peak_rss_bytes": peak,
        "steady_rss_bytes": steady,
        "accuracy": accuracy,
        "accuracy_images": counted,
        "profile": operators,
        "warnings": [*condition_warnings(samples), *_spread_warnings(spread, samples)],
        "problems": [{"path": image, "reason": reason} for image, reason in problems.items()],
    }


class _Stream:
    """One timed single stream: nanoseconds of each of `STAGES` for every query, and seconds of the loop."""

    def __init__(self, classifier: Classifier, decoders: Sequence[Decode], seconds: float, min_queries: int) -> None:
        self.times: list[tuple[int, int, int, int]] = []
        begin = time.perf_counter_ns()
        elapsed_ns = 0
        while elapsed_ns < seconds * 1e9 or len(self.times) < min_queries:
            self.times.append(_query(classifier, decoders[len(self.times) % len(decoders)]))
            elapsed_ns = time.perf_counter_ns() - begin
        self.seconds = elapsed_ns / 1e9

    @property
    def images_per_s(self) -> float:
        return len(self.times) / self.seconds

    def p50_ms(self, stage: str) -> float:
        column = STAGES.index(stage)
        return statistics.median(query[column] for query in self.times) / 1e6


def _thread_sweep(
    classifier: Classifier,
    streams: Sequence[_Stream],
    decoders: Sequence[Decode],
    seconds: float,
    min_queries: int,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The single stream with 1, 2, 4, ... threads; what was asked for has been measured already."""
    rows = []
    for threads in sorted({classifier.threads, *(threads for threads in (1, 2, 4) if threads <= cores())}):
        if threads == classifier.threads:
            stream = streams[-1]
        else:
            note(f"single stream, {threads} threads")
            other = clone(classifier, threads)
            for decode in decoders[:WARM_UP_QUERIES]:
                _query(other, decode)
            stream = _Stream(other, decoders, seconds, min_queries)
        rows.append(
            {
                "threads": threads,
                "invoke_p50_ms": stream.p50_ms("invoke"),
                "end_to_end_p50_ms": stream.p50_ms("end_to_end"),
                "images_per_s": stream.images_per_s,
            }
        )
    return rows


def _offline(
    classifier: Classifier,
    decoders: Sequence[Decode],
    seconds: float,
    min_queries: int,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    def load(decode: Decode) -> NDArray[np.uint8]:
        return preprocess(decode(), classifier.input)

    rows = []
    for layout in layouts_in_memory(classifier, possible_layouts(cores())):
        note(f"offline, interpreters x threads: {layout}")
        with Pool(classifier, layout) as pool:
            measure_throughput(pool, load, decoders, 0, max(WARM_UP_QUERIES, 4 * layout.interpreters))
            done, elapsed = measure_throughput(pool, load, decoders, seconds, min_queries)
        rows.append({"interpreters": layout.interpreters, "threads": layout.threads, "images_per_s": done / elapsed})
    return rows


def _spread_percent(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return 100 * (max(values) - min(values)) / statistics.median(values)


def _spread_warnings(spread: float | None, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    if spread is None or spread <= MAX_SPREAD_PERCENT:
        return []
    governor = samples[0]["governor"]
    clock = f" (the clock's governor is {governor})" if governor not in (None, "performance") else ""
    return [f"repetitions differ by {spread:.1f} %: stop other programs, or take more --seconds{clock}"]


def _images_digest(classifier: Classifier, files: Sequence[str]) -> str:
    """Hex SHA-256 of the contents, not of the names: the same folder on another device has the same."""
    whole = hashlib.sha256()
    if not files and classifier.bundle:
        for golden in classifier.bundle.golden:
            whole.update(hashlib.sha256(golden.image_bytes).digest())
    for file in files:
        try:
            whole.update(hashlib.sha256(Path(file).read_bytes()).digest())
        except OSError:  # named among the problems
            whole.update(b"unreadable")
    return whole.hexdigest()


def _query(classifier: Classifier, decode: Decode) -> tuple[int, int, int, int]:
    """Nanoseconds of each of `STAGES` for one image."""
    start = time.perf_counter_ns()
    image = decode()
    decoded = time.perf_counter_ns()
    pixels = preprocess(image, classifier.input)
    ready = time.perf_counter_ns()
    classifier.predict(pixels)
    done = time.perf_counter_ns()
    return decoded - start, ready - decoded, done - ready, done - start


def _timed_files(files: Sequence[str]) -> dict[str, Decode]:
    chosen = np.unique(np.linspace(0, len(files) - 1, MAX_TIMED_IMAGES).astype(int))
    return {files[index]: functools.partial(open_rgb, files[index]) for index in chosen}


def _golden_images(classifier: Classifier) -> dict[str, Decode]:
    golden = classifier.bundle.golden if classifier.bundle else ()
    if not golden:
        raise DataError("the model carries no golden images to time", hint="give some with --images DIR")
    return {item.name: functools.partial(decode_rgb, item.image_bytes, item.name) for item in golden}


def _warm_up(classifier: Classifier, sources: dict[str, Decode], problems: dict[str, str]) -> int:
    """Run every image once, `WARM_UP_QUERIES` at least, drop those that can't be read.

    Returns:
        Nanoseconds of the very first.
    """
    first_ns = 0
    for name, decode in list(sources.items()):
        try:
            end_to_end = _query(classifier, decode)[-1]
        except ImageError as error:
            problems[name] = error.message
            del sources[name]
            continue
        first_ns = first_ns or end_to_end
    if not sources:
        raise DataError(f"none of the {len(problems)} images can be read", hint="see `edgeall data ls`")
    for decode in itertools.islice(itertools.cycle(sources.values()), max(0, WARM_UP_QUERIES - len(sources))):
        _query(classifier, decode)
    return first_ns


def _truths(root: Path | None, files: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """The label of each file that has one: the first folder below ``root`` that is named like a label.

    ``root`` itself (of a single image: its folder) counts when no folder below it does: somebody gave one class.
    """
    if root is None:
        return {}
    top = Path(os.path.abspath(root if root.is_dir() else root.parent))
    truths = {}
    for file in files:
        folders = [*Path(os.path.abspath(file)).relative_to(top).parts[:-1], top.name]
        truth = next((folder for folder in folders if folder in labels), None)
        if truth is not None:
            truths[file] = truth
    return truths


def _accuracy(classifier: Classifier, truths: Mapping[str, str], problems: dict[str, str]) -> tuple[float | None, int]:
    """Fraction right over the labelled files that can be classified, and how many those are.

    By the code path of `edgeall run`, on all cores.
    """
    right = counted = 0
    with Pool(classifier, layouts_in_memory(classifier, possible_layouts(cores()))[0]) as pool:
        for file, outcome in pool.map(lambda file: load_input(file, classifier.input), truths):
            if isinstance(outcome, ImageError):
                problems[file] = outcome.message
                continue
            found = prediction(classifier, file, outcome)
            if found.error is not None:
                problems[file] = found.error
                continue
            counted += 1
            right += found.label == truths[file]
    return right / counted if counted else None, counted


def _percentiles(times: Sequence[tuple[int, ...]]) -> dict[str, dict[str, float]]:
    values = np.percentile(np.array(times) / 1e6, (50, 90, 99), axis=0)
    return {
        stage: dict(zip(("p50_ms", "p90_ms", "p99_ms"), map(float, values[:, column]), strict=True))
        for column, stage in enumerate(STAGES)
    }
