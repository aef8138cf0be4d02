"""Arguments and output of LiteRT's ``benchmark_model``."""

from __future__ import annotations

import pytest

from edgeall.deploy.benchmark_model import (
    AndroidDevice,
    ModelTimes,
    bench_options,
    benchmark_model_text,
    check_options,
    parse_output,
)
from edgeall.edge_runtime.errors import DataError

# The lines that tflite/tools/benchmark/benchmark_model.cc and the Stat classes it uses write, in their order.
NEW = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [50]
INFO: Graph: [/data/local/tmp/edgeall.aB3xYz/model.tflite]
INFO: Loaded model /data/local/tmp/edgeall.aB3xYz/model.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 0.62
INFO: Initialized session in 5.685ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=101 first=18535 curr=4821 min=4700 max=18535 avg=4956.1 std=1366 p5=4711 median=4802 p95=5013

INFO: Running benchmark for at least 50 iterations and at least 5 seconds but terminate if exceeding 150 seconds.
INFO: count=1031 first=4833 curr=4840 min=4688 max=7.2e+03 avg=4849.5 std=71 p5=4720 median=4838 p95=4967

INFO: Inference timings in us: Init: 5685, First inference: 18535, Warmup (avg): 4956.1, Inference (avg): 4849.5
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual \
memory footprint of the model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=3.75 overall=7.125
"""
OLD = """\
count=50 first=449059 curr=324822 min=324822 max=449059 avg=386940 std=62118
Inference timings in us: Init: 1007529, First inference: 449059, Warmup (avg): 4.4e+05, Inference (avg): 386940
"""


def test_the_figures_are_those_of_the_measurement_not_of_the_warm_up() -> None:
    assert parse_output(NEW).to_json() == {
        "load_ms": 5.685,
        "first_ms": 18.535,
        "queries": 1031,
        "invoke": {
            "mean_ms": 4.8495,
            "min_ms": 4.688,
            "max_ms": 7.2,
            "std_ms": 0.071,
            "p50_ms": 4.838,
            "p95_ms": 4.967,
        },
        "overall_mb": 7.125,
    }


def test_an_older_version_prints_no_percentiles() -> None:
    found = parse_output(OLD)
    assert found.invoke == {"mean_ms": 386.94, "min_ms": 324.822, "max_ms": 449.059, "std_ms": 62.118}
    assert found.overall_mb is None


@pytest.mark.parametrize("text", ["", "ERROR: Failed to load model", NEW.partition("INFO: Inference timings")[0]])
def test_without_timings_there_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match="printed no timings"):
        parse_output(text)


def test_what_it_is_asked() -> None:
    options = bench_options("/tmp/model.tflite", 4, 2.5)
    assert {"--graph=/tmp/model.tflite", "--num_threads=4", "--min_secs=2.5", "--num_runs=50"} <= set(options)
    options = check_options("/tmp/model.tflite", "serving:0", (1, 224, 224, 3), "/tmp/in", "/tmp/out")
    # A colon separates name and file, so a colon in the name is doubled in this option only.
    assert {"--input_layer=serving:0", "--input_layer_shape=1,224,224,3"} <= set(options)
    assert {"--input_layer_value_files=serving::0:/tmp/in", "--output_filepath=/tmp/out"} <= set(options)


def test_people_see_what_was_measured_and_nothing_else() -> None:
    device = AndroidDevice("aarch64", "Pixel 8", 9, "Android 15, kernel 6.1")
    result = ModelTimes(device, "0" * 64, "benchmark_model 0123456789ab", 1, 2, parse_output(OLD))
    text = benchmark_model_text(result)
    told = ["device", "model_sha256", "runtime", "threads", "golden", "load_ms", "first_ms", "queries", "invoke"]
    assert list(result.to_json()) == [*told, "overall_mb"]
    assert list(device.to_json()) == ["machine", "board", "cores", "os"]
    assert "Pixel 8, aarch64, Android 15" in text
    assert "386.94 ms" in text
    assert "p50" not in text
