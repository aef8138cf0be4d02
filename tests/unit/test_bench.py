from __future__ import annotations

import hashlib
import json
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pytest
from fixtures_models import LABELS, grainy_image, png

from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import DataError, EdgeallError, UsageError
from edgeall.edge_runtime.pipeline import classify
from edgeall.edge_runtime.results import from_json
from edgeall.edge_runtime.tools.bench import STAGES, BenchConfig
from edgeall.edge_runtime.tools.bench import bench as measure
from edgeall.edge_runtime.tools.bench_card import bench_text, card
from edgeall.edge_runtime.tools.bench_result import BenchResult
from edgeall.edge_runtime.tools.device import condition_warnings, describe_device, machine_state, peak_rss_bytes
from edgeall.edge_runtime.tools.layout import possible_layouts
from edgeall.edge_runtime.tools.profile import profile_model
from edgeall.rig.serve import DEMO_MODEL


def bench(
    model: Path,
    images: Path | None = None,
    *,
    note: Callable[[str], None] = lambda _: None,
    root: Path = Path("/"),
    **settings: Any,
) -> dict[str, Any]:
    """The JSON object of one measurement."""
    return measure(model, BenchConfig(images=images, **settings), note=note, root=root).to_json()


@pytest.fixture
def labelled(tiny_bundle: Path, tmp_path: Path) -> tuple[Path, float]:
    """Images in label folders, and the accuracy of the model on them, which is between 0 and 1."""
    classifier = Classifier.open(tiny_bundle)
    for seed in range(10):
        path = tmp_path / "images" / LABELS[seed % 4] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(grainy_image(seed)))
    for index, prediction in enumerate(list(classify(classifier, [tmp_path / "images"]))[:5]):
        target = tmp_path / "images" / prediction.label / f"moved{index}.png"
        target.parent.mkdir(exist_ok=True)
        Path(prediction.image).rename(target)
    predictions = list(classify(classifier, [tmp_path / "images"]))
    right = sum(Path(p.image).parent.name == p.label for p in predictions)
    assert 0 < right < len(predictions)
    return tmp_path / "images", right / len(predictions)


def test_measures_what_the_design_lists(tiny_bundle: Path, labelled: tuple[Path, float]) -> None:
    images, accuracy = labelled
    result = json.loads(json.dumps(bench(tiny_bundle, images, threads=2, seconds=0.2, min_queries=20)))
    assert result["accuracy"] == accuracy
    assert result["accuracy_images"] == 10
    assert result["images"] == 10
    assert result["queries"] >= 20
    assert result["threads"] == 2
    assert result["model_sha256"] == hashlib.sha256(tiny_bundle.read_bytes()).hexdigest()
    assert result["problems"] == []
    assert result["device"]["machine"] == platform.machine()
    assert list(result["stages"]) == list(STAGES)
    for times in result["stages"].values():
        assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
    whole = result["stages"]["end_to_end"]["p50_ms"]
    assert max(result["stages"][stage]["p50_ms"] for stage in STAGES[:3]) <= whole
    assert result["first_ms"] > 0
    assert result["load_ms"] > 0
    # Of this process, in which other tests may have trained.
    # Linux counts pages per processor and adds them up now and then: two readings of one peak differ by some pages.
    assert 10e6 < result["peak_rss_bytes"] <= 1.01 * 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert result["queries"] / result["images_per_s"] >= 0.2, "the loop is shorter than asked"


def test_lasts_as_long_as_asked(tiny_bundle: Path) -> None:
    result = bench(tiny_bundle, seconds=0.5, min_queries=1)
    assert result["queries"] / result["images_per_s"] >= 0.5
    assert bench(tiny_bundle, seconds=0, min_queries=7)["queries"] == 7


def test_without_images_the_golden_ones_are_timed(tiny_bundle: Path) -> None:
    result = bench(tiny_bundle, seconds=0.05)
    assert result["images"] == 2
    assert result["queries"] >= 50
    assert result["accuracy"] is None
    assert result["accuracy_images"] == 0


