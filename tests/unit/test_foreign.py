"""Foreign models: missing facts are required as options, contradictions are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from fixtures_models import LABELS, SPEC, convert, grainy_image
from PIL import Image

from edgeall import cli
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError, UsageError
from edgeall.edge_runtime.flatbuffer import METADATA
from edgeall.edge_runtime.preprocess import InputSpec, normalize, preprocess
from edgeall.edge_runtime.tools.inspect import inspect_model, inspect_text

Write = Callable[..., Path]
TWO = ("A", "B")
MEANS, STDS = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def flatbuffers_by_kind() -> dict[str, bytes]:
    """``any-size``: any height and width, three labels; ``any-map``: the same without the mean over places; ``sigmoid``
    of one output, float32, uint8 and int8; ``logit``: one output without it; ``one-softmax``.
    """
    from edgeall.models.keras_compat import keras

    layers, random = keras.layers, np.random.default_rng(4)

    def model(size: tuple[int | None, int | None], outputs: int, end: str, pooled: bool = True) -> Any:
        inputs = layers.Input((*size, 3))
        x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(inputs)
        x = layers.GlobalAveragePooling2D()(x) if pooled else x
        made = keras.Model(inputs, layers.Dense(outputs, activation=end)(x))
        made.set_weights([random.normal(0, 0.5, weights.shape) for weights in made.get_weights()])
        return made

    images = np.stack([normalize(preprocess(grainy_image(seed), SPEC), SPEC) for seed in range(8)])
    images[0, 0, 0], images[0, 0, 1] = -1, 1
    fixed, any_size = (SPEC.height, SPEC.width), (None, None)
    sigmoid = model(fixed, 1, "sigmoid")
    grey_inputs = layers.Input((*fixed, 1))
    grey = keras.Model(grey_inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(grey_inputs)))
    by_channel = (images * 127.5 + 127.5 - np.array(MEANS)) / np.array(STDS)
    made = {f"sigmoid-{scheme}": convert(sigmoid, scheme, images) for scheme in ("float32", "uint8", "int8")}
    return made | {
        "any-size": convert(model(any_size, 3, "softmax"), "float32", images),
        "any-map": convert(model(any_size, 3, "softmax", pooled=False), "float32", images),
        "logit": convert(model(fixed, 1, "linear"), "float32", images),
        "grey": convert(grey, "float32", images[..., :1]),
        "by-channel-float32": convert(sigmoid, "float32", by_channel.astype(np.float32)),
        "by-channel-int8": convert(sigmoid, "int8", by_channel.astype(np.float32)),
        "one-softmax": convert(model(fixed, 1, "softmax"), "float32", images),
    }


@pytest.fixture
def write(flatbuffers_by_kind: dict[str, bytes], tiny_flatbuffers: dict[str, bytes], tmp_path: Path) -> Write:
    """``write(kind, change)`` writes a model; ``change`` changes its schema objects first."""

    def to_file(kind: str, change: Callable[[Any], None] | None = None) -> Path:
        content = (flatbuffers_by_kind | tiny_flatbuffers)[kind]
        if change is not None:
            parts = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
            change(parts)
            builder = flatbuffers.Builder(len(content))
            builder.Finish(parts.Pack(builder), b"TFL3")
            content = bytes(builder.Output())
        path = tmp_path / f"{kind}.tflite"
        path.write_bytes(content)
        return path

    return to_file


def labelled(path: Path, labels: tuple[str, ...] = LABELS, **given: Any) -> Classifier:
    names = path.with_suffix(".txt")
    names.write_text("\n".join(labels))
    return Classifier.open(path, labels_file=names, **({"mean": 127.5, "std": 127.5} | given))


def input_of(parts: Any) -> Any:
    return parts.subgraphs[0].tensors[parts.subgraphs[0].inputs[0]]


def output_of(parts: Any) -> Any:
    return parts.subgraphs[0].tensors[parts.subgraphs[0].outputs[0]]


# Variable sizes


def test_a_model_without_a_fixed_size_is_not_run_at_one_pixel(write: Write) -> None:
    with pytest.raises(BundleError, match=r"its input has no fixed size: \(any, any, any, 3\)") as caught:
        labelled(write("any-size"), LABELS[:3])
    assert "--input-size" in caught.value.hint


def test_it_runs_at_the_size_that_is_given(write: Write, flatbuffers_by_kind: dict[str, bytes]) -> None:
    classifier = labelled(write("any-size"), LABELS[:3], input_size=40)
    assert classifier.input == InputSpec(40, 40)
    pixels = preprocess(grainy_image(1), classifier.input)
    bare = Interpreter(model_content=flatbuffers_by_kind["any-size"])
    bare.resize_tensor_input(bare.get_input_details()[0]["index"], (1, 40, 40, 3))
    bare.allocate_tensors()
    bare.set_tensor(bare.get_input_details()[0]["index"], normalize(pixels, classifier.input)[None])
    bare.invoke()
    expected = bare.get_tensor(bare.get_output_details()[0]["index"])[0]
    np.testing.assert_allclose(classifier.predict(pixels), expected, atol=1e-6)
    np.testing.assert_array_equal(classifier.clone(2).predict(pixels), classifier.predict(pixels))


@pytest.mark.parametrize("signature", [None, [1, 1, 1, 3]])
def test_one_pixel_is_not_a_size_whatever_the_file_says(write: Write, signature: list[int] | None) -> None:
    """As written by converters before signatures existed."""

    def change(parts: Any) -> None:
        input_of(parts).shapeSignature = signature

    path = write("any-size", change)
    if signature is None:
        with pytest.raises(BundleError, match="no fixed size"):
            labelled(path, LABELS[:3])
        assert labelled(path, LABELS[:3], input_size=24).input.width == 24
    else:
        assert labelled(path, LABELS[:3]).input == InputSpec(1, 1)  # given in both shape and signature


def test_a_size_that_contradicts_the_signature(write: Write) -> None:
    def change(parts: Any) -> None:
        input_of(parts).shapeSignature = [-1, 224, 224, 3]

    with pytest.raises(BundleError, match=r"shape \(1, 32, 48, 3\) contradicts its signature, \(any, 224, 224, 3\)"):
        labelled(write("float32", change))


def test_a_size_for_a_model_that_has_one_is_wrong_use(write: Write, tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="has a fixed input of 48x32 pixels"):
        labelled(write("float32"), input_size=32)
    with pytest.raises(UsageError, match="has its own labels"):
        Classifier.open(tiny_bundle, input_size=32)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [([1, 3, 32, 48], "channels first"), ([8, 32, 48, 3], "one RGB or grey image"), ([1, 32, 48, 2], "grey image")],
)
def test_what_is_not_an_rgb_image(write: Write, shape: list[int], hint: str) -> None:
    def change(parts: Any) -> None:
        input_of(parts).shape, input_of(parts).shapeSignature = shape, None

    with pytest.raises(BundleError, match="not one RGB image") as caught:
        labelled(write("float32", change))
    assert hint in caught.value.hint


def test_a_map_of_scores_is_not_a_classifier(write: Write) -> None:
    with pytest.raises(BundleError, match="a map instead of one score per label"):
        labelled(write("any-map"), tuple("abcdefghijkl"), input_size=4)  # 2x2 positions with 3 labels are 12 outputs


# Channels


def test_a_grey_model_takes_the_grey_of_rgb_images(write: Write, flatbuffers_by_kind: dict[str, bytes]) -> None:
    classifier = labelled(write("grey"), LABELS[:3], mean=0.0, std=255.0)
    assert classifier.input == InputSpec(SPEC.height, SPEC.width, mean=0.0, std=255.0, color="GREY")
    image = grainy_image(2)
    pixels = preprocess(image, classifier.input)
    assert pixels.shape == (SPEC.height, SPEC.width, 3)
    bare = Interpreter(model_content=flatbuffers_by_kind["grey"])
    bare.allocate_tensors()
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    bare.set_tensor(bare.get_input_details()[0]["index"], (grey.astype(np.float32) / np.float32(255))[None, ..., None])
    bare.invoke()
    expected = bare.get_tensor(bare.get_output_details()[0]["index"])[0]
    np.testing.assert_allclose(classifier.predict(pixels), expected, atol=1e-6)


def test_each_channel_has_its_own_normalization(write: Write, flatbuffers_by_kind: dict[str, bytes]) -> None:
    pixels = preprocess(grainy_image(2), SPEC)
    fed = (pixels.astype(np.float32) - np.array(MEANS, np.float32)) / np.array(STDS, np.float32)
    bare = Interpreter(model_content=flatbuffers_by_kind["by-channel-float32"])
    bare.allocate_tensors()
    bare.set_tensor(bare.get_input_details()[0]["index"], fed[None])
    bare.invoke()
    expected = float(bare.get_tensor(bare.get_output_details()[0]["index"])[0, 0])
    exact = labelled(write("by-channel-float32"), TWO, mean=MEANS, std=STDS)
    integers = labelled(write("by-channel-int8"), TWO, mean=MEANS, std=STDS)
    assert exact.predict(pixels)[1] == pytest.approx(expected, abs=1e-6)
    assert integers.predict(pixels)[1] == pytest.approx(expected, abs=0.03)
    with pytest.raises(BundleError, match=r"contradict mean 1,2,3, std 58\.4,57\.1,57\.4"):
        labelled(write("by-channel-int8"), TWO, mean=(1.0, 2.0, 3.0), std=STDS)
    with pytest.raises(BundleError, match="is invalid"):
        labelled(write("by-channel-float32"), TWO, mean=(1.0, 2.0), std=STDS)


# One output


@pytest.mark.parametrize("scheme", ["float32", "uint8", "int8"])
def test_one_sigmoid_tells_two_labels_apart(write: Write, flatbuffers_by_kind: dict[str, bytes], scheme: str) -> None:
    classifier = labelled(write(f"sigmoid-{scheme}"), TWO)
    exact = labelled(write("sigmoid-float32"), TWO)
    bare = Interpreter(model_content=flatbuffers_by_kind["sigmoid-float32"])
    bare.allocate_tensors()
    for seed in range(6):
        pixels = preprocess(grainy_image(seed), SPEC)
        bare.set_tensor(bare.get_input_details()[0]["index"], normalize(pixels, SPEC)[None])
        bare.invoke()
        second = float(bare.get_tensor(bare.get_output_details()[0]["index"])[0, 0])
        np.testing.assert_allclose(exact.predict(pixels), [1 - second, second], atol=1e-6)
        probabilities = classifier.predict(pixels)
        assert probabilities.sum() == pytest.approx(1)
        assert probabilities[1] == pytest.approx(second, abs=1e-6 if scheme == "float32" else 0.1)
    assert classifier.clone(1).predict(pixels).tolist() == classifier.predict(pixels).tolist()


@pytest.mark.parametrize("labels", [TWO[:1], LABELS])
def test_one_sigmoid_and_other_than_two_labels(write: Write, labels: tuple[str, ...]) -> None:
    with pytest.raises(BundleError, match=rf"needs two labels, but there are {len(labels)}") as caught:
        labelled(write("sigmoid-float32"), labels)
    assert "two lines" in caught.value.hint


@pytest.mark.parametrize("labels", [TWO[:1], TWO])
@pytest.mark.parametrize(("kind", "said"), [("logit", "does not come from a sigmoid"), ("one-softmax", "always 1")])
def test_one_output_that_tells_nothing_apart(write: Write, kind: str, said: str, labels: tuple[str, ...]) -> None:
    with pytest.raises(BundleError, match=said) as caught:
        labelled(write(kind), labels)
    assert "sigmoid" in caught.value.hint


def test_several_sigmoids_have_a_hint(write: Write) -> None:
    with pytest.raises(BundleError, match="with 4 outputs: multi-label") as caught:
        labelled(write("sigmoid"))
    assert "softmax" in caught.value.hint


# Metadata and quantization


def test_metadata_that_contradicts_the_quantization_is_named(write: Write) -> None:
    from edgeall.optimize.packaging.metadata import model_metadata, with_metadata

    path = write("uint8")
    bare = path.read_bytes()
    for mean, std in ((0.0, 1.0), (0.0, 255.0)):  # placeholders that metadata writers fill in
        blob = model_metadata("m", "d", "labels.txt", InputSpec(32, 48, mean=mean, std=std), ["probability"])
        path.write_bytes(with_metadata(bare, {METADATA: blob}))
        with pytest.raises(BundleError, match=f"its TFLite metadata says mean {mean:g} and std {std:g}") as caught:
            labelled(path, mean=None, std=None)
        words = caught.value.hint.split()
        given = {name: float(words[words.index(f"--{name}") + 1]) for name in ("mean", "std")}
        assert labelled(path, **given).input.std == pytest.approx(127.5, rel=0.02)
    with pytest.raises(BundleError, match=r"contradict mean 0 and std 255"):  # the options are checked too
        labelled(path, mean=0.0, std=255.0)


def quantized(scale: list[float], zero_point: list[int], of: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(parts: Any) -> None:
        of(parts).quantization.scale, of(parts).quantization.zeroPoint = scale, zero_point

    return change


@pytest.mark.parametrize("of", [input_of, output_of])
@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ([float("nan")], "has the invalid scale nan"),
        ([0.0], "invalid scale 0"),
        ([-1.0], "scale -1"),
        ([0.1, 0.2], "per channel"),
    ],
)
def test_an_invalid_quantization_is_refused(
    write: Write, of: Callable[[Any], Any], scale: list[float], said: str
) -> None:
    with pytest.raises(BundleError, match=said):
        labelled(write("uint8", quantized(scale, [0] * len(scale), of)))


def test_outputs_in_units_of_nothing_are_not_probabilities(write: Write) -> None:
    with pytest.raises(BundleError, match="output is UINT8 without a scale"):
        labelled(write("uint8", quantized([], [], output_of)))


# Every command that accepts a foreign model


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    return (cli.main([str(word) for word in words]), *capsys.readouterr())


def test_the_command_line_takes_both(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, label in enumerate(TWO):
        (tmp_path / "images" / label).mkdir(parents=True)
        grainy_image(seed).save(tmp_path / "images" / label / "1.png")
    names = tmp_path / "two.txt"
    names.write_text("A\nB\n")
    given = ("--labels", names, "--mean", 127.5, "--std", 127.5)
    quick = ("--seconds", 0.01, "--min-queries", 1, "--repetitions", 1, "--no-sweep", "--images", tmp_path / "images")
    sigmoid = write("sigmoid-float32")
    status, out, _ = run(capsys, "run", sigmoid, tmp_path / "images", "--json", *given)
    assert status == 0
    for line in map(json.loads, out.splitlines()):
        assert list(line["probabilities"]) == list(TWO) and sum(line["probabilities"].values()) == pytest.approx(1)
    status, out, _ = run(capsys, "evaluate", sigmoid, "--data", tmp_path / "images", "--json", *given)
    evaluated = json.loads(out)
    status_of_bench, out, _ = run(capsys, "bench", sigmoid, "--json", *quick, *given)
    assert (status, status_of_bench) == (0, 0) and json.loads(out)["accuracy"] == evaluated["accuracy"]
    names.write_text("A\nB\nC\n")
    any_size = write("any-size")
    for words in (
        ("run", any_size, tmp_path / "images"),
        ("evaluate", any_size, "--data", tmp_path / "images"),
        ("bench", any_size, *quick),
    ):
        status, _, said = run(capsys, *words, *given)
        assert status == 1 and "no fixed size" in said and "--input-size" in said
        assert run(capsys, *words, *given, "--input-size", 40)[0] == 0
    status, _, said = run(capsys, "bench", any_size, *quick, *given, "--input-size", 40, "--profile")
    assert status == 2 and "--profile" in said


def test_inspect_says_what_is_open_and_what_the_output_is(write: Write, tiny_bundle: Path) -> None:
    facts = inspect_model(write("any-size"))
    assert facts.input[0].shape == [1, None, None, 3] and facts.scores == "probabilities"
    assert "FLOAT32 1xanyxanyx3" in inspect_text(facts)
    assert inspect_model(write("sigmoid-int8")).scores == "sigmoid"
    assert inspect_model(write("logit")).scores == "logits"
    assert inspect_model(write("sigmoid")).scores is None and inspect_text(inspect_model(write("sigmoid")))
    assert inspect_model(tiny_bundle).input[0].shape == [1, SPEC.height, SPEC.width, 3]


def test_no_phone_times_one_pixel(write: Write, tmp_path: Path) -> None:
    from edgeall.deploy.adb import bench_by_benchmark_model

    program = tmp_path / "benchmark_model"
    program.touch()
    with pytest.raises(BundleError, match="no fixed size"):  # before any command runs on the device
        bench_by_benchmark_model(None, write("any-size"), program, 1, 1.0, None)  # type: ignore[arg-type]


def test_a_batch_that_is_left_open_is_one_image(write: Write) -> None:
    expected = labelled(write("float32"))
    pixels = preprocess(grainy_image(2), SPEC)

    def change(parts: Any) -> None:
        input_of(parts).shape, input_of(parts).shapeSignature = [4, 32, 48, 3], [-1, 32, 48, 3]

    classifier = labelled(write("float32", change))
    assert classifier.model.input.shape == (1, 32, 48, 3)
    np.testing.assert_allclose(classifier.predict(pixels), expected.predict(pixels), atol=1e-6)
