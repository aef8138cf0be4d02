"""Finds regressions, and refuses results that are not comparable."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeall import cli
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.edge_runtime.tools.bench import BenchConfig, bench
from edgeall.edge_runtime.tools.compare_bench import compare_bench, compare_text

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path) -> dict[str, Any]:
    result = bench(tiny_bundle, BenchConfig(seconds=0.02, sweep=True)).to_json()
    return result | {"accuracy": 0.9}


@pytest.fixture
def files(measured: dict[str, Any], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def write(change: Change = lambda result: None) -> tuple[Path, Path]:
        after = copy.deepcopy(measured)
        change(after)
        for name, result in (("a.json", measured), ("b.json", after)):
            (tmp_path / name).write_text(json.dumps(result))
        return tmp_path / "a.json", tmp_path / "b.json"

    return write


def scaled(factor: float) -> Change:
    """Latency and memory times ``factor``, throughput by it."""

    def change(result: dict[str, Any]) -> None:
        for times in result["stages"].values():
            for key in times:
                times[key] *= factor
        result["images_per_s"] /= factor
        result["peak_rss_bytes"] *= factor
        for row in result["offline"]:
            row["images_per_s"] /= factor

    return change


def test_the_same_is_not_a_regression(files: Callable[..., tuple[Path, Path]]) -> None:
    result = compare_bench(*files(), "0%")
    assert (result.regressions, result.differences) == ([], [])
    assert len(result.figures) == 7
    assert {row.worse_percent for row in result.figures} == {0}


def test_slower_by_more_than_allowed_is_one(files: Callable[..., tuple[Path, Path]]) -> None:
    both = files(scaled(1.08))
    assert compare_bench(*both, "10%").regressions == []
    found = compare_bench(*both, "5%")
    assert found.max_regression_percent == 5
    assert len(found.regressions) == 6, "all but the accuracy"
    by_name = {row.figure: row for row in found.figures}
    assert by_name["invoke p50, ms"].worse_percent == pytest.approx(8)
    assert by_name["offline, images/s"].worse_percent == pytest.approx(100 * (1 - 1 / 1.08))
    assert "WORSE" in compare_text(found)
    faster = compare_bench(*files(scaled(0.5)), "5")
    assert faster.regressions == []
    assert "+50.0 %" in compare_text(faster)


def test_accuracy_may_not_fall_at_all_on_the_same_images(files: Callable[..., tuple[Path, Path]]) -> None:
    assert compare_bench(*files(lambda r: r.update(accuracy=0.899)), "5%").regressions == ["accuracy"]
    changed = files(lambda r: r.update(accuracy=0.899, images_sha256="0" * 64))
    assert compare_bench(*changed, "5%", across_images=True).regressions == []


def test_what_one_file_lacks_is_left_out(files: Callable[..., tuple[Path, Path]]) -> None:
    result = compare_bench(*files(lambda r: r.update(offline=None, accuracy=None)), "5%")
    assert len(result.figures) == 5


@pytest.mark.parametrize(
    ("change", "said", "flag"),
    [
        (lambda r: r.update(model_sha256="0" * 64), "the models differ", "across_models"),
        (lambda r: r.update(images_sha256="0" * 64), "the images differ", "across_images"),
        (lambda r: r["device"].update(cpu="Cortex-A72"), "the devices differ", "across_devices"),
        (lambda r: r["device"].update(cores=99), "the devices differ", "across_devices"),
    ],
)
def test_different_ones_are_refused_unless_told(
    files: Callable[..., tuple[Path, Path]], change: Change, said: str, flag: str
) -> None:
    both = files(change)
    with pytest.raises(UsageError, match=said) as caught:
        compare_bench(*both, "5%")
    assert f"--{flag.replace('_', '-')}" in caught.value.hint
    allowed = compare_bench(*both, "5%", **{flag: True})
    assert len(allowed.differences) == 1
    assert "differs: " in compare_text(allowed)


def test_versions_are_told_and_threads_refused(files: Callable[..., tuple[Path, Path]]) -> None:
    result = compare_bench(*files(lambda r: r["device"].update(runtime="ai-edge-litert 9")), "5%")
    assert ["ai-edge-litert 9" in difference for difference in result.differences] == [True]
    with pytest.raises(UsageError, match="1 threads and 2"):
        compare_bench(*files(lambda r: r.update(threads=2)), "5%")


@pytest.mark.parametrize("text", ["", "five", "-1%", "nan", "inf", "5%%"])
def test_no_percentage(files: Callable[..., tuple[Path, Path]], text: str) -> None:
    with pytest.raises(UsageError, match="not a percentage"):
        compare_bench(*files(), text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not written by `edgeall bench --json`"),
        ("[1]", "not written by `edgeall bench --json`"),
        ('{"schema": 1}', "not written by `edgeall bench --json`"),
        ('{"schema": 2}', "schema 2"),
        ("\x00", "not written by `edgeall bench --json`"),
    ],
)
def test_what_is_not_a_measurement_is_named(
    files: Callable[..., tuple[Path, Path]], text: str, said: str, tmp_path: Path
) -> None:
    good, bad = files()
    bad.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        compare_bench(good, bad, "5%")
    assert caught.value.message.startswith(str(bad))
    with pytest.raises(DataError, match=r"none.json: no such file"):
        compare_bench(good, tmp_path / "none.json", "5%")


def test_on_the_command_line(files: Callable[..., tuple[Path, Path]], capfd: pytest.CaptureFixture[str]) -> None:
    def status(*words: object) -> int:
        return cli.main(["compare-bench", *map(str, words)])

    assert status(*files(scaled(1.02)), "--max-regression", "5%") == 0
    assert "image p50" in capfd.readouterr().out
    both = files(scaled(1.5))
    assert status(*both, "--json") == 3
    out, err = capfd.readouterr()
    assert "invoke p50, ms" in json.loads(out)["regressions"]
    assert "worse than" in err
    both = files(lambda r: r.update(images_sha256="0" * 64))
    assert status(*both) == 2
    assert status(*both, "--across-images") == 0
