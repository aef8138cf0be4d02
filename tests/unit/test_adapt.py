"""`edgeall adapt`: the file that it writes, what it refuses to write, and that there is always one verified model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_sites import LABELS, draw_site

from edgeall import cli
from edgeall.edge_runtime.adaptation import head as head_module
from edgeall.edge_runtime.adaptation.adapt import AdaptConfig, Adapted, adapt
from edgeall.edge_runtime.adaptation.head import Head, Layer, as_read, find_layer, patched, read_head
from edgeall.edge_runtime.adaptation.learn import check_agreement, softmax
from edgeall.edge_runtime.adaptation.site import read_site
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError, DataError, UsageError
from edgeall.edge_runtime.flatbuffer import Tensor, read_graph
from edgeall.edge_runtime.pipeline import classify
from edgeall.edge_runtime.preprocess import load_input
from edgeall.edge_runtime.tools.inspect import inspect_model, inspect_text
from edgeall.optimize.packaging.sign import make_key, sign

DEMO = Path(cli.__file__).parent / "rig" / "demo.tflite"
"""A packed int8 classifier of drawn cells, without exemplars and OOD detector, with a feature map."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of four classes; of the last one too few to learn it."""
    return draw_site(tmp_path_factory.mktemp("site"), (10, 10, 10, 3))


@pytest.fixture(scope="module")
def adapted(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return adapt(AdaptConfig(DEMO, site, tmp_path_factory.mktemp("adapted") / "adapted.tflite", by="A. Nurse"))


def layers(path: Path) -> tuple[bytes, Layer]:
    bundle = open_bundle(path)
    return bundle.flatbuffer, find_layer(bundle.graph, bundle.path)


def predicted(model: Path, folder: Path) -> list[str]:
    return [one.label for one in classify(Classifier.open(model, threads=1), [folder])]


def test_it_learns_the_site(adapted: Adapted, tmp_path: Path) -> None:
    """On cells that it has not seen; the model before gives nearly all one label."""
    fresh = draw_site(tmp_path / "fresh", (15, 15, 15, 0), seed=5)
    found = {label: predicted(adapted.out, fresh / label) for label in LABELS[:3]}
    right = sum(names.count(label) for label, names in found.items())
    before = sum(predicted(DEMO, fresh / label).count(label) for label in LABELS[:3])
    assert right > before + 15
    assert adapted.written and not adapted.signed
    assert adapted.learned.labelled is not None
    assert adapted.learned.labelled.gained.balanced_accuracy.p < 0.01


def test_only_the_bytes_of_the_last_layer_change(adapted: Adapted) -> None:
    (before, layer), (after, _) = layers(DEMO), layers(adapted.out)
    assert len(before) == len(after)
    allowed = np.zeros(len(before), bool)
    for tensor in (layer.weights, layer.bias):
        allowed[tensor.constant_at : tensor.constant_at + tensor.constant_bytes] = True
        allowed[tensor.scale_at : tensor.scale_at + 4 * len(tensor.scale)] = True
    allowed[layer.logits.scale_at : layer.logits.scale_at + 4] = True
    allowed[layer.logits.zero_point_at : layer.logits.zero_point_at + 8] = True
    differs = np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)
    assert differs.any()
    assert not (differs & ~allowed).any()


def test_a_class_with_few_images_keeps_its_bytes(adapted: Adapted) -> None:
    assert adapted.learned.labelled is not None
    assert adapted.learned.labelled.left_alone == ("Pro",)
    (before, old), (after, new) = layers(DEMO), layers(adapted.out)
    rows = [np.frombuffer(data, np.int8, 512, old.weights.constant_at).reshape(4, 128) for data in (before, after)]
    biases = [np.frombuffer(data, np.int32, 4, old.bias.constant_at) for data in (before, after)]
    assert [(rows[0][index] == rows[1][index]).all() for index in range(4)] == [False, False, False, True]
    assert biases[0][3] == biases[1][3]
    assert old.weights.scale[3] == new.weights.scale[3]
    assert old.weights.scale[0] != new.weights.scale[0]


