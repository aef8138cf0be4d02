"""Segmentation in training and quantization: data with masks, tiles, loss, split by laboratory, the whole chain."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fixture_seed import SEED
from PIL import Image

from edgeall.console.progress import Progress
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.errors import DataError, GateError, UsageError
from edgeall.edge_runtime.masks import CLASSES, mask_image, open_mask
from edgeall.edge_runtime.results import from_json
from edgeall.edge_runtime.segmenter import Segmenter
from edgeall.edge_runtime.tools.golden import check_golden
from edgeall.models import registry
from edgeall.models.registry import BuildArgs
from edgeall.optimize.quantization.summary import quantize_text
from edgeall.train.data import cache
from edgeall.train.data.make_split import make_split
from edgeall.train.data.masked import load_masked
from edgeall.train.data.scan import scan
from edgeall.train.data.split import check_split, load_split
from edgeall.train.data.split_settings import SplitSettings
from edgeall.train.evaluation.evaluate import EvaluateSettings, evaluate
from edgeall.train.segmentation.assess import assess_images, read_dice
from edgeall.train.segmentation.results import MaskEvaluation
from edgeall.train.settings import TrainSettings
from edgeall.train.tasks.segmentation import TASK

QUIET = Progress(quiet=True)
PART = 54
"""Pixels of a side of a part of a field: 95 at the network's scale."""


