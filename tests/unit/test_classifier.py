from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from fixtures_models import LABELS, SPEC, grainy_image

from edgeall.edge_runtime import classifier as classifier_module
from edgeall.edge_runtime import interpreter
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError, EdgeallError, UsageError
from edgeall.edge_runtime.interpreter import TensorInfo
from edgeall.edge_runtime.network import check_input_contract, default_threads
from edgeall.edge_runtime.preprocess import InputSpec, normalize, preprocess

PIXELS = preprocess(grainy_image(7), SPEC)


def bare(flatbuffer: bytes, batch: np.ndarray) -> np.ndarray:
    """The raw output of the interpreter without edgeall."""
    model = Interpreter(model_content=flatbuffer, num_threads=1)
    model.allocate_tensors()
    model.set_tensor(model.get_input_details()[0]["index"], batch[None])
    model.invoke()
    output: np.ndarray = model.get_tensor(model.get_output_details()[0]["index"])[0]
    return output


@pytest.mark.parametrize("kind", ["uint8", "int8", "float32", "dynamic"])
def test_feeds_every_input_type_as_the_contract_says(tiny_flatbuffers: dict[str, bytes], kind: str) -> None:
    flatbuffer = tiny_flatbuffers[kind]
    classifier = Classifier.from_flatbuffer(flatbuffer, LABELS, SPEC)
    fed = {"uint8": PIXELS, "int8": (PIXELS.astype(int) - 128).astype(np.int8)}.get(kind, normalize(PIXELS, SPEC))
    np.testing.assert_array_equal(classifier.predict_units(PIXELS), bare(flatbuffer, fed))
    probabilities = classifier.predict(PIXELS)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (4,)
    assert probabilities.sum() == pytest.approx(1, abs=0.01)


def test_integer_and_float_models_agree_to_the_quantization(tiny_flatbuffers: dict[str, bytes]) -> None:
    kinds = {
        kind: Classifier.from_flatbuffer(tiny_flatbuffers[kind], LABELS, SPEC) for kind in ("uint8", "int8", "float32")
    }
    for seed in range(20):
        pixels = preprocess(grainy_image(seed), SPEC)
        one, two, reference = (kinds[kind].predict(pixels) for kind in ("uint8", "int8", "float32"))
        np.testing.assert_array_equal(one, two)
        assert np.abs(one - reference).max() < 0.1


def test_a_second_image_leaves_no_trace_of_the_first(tiny_flatbuffers: dict[str, bytes]) -> None:
    for kind in ("uint8", "float32"):
        classifier = Classifier.from_flatbuffer(tiny_flatbuffers[kind], LABELS, SPEC)
        first = classifier.predict(PIXELS)
        kept = first.copy()
        classifier.predict(255 - PIXELS)
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(classifier.predict(PIXELS), kept)


def test_pixels_that_did_not_go_through_preprocess_are_refused(tiny_flatbuffers: dict[str, bytes]) -> None:
    classifier = Classifier.from_flatbuffer(tiny_flatbuffers["uint8"], LABELS, SPEC)
    for wrong in (PIXELS[1:], PIXELS.astype(np.float32), PIXELS[None]):
        with pytest.raises(ValueError, match="pixels must be uint8"):
            classifier.predict(wrong)  # type: ignore[arg-type]


def _input(dtype: type, scale: float, zero_point: int) -> TensorInfo:
    return TensorInfo(0, (1, 8, 8, 3), np.dtype(dtype), scale, zero_point)


@pytest.mark.parametrize(
    ("tensor", "mean", "std"),
    [
        (_input(np.uint8, 1 / 127.5, 128), 127.5, 127.5),
        (_input(np.uint8, 1 / 128, 128), 127.5, 127.5),  # the quantized MobileNets of 2018
        (_input(np.int8, 1 / 127.5, -1), 127.5, 127.5),
        (_input(np.int8, 1 / 255, -128), 0, 255),
        (_input(np.uint8, 1.0, 0), 0, 1),
        (_input(np.uint8, 0.0, 0), 0, 1),
        (_input(np.float32, 0.0, 0), 3, 17),
    ],
)
def test_input_contract_holds(tensor: TensorInfo, mean: float, std: float) -> None:
    check_input_contract(tensor, InputSpec(8, 8, mean=mean, std=std), "m")


