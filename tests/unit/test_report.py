"""The report of a small synthetic run: its content, no external resources, no markup from names."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_plots import drawing
from PIL import Image

from edgeall.edge_runtime.errors import DataError
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.train.data.dataset import load_dataset
from edgeall.train.data.make_split import make_split
from edgeall.train.data.scan import scan
from edgeall.train.data.split import Split, SplitEntry, load_split, save_split
from edgeall.train.data.split_settings import SplitSettings
from edgeall.train.data.subsets import LEFT_OUT
from edgeall.train.evaluation.metrics import compute_metrics
from edgeall.train.reports import plots
from edgeall.train.reports.report import ERRORS_SHOWN, write_report
from edgeall.train.run_info import RunInfo, read_run

LABELS = ("Benign", "Early", "Pre", "Pro")
ILL = ("Early", "Pre", "Pro")
HISTORY = (
    *("stage", "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "images_per_s", "seconds"),
    "kept",
)
SIDES = ("train", "validation", "test")
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>.png'


class Page(HTMLParser):
    """All tags with their attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._hidden = False
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def probabilities(predicted: int, top: float, classes: int) -> list[float]:
    return [top if i == predicted else (1 - top) / (classes - 1) for i in range(classes)]


def make_run(
    folder: Path,
    rows: Sequence[tuple[str, str, int, int, float]],
    *,
    labels: Sequence[str] = LABELS,
    positive: Sequence[str] = ILL,
    level: str = "image",
    subjects: Mapping[str, str] | None = None,
    stages: Sequence[str] = ("head", "head", "finetune", "finetune", "finetune"),
    **data: Any,
) -> tuple[Path, RunInfo]:
    """A complete run without its report. ``rows``: (path, subset, true class, predicted class, its probability)."""
    run_dir = folder / "run"
    run_dir.mkdir()
    with (run_dir / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "side", "label", "predicted", *(f"p_{label}" for label in labels)])
        for path, side, true, predicted, top in rows:
            writer.writerow([path, side, labels[true], labels[predicted], *probabilities(predicted, top, len(labels))])
    with (run_dir / "history.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HISTORY)
        for i, stage in enumerate(stages):
            losses = [1 / (i + 1), 1 - 0.5 / (i + 1), 1.1 / (i + 1), 1 - 0.6 / (i + 1)]
            writer.writerow([stage, i + 1, *losses, 1e-3, 60, 9, int(i + 1 == len(stages))])
    entries = tuple(
        SplitEntry(path, labels[true], (subjects or {}).get(path), "ab" * 32, side) for path, side, true, *_ in rows
    )
    save_split(Split(level, 0, tuple(labels), "ab" * 32, entries), run_dir / "split.json")
    metrics = {
        side: compute_metrics(
            labels,
            [true for _, s, true, _, _ in rows if s == side],
            [probabilities(predicted, top, len(labels)) for _, s, _, predicted, top in rows if s == side],
            positive,
            split=side,
            split_level=level,
            subjects=[(subjects or {}).get(path) for path, s, *_ in rows if s == side],
        ).to_json()
        for side in SIDES
    }
    run: dict[str, Any] = {
        "schema": 1,
        "edgeall_version": "0.1.0",
        "created": "2026-11-21T10:00:00Z",
        "settings": {
            "model": "mobilenet_v2",
            "input_size": 224,
            "seed": 7,
            "augment": "light",
            "alpha": 0.35,
            "weights": "imagenet",
            "dropout": 0.2,
            "positive": None,
            "fold": None,
            "class_weights": True,
            "batch_size": 32,
        },
        "labels": list(labels),
        "positive_labels": list(positive),
        "unit": "field",
        "data": {
            "root": str(folder / "smears"),
            "layout": "folders",
            "dataset_sha256": "ab" * 32,
            "images": len(rows),
            "problems": [],
            "exact_duplicates": 3,
            "near_duplicates": 5,
            **data,
        },
        "split": {"sha256": "cd" * 32, "level": level, "fold": None, **{s: metrics[s]["images"] for s in SIDES}},
        "model": {
            "name": "mobilenet_v2",
            "alpha": 0.35,
            "parameters": 415_332,
            "input": {"height": 224, "width": 192, "fit": "stretch", "mean": 127.5, "std": 127.5}
            | {"color": "RGB", "resize": "bilinear"},
        },
        "timing": {"prepare_s": 4.21, "features_s": None, "finetune_s": 412.3, "total_s": 3723.0}
        | {"head_images_per_s": 4012.34, "finetune_images_per_s": None},
        "metrics": metrics,
        "versions": {"tensorflow": "2.21.0"},
        "device": {"machine": "x86_64"},
    }
    return run_dir, read_run(run)


def report(folder: Path, *args: Any, **kwargs: Any) -> Page:
    return Page(write_report(*make_run(folder, *args, **kwargs)).read_text(encoding="utf-8"))


def right(side: str, per_class: int = 2, classes: int = 4) -> list[tuple[str, str, int, int, float]]:
    return [(f"{i}/{side}{n}.png", side, i, i, 0.97) for i in range(classes) for n in range(per_class)]


WRONG = [
    ("Early/sure.png", "test", 1, 0, 0.99),
    ("Pre/unsure.png", "test", 2, 3, 0.55),
    ("Pro/gone.png", "test", 3, 1, 0.90),
    ("Benign/green.png", "test", 0, 2, 0.80),
    ("Pro/not-of-this-side.png", "train", 3, 0, 0.999),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for name, color in (("Early/sure", "red"), ("Pre/unsure", "blue"), ("Benign/green", (0, 255, 0))):
        path = folder / "smears" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (640, 480), color).save(path)
    rows = [*right("train", 3), *right("validation"), *right("test", 5), *WRONG]
    problems = [{"path": "Pro/broken.jpg", "reason": "truncated or damaged"}]
    run_dir, run = make_run(folder, rows, problems=problems)
    with drawing():
        assert write_report(run_dir, run) == run_dir / "report.html"
    return run_dir


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Page:
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


def test_self_contained(page: Page) -> None:
    assert page.images()
    for attributes in page.images():
        assert (attributes["src"] or "").startswith("data:image/")
        assert attributes["alt"]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "video", "audio"}
    linked = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert not [value for value in linked if not (value or "").startswith("data:")]
    assert "http://" not in page.html
    assert "https://" not in page.html
    assert "url(" not in page.html
    assert "@import" not in page.html