def draw(folder: Path, name: str, size: tuple[int, int] = (60, 40), seed: int = 0) -> None:
    """An image and its mask: one cell with a nucleus at a random place."""
    random = np.random.default_rng((seed, *folder.name.encode(), *name.encode()))
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    x, y = random.integers(10, np.array(size) - 10)
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    distance = np.hypot(across - x, down - y)
    classes = np.where(distance < 5, 2, np.where(distance < 9, 1, 0)).astype(np.uint8)
    # Blobs of its own, or the images would be near duplicates.
    blobs = Image.fromarray(random.integers(120, 250, (4, 6, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    colours = np.array([[0, 0, 0], [150, 160, 220], [90, 40, 120]])
    pixels = np.where(classes[..., None] > 0, colours[classes], np.asarray(blobs)) + random.integers(-9, 9, (1, 1, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / "images" / f"{name}.png")
    mask_image(classes).save(folder / "masks" / f"{name}.png")


@pytest.fixture
def laboratories(tmp_path: Path) -> Path:
    """Two laboratories of ten images; the scale of one is known."""
    for laboratory in ("here", "there"):
        for number in range(10):
            draw(tmp_path / "data" / laboratory, f"cell{number}")
    (tmp_path / "data" / "scale.json").write_text('{"here": 14}')
    return tmp_path / "data"


def test_folders_of_laboratories_are_listed(laboratories: Path) -> None:
    dataset = load_masked(laboratories)
    assert dataset.layout == "masks" and dataset.labels == ("here", "there") and not dataset.problems
    assert {sample.red_cell_px for sample in dataset.samples if sample.label == "here"} == {14.0}
    assert {sample.red_cell_px for sample in dataset.samples if sample.label == "there"} == {None}
    one = load_masked(laboratories / "here")
    assert one.labels == ("all",) and len(one.samples) == 10


def test_each_invalid_mask_is_one_problem_and_the_others_are_read(laboratories: Path) -> None:
    here = laboratories / "here"
    (here / "masks" / "cell0.png").unlink()
    Image.new("L", (10, 10)).save(here / "masks" / "cell1.png")
    Image.new("L", (60, 40), 77).save(here / "masks" / "cell2.png")
    Image.new("L", (60, 40)).save(here / "masks" / "other.png")
    scanned = scan(load_masked(laboratories))
    reasons = {problem.path: problem.reason for problem in scanned.dataset.problems}
    assert reasons == {
        "here/images/cell0.png": "has no mask (masks/cell0.png)",
        "here/images/cell1.png": "here/masks/cell1.png: the mask has 10x10 pixels, its image 60x40",
        "here/images/cell2.png": "here/masks/cell2.png: 2,400 pixels of the mask have other values, such as 77",
        "here/masks/other.png": "a mask without an image",
    }
    assert len(scanned.facts) == 17


def test_a_manifest_names_masks_scale_and_subset(laboratories: Path) -> None:
    table = laboratories / "masks.csv"
    lines = ["path,mask,laboratory,subject,red_cell_px,subset"]
    for number, subset in enumerate(("train", "train", "validation", "test")):
        lines.append(f"here/images/cell{number}.png,here/masks/cell{number}.png,A,S{number},31.5,{subset}")
    table.write_text("\n".join([*lines, "here/images/cell4.png,,A,S4,,train"]) + "\n")
    dataset = load_masked(table)
    assert [sample.side for sample in dataset.samples] == ["train", "train", "validation", "test"]
    assert {sample.red_cell_px for sample in dataset.samples} == {31.5}
    assert [problem.reason for problem in dataset.problems] == ["has no mask (line 6)"]
    table.write_text(table.read_text().replace("31.5", "-1"))
    with pytest.raises(DataError, match="line 2: a red cell of -1 pixels"):
        load_masked(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "not diameters"), ('{"here": "x"}', "not diameters"), ('{"nobody": 30}', "no folder nobody")],
)
def test_a_wrong_scale_is_refused(laboratories: Path, text: str, message: str) -> None:
    (laboratories / "scale.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load_masked(laboratories)


def test_one_laboratory_is_left_out(laboratories: Path) -> None:
    scanned = scan(load_masked(laboratories))
    for number, name in enumerate(("here", "there"), 1):
        split = make_split(scanned, SplitSettings(by="laboratory", fold=(number, 2)))
        assert {entry.label for entry in split.subset("test")} == {name}
        assert {entry.label for side in ("train", "validation") for entry in split.subset(side)} == {
            "here",
            "there",
        } - {name}
        assert split.subset("validation") and split.level == "laboratory"
    with pytest.raises(UsageError, match="requires --fold I/2"):
        make_split(scanned, SplitSettings(by="laboratory"))


def test_a_changed_mask_is_noticed(laboratories: Path, tmp_path: Path) -> None:
    from edgeall.train.data.split import save_split

    split = make_split(scan(load_masked(laboratories)), SplitSettings(by="image"))
    save_split(split, tmp_path / "split.json")
    check_split(load_split(tmp_path / "split.json"), laboratories)
    draw(laboratories / "here", "again")
    shutil.move(laboratories / "here" / "masks" / "again.png", laboratories / "here" / "masks" / "cell3.png")
    (laboratories / "here" / "images" / "again.png").unlink()
    with pytest.raises(DataError, match=r"1 with another mask \(here/images/cell3.png\)"):
        check_split(split, laboratories)


def coded(seed: int, red_cell_px: float = 28.0) -> Any:
    """A picture whose grey value tells the class."""
    from edgeall.train.segmentation.images import Picture

    random = np.random.default_rng(seed)
    classes = np.asarray(
        Image.fromarray(random.integers(0, 3, (6, 8)).astype(np.uint8)).resize((120, 90), Image.Resampling.NEAREST)
    )
    return Picture(np.dstack([classes * 100] * 3 + [classes]), red_cell_px, known=True)


def test_image_and_mask_move_together() -> None:
    from edgeall.train.segmentation.tiles import COUNTED, IGNORED, mosaic_tile

    pictures = [coded(seed) for seed in range(4)]
    scales = []
    for seed in range(30):
        image, mask, octaves = mosaic_tile(pictures, 96, np.random.default_rng(seed))
        again = mosaic_tile(pictures, 96, np.random.default_rng(seed))
        np.testing.assert_array_equal(image, again[0])
        assert image.shape == (96, 96, 3) and mask.shape == (96, 96)
        scales.append(octaves)
        if abs(octaves) > COUNTED:
            assert (mask == IGNORED).all()
        else:  # but for the edges, where bilinear and nearest differ
            assert (np.rint(image[..., 0] / 100) == mask).mean() > 0.85
    assert max(scales) > 0.6 and min(scales) < -0.6, "both ends are drawn"


def test_whole_pictures_are_rescaled_as_on_the_device() -> None:
    """Validation and calibration see the pixels that `segment_field` gives the network, at any scale."""
    from edgeall.edge_runtime.preprocess import InputSpec, rescaled
    from edgeall.train.segmentation.images import MaskedImages
    from edgeall.train.segmentation.tiles import plain_tiles

    picture = coded(0, red_cell_px=56.0)
    images = MaskedImages((picture,), (), Path(), InputSpec(32, 32))
    for scale, (width, height) in ((1.0, (60, 45)), (2.0, (120, 90))):
        pixels, classes, octaves = plain_tiles(images, scale)
        field = np.asarray(rescaled(Image.fromarray(np.ascontiguousarray(picture.pixels[..., :3])), (width, height)))
        assert pixels.shape[1:] == (32, 32, 3) and classes.shape == pixels.shape[:3]
        np.testing.assert_array_equal(pixels[0], field[:32, :32])
        assert set(octaves.tolist()) == {math.log2(scale)}


def test_light_augmentation_changes_only_the_image_and_differs_each_time() -> None:
    from edgeall.train.segmentation.light import LIGHT, changed, check_augment

    tile = coded(0).pixels[:80, :80, :3]
    for name in LIGHT:
        seen = [changed(tile, name, np.random.default_rng(seed)) for seed in range(5)]
        assert all(one.dtype == np.uint8 and one.shape == tile.shape for one in seen)
        assert all((one == tile).all() == (name == "none") for one in seen)
    with pytest.raises(UsageError, match="--augment studies does not change masks"):
        check_augment("studies")


def test_the_loss_ignores_unknown_pixels() -> None:
    from edgeall.train.segmentation.objective import dice, mask_loss, red_cell_loss
    from edgeall.train.segmentation.tiles import IGNORED

    truth = np.random.default_rng(0).integers(0, 3, (2, 32, 32)).astype(np.uint8)
    right = np.eye(3, dtype=np.float32)[truth]
    assert float(mask_loss(truth, right)) == pytest.approx(0, abs=1e-4) and float(dice(truth, right)) == pytest.approx(
        1
    )
    wrong = np.roll(right, 1, axis=-1)
    assert float(mask_loss(truth, wrong)) > 1 and float(dice(truth, wrong)) < 0.5
    half = truth.copy()
    half[1] = IGNORED
    mixed = np.concatenate([right[:1], wrong[1:]])
    assert float(mask_loss(half, mixed)) == pytest.approx(0, abs=1e-4) and float(dice(half, mixed)) == pytest.approx(1)
    sizes = np.array([[0.5], [np.nan]], np.float32)
    assert float(red_cell_loss(sizes, np.array([[0.0], [9.0]], np.float32))) == pytest.approx(0.25)
    assert float(red_cell_loss(sizes[1:], np.ones((1, 1), np.float32))) == 0


def test_figures_of_a_perfect_and_of_an_empty_answer(tmp_path: Path) -> None:
    from edgeall.train.data.split import SplitEntry
    from edgeall.train.segmentation.assess import Answer, drawn_cells, figures, score

    draw(tmp_path, "one")
    truth = open_mask(tmp_path / "masks" / "one.png")
    truth = np.kron(truth, np.ones((3, 3), np.uint8)).astype(np.uint8)  # cells as large as real ones
    entry = SplitEntry("one", "A", None, "", "test", mask="m", mask_sha256="", red_cell_px=28.0)
    right = score(entry, truth, Answer(truth, drawn_cells(truth, truth.shape), 0.25))
    assert (right.dice, right.matched, right.cells, right.nc_error) == (1.0, 1, 1, 0.0)
    nothing = score(entry, truth, Answer(np.zeros_like(truth), np.zeros(truth.shape, np.int32), 0.0))
    assert nothing.dice == 0.0 and nothing.found == 0
    found = figures([right, nothing], "test", "image", 0)
    assert found.dice == 0.5 and found.panoptic.quality == pytest.approx(2 / 3)
    assert found.red_cell_error == pytest.approx(0.125) and found.per_laboratory["A"].images == 2
    assert found.per_class["nucleus"].dice == pytest.approx(2 / 3)


# --- the chain -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def masked_fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of parts of synthetic fields with masks, each as large as one tile. Not to be changed."""
    from edgeall.train.data.synth import MASKS_MANIFEST, synthesize

    folder = tmp_path_factory.mktemp("masked") / "fields"
    synthesize(folder, 24, seed=5 + SEED, size=96)
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            part = image.crop((0, 0, PART, PART))
        part.save(path)
    return folder / MASKS_MANIFEST


@pytest.fixture(scope="module", params=["few_layers", pytest.param("mobilenet_v2", marks=pytest.mark.long)])
def backbone(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backbone with layers for a decoder: one of four convolutions, and the real one."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "few_layers":
            spec = registry.get("mobilenet_v2")
            skips = tuple(f"stride{stride}_relu" for stride in (2, 4, 8, 16))
            own = replace(spec, name=request.param, build=few_layers, sizes=(32, 512), alphas=(), skips=skips)
            patch.setitem(registry._REGISTRY, request.param, own)
        yield request.param


def few_layers(args: BuildArgs) -> Any:
    """A backbone of four convolutions with strides."""
    from edgeall.models.keras_compat import keras
    from edgeall.models.rewrite import image_input

    layers = keras.layers
    inputs = x = image_input(args.height, args.width)
    for stride in (2, 4, 8, 16):
        x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name=f"stride{stride}")(x)
        x = layers.BatchNormalization(name=f"stride{stride}_bn")(x)
        x = layers.ReLU(6.0, name=f"stride{stride}_relu")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D(name="features")(x), name="few_layers")


@pytest.fixture(scope="module")
def masked_settings(backbone: str, masked_fields: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    return TrainSettings(
        data=masked_fields,
        out=tmp_path_factory.mktemp("runs") / "masks",
        task="segmentation",
        model=backbone,
        alpha=0.35 if backbone == "mobilenet_v2" else None,
        weights="none",
        input_size=96,
        epochs_finetune=2,
        batch_size=4,
        split_by="image",
        seed=SEED,
        cache_dir=tmp_path_factory.mktemp("pixels"),
    )


@pytest.fixture(scope="module", autouse=True)
def _few_tiles() -> Any:
    from edgeall.optimize.tasks import segmentation as quantization
    from edgeall.train.tasks import segmentation as training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "TILES", 16)
        patch.setattr(quantization, "TILES", 16)
        yield


class _Recorded(Progress):
    """Remembers how far each bar came."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.seen: list[tuple[str, int, int]] = []

    @contextmanager
    def task(self, title: str, total: int, start: int = 0) -> Iterator[Callable[[int, str], None]]:
        yield lambda done, text: self.seen.append((title, total, done))


class _Stop(Exception):
    pass


@pytest.fixture(scope="module")
def masked_run(masked_settings: TrainSettings) -> Path:
    """A complete run, stopped after its first epoch and resumed. Not to be changed: copy it."""
    from edgeall.train.run import train
    from edgeall.train.runs import load_run

    def stop(row: Any) -> None:
        raise _Stop

    with pytest.raises(_Stop):
        train(masked_settings, QUIET, on_epoch=stop)
    run = train(masked_settings, QUIET)
    assert run.timing["resumed"] is True
    assert load_run(masked_settings.out) == run
    return masked_settings.out


@pytest.fixture(scope="module")
def masked_model(masked_run: Path, masked_settings: TrainSettings) -> Callable[..., Any]:
    """``masked_model(scheme, out, **settings)`` quantizes the run."""
    from edgeall.optimize.quantization.config import QuantizeConfig
    from edgeall.optimize.quantize import quantize

    def make(scheme: str, out: Path, **settings: Any) -> Any:
        given = {"representative": 8, "epochs": 1, "cache_dir": masked_settings.cache_dir} | settings
        return quantize(QuantizeConfig(masked_run, scheme, out, **given), QUIET)

    return make


@pytest.fixture(scope="module")
def masked_int8(masked_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of full-integer quantization; its file is not to be changed."""
    searched = {"auto_float": True, "max_drop": 100.0, "layer_report": True}
    return masked_model("ptq-int8", tmp_path_factory.mktemp("int8") / "cells.tflite", golden="synthetic", **searched)


def test_a_run_says_its_task_and_figures(masked_run: Path) -> None:
    run = json.loads((masked_run / "run.json").read_text())
    assert run["task"] == "segmentation" == run["settings"]["task"]
    assert tuple(run["labels"]) == CLASSES and run["positive_labels"] == []
    assert run["metrics"]["test"]["images"] == run["split"]["test"] > 0
    with (masked_run / "history.csv").open() as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2"]
    with (masked_run / "predictions.csv").open() as stream:
        assert sum(row["side"] == "test" for row in csv.DictReader(stream)) == run["split"]["test"]
    page = (masked_run / "report.html").read_text()
    assert "Worst images" in page and "research use only" in page and "SYNTHETIC" in page


def test_the_packed_model_is_what_the_device_runs(masked_int8: Any, masked_run: Path) -> None:
    segmenter = Segmenter.open(masked_int8.out)
    assert segmenter.bundle is not None and segmenter.bundle.manifest is not None
    manifest = segmenter.bundle.manifest
    assert manifest.task == "segmentation" and manifest.labels == CLASSES
    assert manifest.segmentation == {"red_cell_px": 28} and manifest.metrics["dice"] == masked_int8.dice
    assert all(result.ok for result in check_golden(segmenter))
    assert masked_int8.float_layers == [] and masked_int8.agreement > 0.5
    assert masked_int8.tflite_float.max_abs_difference < 0.01
    assert Path(masked_int8.out).stat().st_size < 400_000 and Path(masked_int8.report).exists()


def test_the_gate_is_tried_on_validation_images_before_layers_are_left_in_float(
    masked_int8: Any, masked_run: Path, masked_settings: TrainSettings
) -> None:
    found = masked_int8.auto_float
    assert found.layers == [] and [trial.layers for trial in found.trials] == [0]
    segmenter, split = Segmenter.open(masked_int8.out), load_split(masked_run / "split.json")
    images = TASK.load(split, masked_settings.data, segmenter.input, cache.ready(masked_settings.cache_dir), QUIET)
    exact = np.mean(read_dice(masked_run / "predictions.csv", "validation"))
    progress = _Recorded()
    dice = np.mean([one.dice for one in assess_images(segmenter, images["validation"], "assessed", progress)])
    count = len(images["validation"])
    assert progress.seen == [("assessed", count, done) for done in range(1, count + 1)]
    assert found.trials[0].drop_points == pytest.approx(100 * (exact - dice), abs=0.05)
    assert "hundredths of validation Dice by number of layers in float: 0: " in quantize_text(masked_int8)
    assert masked_int8.layers and all(row.kl is None for row in masked_int8.layers), "it has two outputs"


@pytest.mark.parametrize("scheme", ["qat-int8", "float32"])
def test_the_other_schemes(scheme: str, masked_model: Callable[..., Any], tmp_path: Path) -> None:
    result = masked_model(scheme, tmp_path / "model.tflite", golden="synthetic")
    assert open_bundle(result.out).task == "segmentation"
    assert result.float_layers == ([] if scheme == "qat-int8" else None)
    if scheme == "float32":
        assert result.drop_points == pytest.approx(0, abs=1) and result.agreement > 0.99


def test_the_gate_is_about_dice(
    masked_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeall.optimize.tasks import segmentation

    verify = segmentation._verify
    monkeypatch.setattr(segmentation, "_verify", lambda *given: verify(*given) | {"drop_points": 3.0})
    with pytest.raises(GateError, match="hundredths of test Dice"):
        masked_model("ptq-int8", tmp_path / "model.tflite", max_drop=1.0)
    assert not (tmp_path / "model.tflite").exists()


def test_run_and_model_are_evaluated_on_the_same_images(
    masked_run: Path, masked_int8: Any, masked_settings: TrainSettings
) -> None:
    settings = EvaluateSettings(cache_dir=masked_settings.cache_dir)
    own = evaluate(masked_run, settings, QUIET)
    run = json.loads((masked_run / "run.json").read_text())
    assert isinstance(own, MaskEvaluation)
    assert own.metrics.dice == pytest.approx(run["metrics"]["test"]["dice"], abs=1e-6)
    given = replace(settings, data=masked_settings.data, split=masked_run / "split.json")
    found = evaluate(Path(masked_int8.out), given, QUIET)
    assert isinstance(found, MaskEvaluation)
    assert found.metrics.dice == pytest.approx(masked_int8.dice) and found.metrics.images == own.metrics.images
    with pytest.raises(UsageError, match="--context does not take a segmentation model yet"):
        evaluate(Path(masked_int8.out), replace(given, context=True), QUIET)
    with pytest.raises(UsageError, match="--against requires a model file"):
        evaluate(masked_run, replace(settings, against=Path(masked_int8.out)), QUIET)


def test_a_model_is_explained_and_compared_with_another(
    masked_run: Path, masked_int8: Any, masked_settings: TrainSettings, tmp_path: Path
) -> None:
    pictures, page = tmp_path / "pictures", tmp_path / "page.html"
    given = EvaluateSettings(data=masked_settings.data, split=masked_run / "split.json", explain=pictures, html=page)
    found = evaluate(Path(masked_int8.out), replace(given, against=Path(masked_int8.out)), QUIET)
    assert isinstance(found, MaskEvaluation) and found.against is not None
    assert found.against.gain == 0 and found.against.test.p_value == 1 and found.against.dice == found.metrics.dice
    assert found.to_json()["against"]["p_value"] == 1
    assert from_json(MaskEvaluation, found.to_json()) == found
    assert len(list(pictures.glob("*.png"))) == found.metrics.images
    text = page.read_text()
    assert (
        "Paired comparison" in text and "Worst images" in text and "SYNTHETIC" in text and "research use only" in text
    )


def test_another_model_must_have_the_same_split(
    masked_run: Path, masked_int8: Any, masked_settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeall.train.segmentation import evaluate as evaluation

    given = EvaluateSettings(data=masked_settings.data, split=masked_run / "split.json", against=Path(masked_int8.out))
    opened = evaluation._open_model(Path(masked_int8.out), given)
    monkeypatch.setattr(evaluation, "_open_model", lambda *_: replace(opened, split_sha256="another"))
    with pytest.raises(DataError, match="may have been trained on these images"):
        evaluate(Path(masked_int8.out), given, QUIET)


def test_a_site_is_compared_with_the_own_test_subset(
    masked_run: Path, masked_int8: Any, masked_settings: TrainSettings, laboratories: Path
) -> None:
    from edgeall.train.segmentation.site import mask_site_text

    given = EvaluateSettings(site=laboratories, data=masked_settings.data, split=masked_run / "split.json")
    found = evaluate(Path(masked_int8.out), given, QUIET)
    assert isinstance(found, MaskEvaluation) and found.site is not None
    assert found.metrics.split == "site" and found.metrics.per_laboratory.keys() == {"here", "there"}
    assert found.site.own.dice == masked_int8.dice and found.site.here.dice == found.metrics.dice
    assert found.site.drop_points == pytest.approx(100 * (found.site.own.dice - found.site.here.dice))
    low, high = found.site.drop_points_ci95
    assert low <= found.site.drop_points <= high and found.site.repeated.images == 0
    assert "this site" in mask_site_text(found.site)
    own = evaluate(masked_run, EvaluateSettings(site=masked_settings.data), QUIET)
    assert isinstance(own, MaskEvaluation) and own.site is not None
    assert own.site.repeated.images == own.metrics.images, "all of them are the run's own images"


def test_what_differs_is_coloured() -> None:
    from edgeall.train.segmentation.explain import ADDED, MISSED, SWAPPED, differences

    truth, found = np.zeros((2, 2, 4), np.uint8)
    truth[0], found[0] = (1, 0, 2, 1), (0, 2, 1, 1)
    pixels = np.asarray(differences(Image.new("RGB", (4, 2), (100, 100, 100)), truth, found)).astype(int)
    for column, colour in enumerate((MISSED, ADDED, SWAPPED, (100, 100, 100))):
        np.testing.assert_allclose(pixels[0, column], 0.4 * 100 + 0.6 * np.array(colour), atol=1)
    assert (pixels[1] == 100).all()


def test_robustness_of_masks(masked_int8: Any, masked_settings: TrainSettings) -> None:
    from edgeall.train.evaluation.robustness import robustness_text
    from edgeall.train.segmentation.evaluate import _open_model, _select
    from edgeall.train.segmentation.robustness import robustness_of_masks

    settings = EvaluateSettings(data=masked_settings.data)
    opened = _open_model(Path(masked_int8.out), settings)
    images = _select(opened, settings, QUIET).images
    some = replace(images, entries=images.entries[:2])
    found = robustness_of_masks(opened.segmenter, some, QUIET, ("jpeg", "underexposed"))
    assert found.images == 2 and 0 <= found.worst <= found.mean <= 1
    assert "jpeg" in robustness_text(found)


@pytest.fixture(scope="module")
def masked_pruned(masked_run: Path, masked_settings: TrainSettings) -> Path:
    """The run with fewer channels."""
    from edgeall.optimize.prune import prune
    from edgeall.optimize.pruning.config import PruneConfig

    out = masked_run.with_name("pruned")
    prune(PruneConfig(masked_run, out=out, macs=0.8, epochs=1, cache_dir=masked_settings.cache_dir), QUIET)
    return out


@pytest.mark.long
def test_a_pruned_segmentation_network_is_smaller_and_can_be_loaded(masked_run: Path, masked_pruned: Path) -> None:
    from edgeall.optimize.pruning.summary import prune_text
    from edgeall.train.runs import load_model, load_run

    parent, run = load_run(masked_run), load_run(masked_pruned)
    assert run.pruned is not None and run.task == "segmentation" and 0 < run.pruned.found <= 0.8
    assert run.pruned.parent_dice == {name: metrics.dice for name, metrics in parent.segmented.items()}
    assert run.model.macs < parent.model.macs and run.pruned.parent_macs == parent.model.macs
    model = load_model(masked_pruned, run)
    assert model.output_names == ["mask", "red_cell"] and [shape[-1] for shape in model.output_shape] == [3, 1]
    assert run.pruned.latency.keys() == {"parent_float32_p50_ms", "float32_p50_ms"}
    assert "test Dice" in prune_text(run) and "accuracy" not in prune_text(run)


def test_zeros_stay_out_of_the_last_layers(masked_run: Path) -> None:
    from edgeall.models.decoder import RED_CELL, SCORES
    from edgeall.optimize.pruning.sparsity import prunable
    from edgeall.train.runs import load_model, load_run

    names = {layer.name for layer in prunable(load_model(masked_run, load_run(masked_run)))}
    assert "decoder16_project" in names and not names & {SCORES, RED_CELL}


@pytest.mark.long
def test_segmentation_runs_are_compared(
    masked_run: Path,
    masked_pruned: Path,
    masked_settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgeall.optimize.experiments import compare_models
    from edgeall.optimize.experiments.compare import compare_runs
    from edgeall.optimize.experiments.compare_config import CompareOptions
    from edgeall.optimize.experiments.compare_result import Comparison
    from edgeall.optimize.experiments.compare_table import compare_text
    from edgeall.optimize.experiments.tasks import segmentation

    runs = [tmp_path / "whole", tmp_path / "pruned"]  # a comparison leaves its model files in the runs
    for run_folder, copy in zip((masked_run, masked_pruned), runs, strict=True):
        shutil.copytree(run_folder, copy)
    out = tmp_path / "out"
    options = CompareOptions(("float32",), seconds=0.05, cache_dir=masked_settings.cache_dir)
    result = compare_runs(runs, out, options, QUIET)
    assert result.task == "segmentation" and not result.failures and result.labels == list(CLASSES)
    whole, pruned = result.rows
    run = json.loads((masked_run / "run.json").read_text())
    assert whole.dice == pytest.approx(run["metrics"]["test"]["dice"], abs=0.02)
    assert abs(whole.drop_points) < 2 and pruned.pruned and pruned.macs < whole.macs
    tests = [row.wilcoxon_p for row in (whole, pruned)]
    assert tests.count(None) == 1, "the best one is not compared with itself"
    with (out / "compare.csv").open() as stream:
        assert [row["scheme"] for row in csv.DictReader(stream)] == ["float32", "float32"]
    page = (out / "compare.html").read_text()
    assert "research use only" in page and "Pruned and unpruned models" in page and "Laboratories" in page
    assert "AJI" in compare_text(result)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("done twice")

    monkeypatch.setattr(compare_models, "quantize", never)
    monkeypatch.setattr(segmentation, "assess_images", never)
    again = compare_runs(runs, out, options, QUIET)
    assert [row.dice for row in again.rows] == [whole.dice, pruned.dice]
    assert from_json(Comparison, result.to_json()) == result


def test_runs_of_two_tasks_are_not_compared(masked_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    from edgeall.optimize.experiments.compare import compare_runs
    from edgeall.optimize.experiments.compare_config import CompareOptions

    with pytest.raises(DataError, match=r"is a segmentation run, .* a classification run"):
        compare_runs([tiny_run, masked_run], tmp_path / "both", CompareOptions(("float32",)), QUIET)


@pytest.mark.long
def test_a_student_learns_from_a_segmentation_run(
    masked_run: Path, masked_settings: TrainSettings, tiny_run: Path
) -> None:
    from edgeall.train.run import train

    taught = {"epochs_finetune": 1, "input_size": 128, "split_by": "auto", "split": masked_run}
    student = replace(masked_settings, out=masked_run.with_name("student"), teacher=(masked_run,), **taught)
    run = train(student, QUIET)
    assert run.teachers is not None and run.model.input.width == 128 and run.settings.recorded["teacher_weight"] == 0.5
    own = json.loads((masked_run / "run.json").read_text())["metrics"]
    assert run.teachers[0].dice == {name: metrics["dice"] for name, metrics in own.items()}
    other = replace(student, out=masked_run.with_name("other"), teacher=(tiny_run,))
    with pytest.raises(UsageError, match="is a classification run, the student is trained for segmentation"):
        train(other, QUIET)
    assert not other.out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive": "nucleus"}, "--positive is for classification"),
        ({"per_class": "10/5/5"}, "--per-class is for classification"),
        ({"model": "vgg16", "alpha": None}, "vgg16 has no layers for a segmentation decoder"),
        ({"augment": "studies"}, "does not change masks"),
        ({"epochs_finetune": 0}, "no epochs to train"),
        ({"task": "detection"}, "no task called 'detection'"),
    ],
)
def test_settings_of_another_task(masked_settings: TrainSettings, changes: dict[str, Any], message: str) -> None:
    from edgeall.train.settings import resolve

    with pytest.raises(UsageError, match=message):
        resolve(replace(masked_settings, **changes))


def test_run_writes_masks_and_overlays(masked_int8: Any, masked_fields: Path, tmp_path: Path) -> None:
    from edgeall.cli import cli

    image = next((masked_fields.parent / "Pro").glob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    words = [str(word) for word in (masked_int8.out, image, broken, "--masks", tmp_path / "out", "--red-cell-px", 16)]
    result = CliRunner().invoke(cli, ["run", *words, "--json"], obj={})
    assert result.exit_code == 0, result.output
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert sum(first["pixels"].values()) == PART**2 and first["scale"]["red_cell_px"] == 16
    assert open_mask(tmp_path / "out" / first["mask"], (PART, PART)).shape == (PART, PART)
    assert (tmp_path / "out" / first["overlay"]).exists() and "not an image" in second["error"]
    result = CliRunner().invoke(cli, ["run", str(masked_int8.out), str(image), "--explain", "x"], obj={})
    assert (
        isinstance(result.exception, UsageError)
        and "--explain is not for a segmentation model" in result.exception.message
    )
