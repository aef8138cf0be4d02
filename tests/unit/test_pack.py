from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from fixtures_models import LABELS, SPEC, golden_for, grainy_image, manifest, png
from PIL import Image

from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError, DataError
from edgeall.edge_runtime.flatbuffer import METADATA, packed_length, read_graph, read_metadata
from edgeall.edge_runtime.preprocess import InputSpec, preprocess
from edgeall.edge_runtime.tools import golden as golden_module
from edgeall.edge_runtime.tools.golden_images import golden_png
from edgeall.optimize.packaging.card import model_card
from edgeall.optimize.packaging.metadata import marked, model_metadata, with_metadata
from edgeall.optimize.packaging.pack import pack

KINDS = ("uint8", "int8", "float32", "dynamic")


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_changes_nothing_else(tiny_flatbuffers: dict[str, bytes], kind: str) -> None:
    """Through Google's reader: the same model but for the entries, and the weights aligned as they were."""
    before = schema.ModelT.InitFromPackedBuf(tiny_flatbuffers[kind], 0)
    content = with_metadata(tiny_flatbuffers[kind], {"note": b"one", "other": b"two" * 100})
    after = schema.ModelT.InitFromPackedBuf(content, 0)
    count = len(before.metadata)
    assert [entry.name for entry in after.metadata[count:]] == [b"note", b"other"]
    assert [bytes(after.buffers[entry.buffer].data) for entry in after.metadata[count:]] == [b"one", b"two" * 100]
    for old, new in zip(before.metadata, after.metadata, strict=False):
        assert old.name == new.name
        assert bytes(before.buffers[old.buffer].data) == bytes(after.buffers[new.buffer].data)
    assert (before.version, before.description) == (after.version, after.description)
    graph = read_graph(content, "m")
    assert graph.subgraphs == read_graph(tiny_flatbuffers[kind], "m").subgraphs
    moved = len(content) - len(tiny_flatbuffers[kind])
    assert moved % 16 == 0
    assert content[moved:] == tiny_flatbuffers[kind]
    reader = schema.Model.GetRootAs(content, 0)
    for index in range(len(before.buffers), reader.BuffersLength()):
        table = reader.Buffers(index)._tab
        assert table.Vector(table.Offset(4)) % 16 == 0


def test_metadata_of_the_same_name_is_replaced(tiny_flatbuffers: dict[str, bytes]) -> None:
    once = with_metadata(tiny_flatbuffers["uint8"], {"note": b"one"})
    twice = with_metadata(once, {"note": b"two"})
    assert read_graph(twice, "m").metadata["note"] == b"two"
    assert list(read_graph(twice, "m").metadata).count("note") == 1
    Interpreter(model_content=twice).allocate_tensors()


def test_metadata_of_damaged_models_is_refused(tiny_flatbuffers: dict[str, bytes]) -> None:
    with pytest.raises(BundleError):
        with_metadata(tiny_flatbuffers["uint8"][:500], {"note": b"one"})


def test_marker_states_the_length(tiny_flatbuffers: dict[str, bytes]) -> None:
    content = marked(tiny_flatbuffers["uint8"], {"note": b"one"})
    assert packed_length(content) == len(content)
    assert packed_length(content[:1000]) == len(content)
    assert packed_length(tiny_flatbuffers["uint8"]) is None