def test_headline_and_purpose(page: Page) -> None:
    low, high = compute_metrics(
        LABELS,
        [i for i in range(4) for _ in range(5)] + [true for _, side, true, _, _ in WRONG if side == "test"],
        [probabilities(i, 0.97, 4) for i in range(4) for _ in range(5)]
        + [probabilities(predicted, top, 4) for _, side, _, predicted, top in WRONG if side == "test"],
        ILL,
        split="test",
        split_level="image",
    ).accuracy_ci95
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "83.33 % accuracy on 24 test images (20 right)" in text
    assert f"95 % interval {100 * low:.2f} % to {100 * high:.2f} %, bootstrap over images" in text
    purpose = "research use only, not a diagnosis"
    assert text.startswith(f"mobilenet_v2 0.35 on smears · edgeall {purpose} mobilenet_v2 0.35 on smears")
    assert text.count(purpose) == 2
    assert text.endswith(purpose)


def test_sensitivity_with_its_counts(page: Page) -> None:
    # 18 ill images, of which Early/sure alone is called Benign; 6 healthy ones, of which one is called Pre.
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "sensitivity 94.44 % 17 of 18" in text
    assert "specificity 83.33 % 5 of 6" in text


def test_wrong_test_images_most_confident_first(page: Page) -> None:
    names = ["Early/sure.png", "Pro/gone.png", "Benign/green.png", "Pre/unsure.png"]
    places = [page.text.index(name) for name in names]
    assert places == sorted(places)
    assert "not-of-this-side" not in page.html
    assert "4 of 4 wrong test images" in page.text
    said = page.text[places[0] - 60 : places[0]]
    assert said.endswith("its probability. Benign 0.990 true Early 0.003 ")


