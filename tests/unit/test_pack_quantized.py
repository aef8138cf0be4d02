"""`edgeall pack --scheme ptq-int8` of a float ``.tflite``: quantized, with as few float layers as it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_models import convert
from PIL import Image

from edgeall import cli
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.flatbuffer import read_graph
from edgeall.edge_runtime.preprocess import load_input

SIZE = 16
LOUD = 3e4
"""Factor of a channel that nothing reads, but whose range takes the int8 steps of the others."""
Pack = Callable[..., tuple[int, dict[str, Any], str]]


def network(loud: bool) -> Any:
    """Tells dark images from light ones, normalized to -1..1; in int8 not if it is loud."""
    from edgeall.models.keras_compat import keras

    layers, random = keras.layers, np.random.default_rng(2)
    inputs = layers.Input((SIZE, SIZE, 3))
    convolution, last = layers.Conv2D(8, 3, activation="relu"), layers.Dense(2, activation="softmax")
    made = keras.Model(inputs, last(layers.GlobalAveragePooling2D()(convolution(inputs))))
    kernel, bias, weight = random.uniform(0.02, 0.1, (3, 3, 3, 8)), np.ones(8), np.full((8, 2), (-1.0, 1.0))
    middle = float((kernel.sum(axis=(0, 1, 2)) * (110 / 127.5 - 1) + 1.0)[:7].sum())
    weight[7] = 0
    if loud:
        kernel[..., 7], bias[7] = kernel[..., 7] * LOUD, LOUD
    convolution.set_weights([kernel, bias])
    last.set_weights([weight, middle * np.array([1.0, -1.0])])
    return made


def model(loud: bool, scheme: str = "float32") -> bytes:
    return convert(network(loud), scheme, np.zeros((1, SIZE, SIZE, 3), np.float32))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images for three subsets."""
    folder = tmp_path_factory.mktemp("brightness")
    for label, brightness in {"dark": 70, "light": 150}.items():
        (folder / label).mkdir()
        for seed in range(110):
            values = np.random.default_rng(1000 * brightness + seed).normal(brightness, 25, (SIZE, SIZE, 3))
            Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(folder / label / f"{seed:03}.png")
    return folder