@pytest.mark.parametrize(
    ("tensor", "mean", "std"),
    [
        (_input(np.uint8, 1 / 127.5, 128), 0, 255),  # trained on 0..1, converted for -1..1
        (_input(np.uint8, 1 / 127.5, 125), 127.5, 127.5),  # three steps off
        (_input(np.uint8, 1.02 / 127.5, 128), 127.5, 127.5),  # representative images left out the brightest
        (_input(np.int8, 1 / 127.5, 0), 127.5, 130),
        (_input(np.uint8, 0.0, 0), 127.5, 127.5),
    ],
)
def test_input_contract_broken(tensor: TensorInfo, mean: float, std: float) -> None:
    with pytest.raises(BundleError, match="contradict"):
        check_input_contract(tensor, InputSpec(8, 8, mean=mean, std=std), "m")


def test_inputs_that_are_not_images_are_refused() -> None:
    with pytest.raises(BundleError, match="int32"):
        check_input_contract(_input(np.int32, 0.0, 0), SPEC, "m")


def test_a_packed_model_whose_manifest_contradicts_it_is_refused(tiny_flatbuffers: dict[str, bytes]) -> None:
    flatbuffer = tiny_flatbuffers["uint8"]
    with pytest.raises(BundleError, match="contradict"):
        Classifier.from_flatbuffer(flatbuffer, LABELS, dataclasses.replace(SPEC, mean=0.0, std=255.0))
    with pytest.raises(BundleError, match="4 outputs but there are 3 labels"):
        Classifier.from_flatbuffer(flatbuffer, LABELS[:3], SPEC)
    with pytest.raises(BundleError, match="the input contract says"):
        Classifier.from_flatbuffer(flatbuffer, LABELS, InputSpec(224, 224))


def test_our_own_models_must_end_in_softmax(tiny_flatbuffers: dict[str, bytes]) -> None:
    with pytest.raises(BundleError, match="SOFTMAX"):
        Classifier.from_flatbuffer(tiny_flatbuffers["logits"], LABELS, SPEC)