def test_thumbnails_show_the_images_and_a_missing_file_its_name_only(page: Page) -> None:
    thumbnails = [a for a in page.images() if (a["src"] or "").startswith("data:image/jpeg")]
    assert [(a["alt"] or "").split(":")[0] for a in thumbnails] == [
        "Early/sure.png",
        "Benign/green.png",
        "Pre/unsure.png",
    ]
    for attributes, color in zip(thumbnails, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], strict=True):
        data = base64.b64decode((attributes["src"] or "").partition(",")[2])
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (224, 168)
            assert np.abs(np.asarray(image)[80, 100].astype(int) - color).max() < 6
    before = page.text[: page.text.index("Pro/gone.png")]
    assert "image not found" in before[before.index("Early/sure.png") :]


def test_facts_of_the_data(page: Page) -> None:
    assert "Exact duplicates: 3, near duplicates: 5" in page.text
    assert "1 skipped file Pro/broken.jpg truncated or damaged" in page.text
    assert "class train validation test all Benign 3 2 6 11" in page.text
    assert "all 13 8 24 45" in page.text
    assert "ab" * 32 in page.text
    assert "cd" * 32 in page.text


def test_settings_timing_versions(page: Page) -> None:
    assert "fold \N{EN DASH} class weights yes batch size 32" in page.text
    assert "prepare 4.2 s features \N{EN DASH} finetune 6 min 52 s total 1 h 2 min" in page.text
    assert "head speed 4012.3 images/s finetune speed \N{EN DASH}" in page.text
    assert "415,332" in page.text
    assert "192 \N{MULTIPLICATION SIGN} 224 RGB" in page.text
    assert "tensorflow 2.21.0" in page.text


def test_alternative_texts_tell_what_the_plots_show(page: Page) -> None:
    curves, confusion, roc = (
        next(a["alt"] or "" for a in page.images() if (a["alt"] or "").startswith(start))
        for start in ("Loss and accuracy", "Confusion matrix", "ROC curves")
    )
    assert "over 5 epochs" in curves
    assert "Stage head ends after epoch 2." in curves
    assert "Early as Benign 1, Early 5;" in confusion
    assert "any of Early, Pre, Pro" in roc


def test_plots_are_pictures(run_dir: Path) -> None:
    for name in ("curves", "confusion", "roc", "errors"):
        with Image.open(run_dir / "plots" / f"{name}.png") as image:
            assert image.format == "PNG"
            assert min(image.size) >= 400
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20


def test_augmented_images_are_shown_where_they_were_drawn(tmp_path: Path) -> None:
    from edgeall.train.batches import Images
    from edgeall.train.reports.augmented import DRAWN, draw_augmented

    run_dir, run = make_run(tmp_path, [*right("train"), *right("validation"), *right("test")])
    assert "What the training sees" not in Page(write_report(run_dir, run).read_text(encoding="utf-8")).text
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    images = Images(pixels, np.arange(5), np.array([0, 0, 1, 1, 1]), InputSpec(32, 32))
    with Image.open(draw_augmented(run_dir / "plots", images, "rotation,jpeg", 3)) as sheet:
        assert sheet.width // sheet.height == (DRAWN + 1) // 2, "a row for each of the two classes"
    page = Page(write_report(run_dir, run).read_text(encoding="utf-8"))
    assert "What the training sees" in page.text and len(page.images()) > 3


def test_image_level_split_is_called_optimistic(page: Page) -> None:
    assert "image-level split: optimistic" in page.text


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ("subject", "subject-level split."),
        ("block", "blocks of neighbouring file numbers."),
        ("given", "split as given."),
    ],
)
def test_other_split_levels_are_not(tmp_path: Path, level: str, words: str) -> None:
    rows = [*right("train"), *right("validation"), *right("test"), ("a", "test", 0, 1, 0.9)]
    text = report(tmp_path, rows, level=level).text
    assert words in text
    assert "optimistic" not in text


