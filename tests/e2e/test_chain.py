"""The whole chain on a small run: train, quantize in every scheme, evaluate, run; and every way to get it wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import venvs
from agreement import FLOAT_ROUNDING, calibration_error, least_agreement
from PIL import Image

from edgeall.cli import main
from edgeall.console.progress import Progress
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.calibration import temperature_of
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import DataError, EdgeallError, GateError, UsageError
from edgeall.edge_runtime.images import decode_rgb
from edgeall.edge_runtime.pipeline import classify
from edgeall.edge_runtime.preprocess import normalize, preprocess
from edgeall.edge_runtime.tools.golden import check_golden
from edgeall.models.keras_compat import keras
from edgeall.optimize.quantization.config import QuantizeConfig
from edgeall.optimize.quantization.schemes import SCHEMES
from edgeall.optimize.quantize import quantize
from edgeall.train.data.split import load_split
from edgeall.train.data.synth import synthesize
from edgeall.train.evaluation.evaluate import EvaluateSettings, evaluate
from edgeall.train.prepare import prepare
from edgeall.train.run import train
from edgeall.train.settings import resolve

QUIET = Progress(quiet=True)


def test_a_run_folder_is_complete_and_consistent(tiny_run: Path) -> None:
    run = json.loads((tiny_run / "run.json").read_text())
    for name in ("settings.json", "split.json", "history.csv", "model.keras", "predictions.csv", "report.html"):
        assert (tiny_run / name).exists(), name
    assert not (tiny_run / "checkpoints").exists()
    assert any((tiny_run / "tensorboard" / "finetune").iterdir())
    split = load_split(tiny_run / "split.json")
    assert run["split"]["sha256"] == split.sha256
    assert sum(run["split"][side] for side in ("train", "validation", "test")) == run["data"]["images"] == 128
    assert run["metrics"]["test"]["images"] == run["split"]["test"]
    assert run["data"]["synthetic"] is True
    with open(tiny_run / "predictions.csv", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["side"] == "test"]
    accuracy = sum(row["label"] == row["predicted"] for row in rows) / len(rows)
    assert accuracy == pytest.approx(run["metrics"]["test"]["accuracy"])
    assert run["metrics"]["test"]["split_level"] == "image"


def test_a_run_keeps_batch_normalization_current(tiny_run: Path) -> None:
    model = keras.models.load_model(tiny_run / "model.keras", compile=False)
    momenta = [layer.momentum for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert momenta
    assert max(momenta) < 0.95


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_verified_packed_and_small(
    tiny_run: Path, tiny_models: dict[str, dict[str, Any]], scheme: str
) -> None:
    summary = tiny_models[scheme]
    classifier = Classifier.open(summary["out"])
    manifest = classifier.bundle.manifest  # type: ignore[union-attr]
    assert manifest is not None
    assert manifest.quantization["scheme"] == scheme
    assert all(result.ok for result in check_golden(classifier))
    assert manifest.metrics["accuracy"] == summary["accuracy"]
    assert manifest.training["synthetic"] is True
    assert "SYNTHETIC" in (classifier.bundle.model_card or "")  # type: ignore[union-attr]
    integer = scheme.endswith("int8")
    assert (classifier.model.input.dtype == np.uint8) == integer
    answers = _answers(tiny_run)
    for figures in (summary["tflite_float"], *([summary] if scheme == "float32" else [])):
        assert figures["max_abs_difference"] < FLOAT_ROUNDING
        assert figures["agreement"] >= least_agreement(answers, FLOAT_ROUNDING)
    assert summary["agreement"] >= least_agreement(answers, summary["max_abs_difference"])
    if integer:
        assert summary["flatbuffer_bytes"] < 0.35 * summary["float_flatbuffer_bytes"]


def _answers(run: Path) -> np.ndarray:
    """The predictions of a network for the images of its test subset, ``(images, labels)``."""
    labels = json.loads((run / "run.json").read_text())["labels"]
    with open(run / "predictions.csv", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["side"] == "test"]
    return np.array([[float(row[f"p_{label}"]) for label in labels] for row in rows])


def test_golden_probabilities_are_those_of_keras(tiny_run: Path, tiny_models: dict[str, dict[str, Any]]) -> None:
    from edgeall.train.runs import load_model, load_run

    classifier = Classifier.open(tiny_models["float32"]["out"])
    model = load_model(tiny_run, load_run(tiny_run))
    bundle = classifier.bundle
    assert bundle is not None
    assert 1 <= len(bundle.golden) <= 2, "one of each class that it sees"
    for golden in bundle.golden:
        pixels = preprocess(decode_rgb(golden.image_bytes, golden.name), classifier.input)
        expected = model(normalize(pixels[np.newaxis], classifier.input), training=False).numpy()[0]
        np.testing.assert_allclose(golden.probabilities, expected, atol=1e-5)


def test_golden_images_can_be_drawn_where_real_ones_may_not_travel(
    tiny_run: Path, tiny_settings: Any, tmp_path: Path
) -> None:
    out = tmp_path / "model.tflite"
    quantize(QuantizeConfig(tiny_run, "ptq-int8", out, golden="synthetic", cache_dir=tiny_settings.cache_dir), QUIET)
    classifier = Classifier.open(out)
    manifest = classifier.bundle.manifest  # type: ignore[union-attr]
    assert manifest is not None
    assert manifest.golden["source"] == "synthetic"
    assert all(result.ok for result in check_golden(classifier))


def test_a_path_that_cannot_be_written_is_refused_before_any_work(tiny_run: Path, tmp_path: Path) -> None:
    for out in (tmp_path, Path("/proc/model.tflite")):
        with pytest.raises(UsageError, match=str(out)):
            quantize(QuantizeConfig(tiny_run, "qat-int8", out, force=True), QUIET)


def test_quantization_aware_training_survives_a_kill(
    tiny_run: Path, tiny_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)

    class Killed(Progress):
        def note(self, text: str) -> None:
            notes.append(text)
            if text.startswith("qat 2/"):
                raise KeyboardInterrupt

    notes: list[str] = []
    config = QuantizeConfig(run, "qat-int8", tmp_path / "m.tflite", epochs=3, cache_dir=tiny_settings.cache_dir)
    with pytest.raises(KeyboardInterrupt):
        quantize(config, Killed())
    assert not (tmp_path / "m.tflite").exists()

    class Listening(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    notes.clear()
    quantize(config, Listening())
    assert [note[:6] for note in notes if note.startswith("qat ")] == ["qat 3/"]


def test_evaluate_gives_the_same_figures_for_the_run_and_the_float_model(
    tiny_run: Path, synthetic_fields: Path, tiny_models: dict[str, dict[str, Any]]
) -> None:
    of_run = evaluate(tiny_run, EvaluateSettings(), QUIET).to_json()
    of_model = evaluate(
        Path(tiny_models["float32"]["out"]),
        EvaluateSettings(data=synthetic_fields, split=tiny_run / "split.json"),
        QUIET,
    ).to_json()
    for key in ("images", "accuracy", "accuracy_ci95", "confusion", "macro_f1", "split", "split_level", "labels"):
        assert of_run[key] == of_model[key], key
    temperature = temperature_of(open_bundle(Path(tiny_models["float32"]["out"])).manifest)
    with (tiny_run / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["side"] == "test"]
    labels = of_run["labels"]
    powers = np.array([[float(row[f"p_{label}"]) for label in labels] for row in rows]) ** (1 / temperature)
    said = powers / powers.sum(axis=1, keepdims=True)
    right = np.array([labels[index] == row["label"] for index, row in zip(said.argmax(axis=1), rows, strict=True)])
    expected = calibration_error(said.max(axis=1), right)
    assert of_model["ece"] == pytest.approx(expected, abs=1e-5), "but for the temperature they are the same"


def test_evaluate_gives_the_figures_that_quantize_promised(
    tiny_run: Path, synthetic_fields: Path, tiny_models: dict[str, dict[str, Any]]
) -> None:
    for scheme in ("ptq-int8", "qat-int8"):
        found = evaluate(
            Path(tiny_models[scheme]["out"]),
            EvaluateSettings(data=synthetic_fields, split=tiny_run / "split.json"),
            QUIET,
        ).to_json()
        assert found["accuracy"] == tiny_models[scheme]["accuracy"]


def test_a_model_beside_its_split_is_evaluated_on_the_test_subset(
    tiny_run: Path, synthetic_fields: Path, tiny_models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copy(tiny_models["ptq-int8"]["out"], tmp_path / "model.tflite")
    everything = evaluate(tmp_path / "model.tflite", EvaluateSettings(data=synthetic_fields), QUIET).to_json()
    assert (everything["split"], everything["images"]) == ("all", 128)
    shutil.copy(tiny_run / "split.json", tmp_path)
    again = evaluate(tmp_path / "model.tflite", EvaluateSettings(data=synthetic_fields), QUIET)
    assert again.metrics.split == "test"


def test_another_split_than_the_models_own_is_refused(
    tiny_run: Path, synthetic_fields: Path, tiny_models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    from edgeall.train.data.dataset import load_dataset
    from edgeall.train.data.make_split import make_split
    from edgeall.train.data.scan import scan
    from edgeall.train.data.split import save_split
    from edgeall.train.data.split_settings import SplitSettings

    other = make_split(scan(load_dataset(synthetic_fields)), SplitSettings(seed=5))
    save_split(other, tmp_path / "split.json")
    with pytest.raises(DataError, match="not the split that"):
        evaluate(
            Path(tiny_models["float32"]["out"]),
            EvaluateSettings(data=synthetic_fields, split=tmp_path / "split.json"),
            QUIET,
        )
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    save_split(other, run / "split.json")
    with pytest.raises(DataError, match="not the split this run was trained on"):
        evaluate(run, EvaluateSettings(), QUIET)
    with pytest.raises(DataError, match="not the split this run was trained on"):
        quantize(QuantizeConfig(run, "float32", tmp_path / "m.tflite"), QUIET)


def test_run_and_model_are_evaluated_on_other_data_as_a_whole(
    tiny_run: Path, tiny_models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    from edgeall.train.data.synth import synthesize

    synthesize(tmp_path / "other", 24, seed=99, size=96)
    shutil.rmtree(tmp_path / "other" / "Pro")  # a laboratory may lack a class
    shutil.copy(tiny_models["float32"]["out"], tmp_path / "model.tflite")
    shutil.copy(tiny_run / "split.json", tmp_path)
    of_run = evaluate(tiny_run, EvaluateSettings(data=tmp_path / "other"), QUIET).to_json()
    of_model = evaluate(tmp_path / "model.tflite", EvaluateSettings(data=tmp_path / "other"), QUIET).to_json()
    assert (of_run["split"], of_run["split_level"], of_run["images"]) == ("all", "none", 18)
    assert of_run["confusion"] == of_model["confusion"]
    with pytest.raises(UsageError, match="no split says"):
        evaluate(tiny_run, EvaluateSettings(data=tmp_path / "other", side="validation"), QUIET)


def test_run_labels_images_as_evaluate_counts_them(
    tiny_run: Path, synthetic_fields: Path, tiny_models: dict[str, dict[str, Any]]
) -> None:
    entries = load_split(tiny_run / "split.json").subset("test")
    classifier = Classifier.open(tiny_models["qat-int8"]["out"])
    predictions = list(classify(classifier, [synthetic_fields / entry.path for entry in entries]))
    right = sum(found.label == entry.label for found, entry in zip(predictions, entries, strict=True))
    assert right / len(entries) == tiny_models["qat-int8"]["accuracy"]


def test_calibration_images_come_from_the_training_side_alone(
    tiny_run: Path, tiny_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeall.optimize.quantization import job as module

    seen: list[bytes] = []

    class SeenError(Exception):
        """Ends the work: all that the test looks at is known."""

    def spy(folded: Any, placement: Any, calibration: Any, *others: Any) -> Any:
        seen.extend(calibration.pixels[row].tobytes() for row in calibration.rows)
        raise SeenError

    monkeypatch.setattr(module, "activation_extremes", spy)
    out, cache_dir = tmp_path / "m.tflite", tiny_settings.cache_dir
    with pytest.raises(SeenError):
        quantize(QuantizeConfig(tiny_run, "ptq-int8", out, representative=40, cache_dir=cache_dir), QUIET)
    from edgeall.train.runs import input_spec, load_run, load_subsets

    facts = load_run(tiny_run)
    split = load_split(tiny_run / "split.json")
    sides = load_subsets(split, tiny_settings.data, input_spec(facts.settings), tiny_settings.cache_dir, QUIET)
    train_side = sides["train"]
    label_of = {
        train_side.pixels[row].tobytes(): label for row, label in zip(train_side.rows, train_side.labels, strict=True)
    }
    counts: dict[int, int] = defaultdict(int)
    for image in seen:
        counts[label_of[image]] += 1  # a KeyError is an image from another side
    assert sorted(counts.values()) == [10, 10, 10, 10]


def test_a_gate_that_is_missed_writes_nothing(tiny_run: Path, tiny_settings: Any, tmp_path: Path) -> None:
    out = tmp_path / "model.tflite"
    with pytest.raises(GateError, match="points of test accuracy"):
        quantize(QuantizeConfig(tiny_run, "float32", out, max_drop=-100.0, cache_dir=tiny_settings.cache_dir), QUIET)
    assert not out.exists()


def test_quantize_refuses_data_that_has_changed(tiny_run: Path, synthetic_fields: Path, tmp_path: Path) -> None:
    moved = tmp_path / "fields"
    shutil.copytree(synthetic_fields, moved)
    victim = next((moved / "Pre").iterdir())
    Image.new("RGB", (96, 96)).save(victim)
    with pytest.raises(DataError, match=r"1 changed \(Pre/"):
        quantize(QuantizeConfig(tiny_run, "float32", tmp_path / "m.tflite", data=moved), QUIET)


def test_evaluate_refuses_other_labels(
    tiny_run: Path, synthetic_fields: Path, tiny_models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(synthetic_fields, tmp_path / "fields")
    (tmp_path / "fields" / "Pro").rename(tmp_path / "fields" / "Propro")
    for target in (tiny_run, Path(tiny_models["float32"]["out"])):
        with pytest.raises(DataError, match=r"32 missing \(Pro/.*32 new \(Propro/|Propro.*are not those of"):
            evaluate(target, EvaluateSettings(data=tmp_path / "fields"), QUIET)


def _broken(tmp_path: Path, classes: dict[str, int]) -> Path:
    generator = np.random.default_rng(0)
    for label, count in classes.items():
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(generator.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("classes", "message"),
    [({}, "no such folder|does not exist"), ({"a": 9}, "class"), ({"a": 9, "b": 1}, "b.*1 image")],
)
def test_data_that_cannot_be_trained_on(
    tiny_settings: Any, tmp_path: Path, classes: dict[str, int], message: str
) -> None:
    settings = replace(tiny_settings, data=_broken(tmp_path, classes), out=tmp_path / "run")
    with pytest.raises(EdgeallError, match=message) as error:
        train(settings, QUIET)
    assert error.value.exit_status in (1, 2)
    assert error.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "mobilenetv3"},
        {"alpha": 1.0},
        {"augment": "heavy"},
        {"epochs_head": 0, "epochs_finetune": 0},
        {"epochs_finetune": 0},
        {"positive": "Early,Late"},
        {"fold": "three"},
        {"split_by": "subject"},
        {"split": Path("split.json"), "split_by": "image"},
        {"split": Path("split.json"), "fold": "1/3"},
    ],
)
def test_settings_that_cannot_be_meant(tiny_settings: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        train(replace(tiny_settings, out=tmp_path / "run", **changes), QUIET)


def test_a_command_that_could_not_work_leaves_no_folder_and_can_be_mended(tiny_settings: Any, tmp_path: Path) -> None:
    settings = replace(tiny_settings, out=tmp_path / "run", epochs_finetune=1)
    with pytest.raises(EdgeallError):
        train(replace(settings, data=tmp_path / "nowhere"), QUIET)
    with pytest.raises(EdgeallError):
        train(replace(settings, positive="Nobody"), QUIET)
    assert not (tmp_path / "run").exists()
    train(settings, QUIET)


def test_force_spares_what_is_not_a_run(tiny_settings: Any, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not a run"):
        train(replace(tiny_settings, out=tmp_path, force=True), QUIET)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_the_seed_decides_a_run(tiny_settings: Any, tmp_path: Path) -> None:
    weights = []
    for number, seed in enumerate((4, 4, 5)):
        out = tmp_path / str(number)
        train(replace(tiny_settings, out=out, epochs_finetune=1, seed=seed), QUIET)
        model = keras.models.load_model(out / "model.keras", compile=False)
        weights.append(np.concatenate([value.ravel() for value in model.get_weights()]))
    rounding, seeds = (np.abs(weights[0] - other).mean() for other in weights[1:])
    assert seeds > 10 * rounding, "the same seed differs by the order of additions, another by what it draws"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of the basic CNN's backbone, as `--weights FILE` takes it."""
    from edgeall.models.plain import build_basic_cnn
    from edgeall.models.registry import BuildArgs

    keras.utils.set_random_seed(11)
    path = tmp_path_factory.mktemp("weights") / "basic_cnn.weights.h5"
    build_basic_cnn(BuildArgs(48, 48, None, "none")).save_weights(path)
    return path