def test_the_interpreter_computes_the_new_layer(adapted: Adapted, site: Path) -> None:
    """Its probabilities are those of numpy's layer on the dequantized features, apart from rounding the outputs."""
    bundle = open_bundle(adapted.out)
    layer = find_layer(bundle.graph, bundle.path)
    found = read_site(Classifier.from_bundle(bundle, threads=1), site, labelled=True)
    check_agreement(bundle, layer, found.features, found.probabilities)
    head, scale = read_head(bundle.flatbuffer, layer), layer.logits.scale[0]
    logits = head.logits(as_read(found.features, layer))
    rounded = np.clip(np.rint(logits / scale) + layer.logits.zero_point[0], -128, 127)
    assert rounded.min() > -128 and rounded.max() < 127, "the range of the output holds them all"
    # The feature map's mean is rounded by the interpreter in another order, so a logit may be one step off.
    order = np.argsort(-logits, axis=1)[:, :2]
    clear = np.take_along_axis(logits, order, axis=1) @ [1, -1] > 2 * scale
    np.testing.assert_array_equal(found.probabilities.argmax(axis=1)[clear], logits.argmax(axis=1)[clear])
    assert clear.sum() > 20


def test_the_numbers_are_written_and_outputs_that_would_not_fit_get_a_wider_range() -> None:
    data, layer = layers(DEMO)
    head = read_head(data, layer)
    larger = Head(3 * head.weights, 3 * head.bias)
    wide = patched(data, layer, larger, np.ones(4, bool), (-70.0, 50.0))
    written = find_layer(read_graph(wide, "m"), "m")
    stored, scales = read_head(wide, written), np.array(written.weights.scale)
    assert (np.abs(stored.weights - larger.weights) <= scales[:, None] / 2 + 1e-9).all()
    assert (np.abs(stored.bias - larger.bias) <= np.array(written.bias.scale) / 2 + 1e-9).all()
    np.testing.assert_allclose(written.bias.scale, scales * layer.features.scale[0], rtol=1e-6)
    after = written.logits
    low, high = ((end - after.zero_point[0]) * after.scale[0] for end in (-128, 127))
    assert low == pytest.approx(-70, abs=after.scale[0])
    assert high >= 50 - after.scale[0]
    same = patched(data, layer, head, np.ones(4, bool), (-1.0, 1.0))
    assert find_layer(read_graph(same, "m"), "m").logits.scale == layer.logits.scale


def test_a_layer_whose_outputs_are_clipped_agrees(site: Path) -> None:
    """Ranges are measured on training images; elsewhere the outputs may be beyond them."""
    data, layer = layers(DEMO)
    clipped = bytearray(data)
    np.frombuffer(clipped, np.float32, 1, layer.logits.scale_at)[:] = layer.logits.scale[0] / 8
    graph = read_graph(bytes(clipped), "m")
    bundle = dataclasses.replace(open_bundle(DEMO), flatbuffer=bytes(clipped), graph=graph)
    found = read_site(Classifier.from_bundle(bundle, threads=1), site, labelled=True)
    narrow = find_layer(graph, "m")
    exact = read_head(bundle.flatbuffer, narrow).logits(as_read(found.features, narrow))
    assert np.abs(softmax(exact) - found.probabilities).max() > 0.1, "many are clipped"
    check_agreement(bundle, narrow, found.features, found.probabilities)


