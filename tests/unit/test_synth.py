"""Synthetic smears: reproducible, labelled, with a matching ground truth; shape reveals the class, colour does not."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.train.data.dataset import load_dataset
from edgeall.train.data.synth import COMMENT, is_synthetic, synthesize

IMAGES = 400


def _subjects(out: Path) -> dict[str, str]:
    with (out / "manifest.csv").open(encoding="utf-8") as file:
        return {row["path"]: row["subject"] for row in csv.DictReader(file)}


def _boxes(out: Path) -> dict[str, list[dict]]:
    return json.loads((out / ".truth" / "boxes.json").read_text(encoding="utf-8"))


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _mask(out: Path, path: str) -> np.ndarray:
    return _pixels((out / ".truth" / path).with_suffix(".mask.png"))


def _digests(out: Path) -> dict[str, str]:
    files = (file for file in out.rglob("*") if file.is_file())
    return {file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "fields"
    synthesize(out, IMAGES, 0)
    return out


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "cells"
    synthesize(out, 120, 0, "cnmc", 160)
    return out


# --- files


def test_all4_has_the_asked_number_in_balanced_class_folders(fields: Path) -> None:
    dataset = load_dataset(fields)
    assert (dataset.layout, dataset.labels, dataset.problems) == ("folders", ("Benign", "Early", "Pre", "Pro"), ())
    assert Counter(sample.label for sample in dataset.samples) == dict.fromkeys(dataset.labels, IMAGES // 4)
    assert (fields / "Pre" / "synthetic-Pre-001.png").is_file()
    assert _pixels(fields / "Pre" / "synthetic-Pre-001.png").shape == (224, 224, 3)
    manifest = load_dataset(fields / "manifest.csv")
    assert [(s.path, s.label) for s in manifest.samples] == [(s.path, s.label) for s in dataset.samples]
    assert manifest.problems == ()


def test_every_all4_subject_gives_every_class(fields: Path) -> None:
    classes: dict[str, set[str]] = {}
    for path, subject in _subjects(fields).items():
        classes.setdefault(subject, set()).add(path.split("/")[0])
    assert len(classes) == 20
    assert all(len(seen) == 4 for seen in classes.values())


def test_cnmc_is_read_as_cnmc_with_its_subjects(cells: Path) -> None:
    dataset = load_dataset(cells)
    assert (dataset.layout, dataset.labels, dataset.problems) == ("cnmc", ("all", "hem"), ())
    assert Counter(sample.label for sample in dataset.samples) == {"all": 60, "hem": 60}
    assert {sample.path: sample.subject for sample in dataset.samples} == _subjects(cells)
    labels: dict[str | None, set[str]] = {}
    folds: dict[str, set[str]] = {}
    for sample in dataset.samples:
        labels.setdefault(sample.subject, set()).add(sample.label)
        folds.setdefault(sample.path.split("/")[0], set()).add(sample.label)
    assert len(labels) >= 12
    assert all(len(of_one) == 1 for of_one in labels.values())
    assert folds == {f"fold_{i}": {"all", "hem"} for i in range(3)}


@pytest.mark.parametrize(("layout", "side"), [("all4", 224), ("cnmc", 450)])
def test_default_sizes_and_a_count_that_does_not_divide(tmp_path: Path, layout: str, side: int) -> None:
    summary = synthesize(tmp_path / "out", 19, 3, layout)  # type: ignore[arg-type]
    samples = load_dataset(tmp_path / "out").samples
    assert len(samples) == summary["images"] == sum(summary["labels"].values()) == 19
    assert max(summary["labels"].values()) - min(summary["labels"].values()) <= 1
    assert {_pixels(tmp_path / "out" / sample.path).shape for sample in samples} == {(side, side, 3)}


@pytest.mark.parametrize("layout", ["all4", "cnmc"])
@pytest.mark.parametrize("size", [64, 1024])
def test_the_extreme_sizes_can_be_drawn(tmp_path: Path, layout: str, size: int) -> None:
    synthesize(tmp_path / "out", 16, 1, layout, size)  # type: ignore[arg-type]
    assert all(_boxes(tmp_path / "out").values())


@pytest.mark.parametrize("layout", ["all4", "cnmc"])
def test_same_seed_same_bytes_whether_watched_or_not(tmp_path: Path, layout: str) -> None:
    seen: list[tuple[int, int]] = []
    synthesize(tmp_path / "a", 17, 5, layout, 128)  # type: ignore[arg-type]
    synthesize(tmp_path / "b", 17, 5, layout, 128, lambda done, of: seen.append((done, of)))  # type: ignore[arg-type]
    synthesize(tmp_path / "c", 17, 6, layout, 128)  # type: ignore[arg-type]
    first, second, other = (_digests(tmp_path / name) for name in "abc")
    assert first == second
    assert seen == [(i + 1, 17) for i in range(17)]
    images = [path for path in first if path.endswith((".bmp", ".png")) and not path.startswith(".")]
    assert len({first[path] for path in images}) == len(images) == 17
    assert not {first[path] for path in images} & set(other.values())


def test_everything_says_synthetic(fields: Path, cells: Path) -> None:
    for out in (fields, cells):
        for folder in [out, *(path for path in out.iterdir() if path.is_dir() and out is cells)]:
            if folder.name != ".truth":
                assert "SYNTHETIC" in (folder / "README.txt").read_text(encoding="utf-8")
        for sample in load_dataset(out).samples:
            marker = (out / sample.path).with_name(".synthetic.json")
            assert json.loads(marker.read_text(encoding="utf-8"))["synthetic"] is True
    assert Counter(path.suffix for path in cells.rglob("UID_*")) == {".bmp": 120, ".png": 120}  # images, masks
    pngs = [*fields.rglob("*.png"), *cells.rglob("*.png")]
    assert len(pngs) == 3 * IMAGES + 120  # of fields two kinds of masks
    for path in pngs:
        with Image.open(path) as image:
            assert image.info["Comment"] == COMMENT


def test_a_part_that_was_copied_away_is_still_synthetic(fields: Path, cells: Path, tmp_path: Path) -> None:
    for whole in (fields, cells, fields / "manifest.csv", cells / "fold_1"):
        assert is_synthetic(load_dataset(whole))
    shutil.copytree(cells / "fold_1", tmp_path / "cells" / "fold_1")
    assert is_synthetic(load_dataset(tmp_path / "cells"))
    renamed = tmp_path / "fields" / "Pro" / "1.PNG"
    renamed.parent.mkdir(parents=True)
    shutil.copy(fields / "Pro" / "synthetic-Pro-001.png", renamed)
    assert is_synthetic(load_dataset(tmp_path / "fields"))
    with Image.open(renamed) as image:
        image.load()
    image.save(renamed, pnginfo=PngInfo())  # without the comment
    assert not is_synthetic(load_dataset(tmp_path / "fields"))


def test_drawn_images_beside_those_of_a_manifest_do_not_count(fields: Path, tmp_path: Path) -> None:
    shutil.copytree(fields / "Pro", tmp_path / "demo" / "Pro")
    (tmp_path / "mine.png").touch()
    (tmp_path / "list.csv").write_text("path,label\nmine.png,Pro\n")
    assert not is_synthetic(load_dataset(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("path,label\nmine.png,Pro\ndemo/Pro/synthetic-Pro-002.png,Pro\n")
    assert is_synthetic(load_dataset(tmp_path / "list.csv"))


def test_the_real_images_are_not_synthetic(test_data: Path) -> None:
    assert not any(is_synthetic(load_dataset(test_data / name)) for name in ("all4", "cnmc"))


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"images": 15}, "15 images"),
        ({"images": 7, "layout": "cnmc"}, "7 images"),
        ({"seed": -1}, "seed"),
        ({"size": 32}, "32"),
        ({"size": 5000}, "5000"),
        ({"layout": "bccd"}, "bccd"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(tmp_path: Path, kwargs: dict, word: str) -> None:
    with pytest.raises(UsageError, match=word) as error:
        synthesize(**{"out": tmp_path / "out", "images": 40, "seed": 0, **kwargs})
    assert error.value.hint
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(DataError, match="not an empty folder") as error:
            synthesize(out, 40, 0)
        assert error.value.hint
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


# --- truth


def test_boxes_are_those_of_the_masks(fields: Path, cells: Path) -> None:
    for out in (fields, cells):
        boxes = _boxes(out)
        assert set(boxes) == {sample.path for sample in load_dataset(out).samples}
        for path, found in boxes.items():
            mask = _mask(out, path)
            numbers = (mask.astype(int) + 1) // 2
            assert {cell["number"] for cell in found} == set(np.unique(numbers)) - {0}
            for cell in found:
                left, top, right, bottom = cell["box"]
                rows, columns = np.nonzero(numbers == cell["number"])
                assert (left, right) == (columns.min(), columns.max() + 1)
                assert (top, bottom) == (rows.min(), rows.max() + 1)


def test_nuclei_are_darker_than_their_cytoplasm_and_that_than_the_field(fields: Path) -> None:
    for path in _subjects(fields):
        green, mask = _pixels(fields / path)[..., 1].astype(float), _mask(fields, path)
        nucleus, cytoplasm = (mask > 0) & (mask % 2 == 0), mask % 2 == 1
        assert nucleus.mean() > 0.01
        assert np.median(green[nucleus]) + 20 < np.median(green[cytoplasm]) < np.quantile(green[mask == 0], 0.98)


def test_a_cnmc_cell_is_one_in_the_middle_of_pure_black(cells: Path) -> None:
    for path, found in _boxes(cells).items():
        pixels, mask = _pixels(cells / path), _mask(cells, path)
        assert len(found) == 1
        assert not pixels[mask == 0].any()
        assert (pixels[mask > 0].max(axis=1) > 0).mean() > 0.99
        left, top, right, bottom = found[0]["box"]
        assert max(abs(left + right - 160), abs(top + bottom - 160)) < 0.15 * 160


def test_a_slide_has_one_lamp(fields: Path) -> None:
    """The colour of the empty field varies far more between subjects than within one."""
    found: dict[str, list[np.ndarray]] = {}
    for path, subject in _subjects(fields).items():
        found.setdefault(subject, []).append(np.quantile(_pixels(fields / path).reshape(-1, 3), 0.9, axis=0))
    within = np.mean([np.std(colours, axis=0) for colours in found.values()])
    between = np.std([np.mean(colours, axis=0) for colours in found.values()], axis=0).mean()
    assert between > 1.5 * within


# --- what gives the class away


def _grouped_accuracy(features: np.ndarray, paths: list[str], subjects: list[str]) -> float:
    """The better of a forest and a logistic regression, on unseen subjects."""
    labels = [path.split("/")[-2] for path in paths]
    probes = (
        RandomForestClassifier(100, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
    )
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    return max(cross_val_score(probe, features, labels, groups=subjects, cv=folds).mean() for probe in probes)


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Mean, deviation and skewness of R, G and B."""
    flat = pixels.reshape(-1, 3).astype(float)
    centred = flat - flat.mean(axis=0)
    deviation = centred.std(axis=0)
    return np.concatenate([flat.mean(axis=0), deviation, (centred**3).mean(axis=0) / deviation**3])