def test_what_contiguous_blocks_left_out_is_counted(tmp_path: Path) -> None:
    rows = [*right("train"), *right("validation"), *right("test")]
    run_dir, run = make_run(tmp_path, rows, level="block")
    reasons = ("embargo", "embargo", "duplicate")
    out = tuple(SplitEntry(f"out/{n}", "Pro", None, "cd" * 32, LEFT_OUT, why) for n, why in enumerate(reasons))
    split = load_split(run_dir / "split.json")
    save_split(replace(split, embargo=37, entries=(*split.entries, *out)), run_dir / "split.json")
    text = Page(write_report(run_dir, run).read_text(encoding="utf-8")).text
    assert "contiguous blocks of file numbers, embargo 37: 3 images left out." in text
    assert "more than 37 numbers away from any other subset. 2 images closer to a border are left out." in text
    assert "1 images that repeat the content or the subject of another subset are left out." in text


def test_duplicates_across_given_subsets_are_reported(tmp_path: Path) -> None:
    rows = [*right("train"), *right("validation"), *right("test")]
    run_dir, run = make_run(tmp_path, rows, level="given")
    split = load_split(run_dir / "split.json")
    save_split(replace(split, across=(("train/x", "test/y"),)), run_dir / "split.json")
    text = Page(write_report(run_dir, run).read_text(encoding="utf-8")).text
    assert "1 groups of duplicates, 2 images, lie in several subsets (the first: train/x, test/y)" in text


def test_subjects_have_figures_and_a_table_of_their_own(tmp_path: Path) -> None:
    # Two of four images of Early's one test subject are wrong, less surely than the others are right.
    rows = [*right("train"), *right("validation"), *right("test"), ("x", "test", 1, 0, 0.9), ("y", "test", 1, 0, 0.9)]
    of = {path: f"{side} {true} <i>" for path, side, true, *_ in rows}
    page = report(tmp_path, rows, level="subject", subjects=of)
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Subjects of the test subset The prediction for a subject is the mean probability" in text
    assert "subjects 4 accuracy 100.00 % 100.0 % to 100.0 %" in text
    assert "accuracy test 1 <i> Early Early 4 50.0 %" in text
    assert "bootstrap over subjects" in text
    assert "<i>" not in page.html
    (tmp_path / "unknown").mkdir()
    assert "Subjects of the test subset" not in report(tmp_path / "unknown", rows).text


KNOWN, UNSEEN = "The patient of an image is not known", "the test images come from unseen subjects"


@pytest.mark.parametrize(
    ("level", "subjects", "said", "unsaid"),
    [
        ("image", {}, [f"{KNOWN}, so", "expect less"], [UNSEEN, "the split is by image"]),
        ("block", {}, ["file numbers", f"{KNOWN}, so", "expect less"], [UNSEEN, "the split is by image"]),
        (
            "image",
            {"train": "p", "validation": "q", "test": "p"},
            ["1 subject of the test subset is also in"],
            [KNOWN, UNSEEN],
        ),
        (
            "image",
            {"train": "p", "validation": "q", "test": "q"},
            ["1 subject of the test subset is also in"],
            [KNOWN, UNSEEN],
        ),
        (
            "image",
            {"test": "p"},
            [f"{KNOWN} for 16 of 24, so", "expect less"],
            [UNSEEN, "the split is by image"],
        ),
        ("block", {"train": "p", "validation": "q", "test": "r"}, ["file numbers", UNSEEN], [KNOWN, "expect less"]),
        ("subject", {"train": "p", "validation": "q", "test": "r"}, [UNSEEN], [KNOWN, "expect less", "file numbers"]),
    ],
)
def test_what_the_split_means_follows_from_the_known_subjects(
    tmp_path: Path, level: str, subjects: dict[str, str], said: list[str], unsaid: list[str]
) -> None:
    rows = [*right("train"), *right("validation"), *right("test")]
    of = {path: subjects[side] for path, side, *_ in rows if side in subjects}
    text = report(tmp_path, rows, level=level, subjects=of).text
    assert [part for part in said if part not in text] == []
    assert [part for part in unsaid if part in text] == []


