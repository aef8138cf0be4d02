"""A Keras 3 file becomes a run like any other."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeall import cli
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.train.runs import input_spec, load_model, load_run

FILES = Path(__file__).resolve().parents[1] / "keras3"
LABELS = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``tiny.keras``, whose outputs are named in another order than the sorted one."""
    folder = tmp_path_factory.mktemp("imported")
    with np.load(FILES / "expected.npz") as stored:
        known = stored["pixels"]
    random = np.random.default_rng(5)
    for number in range(36):
        pixels = known[number] if number < len(known) else random.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        label = LABELS[number % 3]
        (folder / "data" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "data" / label / f"{number:02}x.png")
    (folder / "labels.txt").write_text("gamma\nalpha\nbeta\n")
    words = ["import", FILES / "tiny.keras", "--data", folder / "data", "--out", folder / "run", "--split-by", "image"]
    assert cli.main([*map(str, words), "--labels", str(folder / "labels.txt"), "--normalized-inside"]) == 0
    return folder


def test_its_predictions_are_those_of_keras_3(imported: Path) -> None:
    with np.load(FILES / "expected.npz") as stored:
        expected = stored["tiny"]
    with (imported / "run" / "predictions.csv").open(newline="") as stream:
        found = {Path(row["path"]).stem: row for row in csv.DictReader(stream)}
    for number, row in enumerate(expected):
        probabilities = [float(found[f"{number:02}x"][f"p_{label}"]) for label in ("gamma", "alpha", "beta")]
        np.testing.assert_allclose(probabilities, row, atol=1e-5)


def test_its_run_says_where_it_came_from(imported: Path) -> None:
    facts = load_run(imported / "run")
    source = facts.model.imported
    assert facts.labels == list(LABELS) and source is not None
    assert source.normalization == "0..255" and source.normalization_from == "named"
    assert source.first_layers == ["stack", "add", "true_divide"] and source.keras.startswith("3.")
    assert len(source.trials) == 5
    model = load_model(imported / "run", facts)
    assert model.output_shape[-1] == 3 and input_spec(facts.settings).mean == 127.5


def test_what_cannot_be_quantized_is_named_and_the_rest_is(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(imported / "run"), str(imported / "model.tflite")
    assert cli.main(["quantize", run, "--scheme", "ptq-int8", "--out", out]) == 2
    assert "layers that cannot be quantized: leaky" in capsys.readouterr().err
    assert cli.main(["quantize", run, "--scheme", "dynamic", "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"] > 0.5
    bundle = open_bundle(out)
    assert bundle.manifest is not None and bundle.manifest.training["imported"] == "tiny.keras"
    assert "It is not known which images it was trained on" in (bundle.model_card or "")


def test_labels_and_normalization_must_be_told(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["import", str(FILES / "sigmoid.h5"), "--data", str(imported / "data"), "--out", str(imported / "other")]
    assert cli.main([*words, "--split-by", "image"]) == 2
    assert "has 2 outputs, the data 3 classes: alpha, beta, gamma" in capsys.readouterr().err
    assert not (imported / "other").exists()