def _brightest(pixels: np.ndarray) -> np.ndarray:
    """Mean colour of the brightest fifth of the pixels: background."""
    flat = pixels.reshape(-1, 3).astype(float)
    light = flat.sum(axis=1)
    return flat[light >= np.quantile(light, 0.8)].mean(axis=0)


def _histogram(pixels: np.ndarray) -> np.ndarray:
    """Histograms of R, G and B with 16 bins each."""
    return np.concatenate([np.histogram(pixels[..., i], 16, (0, 256))[0] for i in range(3)]) / pixels[..., 0].size


@pytest.mark.parametrize(("feature", "limit"), [(_colours, 0.60), (_brightest, 0.45), (_histogram, 0.65)])
def test_colours_do_not_give_the_class_away(fields: Path, feature, limit: float) -> None:  # type: ignore[no-untyped-def]
    subjects = _subjects(fields)
    features = np.array([feature(_pixels(fields / path)) for path in subjects])
    accuracy = _grouped_accuracy(features, list(subjects), list(subjects.values()))
    assert accuracy < limit, f"{feature.__name__}: {accuracy:.3f}"


def _morphology(mask: np.ndarray, boxes: list[dict]) -> list[float]:
    """For complete cells: nucleus area, nucleus to cell ratio, and share of its bounding circle."""
    height, width = mask.shape
    rows = []
    for cell in boxes:
        left, top, right, bottom = cell["box"]
        nucleus = np.argwhere(mask == 2 * cell["number"])
        if len(nucleus) and left > 0 and top > 0 and right < width and bottom < height:
            whole = len(nucleus) + (mask == 2 * cell["number"] - 1).sum()
            reach = np.linalg.norm(nucleus - nucleus.mean(axis=0), axis=1).max()
            rows.append((len(nucleus) / mask.size, len(nucleus) / whole, len(nucleus) / (np.pi * reach**2)))
    return np.median(rows, axis=0).tolist() if rows else [0.0, 0.0, 0.0]


def test_morphology_gives_the_class_away(fields: Path, cells: Path) -> None:
    for out, least in ((fields, 0.90), (cells, 0.75)):
        subjects, boxes = _subjects(out), _boxes(out)
        features = np.array([_morphology(_mask(out, path), boxes[path]) for path in subjects])
        accuracy = _grouped_accuracy(features, list(subjects), list(subjects.values()))
        assert accuracy > least, f"{out.name}: {accuracy:.3f}"