def _backbone_weights(run: Path) -> list[np.ndarray]:
    model = keras.models.load_model(run / "model.keras", compile=False)
    return [value for layer in model.layers if layer.name != "logits" for value in layer.get_weights()]


def test_a_head_alone_is_trained_on_features_computed_once(
    tiny_settings: Any, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeall.models.plain import build_basic_cnn
    from edgeall.models.registry import BuildArgs

    cache = tmp_path / "cache"
    settings = replace(
        tiny_settings,
        out=tmp_path / "one",
        weights=str(pretrained),
        epochs_head=12,
        lr_head=0.03,
        patience=12,
        epochs_finetune=0,
        cache_dir=cache,
    )
    train(settings, QUIET)
    with open(tmp_path / "one" / "history.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["stage"] for row in rows] == ["head"] * 12
    assert len({row["loss"] for row in rows}) == 12, "it learns"
    file = build_basic_cnn(BuildArgs(48, 48, None, str(pretrained))).get_weights()
    for one, other in zip(_backbone_weights(tmp_path / "one"), file, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(list(cache.glob("features-*.npy"))) == 1
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    train(replace(settings, out=tmp_path / "two"), QUIET)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def test_unfreeze_trains_the_last_layers_alone(tiny_settings: Any, pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(replace(tiny_settings, out=out, weights=str(pretrained), epochs_head=1, epochs_finetune=3, unfreeze=5), QUIET)
    trained = keras.models.load_model(out / "model.keras", compile=False)
    from edgeall.models.plain import build_basic_cnn
    from edgeall.models.registry import BuildArgs

    file = build_basic_cnn(BuildArgs(48, 48, None, str(pretrained)))
    for name in ("conv1", "conv2"):
        np.testing.assert_array_equal(trained.get_layer(name).get_weights()[0], file.get_layer(name).get_weights()[0])
    with open(out / "history.csv", newline="") as stream:
        better = any(row["kept"] == "1" for row in csv.DictReader(stream) if row["stage"] == "finetune")
    last = [model.get_layer("conv3").get_weights()[0] for model in (trained, file)]
    assert np.array_equal(*last) != better, "unless validation finds every epoch worse than the start"
    norms = [name.name for name in file.layers if isinstance(name, keras.layers.BatchNormalization)]
    assert len(norms) == 3
    for name in norms:  # the head was trained on features with these statistics
        layer = trained.get_layer(name)
        assert layer.trainable == (name == "conv3_bn"), "frozen by unfreeze alone"
        for one, other in zip(layer.get_weights(), file.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_mixed_precision_trains_both_stages_and_saves_float32(
    tiny_settings: Any, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU would be given, on a CPU: the policy, not the speed."""
    from edgeall.train import run as module

    def pretend() -> bool:
        keras.mixed_precision.set_global_policy("mixed_float16")
        return True

    monkeypatch.setattr(module, "use_accelerator", pretend)
    try:
        out = tmp_path / "run"
        train(replace(tiny_settings, out=out, weights=str(pretrained), epochs_head=2, epochs_finetune=2), QUIET)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model = keras.models.load_model(out / "model.keras", compile=False)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert evaluate(out, EvaluateSettings(cache_dir=tiny_settings.cache_dir), QUIET).to_json()["images"] > 0


def test_a_fold_is_the_test_subset(tiny_settings: Any, tmp_path: Path) -> None:
    sides = []
    for number in (1, 2):
        split = prepare(replace(tiny_settings, out=tmp_path / "run", fold=f"{number}/3"), QUIET)[0]
        sides.append({entry.path for entry in split.subset("test")})
    assert not sides[0] & sides[1]
    assert len(sides[0]) == pytest.approx(128 / 3, abs=6)


def test_a_run_can_take_the_split_of_another(tiny_run: Path, tiny_settings: Any, tmp_path: Path) -> None:
    settings, own = replace(tiny_settings, seed=7, epochs_finetune=1), load_split(tiny_run / "split.json")
    run = train(replace(settings, out=tmp_path / "run", split=tiny_run / "split.json"), QUIET)
    assert run.split.sha256 == own.sha256
    assert load_split(tmp_path / "run" / "split.json").entries == own.entries
    by_run, _ = prepare(replace(settings, out=tmp_path / "other", split=tiny_run), QUIET)
    assert by_run.entries == own.entries


def test_a_split_of_other_images_is_refused(tiny_run: Path, tiny_settings: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    synthesize(other, 16, seed=9, size=64)
    with pytest.raises(DataError, match="no longer the 128 images"):
        train(replace(tiny_settings, data=other, out=tmp_path / "run", split=tiny_run), QUIET)
    assert not (tmp_path / "run").exists()


def test_a_complete_run_is_not_overwritten(tiny_run: Path, tiny_settings: Any) -> None:
    with pytest.raises(UsageError, match="complete run"):
        train(tiny_settings, QUIET)
    assert (tiny_run / "run.json").exists()


def test_an_unfinished_run_is_not_continued_with_other_settings(tiny_settings: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    settings = replace(tiny_settings, out=out)
    begun = {"edgeall_run": 1, "settings": resolve(settings).as_json()}
    (out / "settings.json").write_text(json.dumps(begun))
    with pytest.raises(UsageError, match=r"other settings \(batch_size was 32, is 8\)"):
        train(replace(settings, batch_size=8), QUIET)


def test_training_killed_half_way_goes_on_with_the_same_command(
    synthetic_fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", "--data", str(synthetic_fields), "--out", str(out), "--model", "basic_cnn", "--weights", "none"]
    command += ["--input-size", "48", "--augment", "none", "--epochs-finetune", "6", "--patience", "6"]
    command += ["--cache-dir", str(tmp_path / "cache")]
    checkpoint = out / "checkpoints" / "finetune.npz"
    program = "import sys; from edgeall.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", program, *command], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + venvs.HANG_S
        while not checkpoint.exists():
            assert process.poll() is None and time.monotonic() < deadline, "training did not get to an epoch's end"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "run.json").exists()
    assert main(command) == 0
    assert "finetune: resumed after epoch" in capsys.readouterr().err
    with open(out / "history.csv", newline="") as stream:
        assert [int(row["epoch"]) for row in csv.DictReader(stream)] == list(range(1, 7))
    assert json.loads((out / "run.json").read_text())["metrics"]["test"]["images"] > 0


@pytest.mark.long
def test_training_mirrors_over_several_devices(synthetic_fields: Path, tmp_path: Path) -> None:
    """Two logical CPUs stand for two GPUs; in a process of its own, since TensorFlow fixes its devices early."""
    script = f"""
from pathlib import Path
from edgeall.models.keras_compat import tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from edgeall.console.progress import Progress
from edgeall.train.run import TrainSettings, train
settings = TrainSettings(data=Path({str(synthetic_fields)!r}), out=Path({str(tmp_path / "run")!r}), model="basic_cnn",
    weights="none", input_size=48, epochs_finetune=3, cache_dir=Path({str(tmp_path / "cache")!r}))
run = train(settings, Progress(quiet=True), devices=["CPU:0", "CPU:1"])
print("replicas", run.replicas)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "replicas 2" in done.stdout
    with open(tmp_path / "run" / "history.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows), "one replica's, not the sum of both"
    bias = keras.models.load_model(tmp_path / "run" / "model.keras", compile=False).get_layer("logits").get_weights()[1]
    trained = any(row["kept"] == "1" for row in rows)  # else validation found every epoch worse than the start
    assert np.isfinite(bias).all() and bias.any() == trained, "it begins at zero: steps reach the weights"


def test_the_four_commands(tiny_run: Path, synthetic_fields: Path, tmp_path: Path, capsys: Any) -> None:
    """As a user types them, the training itself left to `tiny_run`."""
    assert main(["data", "ls", str(synthetic_fields), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert sum(row["images"] for row in listed["labels"].values()) == 128
    model = tmp_path / "model.tflite"
    assert main(["quantize", str(tiny_run), "--scheme", "ptq-int8", "--out", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file_bytes"] == model.stat().st_size
    assert main(["run", str(model), str(synthetic_fields / "Pro"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 32
    assert set(lines[0]) == {"image", "label", "probability", "probabilities", "review", "reason", "novelty"}
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1, abs=0.02)
    assert main(["inspect", str(model)]) == 0
    captured = capsys.readouterr()
    assert "research use only, not a diagnosis" in captured.out + captured.err
    assert main(["quantize", str(tiny_run), "--scheme", "ptq-int8", "--out", str(model)]) == 2
    assert "--force" in capsys.readouterr().err
