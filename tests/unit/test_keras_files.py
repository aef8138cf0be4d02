"""Keras files made elsewhere: read without running code, rebuilt in Keras 2 with the same outputs, refused by name."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgeall.edge_runtime.errors import DataError
from edgeall.models.head import LOGITS, PROBABILITIES
from edgeall.models.keras_files.build import build
from edgeall.models.keras_files.flatten import read_network
from edgeall.models.keras_files.graph import Network
from edgeall.models.keras_files.head import with_head
from edgeall.models.keras_files.input_map import find_start, grey, with_map, without_start

FILES = Path(__file__).resolve().parents[1] / "keras3"
SIZE = (16, 16)
EQUAL = 1e-5


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What Keras 3 gave, see `tests/keras3/make.py`."""
    with np.load(FILES / "expected.npz") as stored:
        return dict(stored)


def whole(network: Network, convention: Any = None) -> Any:
    """The network of a run: normalization in front, logits and softmax at the end."""
    start = find_start(network)
    core, _ = with_head(without_start(network, start), SIZE)
    return build(with_map(core, start.map if convention is None else convention.then(start.map), SIZE))


def answers(model: Any, pixels: Any) -> Any:
    """For pixels in the common input of all backbones."""
    return model.predict((pixels.astype(np.float32) - 127.5) / 127.5, verbose=0)


def test_a_keras_3_file_is_rebuilt_in_keras_2(expected: dict[str, Any], tmp_path: Path) -> None:
    """Nested models, `preprocess_input` inside, and activations that Keras 2 defines otherwise."""
    network = read_network(FILES / "tiny.keras")
    assert network.keras3
    start = find_start(network)
    assert start.normalizes and start.names == ("stack", "add", "true_divide")
    model = whole(network)
    np.testing.assert_allclose(answers(model, expected["pixels"]), expected["tiny"], atol=EQUAL)
    assert [layer.name for layer in model.layers[-2:]] == [LOGITS, PROBABILITIES]
    model.save(tmp_path / "model.keras")  # a run reads its own network in the same way
    again = build(read_network(tmp_path / "model.keras"))
    np.testing.assert_array_equal(answers(again, expected["pixels"]), answers(model, expected["pixels"]))
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]


def test_one_sigmoid_on_grey_images_becomes_two_labels_of_rgb_images(expected: dict[str, Any]) -> None:
    network = read_network(FILES / "sigmoid.h5")
    found = answers(whole(network, grey()), expected["pixels"])
    second = expected["sigmoid"]
    np.testing.assert_allclose(found, np.concatenate((1 - second, second), axis=1), atol=EQUAL)


def _keras2() -> Any:
    """Shared and nested layers, a slash in a name, an operation on the input, several inputs of one sum."""
    from edgeall.models.keras_compat import keras

    layers = keras.layers
    inner_input = layers.Input((8, 8, 4))
    inner = keras.Model(inner_input, layers.Conv2D(4, 1, activation="swish", name="mix")(inner_input), name="inner")
    inputs = layers.Input((*SIZE, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="stem/conv")(inputs / 127.5 - 1.0)
    shared = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="shared")
    x = layers.Add(name="sum")([shared(x), shared(inner(x)), inner(shared(x))])
    x = layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.MaxPooling2D()(x))))
    random = np.random.default_rng(3)
    model.set_weights([np.abs(random.normal(0, 0.5, value.shape)) for value in model.get_weights()])
    return model


@pytest.mark.parametrize("form", ["model.keras", "model.h5", "saved"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_keras_2_files_keep_their_outputs(form: str, tmp_path: Path, expected: dict[str, Any]) -> None:
    from edgeall.models.keras_compat import quiet, tf

    model = _keras2()
    with quiet():
        model.save(tmp_path / form, **({} if "." in form else {"save_format": "tf"}))
    network = read_network(tmp_path / form)
    assert find_start(network).normalizes
    pixels = expected["pixels"]
    logits = model.predict(pixels.astype(np.float32), verbose=0)
    np.testing.assert_allclose(answers(whole(network), pixels), tf.nn.softmax(logits).numpy(), atol=EQUAL)


def _edited(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of ``tiny.keras`` with another configuration."""
    with zipfile.ZipFile(FILES / "tiny.keras") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            target.writestr(name, content)
    return path


def _layer(config: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(layer for layer in config["config"]["layers"] if layer["class_name"] == kind)
    return found


def _as_lambda(config: dict[str, Any]) -> None:
    code = {"class_name": "__lambda__", "config": {"value": "4wEAAAA="}}
    _layer(config, "Dropout").update(class_name="Lambda", config={"name": "evil", "function": code})


def _as_custom(config: dict[str, Any]) -> None:
    _layer(config, "Dense").update(module="os", registered_name="mine>Dense")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_as_lambda, ("layer dropout is a Lambda", "runs no code")),
        (_as_custom, ("custom class, mine>Dense",)),
        (lambda config: _layer(config, "Dense").update(class_name="GRU"), ("layer dense", "GRU")),
        (lambda config: _layer(config, "Dense")["config"].update(activation="mine"), ("the activation mine",)),
        (lambda config: config.update(config={"layers": 3}), ("not what Keras writes",)),
    ],
)
def test_what_would_be_code_is_refused_by_name(
    change: Callable[[dict[str, Any]], None], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read_network(_edited(tmp_path / "model.keras", change))
    assert all(word in caught.value.message for word in words), caught.value.message


class _Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize("name", ["model.pkl", "model.h5", "model.pt"])
def test_a_pickle_is_refused_and_not_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name.endswith(".pt"):
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(_Canary()))
    else:
        Path(name).write_bytes(pickle.dumps(_Canary()))
    with pytest.raises(DataError, match="a Python pickle"):
        read_network(Path(name))
    assert not Path("touched").exists()


def test_weights_outside_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(FILES / "tiny.keras") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "model.weights.h5":
                buffer = io.BytesIO(content)
                with h5py.File(buffer, "r+") as file:
                    del file["layers/dense/vars/0"]
                    file["layers/dense/vars/0"] = h5py.ExternalLink("/etc/passwd", "x")
                content = buffer.getvalue()
            target.writestr(name, content)
    with pytest.raises(DataError, match="dense: its weights are a link"):
        read_network(path)


@pytest.mark.parametrize("size", [0, 3, 300, 5000])
def test_truncated_files_are_named(size: int, tmp_path: Path) -> None:
    for name in ("tiny.keras", "sigmoid.h5"):
        path = tmp_path / name
        path.write_bytes((FILES / name).read_bytes()[:size])
        with pytest.raises(DataError, match=name):
            read_network(path)


def test_a_saved_model_without_keras_layers_offers_ptq(tmp_path: Path) -> None:
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "saved_model.pb").touch()
    with pytest.raises(DataError, match=r"without Keras' layers") as caught:
        read_network(tmp_path / "exported")
    assert "edgeall pack" in (caught.value.hint or "")
    shutil.rmtree(tmp_path / "exported")
    with pytest.raises(DataError, match="no such file"):
        read_network(tmp_path / "exported")
