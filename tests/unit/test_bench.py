from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from fixtures_models import LABELS, grainy_image, png

from edgeall.edge_runtime.bench import STAGES, bench
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.device import describe_device, peak_rss_bytes
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.edge_runtime.pipeline import classify


@pytest.fixture
def labelled(tiny_bundle: Path, tmp_path: Path) -> tuple[Path, float]:
    """Images in folders, and the fraction that the model gets right: some, by where they were put."""
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
    assert result["device"]["machine"] == describe_device()["machine"]
    assert list(result["stages"]) == list(STAGES)
    for times in result["stages"].values():
        assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
    whole = result["stages"]["end_to_end"]["p50_ms"]
    assert max(result["stages"][stage]["p50_ms"] for stage in STAGES[:3]) <= whole
    assert result["first_ms"] > 0
    assert result["load_ms"] > 0
    assert 10e6 < result["peak_rss_bytes"] < 4e9
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
    """Whatever is above --images: a data set may well lie in a folder called Early."""
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
    with pytest.raises(UsageError, match="belong together"):
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
    """In a process of its own: a peak never goes down."""
    program = (
        "from edgeall.edge_runtime.device import peak_rss_bytes\n"
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
    assert set(device) == {"machine", "board", "cpu", "cores", "memory_bytes", "os", "python", "runtime"}
    assert device["cores"] >= 1
    assert device["memory_bytes"] > 100e6
    assert device["runtime"].startswith("ai-edge-litert ")
    assert json.dumps(device)


def test_float_models_are_measured_too(pack_tiny: Callable[..., Path], tmp_path: Path) -> None:
    assert bench(pack_tiny("float32", tmp_path / "float.tflite"), seconds=0.05)["images"] == 2