@pytest.mark.usefixtures("drawn_plots")
def test_hostile_names_stay_text(tmp_path: Path) -> None:
    labels = ("<script>alert(3)</script>", "_x $\\frac{1}$", "白血病" * 20, "a,b\nc")
    rows = [*right("train"), *right("validation"), *right("test"), (EVIL, "test", 0, 1, 0.9)]
    rows += [("../$^$.png", "test", 1, 0, 0.8)]
    page = report(tmp_path, rows, labels=labels, positive=labels[1:], problems=[{"path": EVIL, "reason": "<b>"}])
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert len(page.images()) == 3  # the plots: neither file exists, and the name brings no image of its own
    assert page.text.count(EVIL) == 2
    assert labels[0] in page.text
    assert labels[2] in page.text


def test_shows_no_more_than_the_surest(tmp_path: Path) -> None:
    wrong = [(f"w{n:02d}.png", "test", 1, 0, 0.5 + n / 100) for n in range(ERRORS_SHOWN + 3)]
    page = report(tmp_path, [*right("train"), *right("validation"), *right("test"), *wrong])
    assert f"{ERRORS_SHOWN} of {len(wrong)} wrong test images" in page.text
    assert "w14.png" in page.text
    assert "w03.png" in page.text
    assert "w02.png" not in page.html


@pytest.mark.usefixtures("drawn_plots")
def test_without_any_error_the_exact_bound_is_given(tmp_path: Path) -> None:
    rows = [*right("train"), *right("validation"), *right("test", 25)]
    text = report(tmp_path, rows, stages=("head",)).text.replace("\N{NO-BREAK SPACE}", " ")
    # Clopper-Pearson: 100 of 100 right, 0.05 ** (1 / 100) = 0.97049
    assert "Exact bound: with 95 % confidence the accuracy on images like these is above 97.05 %" in text
    assert text.count("No test image is classified wrongly") == 1
    assert "Most confident errors No image is wrong." in text


def test_without_any_error_subjects_get_no_bound_of_independent_images(tmp_path: Path) -> None:
    run_dir, run = make_run(tmp_path, [*right("train"), *right("validation"), *right("test")], level="subject")
    run = replace(run, metrics={**run.metrics, "test": replace(run.classified["test"], ci_unit="subject")})
    text = Page(write_report(run_dir, run).read_text(encoding="utf-8")).text
    assert "No test image is classified wrongly" in text
    assert "Exact bound" not in text


@pytest.mark.usefixtures("drawn_plots")
def test_no_positive_class(tmp_path: Path) -> None:
    page = report(tmp_path, [*right("train"), *right("validation"), *right("test")], positive=())
    assert "sensitivity and specificity are undefined" in page.text
    assert "sensitivity:" not in page.text
    assert "any of" not in page.html


@pytest.mark.usefixtures("drawn_plots")
def test_a_class_without_test_images(tmp_path: Path) -> None:
    page = report(tmp_path, [*right("train"), *right("validation"), *right("test", classes=3)])
    assert "Pro none" in next(a["alt"] or "" for a in page.images() if (a["alt"] or "").startswith("ROC"))
    assert "NaN" not in page.html
    assert "None" not in page.text


def test_images_of_a_manifest_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\n")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "wrong.png")
    rows = [*right("train"), *right("validation"), *right("test"), ("wrong.png", "test", 0, 1, 0.9)]
    page = report(tmp_path, rows, root=str(tmp_path / "list.csv"))
    assert [a["alt"] for a in page.images()].count("wrong.png: predicted Early, true Benign") == 1


