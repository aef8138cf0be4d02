"""The command line and the output of LiteRT's ``benchmark_model`` program.

Source: tflite/tools/benchmark of LiteRT (README.md, benchmark_model.cc).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..console.tables import record
from ..edge_runtime.errors import DataError
from ..edge_runtime.results import SPREAD, Result

MIN_RUNS = 50
WARM_UP_S = 0.5

_NUMBER = r"([-+.\deE]+)"
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, "
    rf"Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}"
)
_RUNS = re.compile(r"count=(\d+) (first=.*)")
_MEMORY = re.compile(rf"Memory footprint delta from the start of the tool \(MB\): init={_NUMBER} overall={_NUMBER}")


def bench_options(graph: str, threads: int, seconds: float) -> list[str]:
    """Arguments for a measurement: a single stream with at least `MIN_RUNS` runs and ``seconds`` seconds."""
    return [
        f"--graph={graph}",
        f"--num_threads={threads}",
        f"--num_runs={MIN_RUNS}",
        f"--min_secs={seconds:g}",
        f"--warmup_min_secs={WARM_UP_S:g}",
    ]


def check_options(
    graph: str, input_name: str, input_shape: Sequence[int], input_file: str, output_file: str
) -> list[str]:
    """Arguments for one run on the input tensor in a file. Writes the output tensor to another file.

    Args:
        graph: the model.
        input_name: name of the input tensor.
        input_shape: shape of the input tensor, with the batch dimension.
        input_file: content of the input tensor, in its type and layout.
        output_file: written by the program.
    """
    return [
        f"--graph={graph}",
        "--num_threads=1",
        *("--num_runs=1", "--min_secs=0", "--warmup_runs=0", "--warmup_min_secs=0"),
        f"--input_layer={input_name}",
        f"--input_layer_shape={','.join(map(str, input_shape))}",
        f"--input_layer_value_files={input_name.replace(':', '::')}:{input_file}",
        f"--output_filepath={output_file}",
    ]


@dataclass(frozen=True)
class Timings(Result):
    """What the program printed.

    Attributes:
        load_ms: time to open and allocate the model.
        first_ms: latency of the first inference.
        queries: number of measured inferences.
        invoke: mean_ms, min_ms, max_ms, std_ms; p50_ms and p95_ms if this version prints them.
        overall_mb: memory added by model and inference; None if this version does not print it.
    """

    load_ms: float
    first_ms: float
    queries: int
    invoke: dict[str, float]
    overall_mb: float | None


@dataclass(frozen=True)
class AndroidDevice(Result):
    """An Android device, as far as it tells."""

    machine: str | None
    board: str | None
    cores: int | None
    os: str


@dataclass(frozen=True)
class ModelTimes(Result):
    """The network's times on a device, without decoding and preprocessing. ``golden``: number of verified images."""

    device: AndroidDevice
    model_sha256: str
    runtime: str
    threads: int
    golden: int
    timings: Timings = field(metadata=SPREAD)


def parse_output(text: str) -> Timings:
    """Parse the program's stdout and stderr. Raises DataError if it printed no timings."""
    timings = _TIMINGS.search(text)
    runs = _RUNS.findall(text)
    if timings is None or not runs:
        last = text.strip().splitlines()[-1:] or ["(no output)"]
        raise DataError(f"benchmark_model printed no timings, its last line: {last[0]}")
    queries, line = runs[-1]  # the first lines are of the warm-up
    figures = {key: float(value) / 1e3 for key, value in re.findall(rf"(\w+)={_NUMBER}", line)}
    names = {"avg": "mean_ms", "min": "min_ms", "max": "max_ms", "std": "std_ms", "median": "p50_ms", "p95": "p95_ms"}
    memory = _MEMORY.search(text)
    return Timings(
        load_ms=float(timings[1]) / 1e3,
        first_ms=float(timings[2]) / 1e3,
        queries=int(queries),
        invoke={name: figures[key] for key, name in names.items() if key in figures},
        overall_mb=float(memory[2]) if memory else None,
    )


def benchmark_model_text(result: ModelTimes) -> str:
    """The times as text."""
    device, times = result.device, result.timings
    return record(
        {
            "device": ", ".join(text for text in (device.board, device.machine, device.os) if text),
            "runtime": f"{result.runtime}, {result.threads} threads",
            "golden images": f"{result.golden} as packed" if result.golden else "none in the file",
            "load": f"{times.load_ms:.2f} ms",
            "first inference": f"{times.first_ms:.2f} ms",
            **{f"inference {name.removesuffix('_ms')}": f"{value:.2f} ms" for name, value in times.invoke.items()},
            "runs": times.queries,
            "memory added": f"{times.overall_mb:.1f} MB" if times.overall_mb is not None else None,
        }
    )