@pytest.mark.parametrize("largest", [1.0, 9.0])
def test_one_scale_for_all_rows_only_grows(largest: float) -> None:
    """Files of older converters have one scale for the whole layer; the other rows then stay as exactly as it can."""
    data, scale = bytearray(64), 0.05
    np.frombuffer(data, np.int8, 4)[:] = [100, -20, 50, 127]
    layer = Layer(
        features=Tensor("x", "INT8", (1, 2), (0.5,), (0,), 0),
        weights=Tensor("w", "INT8", (2, 2), (scale,), (0,), 4, constant_at=0, scale_at=32),
        bias=Tensor("b", "INT32", (2,), (scale / 2,), (0,), 8, constant_at=8, scale_at=36),
        logits=Tensor("y", "FLOAT32", (1, 2), (), (), 0),
    )
    old = read_head(bytes(data), layer)
    new = Head(np.array([[largest, -largest], old.weights[1]]), np.array([1.0, 0.0]))
    out = patched(bytes(data), layer, new, np.array([True, False]), (0.0, 0.0))
    stored = float(np.frombuffer(out, np.float32, 1, 32)[0])
    assert stored == pytest.approx(max(scale, largest / 127))
    units = np.frombuffer(out, np.int8, 4).reshape(2, 2)
    np.testing.assert_allclose(units * stored, new.weights, atol=stored / 2 + 1e-6)
    assert (units[1] == [50, 127]).all() == (largest < 2)
    np.testing.assert_allclose(np.frombuffer(out, np.int32, 2, 8) * stored / 2, new.bias, atol=stored / 4 + 1e-6)


def test_the_file_is_a_file_like_any_other(adapted: Adapted) -> None:
    facts = inspect_model(adapted.out).to_json()
    assert facts["golden_ok"] and facts["digest_ok"]
    assert "not a diagnosis" in facts["model_card"]
    assert "Adapted to another laboratory" in facts["model_card"]
    names = {golden.name for golden in open_bundle(adapted.out).golden}
    assert {golden.name for golden in open_bundle(DEMO).golden} < names
    assert facts["manifest"]["golden"]["site"] == sorted(name for name in names if name.startswith("site-"))
    with zipfile.ZipFile(adapted.out) as archive:
        assert archive.testzip() is None


def test_its_lineage_says_where_it_comes_from(adapted: Adapted, site: Path) -> None:
    inspection = inspect_model(adapted.out)
    facts = inspection.to_json()
    (entry,) = facts["manifest"]["lineage"]
    assert entry["parent_sha256"] == hashlib.sha256(DEMO.read_bytes()).hexdigest()
    assert entry["by"] == "A. Nurse"
    assert entry["when"] == facts["manifest"]["created"]
    assert entry["images"] == 33
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in site.rglob("*.png"))
    assert entry["images_sha256"] == digests
    assert entry["labelled"]["per_class"] == {"Benign": 10, "Early": 10, "Pre": 10, "Pro": 3}
    assert entry["labelled"]["folds"] == 30
    assert entry["labelled"]["home"] is None, "the demo's file has no exemplars"
    assert len(entry["golden"]) == len(open_bundle(DEMO).golden)
    assert facts["manifest"]["metrics"]["split"] == "site", "those of the file before are not its own"
    assert entry["parent_metrics"]["split"] == "test"
    assert "by A. Nurse, 33 images of a site" in inspect_text(inspection)


def test_adapted_again_it_keeps_both_lines(adapted: Adapted, tmp_path: Path) -> None:
    third = draw_site(tmp_path / "third", (0, 0, 12, 12), seed=3)
    again = adapt(AdaptConfig(adapted.out, third, tmp_path / "again.tflite", by="B. Nurse"))
    assert again.written
    lineage = open_bundle(again.out).manifest.lineage  # type: ignore[union-attr]
    assert [entry["by"] for entry in lineage] == ["A. Nurse", "B. Nurse"]
    assert lineage[1]["parent_sha256"] == hashlib.sha256(adapted.out.read_bytes()).hexdigest()
    assert "adapted (2)" in inspect_text(inspect_model(again.out))


def shuffled(site: Path, folder: Path) -> Path:
    """The same images with labels at random."""
    images = sorted(site.rglob("*.png"))
    for number, place in enumerate(np.random.default_rng(1).permutation(len(images))):
        target = folder / LABELS[number % 4] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images[place], target)
    return folder