@pytest.fixture
def foreign(tiny_flatbuffers: dict[str, bytes], tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """A bare converted model and a label file."""

    def make(kind: str) -> tuple[Path, Path]:
        model, labels = tmp_path / f"{kind}.tflite", tmp_path / "labels.txt"
        model.write_bytes(tiny_flatbuffers[kind])
        labels.write_text("\n".join(LABELS) + "\n")
        return model, labels

    return make


def test_foreign_logits_become_probabilities(
    foreign: Callable[[str], tuple[Path, Path]], tiny_flatbuffers: dict[str, bytes]
) -> None:
    model, labels = foreign("logits")
    classifier = Classifier.open(model, labels_file=labels, mean=127.5, std=127.5)
    assert classifier.logits
    probabilities = classifier.predict(PIXELS)
    expected = Classifier.from_flatbuffer(tiny_flatbuffers["float32"], LABELS, SPEC).predict(PIXELS)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_foreign_multi_label_scores_are_refused(foreign: Callable[[str], tuple[Path, Path]]) -> None:
    model, labels = foreign("sigmoid")
    with pytest.raises(BundleError, match="LOGISTIC"):
        Classifier.open(model, labels_file=labels, mean=127.5, std=127.5)


def test_foreign_model_without_labels(foreign: Callable[[str], tuple[Path, Path]]) -> None:
    with pytest.raises(BundleError, match="no labels") as caught:
        Classifier.open(foreign("uint8")[0])
    assert "--labels" in caught.value.hint


def test_foreign_float_model_without_normalization(foreign: Callable[[str], tuple[Path, Path]]) -> None:
    model, labels = foreign("float32")
    with pytest.raises(BundleError, match="the normalization of its input is unknown") as caught:
        Classifier.open(model, labels_file=labels)
    assert "--mean" in caught.value.hint
    assert "--std" in caught.value.hint


def test_foreign_uint8_model_says_its_normalization_itself(foreign: Callable[[str], tuple[Path, Path]]) -> None:
    model, labels = foreign("uint8")
    spec = Classifier.open(model, labels_file=labels).input
    assert (spec.height, spec.width) == (SPEC.height, SPEC.width)
    assert spec.mean == pytest.approx(127.5, abs=1)
    assert spec.std == pytest.approx(127.5, abs=1)


def test_foreign_label_count_must_match(foreign: Callable[[str], tuple[Path, Path]]) -> None:
    model, labels = foreign("uint8")
    labels.write_text("background\n" + "\n".join(LABELS))
    with pytest.raises(BundleError, match="4 outputs but there are 5 labels"):
        Classifier.open(model, labels_file=labels)


def test_equal_labels_stay_apart(foreign: Callable[[str], tuple[Path, Path]]) -> None:
    model, labels = foreign("uint8")
    labels.write_text("crane\ndog\ncrane\ncat\n")
    assert Classifier.open(model, labels_file=labels).labels == ("crane (0)", "dog", "crane (2)", "cat")


def test_wrong_use(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be given together"):
        Classifier.open(tiny_bundle, mean=1.0)
    with pytest.raises(UsageError, match="above 0"):
        Classifier.open(tiny_bundle, mean=1.0, std=0.0)
    for mean, std in ((math.nan, 1.0), (-math.inf, 1.0), (0.0, math.nan), (0.0, math.inf)):
        with pytest.raises(UsageError, match="must be a finite number"):
            Classifier.open(tiny_bundle, mean=mean, std=std)
    with pytest.raises(UsageError, match="its own labels"):
        Classifier.open(tiny_bundle, mean=127.5, std=127.5)
    with pytest.raises(UsageError, match="its own labels"):
        Classifier.open(tiny_bundle, labels_file=tmp_path / "labels.txt")


def test_an_open_bundle_gives_the_same(tiny_bundle: Path, foreign: Callable[[str], tuple[Path, Path]]) -> None:
    model, labels = foreign("float32")
    for classifier, again in (
        (Classifier.open(tiny_bundle), Classifier.from_bundle(open_bundle(tiny_bundle))),
        (
            Classifier.open(model, labels_file=labels, mean=127.5, std=127.5),
            Classifier.from_bundle(open_bundle(model), labels_file=labels, normalization=(127.5, 127.5)),
        ),
    ):
        assert (again.labels, again.input, again.threads) == (classifier.labels, classifier.input, classifier.threads)
        np.testing.assert_array_equal(again.predict(PIXELS), classifier.predict(PIXELS))


def test_threads(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Classifier.open(tiny_bundle, threads=2).threads == 2
    monkeypatch.setattr(classifier_module.os, "sched_getaffinity", lambda _: set(range(32)))
    assert default_threads() == 4
    monkeypatch.setattr(classifier_module.os, "sched_getaffinity", lambda _: {5})
    assert Classifier.open(tiny_bundle).threads == 1


def test_no_interpreter_installed(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    monkeypatch.setattr(interpreter, "RUNTIMES", ("no_such_runtime",))
    with pytest.raises(EdgeallError, match="no TFLite interpreter") as caught:
        Classifier.open(tiny_bundle)
    assert "pip install" in caught.value.hint


def test_an_interpreter_that_is_installed_but_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like tflite-runtime without its libraries: a different error from no interpreter."""
    (tmp_path / "broken_runtime").mkdir()
    (tmp_path / "broken_runtime" / "__init__.py").touch()
    (tmp_path / "broken_runtime" / "interpreter.py").write_text("raise ImportError('libatomic.so.1 is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(interpreter, "RUNTIMES", ("broken_runtime", "no_such_runtime"))
    with pytest.raises(EdgeallError, match=r"^broken_runtime can't be imported: libatomic"):
        interpreter.runtime_package()


def test_an_interpreter_that_clashes_with_numpy(
    tiny_flatbuffers: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of tflite-runtime 2.14 with numpy 2, which occurs after the import."""

    def construct(**_: object) -> None:
        raise SystemError("<built-in method CreateWrapperFromBuffer> returned a result with an exception set")

    monkeypatch.setattr("ai_edge_litert.interpreter.Interpreter", construct)
    with pytest.raises(EdgeallError, match=r"ai_edge_litert does not work with numpy \d") as caught:
        interpreter.load(tiny_flatbuffers["uint8"], 1, "m")
    assert "numpy<2" in caught.value.hint


def test_a_model_the_interpreter_refuses(tiny_flatbuffers: dict[str, bytes]) -> None:
    """Its exception becomes a BundleError."""
    with pytest.raises(BundleError, match="the interpreter refuses the model"):
        interpreter.load(tiny_flatbuffers["uint8"][:100] + bytes(100), 1, "m")