def test_synthetic_images_are_called_so(tmp_path: Path, page: Page) -> None:
    rows = [*right("train"), *right("validation"), *right("test")]
    assert "SYNTHETIC" in report(tmp_path, rows, synthetic=True).text
    assert "SYNTHETIC" not in page.text


@pytest.mark.usefixtures("drawn_plots")
def test_same_run_same_report(tmp_path: Path) -> None:
    run_dir, run = make_run(tmp_path, [*right("train"), *right("validation"), *right("test"), *WRONG])
    first = write_report(run_dir, run).read_bytes()
    assert write_report(run_dir, run).read_bytes() == first


def test_a_file_name_that_is_not_text_goes_all_the_way(tmp_path: Path) -> None:
    from edgeall.train.runs import write_json
    from edgeall.train.tasks.classification import write_predictions

    strange = os.fsdecode(b"lymph\xe9.png")
    for number in range(12):
        path = tmp_path / "smears" / "ab"[number % 2] / (strange if number == 0 else f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    rows = [(f"{side}.png", side, true, 1 - true, 0.9) for side in SIDES for true in (0, 1)]
    run_dir, run = make_run(tmp_path, rows, labels=("a", "b"), positive=())
    split = make_split(scan(load_dataset(tmp_path / "smears")), SplitSettings(test_frac=0.5))
    save_split(split, run_dir / "split.json")
    assert load_split(run_dir / "split.json") == split
    wrong = {  # everything, so that the strange one is among the errors shown, whichever side it is on
        side: np.array([[0.1, 0.9] if e.label == "a" else [0.9, 0.1] for e in split.subset(side)], np.float32)
        for side in SIDES
    }
    write_predictions(run_dir / "predictions.csv", split, wrong)
    written = (run_dir / "predictions.csv").read_bytes()
    assert b"a/lymph\xe9.png," in written
    (run_dir / "predictions.csv").write_bytes(
        written.replace(b",train,", b",test,").replace(b",validation,", b",test,")
    )
    page = Page(write_report(run_dir, run).read_text(encoding="utf-8"))
    assert "lymph?.png" in page.text
    assert any((attributes["alt"] or "").startswith("a/lymph?.png") for attributes in page.images())
    write_json(run_dir / "run.json", run.to_json() | {"problems": [strange]})
    assert json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["problems"] == [strange]


@pytest.mark.parametrize("name", ["history.csv", "predictions.csv", "split.json"])
def test_incomplete_run(tmp_path: Path, name: str) -> None:
    run_dir, run = make_run(tmp_path, [*right("train"), *right("validation"), *right("test")])
    (run_dir / name).unlink()
    with pytest.raises(DataError, match=name):
        write_report(run_dir, run)


def test_stage_boundaries() -> None:
    history = [{"stage": stage} for stage in ("head", "head", "finetune")]
    assert plots.stage_boundaries(history) == [(2, "head", "finetune")]
    assert plots.stage_boundaries(history[:2]) == plots.stage_boundaries([]) == []


@pytest.mark.usefixtures("drawn_plots")
def test_boundary_is_drawn(tmp_path: Path) -> None:
    row = {"loss": "1", "accuracy": "0.5", "val_loss": "1", "val_accuracy": "0.5", "kept": "0"}
    drawn = []
    for stages in (("head", "head"), ("head", "finetune")):
        path = tmp_path / "curves.png"
        plots.plot_curves([{"stage": stage, **row} for stage in stages], path)
        drawn.append(np.asarray(Image.open(path).convert("L"), dtype=int))
    middle = drawn[0].shape[1] // 2  # epoch 1.5 of 1..2, give or take the width of the axis labels
    dark = [(image[:, middle - 100 : middle + 140] < 150).sum(axis=0).max() for image in drawn]
    assert dark[1] > 3 * dark[0]


def test_imports_stay_light() -> None:
    program = (
        "import sys, edgeall.train.evaluation.metrics; assert 'matplotlib' not in sys.modules;"
        "import edgeall.train.reports.report; "
        "print([m for m in ('tensorflow', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