@pytest.fixture
def pack(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pack:
    """``pack(flatbuffer or SavedModel, *options)``: status, JSON and stderr of `edgeall pack` into ``out.tflite``."""

    def run(flatbuffer: bytes | Path, *options: str) -> tuple[int, dict[str, Any], str]:
        given = tmp_path / "bare.tflite"
        if isinstance(flatbuffer, Path):
            given = flatbuffer
        else:
            given.write_bytes(flatbuffer)
        words = ["pack", str(given), "--data", str(data), "--out", str(tmp_path / "out.tflite")]
        named = ["--split-by", "image", "--normalization=-1..1", "--json"]
        status = cli.main([*words, *named, *options])
        out, err = capsys.readouterr()
        return status, json.loads(out) if status == 0 else {}, err

    return run


def computed_in(path: Path) -> set[str]:
    """Types of what the convolutions and dense layers of a file compute."""
    graph = read_graph(open_bundle(path).flatbuffer, "model").main
    weighed = [operator for operator in graph.operators if operator.name in ("CONV_2D", "FULLY_CONNECTED")]
    return {graph.tensors[operator.outputs[0]].type for operator in weighed}


def ends(path: Path) -> set[str]:
    """Types of the input and of the first output of a file; the second one, its features, may have any."""
    graph = read_graph(open_bundle(path).flatbuffer, "model").main
    return {graph.tensors[number].type for number in (*graph.inputs, graph.outputs[0])}


def test_a_float_file_is_quantized(pack: Pack, tmp_path: Path, data: Path) -> None:
    status, found, err = pack(model(loud=False), "--scheme", "ptq-int8", "--max-drop", "2", "--auto-float")
    assert status == 0, err
    assert computed_in(tmp_path / "out.tflite") == {"INT8"}
    assert ends(tmp_path / "out.tflite") == {"FLOAT32"}
    assert found["drop_points"] <= 2 and found["auto_float"]["layers"] == []
    assert [trial["layers"] for trial in found["auto_float"]["trials"]] == [0]
    assert found["metrics"]["accuracy"] > 0.95 and found["novelty"]["features"] == 8
    own, bare = (Classifier.open(tmp_path / name, **given) for name, given in opened(tmp_path))
    pixels = [load_input(path, own.input) for path in sorted(data.rglob("*.png"))[::20]]
    apart = [np.abs(own.predict(each) - bare.predict(each)).max() for each in pixels]
    assert 0 < max(apart) < 0.1


def opened(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    (folder / "labels.txt").write_text("dark\nlight\n")
    return [("out.tflite", {}), ("bare.tflite", {"labels_file": folder / "labels.txt", "mean": 127.5, "std": 127.5})]


def test_layers_stay_in_float_until_the_drop_is_allowed(pack: Pack, tmp_path: Path) -> None:
    loud = model(loud=True)
    status, _, err = pack(loud, "--scheme", "ptq-int8", "--max-drop", "2")
    assert status == 3 and "points of test accuracy, more than --max-drop 2" in err and "--auto-float" in err
    assert not (tmp_path / "out.tflite").exists()
    status, found, err = pack(loud, "--scheme", "ptq-int8", "--max-drop", "2", "--auto-float")
    assert status == 0, err
    first, *others = found["auto_float"]["trials"]
    assert first["layers"] == 0 and first["drop_points"] > 20
    count = len(found["auto_float"]["layers"])
    assert 0 < count == min(trial["layers"] for trial in others if trial["drop_points"] <= 2)
    assert found["drop_points"] <= 2 and "FLOAT32" in computed_in(tmp_path / "out.tflite")
    manifest = open_bundle(tmp_path / "out.tflite").manifest
    assert manifest is not None and manifest.labels == ("dark", "light")
    assert manifest.quantization["float_layers"] == found["auto_float"]["layers"]
    assert manifest.quantization["drop_points"] == found["drop_points"]


def test_without_a_gate_the_drop_is_measured(pack: Pack) -> None:
    status, found, err = pack(model(loud=True), "--scheme", "ptq-int8")
    assert status == 0, err
    assert found["drop_points"] > 20 and "auto_float" not in found


def test_the_input_keeps_its_normalization_where_the_images_do_not_fill_the_range(
    pack: Pack, tmp_path: Path, data: Path
) -> None:
    """Of an int8 input the range of the images would become the range of the pixels."""
    for path in data.rglob("*.png"):
        values = np.asarray(Image.open(path))
        dim = tmp_path / "dim" / path.relative_to(data)
        dim.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((values // 3 + 80).astype(np.uint8)).save(dim)
    status, found, err = pack(model(loud=False), "--scheme", "ptq-int8", "--data", str(tmp_path / "dim"))
    assert status == 0, err
    assert found["normalization"] == "-1..1" and ends(tmp_path / "out.tflite") == {"FLOAT32"}


def test_a_saved_model_is_quantized_in_the_same_way(pack: Pack, tmp_path: Path) -> None:
    from edgeall.models.keras_compat import quiet

    with quiet():
        network(loud=True).export(tmp_path / "loud")
        network(loud=False).export(tmp_path / "calm")
    gate = ("--scheme", "ptq-int8", "--max-drop", "2")
    status, _, err = pack(tmp_path / "loud", *gate)
    assert status == 3 and "more than --max-drop 2" in err
    status, found, err = pack(tmp_path / "loud", *gate, "--auto-float")
    assert status == 0, err
    assert found["auto_float"]["layers"] and found["drop_points"] <= 2
    status, found, err = pack(tmp_path / "calm", *gate, "--force")
    assert status == 0 and found["drop_points"] <= 2, err
    assert ends(tmp_path / "out.tflite") == {"FLOAT32"} and computed_in(tmp_path / "out.tflite") == {"INT8"}


def test_a_gate_needs_a_validation_subset(pack: Pack, tmp_path: Path, data: Path) -> None:
    for path in sorted(data.rglob("*.png"))[::20]:
        few = tmp_path / "few" / path.relative_to(data)
        few.parent.mkdir(parents=True, exist_ok=True)
        few.write_bytes(path.read_bytes())
    options = ("--scheme", "ptq-int8", "--data", str(tmp_path / "few"))
    status, _, err = pack(model(loud=False), *options, "--max-drop", "2")
    assert status == 2 and "too few images for a validation subset" in err and not (tmp_path / "out.tflite").exists()
    status, found, err = pack(model(loud=False), *options)
    assert status == 0 and "drop_points" in found, err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--scheme", "float16"), "is converted already"),
        (("--max-drop", "1"), "--max-drop requires --scheme ptq-int8"),
        (("--scheme", "ptq-int8", "--auto-float"), "--auto-float without --max-drop"),
    ],
)
def test_options_that_exclude_each_other(options: tuple[str, ...], error: str, pack: Pack) -> None:
    status, _, err = pack(b"", *options)
    assert status == 2 and error in err


def test_a_quantized_file_is_not_quantized_again(pack: Pack) -> None:
    status, _, err = pack(model(loud=False, scheme="int8"), "--scheme", "ptq-int8")
    assert status == 2 and "has tensors of type INT8" in err and "leave --scheme out" in err