def test_model_metadata_is_read_back() -> None:
    metadata = read_metadata(
        model_metadata("n", "d", "labels.txt", InputSpec(8, 8, mean=3.5, std=17.0), ["probability"]), "m"
    )
    assert (metadata.mean, metadata.std, metadata.label_files) == ((3.5,), (17.0,), ("labels.txt",))


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_model_gives_what_the_bare_one_gives(
    pack_tiny: Callable[..., Path], tiny_flatbuffers: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    packed = Classifier.open(pack_tiny(kind, tmp_path / "model.tflite"))
    bare = Classifier.from_flatbuffer(tiny_flatbuffers[kind], LABELS, SPEC)
    pixels = preprocess(grainy_image(9), SPEC)
    np.testing.assert_array_equal(packed.predict(pixels), bare.predict(pixels))
    assert packed.bundle is not None
    assert all((golden.units is None) == (kind in ("float32", "dynamic")) for golden in packed.bundle.golden)


def test_others_read_the_whole_file(tiny_bundle: Path, tmp_path: Path) -> None:
    """The interpreter takes it by path, unzip lists it without complaint, nothing in it is compressed."""
    Interpreter(model_path=str(tiny_bundle)).allocate_tensors()
    with zipfile.ZipFile(tiny_bundle) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert sorted(archive.namelist()) == [
            "MODEL_CARD.md",
            "edgeall.json",
            "golden/0.png",
            "golden/1.png",
            "golden/golden.json",
            "labels.txt",
        ]
    unzip = shutil.which("unzip")
    if unzip is None:
        pytest.skip("no unzip program")
    result = subprocess.run([unzip, "-l", str(tiny_bundle)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "labels.txt" in result.stdout


def test_as_a_foreign_model_it_names_its_labels(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its TFLite metadata alone, as any other tool sees it."""
    bundle = open_bundle(tiny_bundle)
    metadata = read_metadata(bundle.graph.metadata[METADATA], "m")
    assert (metadata.mean, metadata.std) == ((127.5,), (127.5,))
    with zipfile.ZipFile(tiny_bundle) as archive:
        assert tuple(archive.read(metadata.label_files[0]).decode().split()) == LABELS


def test_same_arguments_same_bytes(pack_tiny: Callable[..., Path], tmp_path: Path) -> None:
    one, two = (pack_tiny("uint8", tmp_path / name / "model.tflite") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_nothing_is_left_behind_and_the_old_file_stays(
    tiny_flatbuffers: dict[str, bytes], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.tflite"
    shutil.copy(tiny_bundle, out)
    flatbuffer = tiny_flatbuffers["uint8"]
    golden = golden_for(flatbuffer)
    filled = manifest(name="another")
    monkeypatch.setattr(golden_module, "preprocess", lambda image, spec: preprocess(image, spec)[::-1])
    with pytest.raises(BundleError, match="preprocessing gives other pixels"):
        pack(flatbuffer, filled, golden, model_card(filled), out)
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]
    assert out.read_bytes() == tiny_bundle.read_bytes()


def test_a_golden_image_must_test_the_resize(tiny_flatbuffers: dict[str, bytes], tmp_path: Path) -> None:
    flatbuffer = tiny_flatbuffers["uint8"]
    image = grainy_image(1, (SPEC.width, SPEC.height))
    probabilities = Classifier.from_flatbuffer(flatbuffer, LABELS, SPEC).predict(preprocess(image, SPEC))
    with pytest.raises(BundleError, match="would not test resizing"):
        pack(flatbuffer, manifest(), [("0.png", png(image), probabilities)], "card", tmp_path / "m.tflite")


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_golden_probabilities_must_be_the_models_own(
    tiny_flatbuffers: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    flatbuffer = tiny_flatbuffers[kind]
    ((name, file, probabilities), *_) = golden_for(flatbuffer)
    with pytest.raises(BundleError, match="golden image"):
        pack(flatbuffer, manifest(), [(name, file, probabilities + 1e-3)], "card", tmp_path / "m.tflite")
    with pytest.raises(BundleError, match="golden image"):
        pack(flatbuffer, manifest(), [(name, file, probabilities[::-1])], "card", tmp_path / "m.tflite")


def test_wrong_arguments(tiny_flatbuffers: dict[str, bytes], tmp_path: Path) -> None:
    flatbuffer, out = tiny_flatbuffers["uint8"], tmp_path / "m.tflite"
    golden = golden_for(flatbuffer)
    (_, file, probabilities) = golden[0]
    with pytest.raises(BundleError, match="at least one golden"):
        pack(flatbuffer, manifest(), [], "card", out)
    with pytest.raises(BundleError, match="one name"):
        pack(flatbuffer, manifest(), [golden[0], golden[0]], "card", out)
    with pytest.raises(BundleError, match="plain name"):
        pack(flatbuffer, manifest(), [("../evil.png", file, probabilities)], "card", out)
    with pytest.raises(BundleError, match="created"):
        pack(flatbuffer, manifest(created="yesterday"), golden, "card", out)
    with pytest.raises(BundleError, match="outputs but there are 2 labels"):
        pack(flatbuffer, manifest(labels=("a", "b"), positive_labels=()), _for_labels(golden, 2), "card", out)
    with pytest.raises(BundleError, match="contradict"):
        pack(flatbuffer, manifest(input=dataclasses.replace(SPEC, mean=0.0, std=1.0)), golden, "card", out)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(DataError, match="can't be written"):
        pack(flatbuffer, manifest(), golden, "card", blocked / "m.tflite")
    assert not out.exists()


def test_golden_png_is_small_and_of_another_shape() -> None:
    spec = InputSpec(224, 224)
    file = golden_png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (450, 450, 3), np.uint8)), spec)
    with Image.open(io.BytesIO(file)) as image:
        assert image.size == (112, 84)
    assert len(file) < 40_000


def test_card_says_what_must_be_said() -> None:
    card = model_card(manifest(metrics={"split": "test", "accuracy": 0.987, "per_class": PER_CLASS}))
    assert card.startswith("---\nlibrary_name: edgeall\n")
    assert "Research use only, not a diagnosis" in card
    assert "Image-level split: optimistic" in card
    assert "| Benign | 0.9000 | 0.8000 | 0.8471 | 10 |" in card
    assert "value: 0.9870" in card
    assert "golden images in the file are synthetic" in card
    by_subject = model_card(manifest(training={"split_level": "subject"}, golden={"source": "test split"}))
    assert "optimistic" not in by_subject
    assert "synthetic" not in by_subject


PER_CLASS = {"Benign": {"precision": 0.9, "recall": 0.8, "f1": 0.8471, "support": 10}}


def _for_labels(golden: list[tuple[str, bytes, np.ndarray]], count: int) -> list[tuple[str, bytes, np.ndarray]]:
    return [(name, file, probabilities[:count]) for name, file, probabilities in golden]
