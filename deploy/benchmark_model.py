"""LiteRT's own ``benchmark_model`` program: its command line and what it prints.

Source: tflite/tools/benchmark of LiteRT (README.md, benchmark_model.cc).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..edge_runtime.errors import DataError

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
    """The command line that measures: a single stream, at least `MIN_RUNS` runs and so many seconds."""
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
    """The command line that runs once on the bytes of a file and writes the output tensor's bytes to another.

    Args:
        graph: the model.
        input_name: of its input tensor.
        input_shape: of the same, with the batch.
        input_file: holds the tensor, in its own type and layout.
        output_file: to be written.
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


def parse_output(text: str) -> dict[str, Any]:
    """What the program measured.

    Args:
        text: all that it printed, of both outputs.

    Returns:
        load_ms: opening and allocating.
        first_ms: the very first inference.
        queries: how many were measured.
        invoke: mean_ms, min_ms, max_ms, std_ms; p50_ms and p95_ms where this version prints them.
        overall_mb: what model and inference added to the process's memory; None where this version doesn't say.

    Raises:
        DataError: it printed no timings.
    """
    timings = _TIMINGS.search(text)
    runs = _RUNS.findall(text)
    if timings is None or not runs:
        last = text.strip().splitlines()[-1:] or ["nothing at all"]
        raise DataError(f"benchmark_model printed no timings, its last line: {last[0]}")
    queries, line = runs[-1]  # the first are the warm-up's
    figures = {key: float(value) / 1e3 for key, value in re.findall(rf"(\w+)={_NUMBER}", line)}
    names = {"avg": "mean_ms", "min": "min_ms", "max": "max_ms", "std": "std_ms", "median": "p50_ms", "p95": "p95_ms"}
    memory = _MEMORY.search(text)
    return {
        "load_ms": float(timings[1]) / 1e3,
        "first_ms": float(timings[2]) / 1e3,
        "queries": int(queries),
        "invoke": {name: figures[key] for key, name in names.items() if key in figures},
        "overall_mb": float(memory[2]) if memory else None,
    }
