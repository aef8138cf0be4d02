"""How fast, how large in memory and how right a model is on this device."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeall.edge_runtime import interpreter
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.device import describe_device, peak_rss_bytes
from edgeall.edge_runtime.errors import DataError, ImageError
from edgeall.edge_runtime.images import decode_rgb, open_rgb
from edgeall.edge_runtime.pipeline import classify_one, expand
from edgeall.edge_runtime.preprocess import preprocess

STAGES = ("decode", "preprocess", "invoke", "end_to_end")
WARM_UP_QUERIES = 10
MAX_TIMED_IMAGES = 200
"""Taken evenly from the folder; enough to see its sizes and formats, few enough to stay in the page cache."""

Decode = Callable[[], Image.Image]


def bench(
    path: str | os.PathLike[str],
    images: Path | None = None,
    threads: int = 1,
    seconds: float = 5.0,
    min_queries: int = 50,
    *,
    labels_file: str | os.PathLike[str] | None = None,
    mean: float | None = None,
    std: float | None = None,
) -> dict[str, Any]:
    """Measure one model in a single stream: one image after the other, the next begins when the last is done.

    Args:
        path: a packed model, or a foreign one that knows its labels and normalization or is given them.
        images: a folder (or one image); those in folders named like the labels, however deep, give accuracy too,
            in a pass of its own over all of them, untimed. None times the model's golden images.
        threads: of the interpreter.
        seconds: the timed loop lasts at least so long.
        min_queries: and at least so many images.
        labels_file: foreign models only, as the two below: see `Classifier.open`.
        mean: see there.
        std: see there.

    Returns:
        device: `describe_device`.
        model_sha256: of the whole file.
        runtime: interpreter package and version.
        threads: as asked.
        images: how many different ones were timed.
        queries: how many were timed in all.
        load_ms: opening, checking and allocating the model, the interpreter's import left out.
        first_ms: the first image after that, from file to probabilities, before anything is warm: the
            interpreter's first run packs weights, and the decoder is loaded. What a user waits for after start.
        stages: for each of decode (file to RGB), preprocess (fit, resize), invoke (normalization where the
            model needs it, the model, dequantization) and end_to_end (all three): p50_ms, p90_ms, p99_ms.
        images_per_s: queries by the wall time of the loop.
        peak_rss_bytes: of the whole process, Python and interpreter included.
        accuracy: 0..1, over the images in folders named like a label; None when there is none.
        accuracy_images: how many those are.
        problems: images that could not be read or classified.

    Raises:
        BundleError: the model can't be opened.
        UsageError: labels or normalization make no sense, see `Classifier.open`.
        DataError: ``images`` doesn't exist, holds no image or none that can be read; or there are none.
    """
    interpreter.runtime_package()
    start = time.perf_counter_ns()
    classifier = Classifier.open(path, threads=threads, labels_file=labels_file, mean=mean, std=std)
    load_ns = time.perf_counter_ns() - start
    files = list(expand([images])) if images is not None else []
    sources = _timed_files(files) if files else _golden_images(classifier)
    problems: dict[str, str] = {}

    first_ns = _warm_up(classifier, sources, problems)
    decoders = list(sources.values())
    times: list[tuple[int, ...]] = []
    begin = time.perf_counter_ns()
    elapsed_ns = 0
    while elapsed_ns < seconds * 1e9 or len(times) < min_queries:
        times.append(_query(classifier, decoders[len(times) % len(decoders)]))
        elapsed_ns = time.perf_counter_ns() - begin
    peak = peak_rss_bytes()
    accuracy, counted = _accuracy(classifier, _truths(images, files, classifier.labels), problems)
    return {
        "device": describe_device(),
        "model_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "runtime": interpreter.runtime_version(),
        "threads": threads,
        "images": len(decoders),
        "queries": len(times),
        "load_ms": load_ns / 1e6,
        "first_ms": first_ns / 1e6,
        "stages": _percentiles(times),
        "images_per_s": len(times) / (elapsed_ns / 1e9),
        "peak_rss_bytes": peak,
        "accuracy": accuracy,
        "accuracy_images": counted,
        "problems": [{"path": image, "reason": reason} for image, reason in problems.items()],
    }


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
    """Fraction right over the labelled files that can be classified, and how many those are."""
    right = counted = 0
    for file, truth in truths.items():
        prediction = classify_one(classifier, file)
        if prediction.error is not None:
            problems[file] = prediction.error
            continue
        counted += 1
        right += prediction.label == truth
    return right / counted if counted else None, counted


def _percentiles(times: Sequence[tuple[int, ...]]) -> dict[str, dict[str, float]]:
    values = np.percentile(np.array(times) / 1e6, (50, 90, 99), axis=0)
    return {
        stage: dict(zip(("p50_ms", "p90_ms", "p99_ms"), map(float, values[:, column]), strict=True))
        for column, stage in enumerate(STAGES)
    }