def test_accuracy_is_over_the_images_in_a_label_s_folder(tiny_bundle: Path, labelled: tuple[Path, float]) -> None:
    images, accuracy = labelled
    for name in ("Other/x.png", "y.png"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(png(grainy_image(1)))
    result = bench(tiny_bundle, images, seconds=0.05)
    assert (result["images"], result["accuracy_images"], result["accuracy"]) == (12, 10, accuracy)
    result = bench(tiny_bundle, images / "Other", seconds=0.05)
    assert (result["images"], result["accuracy_images"], result["accuracy"]) == (1, 0, None)


def test_the_label_is_the_first_folder_that_is_one(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent of the folders above --images: a data set may be in a folder called Early."""
    (said,) = classify(Classifier.open(tiny_bundle), [write(tmp_path / "x.png")])
    wrong = next(label for label in LABELS if label != said.label)
    root = tmp_path / wrong / "images"
    deep = write(root / "site 1" / said.label / wrong / "slide1" / "x.png")

    def accuracy(images: Path) -> float | None:
        return cast("float | None", bench(tiny_bundle, images, seconds=0, min_queries=1)["accuracy"])

    assert accuracy(root) == 1
    assert accuracy(root.parent) == 1, "a folder below counts before the one that is given"
    assert accuracy(deep.parents[2]) == 0, "the first one is the wrong one there"
    assert accuracy(deep.parent) is None
    write(tmp_path / "all" / said.label / "y.png")
    assert accuracy(tmp_path / "all" / said.label) == 1, "one class alone"
    assert accuracy(tmp_path / "all" / said.label / "y.png") == 1
    monkeypatch.chdir(tmp_path / "all" / said.label)
    assert accuracy(Path(".")) == 1


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(grainy_image(1)))
    return path


def test_foreign_models_are_told_their_labels_and_normalization(
    tiny_flatbuffers: dict[str, bytes], tiny_bundle: Path, tmp_path: Path
) -> None:
    model, labels = tmp_path / "model.tflite", tmp_path / "labels.txt"
    model.write_bytes(tiny_flatbuffers["float32"])
    labels.write_text("\n".join(LABELS))
    images = write(tmp_path / "images" / "x.png").parent
    result = bench(model, images, seconds=0, min_queries=1, labels_file=labels, mean=127.5, std=127.5)
    assert result["images"] == 1
    with pytest.raises(UsageError, match="its own labels"):
        bench(tiny_bundle, images, labels_file=labels)
    with pytest.raises(UsageError, match="must be given together"):
        bench(model, images, labels_file=labels, mean=1.0)


def test_unreadable_images_are_named_and_left_out(tiny_bundle: Path, labelled: tuple[Path, float]) -> None:
    images, accuracy = labelled
    bad = images / LABELS[0] / "0000.png"
    bad.write_bytes(b"")
    result = bench(tiny_bundle, images, seconds=0.05)
    assert [problem["path"] for problem in result["problems"]] == [str(bad)]
    assert result["accuracy"] == accuracy
    assert result["images"] == 10


def test_nothing_to_time(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        bench(tiny_bundle, tmp_path / "bad", seconds=0.05)
    with pytest.raises(DataError, match="no such file or folder"):
        bench(tiny_bundle, tmp_path / "absent", seconds=0.05)


def test_peak_memory_sees_an_allocation() -> None:
    """In a child process: a peak never decreases."""
    program = (
        "from edgeall.edge_runtime.tools.device import peak_rss_bytes\n"
        "before = peak_rss_bytes()\n"
        "block = bytearray(100_000_000)\n"
        "del block\n"
        "print(peak_rss_bytes() - before)\n"
    )
    grown = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert 90e6 < grown < 130e6
    assert peak_rss_bytes() > 10e6


def test_device_is_described() -> None:
    device = describe_device()
    assert list(vars(device)) == ["machine", "board", "cpu", "cores", "memory_bytes", "os", "python", "runtime"]
    assert device.cores >= 1
    assert device.memory_bytes is not None and device.memory_bytes > 100e6
    assert device.runtime.startswith("ai-edge-litert ")
    assert json.loads(json.dumps(device.to_json())) == vars(device)


def test_float_models_are_measured_too(pack_tiny: Callable[..., Path], tmp_path: Path) -> None:
    assert bench(pack_tiny("float32", tmp_path / "float.tflite"), seconds=0.05)["images"] == 2


def test_repetitions_and_their_spread(tiny_bundle: Path) -> None:
    result = bench(tiny_bundle, seconds=0.02, min_queries=20, repetitions=3)
    rows = result["repetitions"]
    assert len(rows) == 3
    assert all(row["queries"] >= 20 for row in rows)
    assert sum(row["queries"] for row in rows) == result["queries"]
    middle, low, high = sorted(row["end_to_end_p50_ms"] for row in rows)[1], *_ends(rows)
    assert result["spread_percent"] == pytest.approx(100 * (high - low) / middle)
    assert any("repetitions differ" in warning for warning in result["warnings"]) == (result["spread_percent"] > 5)
    assert bench(tiny_bundle, seconds=0, min_queries=1)["spread_percent"] is None


def _ends(rows: list[dict[str, float]]) -> tuple[float, float]:
    values = [row["end_to_end_p50_ms"] for row in rows]
    return min(values), max(values)


def test_a_wide_spread_is_warned_of(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second repetition is slowed down, as if by another program."""
    from edgeall.edge_runtime.tools import bench as module

    query, calls = module._query, 0

    def slowed(classifier: Classifier, decode: module.Decode) -> Any:
        nonlocal calls
        calls += 1
        (decoded, preprocessed, invoked, whole), answer = query(classifier, decode)
        return (decoded, preprocessed, invoked, whole * 100 if calls > 10 + 20 else whole), answer

    monkeypatch.setattr(module, "_query", slowed)
    result = bench(tiny_bundle, seconds=0, min_queries=20, repetitions=2)
    assert result["spread_percent"] > 100
    assert any("repetitions differ by" in warning for warning in result["warnings"])


def test_answers_that_change_are_counted(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two queries give another answer than the first one to that image, as on a board whose memory fails."""
    from edgeall.edge_runtime.tools import bench as module

    query, calls = module._query, 0

    def failing(classifier: Classifier, decode: module.Decode) -> Any:
        nonlocal calls
        calls += 1
        times, answer = query(classifier, decode)
        return times, answer[::-1] if calls in (10 + 15, 10 + 25) else answer

    assert bench(tiny_bundle, seconds=0, min_queries=20)["answers_differ"] == 0
    monkeypatch.setattr(module, "_query", failing)
    result = bench(tiny_bundle, seconds=0, min_queries=20, repetitions=2)
    assert result["answers_differ"] == 2
    assert any("2 of 40 answers differ" in warning for warning in result["warnings"])


def test_the_sweep(tiny_bundle: Path, labelled: tuple[Path, float], monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeall.edge_runtime.tools import bench as module

    monkeypatch.setattr(module, "cores", lambda: 4)
    notes: list[str] = []
    result = bench(tiny_bundle, labelled[0], seconds=0.02, min_queries=20, sweep=True, note=notes.append)
    assert [row["threads"] for row in result["thread_sweep"]] == [1, 2, 4]
    assert result["thread_sweep"][0]["invoke_p50_ms"] == pytest.approx(
        result["stages"]["invoke"]["p50_ms"], rel=1e-9
    ), "measured once"
    assert [(row["interpreters"], row["threads"]) for row in result["offline"]] == [(4, 1), (2, 2), (1, 4)]
    assert all(row["images_per_s"] > 0 for row in (*result["thread_sweep"], *result["offline"]))
    assert len(notes) == 1 + 2 + len(possible_layouts(4))
    plain = bench(tiny_bundle, seconds=0, min_queries=1)
    assert (plain["thread_sweep"], plain["offline"], plain["profile"]) == (None, None, None)


def test_memory_is_of_the_single_stream(tiny_bundle: Path) -> None:
    result = bench(tiny_bundle, seconds=0.02)
    assert 10e6 < result["steady_rss_bytes"] <= result["peak_rss_bytes"]


def test_the_images_are_known_by_their_contents(
    tiny_bundle: Path, labelled: tuple[Path, float], tmp_path: Path
) -> None:
    def digest(images: Path | None) -> str:
        return cast(str, bench(tiny_bundle, images, seconds=0, min_queries=1)["images_sha256"])

    images = labelled[0]
    first = digest(images)
    shutil.copytree(images, tmp_path / "copy")
    assert digest(tmp_path / "copy") == first
    next((tmp_path / "copy").rglob("*.png")).write_bytes(png(grainy_image(77)))
    assert digest(tmp_path / "copy") != first
    assert digest(None) not in (first, digest(tmp_path / "copy"))
    assert digest(None) == digest(None)


def a_board(root: Path, **files: str) -> Path:
    """A tree with the files of /sys and /proc that a Raspberry Pi has."""
    cpu = "sys/devices/system/cpu/cpu0/cpufreq"
    paths = {
        "governor": f"{cpu}/scaling_governor",
        "clock": f"{cpu}/scaling_cur_freq",
        "max_clock": f"{cpu}/cpuinfo_max_freq",
        "temperature": "sys/class/thermal/thermal_zone0/temp",
        "throttled": "sys/devices/platform/soc/soc:firmware/get_throttled",
        "throttle_count": "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
        "load": "proc/loadavg",
    }
    for name, text in files.items():
        path = root / paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_conditions_are_read(tmp_path: Path) -> None:
    root = a_board(
        tmp_path,
        governor="ondemand",
        clock="600000",
        max_clock="1800000",
        temperature="61835",
        throttled="50005",
        load="0.52 0.40 0.30 1/99 1234",
    )
    (root / "sys/devices/system/cpu/cpu1/cpufreq").mkdir(parents=True)
    (root / "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq").write_text("1500000")
    assert machine_state(root).to_json() == {
        "governor": "ondemand",
        "clock_mhz": 600.0,
        "max_clock_mhz": 1800.0,
        "temperature_c": 61.835,
        "throttled": 0x50005,
        "throttle_count": None,
        "load": 0.52,
    }
    assert set(machine_state(tmp_path / "nothing").to_json().values()) == {None}


def test_the_firmware_s_tool_is_asked_where_the_kernel_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "vcgencmd"
    tool.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x80000\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine_state(tmp_path).throttled == 0x80000
    tool.write_text("#!/bin/sh\necho VCHI initialization failed\nexit 255\n")
    assert machine_state(tmp_path).throttled is None


@pytest.mark.parametrize(
    ("before", "after", "warned"),
    [
        (0x0, 0x0, None),
        (0x50000, 0x50000, None),  # hours ago
        (0x0, 0x50005, "under-voltage, throttled"),
        (0x0, 0x20000, "frequency capped"),  # between the two samples
        (0x80008, 0x80000, "soft temperature limit"),
    ],
)
def test_a_throttled_board_is_warned_of(
    before: int, after: int, warned: str | None, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeall.edge_runtime.tools import bench as module

    query, begun = module._query, False
    a_board(tmp_path, throttled=f"{before:x}", load="0.00 0 0")

    def changing(classifier: Classifier, decode: module.Decode) -> Any:
        nonlocal begun
        if not begun:
            a_board(tmp_path, throttled=f"{after:x}")
            begun = True
        return query(classifier, decode)

    monkeypatch.setattr(module, "_query", changing)
    result = bench(tiny_bundle, seconds=0, min_queries=5, root=tmp_path)
    assert result["conditions"]["before"]["throttled"] == before
    assert result["conditions"]["after"]["throttled"] == after
    slowed = [warning for warning in result["warnings"] if "slowed down" in warning]
    assert len(slowed) == (warned is not None)
    assert warned is None or f"({warned})" in slowed[0]


def test_heat_on_x86_and_other_programs_are_warned_of(tmp_path: Path) -> None:
    cool = machine_state(a_board(tmp_path, throttle_count="7", load="0.00 0 0"))
    assert condition_warnings([cool, cool]) == []
    hot = machine_state(a_board(tmp_path, throttle_count="9"))
    assert ["for heat" in warning for warning in condition_warnings([cool, hot])] == [True]
    busy = machine_state(a_board(tmp_path, load="99.00 0 0"))
    assert ["other programs" in warning for warning in condition_warnings([busy, busy])] == [True]
    assert condition_warnings([cool, replace(cool, load=99.0)]) == [], "which is our own"


def test_operators_are_timed(tiny_bundle: Path) -> None:
    result = bench(tiny_bundle, seconds=0.05, profile=True)
    profile = result["profile"]
    names = " ".join(node["operator"] for node in profile["nodes"]).lower()
    assert names.count("convolution") == 2
    assert "fully connected" in names
    assert "softmax" in names
    assert sum(row["calls"] for row in profile["operators"]) == len(profile["nodes"])
    assert sum(row["ms"] for row in profile["operators"]) == pytest.approx(profile["ms"])
    assert sum(row["percent"] for row in profile["operators"]) == pytest.approx(100)
    assert [row["ms"] for row in profile["operators"]] == sorted((r["ms"] for r in profile["operators"]), reverse=True)
    assert 0 < profile["ms"] < 20 * result["stages"]["invoke"]["p50_ms"]
    text = bench_text(from_json(BenchResult, result))
    assert all(row["operator"] in text for row in profile["operators"])


def test_operators_of_a_model_with_two_outputs_are_timed() -> None:
    assert len(open_bundle(DEMO_MODEL).graph.main.outputs) == 2
    operators = [row.operator.lower() for row in profile_model(DEMO_MODEL, 1).operators]
    assert any("convolution" in name for name in operators) and "softmax" in operators


def test_a_profiler_that_fails_is_an_error(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.tflite").write_bytes(b"no model")
    with pytest.raises(EdgeallError, match=r"can't time its operators on this machine \(LiteRtCreateModel.*status"):
        profile_model(tmp_path / "no.tflite", 1)
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -ABRT $$\n")  # as LiteRT does on a Raspberry Pi 4
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(EdgeallError, match="it died of SIGABRT") as caught:
        profile_model(tiny_bundle, 1)
    assert "--profile" in caught.value.hint
    monkeypatch.setattr("edgeall.edge_runtime.tools.profile.runtime_package", lambda: "tflite_runtime")
    with pytest.raises(EdgeallError, match="can't time operators"):
        profile_model(tiny_bundle, 1)


class Page(HTMLParser):
    """Checks that tags are balanced; collects the text and external resources."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_card_holds_everything(tiny_bundle: Path, labelled: tuple[Path, float]) -> None:
    result = bench(tiny_bundle, labelled[0], seconds=0.02, repetitions=2, sweep=True, profile=True)
    result |= {"warnings": ["too <hot>"], "model": "<script>.tflite"}
    page = Page(card(from_json(BenchResult, result)))
    assert page.fetched == []
    for text in ("too <hot>", "<script>.tflite", "research use only, not a diagnosis"):
        assert text in page.texts
    for row in result["profile"]["operators"]:
        assert page.texts.count(row["operator"]) >= 2, "in the table and in the picture"
    for row in result["offline"]:
        assert f"{row['interpreters']} x {row['threads']}" in page.texts
    assert f"{result['stages']['invoke']['p99_ms']:.3f}" in page.texts
    assert result["device"]["cpu"] in page.texts
    bare = bench(tiny_bundle, seconds=0, min_queries=1)
    assert "Operators" not in Page(card(from_json(BenchResult, bare))).texts
