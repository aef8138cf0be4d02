"""The suite of corruptions, and accuracy under it with the device's code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import calibration_error
from fixture_seed import SEED
from fixtures_models import LABELS, golden_for, manifest
from fixtures_plots import drawing
from PIL import Image

from edgeall.console.progress import Progress
from edgeall.edge_runtime.calibration import apply_temperature
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import ImageError
from edgeall.edge_runtime.images import open_rgb
from edgeall.edge_runtime.ood import distance, read_ood_detector
from edgeall.edge_runtime.parallel import Layout
from edgeall.edge_runtime.preprocess import InputSpec, load_input, normalize, preprocess
from edgeall.edge_runtime.tools.novelty import fit_novelty
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras
from edgeall.optimize.packaging.card import model_card
from edgeall.optimize.packaging.pack import pack
from edgeall.optimize.quantization.convert import convert, with_second_output
from edgeall.train.data.split import SplitEntry
from edgeall.train.data.synth import synthesize
from edgeall.train.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from edgeall.train.evaluation.robustness import Robustness, robustness, robustness_text
from edgeall.train.reports.plots import plot_robustness

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    folder = tmp_path_factory.mktemp("drawn") / "fields"
    synthesize(folder, 16, seed=5, size=192)
    return open_rgb(next(folder.rglob("*.png"), None) or next(folder.rglob("*.jpg")))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_corruption_grows_with_its_severity_and_repeats_itself(kind: str, field: Image.Image) -> None:
    clean = np.asarray(field, float)
    strength = []
    for severity in SEVERITIES:
        found = [corrupted(field, kind, severity, seed) for seed in ("a", "b", "c", "d")]
        assert all(image.mode == "RGB" and image.size == field.size for image in found)
        assert found[0].tobytes() == corrupted(field, kind, severity, "a").tobytes()
        strength.append(np.mean([np.abs(np.asarray(image, float) - clean).mean() for image in found]))
    assert 0.2 < strength[0] < strength[-1]
    # a turned or magnified field is as different at 54 degrees as at 90, and a mixture depends on what is drawn
    assert kind in ("rotation", "magnification", "mixture") or (np.diff(strength) > 0).all()
    assert strength[-1] < 130, "there is something left to be seen"


@pytest.mark.parametrize("kind", ["tone_curve", "motion", "uneven_light", "read_noise", "mixture"])
def test_what_is_drawn_depends_on_the_image(kind: str, field: Image.Image) -> None:
    assert len({corrupted(field, kind, 3, f"digest {number}").tobytes() for number in range(8)}) > 1


def test_turning_by_a_right_angle_moves_pixels_and_no_more(field: Image.Image) -> None:
    ways = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)
    seen = set()
    for number in range(8):
        turned = np.asarray(corrupted(field, "rotation", 5, str(number)), int)
        apart = [np.abs(turned - np.asarray(field.transpose(way), int)).max() for way in ways]
        assert min(apart) <= 1, "one level of rounding"
        seen.add(int(np.argmin(apart)))
    assert seen == {0, 1}


def test_magnification_keeps_the_centre(field: Image.Image) -> None:
    dot = Image.new("RGB", (96, 96), (255, 255, 255))
    dot.paste((0, 0, 0), (40, 40, 56, 56))
    for seed in ("a", "b", "c"):
        dark = 255 - np.asarray(corrupted(dot, "magnification", 5, seed), float)[:, :, 0]
        rows, columns = np.indices(dark.shape)
        assert (dark * rows).sum() / dark.sum() == pytest.approx(47.5, abs=0.1)
        assert (dark * columns).sum() / dark.sum() == pytest.approx(47.5, abs=0.1)
        assert dark.sum() / 255 == pytest.approx(256 * 1.25 ** (2 if dark.sum() / 255 > 256 else -2), rel=0.05)


@pytest.fixture(scope="module")
def by_brightness(synthetic_fields: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, list[Any]]:
    """A packed model with fixed weights that classifies four ranges of brightness, and images labelled by it.

    So it is right on all of them, on hardly any at half the light, and calls half of them unfamiliar.
    """
    layers, spec, generator = keras.layers, InputSpec(32, 32), np.random.default_rng(SEED)
    inputs = layers.Input((32, 32, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 1, activation="relu", name="colours")(inputs))
    model = add_head(keras.Model(inputs, pooled), len(LABELS), 0.0)
    kernel, bias = generator.normal(0, 1, (1, 1, 3, 16)), generator.normal(0, 0.3, 16)
    kernel[..., 0], bias[0] = 1 / 6, 0.5  # 0 for black, 1 for white
    model.get_layer("colours").set_weights([kernel, bias])
    files = sorted(synthetic_fields.glob("*/*.png"))[::4]
    images = normalize(np.stack([load_input(file, spec) for file in files]), spec)
    features = keras.Model(inputs, pooled).predict(images, verbose=0)
    between = np.quantile(features[:, 0], (0.25, 0.5, 0.75))
    head = np.zeros((16, len(LABELS)))
    head[0] = np.arange(4) * 20 / np.ptp(features[:, 0])
    offsets = -np.concatenate([[0], np.cumsum(between)]) * head[0, 1]
    model.get_layer("logits").set_weights([head, offsets])
    flatbuffer = convert(with_second_output(model, explain=False), "float32", spec)
    novelty, plane = fit_novelty(features, features, len(LABELS))
    facts = novelty.to_json()
    # With all axes nothing would be left of features that three colours span.
    facts["scales"], plane = facts["scales"][:3], plane[: 3 * facts["features"]]
    facts["threshold"] = float(np.median(distance(features, read_ood_detector(facts, plane, "by hand"))))
    filled = manifest(input=spec, novelty=facts)
    out = tmp_path_factory.mktemp("brightness") / "model.tflite"
    pack(flatbuffer, filled, golden_for(flatbuffer, spec), model_card(filled), out, plane)
    classifier = Classifier.open(out, threads=1)
    entries = []
    for file in files:
        label = classifier.labels[classifier.predict(load_input(file, spec)).argmax()]
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        entries.append(SplitEntry(file.relative_to(synthetic_fields).as_posix(), label, None, digest, "test"))
    return classifier, entries


@pytest.fixture(scope="module")
def measured(by_brightness: Any, synthetic_fields: Path) -> tuple[Robustness, Any, list[Any]]:
    classifier, entries = by_brightness
    found = robustness(classifier, Layout(2, 1), synthetic_fields, entries, QUIET, ("jpeg", "underexposed"))
    return found, classifier, entries


def test_a_cell_is_what_the_device_says_of_corrupted_files(measured: Any, synthetic_fields: Path) -> None:
    found, classifier, entries = measured
    for kind in ("jpeg", "underexposed"):
        for severity in (1, 5):
            right = strange = 0
            for entry in entries:
                image = corrupted(open_rgb(synthetic_fields / entry.path), kind, severity, entry.sha256)
                answer = classifier.infer(preprocess(image, classifier.input))
                right += classifier.labels[answer.probabilities.argmax()] == entry.label
                strange += answer.novelty > 1
            cells = found.by_corruption[kind]
            assert cells.by_severity[severity - 1] == pytest.approx(right / len(entries))
            assert cells.reviewed_by_severity[severity - 1] == pytest.approx(strange / len(entries))


def test_mean_and_worst_are_those_of_the_cells(measured: Any, tmp_path: Path) -> None:
    found, _, entries = measured
    cells = np.array([kind.by_severity for kind in found.by_corruption.values()])
    assert found.images == len(entries)
    assert found.mean == pytest.approx(cells.mean())
    assert found.worst == cells.min()
    at = found.worst_at
    assert found.by_corruption[at.corruption].by_severity[at.severity - 1] == found.worst
    assert cells.min() < cells.max(), "else the test above would see nothing"
    ece = np.array([kind.ece_by_severity for kind in found.by_corruption.values()])
    assert (found.ece_mean, found.ece_worst) == pytest.approx((ece.mean(), ece.max()))
    assert 0 <= ece.min() < ece.max() <= 1
    recalls = np.array([kind.worst_recall_by_severity for kind in found.by_corruption.values()])
    assert (recalls <= cells + 1e-9).all()
    reviewed = np.array([kind.reviewed_by_severity for kind in found.by_corruption.values()])
    assert found.reviewed_mean == pytest.approx(reviewed.mean())
    missed = (1 - reviewed.mean()) * (1 - found.accuracy_of_the_rest)
    assert found.wrong_not_reviewed_mean == pytest.approx(missed)
    assert f"wrong and not sent: {100 * missed:.2f} % of the images" in robustness_text(found)
    assert reviewed.max() > 0
    text = robustness_text(found)
    assert f"{100 * found.worst:.2f} %" in text and "underexposed" in text
    with drawing():
        plot_robustness(found, tmp_path / "plot.png")
    assert open_rgb(tmp_path / "plot.png").width > 300


def test_calibration_and_review_of_a_cell_are_what_the_device_says(
    measured: Any, synthetic_fields: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, classifier, entries = measured
    images = (corrupted(open_rgb(synthetic_fields / entry.path), "underexposed", 4, entry.sha256) for entry in entries)
    answers = [classifier.infer(preprocess(each, classifier.input)) for each in images]
    rows = apply_temperature(np.stack([answer.probabilities for answer in answers]), 1.7)
    strange = np.array([answer.novelty > 1 for answer in answers])
    truth = np.array([classifier.labels.index(entry.label) for entry in entries])
    below = float(np.median(rows.max(axis=1)))
    rules = {"temperature": 1.7, "review_below": below}
    found = robustness(classifier, Layout(1, 1), synthetic_fields, entries, QUIET, ("underexposed",), **rules)
    cells = found.by_corruption["underexposed"]
    assert cells.ece_by_severity[3] == pytest.approx(
        calibration_error(rows.max(axis=1), rows.argmax(axis=1) == truth), abs=1e-6
    )
    assert cells.reviewed_by_severity is not None
    assert cells.reviewed_by_severity[3] == pytest.approx(((rows.max(axis=1) < below) | strange).mean())
    assert cells.reviewed_by_severity[3] > 0
    assert found.reviewed_mean == pytest.approx(np.mean(cells.reviewed_by_severity))
    assert "review 5" in robustness_text(found) and "sent to review" in robustness_text(found)
    monkeypatch.setattr(classifier, "ood_detector", None)  # as of a file without a novelty score
    del rules["review_below"]
    found = robustness(classifier, Layout(1, 1), synthetic_fields, entries[:2], QUIET, ("underexposed",), **rules)
    assert found.reviewed_mean is found.wrong_not_reviewed_mean is None and "review" not in robustness_text(found)


def test_an_image_that_is_gone_is_named(measured: Any, tmp_path: Path) -> None:
    _, classifier, entries = measured
    with pytest.raises(ImageError, match=entries[0].path):
        robustness(classifier, Layout(1, 1), tmp_path, entries[:1], QUIET, ("jpeg",))