def test_what_is_not_better_is_not_written(site: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.tflite"
    data = shuffled(site, tmp_path / "shuffled")
    assert cli.main(["adapt", str(DEMO), "--data", str(data), "--out", str(out), "--json"]) == 3
    text = capfd.readouterr()
    assert json.loads(text.out)["written"] is False
    assert "not better by more than chance" in text.err and "was not written" in text.err
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["shuffled"]


def test_the_command_prints_before_and_after(site: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.tflite"
    words = ["adapt", str(DEMO), "--data", str(site), "--out", str(out)]
    assert cli.main(words) == 0
    text = capfd.readouterr()
    assert "site, before" in text.out and "recall of Pro" in text.out
    assert "not learned: Pro" in text.err and "no exemplars of home" in text.err and "not a diagnosis" in text.err
    assert cli.main(words) == 2
    assert "--force" in capfd.readouterr().err


def cases(tmp_path: Path) -> dict[str, tuple[Callable[[], AdaptConfig], type[Exception], str]]:
    """What cannot be adapted, with the error and a part of its message."""
    out = tmp_path / "out.tflite"

    def config(counts: tuple[int, int, int, int], **changes: Any) -> AdaptConfig:
        return AdaptConfig(DEMO, draw_site(tmp_path / "few", counts), out, **changes)

    def strange() -> AdaptConfig:
        draw_site(tmp_path / "few", (5, 5, 0, 0))
        (tmp_path / "few" / "Pre").mkdir()
        (tmp_path / "few" / "Benign").rename(tmp_path / "few" / "basophil")
        return AdaptConfig(DEMO, tmp_path / "few", out)

    def twice() -> AdaptConfig:
        draw_site(tmp_path / "few", (5, 5, 0, 0))
        shutil.copy(tmp_path / "few" / "Benign" / "0.png", tmp_path / "few" / "Early" / "copy.png")
        return AdaptConfig(DEMO, tmp_path / "few", out)

    return {
        "too few": (lambda: config((4, 9, 4, 4)), DataError, "two classes must have at least 5"),
        "no detector": (lambda: config((9, 9, 9, 9), unlabelled=True), BundleError, "no out-of-distribution detector"),
        "no folder": (lambda: AdaptConfig(DEMO, tmp_path / "none", out), DataError, "no such folder"),
        "unknown class": (strange, DataError, "basophil: not a class of the model"),
        "two labels": (twice, DataError, "the same image as"),
        "inside": (lambda: AdaptConfig(DEMO, tmp_path, tmp_path / "in" / "out.tflite"), UsageError, "inside the data"),
    }


@pytest.mark.parametrize("case", list(cases(Path())))
def test_what_cannot_be_learned_from_is_refused(case: str, tmp_path: Path) -> None:
    config, error, message = cases(tmp_path)[case]
    given = config()
    with pytest.raises(error, match=message):
        adapt(given)
    assert not given.out.exists()


def test_foreign_and_segmentation_models_are_refused(
    tiny_flatbuffers: dict[str, bytes], tiny_segmenter: Path, tiny_bundle: Path, site: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.tflite"
    foreign.write_bytes(tiny_flatbuffers["uint8"])
    for model, error, message in (
        (foreign, BundleError, "foreign"),
        (tiny_segmenter, UsageError, "segmentation"),
        (tiny_bundle, BundleError, "no second output"),
    ):
        with pytest.raises(error, match=message):
            adapt(AdaptConfig(model, site, tmp_path / "out.tflite"))


def test_repeated_and_unreadable_images_do_not_count(site: Path, tmp_path: Path) -> None:
    data = tmp_path / "site"
    shutil.copytree(site, data)
    shutil.copy(data / "Early" / "1.png", data / "Early" / "copy.png")
    (data / "Early" / "broken.png").write_bytes(b"\x89PNG\r\n")
    found = adapt(AdaptConfig(DEMO, data, tmp_path / "out.tflite"))
    assert (len(found.site), found.site.repeated, len(found.site.problems)) == (33, 1, 1)


def test_features_that_the_last_layer_does_not_read_are_refused(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeall.edge_runtime.classifier.Classifier.pooled", lambda self, units: np.ones(128, "f4"))
    with pytest.raises(BundleError, match="not what its last layer reads"):
        adapt(AdaptConfig(DEMO, site, tmp_path / "out.tflite"))


def test_signed_again_or_refused(site: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key, other = tmp_path / "key.pem", tmp_path / "other.pem"
    public = make_key(key)
    make_key(other)
    model, out = tmp_path / "model.tflite", tmp_path / "out.tflite"
    shutil.copy(DEMO, model)
    sign(model, key)
    with pytest.raises(UsageError, match="must be signed again"):
        adapt(AdaptConfig(model, site, out, public_key=public))
    with pytest.raises(BundleError, match="not signed"):
        adapt(AdaptConfig(DEMO, site, out, public_key=public, key=key))
    with pytest.raises(BundleError, match="signed with another key"):
        adapt(AdaptConfig(model, site, out, public_key=public, key=other))
    assert not out.exists()
    assert adapt(AdaptConfig(model, site, out, public_key=public, key=key)).signed
    assert open_bundle(out, public).is_signed
    plain = adapt(AdaptConfig(model, site, out, force=True))
    assert any("signed" in warning for warning in plain.warnings)
    with pytest.raises(BundleError, match="not signed"):
        open_bundle(out, public)


KILLED = """
import os, sys
from pathlib import Path
from edgeall.edge_runtime.tools import atomic
from edgeall.edge_runtime.adaptation import write
from edgeall.edge_runtime.adaptation.adapt import AdaptConfig, adapt
model, site, moment = sys.argv[1:]
def die(*_):
    os._exit(9)
setattr({"archive": write, "check": write, "sync": atomic, "rename": atomic.os}[moment],
        {"archive": "write_archive", "check": "check_golden", "sync": "sync", "rename": "replace"}[moment], die)
adapt(AdaptConfig(Path(model), Path(site), Path(model), force=True))
"""


@pytest.mark.parametrize("moment", ["archive", "check", "sync", "rename"])
def test_killed_at_any_moment_the_old_model_is_there(site: Path, tmp_path: Path, moment: str) -> None:
    """Adapted in place. The next adaptation removes what the killed one left."""
    model = tmp_path / "model.tflite"
    shutil.copy(DEMO, model)
    killed = subprocess.run([sys.executable, "-c", KILLED, model, site, moment], capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    assert model.read_bytes() == DEMO.read_bytes()
    assert len(list(tmp_path.iterdir())) > 1
    assert adapt(AdaptConfig(model, site, model, force=True)).written
    assert len(open_bundle(model).manifest.lineage) == 1  # type: ignore[union-attr]
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]


def test_a_device_that_computes_something_else_does_not_adapt(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeall.edge_runtime.tools.golden.preprocess", lambda image, spec: load_dark(spec))
    with pytest.raises(BundleError, match="golden image"):
        adapt(AdaptConfig(DEMO, site, tmp_path / "out.tflite"))


def load_dark(spec: Any) -> np.ndarray:
    return np.zeros((spec.height, spec.width, 3), np.uint8)


def test_other_last_layers_are_refused(tiny_flatbuffers: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    graph = read_graph(tiny_flatbuffers["uint8"], "m")
    find_layer(graph, "m")
    monkeypatch.setattr(head_module, "_producer", lambda main, tensor: main.operators[0])
    with pytest.raises(BundleError, match="where a dense layer with a bias is needed"):
        find_layer(graph, "m")


def test_the_images_are_read_once(site: Path) -> None:
    classifier = Classifier.open(DEMO, threads=1)
    found = read_site(classifier, site, labelled=True)
    assert found.truth is not None and len(found) == 33
    path = found.paths[7]
    np.testing.assert_array_equal(found.probabilities[7], classifier.predict(load_input(path, classifier.input)))
    assert LABELS[found.truth[7]] == path.parent.name
