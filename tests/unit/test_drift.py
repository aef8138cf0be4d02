"""The drift alarm: its test, what it learns at home, and how the rig and `edgeall run` say it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawn_sites import draw_site
from fixtures_packed import with_reference
from fixtures_rig import Rig, demo_classifier
from PIL import Image
from starlette.testclient import TestClient
from venvs import HANG_S

from edgeall.cli import main
from edgeall.edge_runtime import pipeline
from edgeall.edge_runtime.adaptation.adapt import AdaptConfig, adapt
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.drift import (
    FACTS,
    FEATURES,
    IMAGE,
    Drift,
    Finding,
    Group,
    _percentiles,
    by_chance,
    coordinates,
    drift_groups,
    image_facts,
    read_drift,
)
from edgeall.edge_runtime.errors import BundleError
from edgeall.edge_runtime.ood import OodDetector
from edgeall.edge_runtime.pipeline import Prediction
from edgeall.edge_runtime.preprocess import load_input
from edgeall.edge_runtime.tools.drift import chosen_runs, fit_drift, followed
from edgeall.rig.drift import EVENT, SlideDrift, drift_of
from edgeall.rig.language import speaking
from edgeall.rig.record.rows import SessionNotes
from edgeall.rig.serve import DEMO_MODEL
from edgeall.rig.web.display import drifted
from edgeall.rig.web.live_events import LiveEncoder

LABELS, RUNS, RUN = 2, 40, 30
AXES = 7
DETECTOR = OodDetector(np.full(32, 0.1, np.float32), np.eye(AXES, 32, dtype=np.float32), 1.0)


def home(random: np.random.Generator, runs: int = RUNS) -> tuple[Any, Any, Any]:
    """Facts, features and predicted labels of runs, whose light and stain differ from run to run and by label."""
    predicted = np.repeat(np.arange(runs) % LABELS, RUN)
    apart = np.repeat(random.normal(0, 0.3, (runs, len(FACTS))), RUN, axis=0)
    facts = predicted[:, None] * 2 + apart + random.normal(0, 1, (runs * RUN, len(FACTS)))
    features = np.abs(random.normal(1, 0.3, (runs * RUN, 32))).astype(np.float32)
    return facts, features, predicted


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    facts, features, predicted = home(np.random.default_rng(0))
    coordinated = np.stack([coordinates(each, DETECTOR) for each in features])
    found: dict[str, Any] = json.loads(json.dumps(fit_drift(facts, coordinated, predicted, RUNS, LABELS)))
    return found


@pytest.fixture(scope="module")
def groups(reference: dict[str, Any]) -> dict[str, Group]:
    return read_drift(reference, LABELS, "x")


def slide(groups: dict[str, Group], seed: int, shift: Any = 0.0, images: int = 60) -> Drift:
    facts, features, predicted = home(np.random.default_rng(seed), runs=4)
    drift = Drift(groups)
    for row in range(images):
        drift.add(facts[row] + shift, features[row], DETECTOR, int(predicted[row]))
    return drift


@pytest.mark.parametrize(
    ("numbers", "free", "ratio", "expected"), [(2, 10, 4.103, 0.05), (4, 20, 4.431, 0.01), (8, 30, 2.266, 0.05)]
)
def test_the_probability_is_that_of_tables(numbers: int, free: int, ratio: float, expected: float) -> None:
    assert by_chance(numbers, free, ratio) == pytest.approx(expected, rel=2e-3)
    assert by_chance(numbers, free, 0.0) == 1.0 and by_chance(numbers, free, 1e9) < 1e-12


def test_home_raises_no_alarm_whatever_the_shares_of_its_labels(groups: dict[str, Group]) -> None:
    assert sum(slide(groups, seed).finding is not None for seed in range(1, 101)) <= 1
    assert all(slide(groups, seed, images=RUN).finding is None for seed in range(1, 20))  # one label alone


def test_a_shift_is_noticed_within_thirty_images_and_named(groups: dict[str, Group]) -> None:
    shift = np.zeros(len(FACTS))
    shift[FACTS.index("stain")] = -3.0
    drift = slide(groups, 7, shift, images=30)
    assert drift.finding is not None and list(drift.finding.shifts) == ["stain"]
    assert drift.finding.shifts["stain"] < 0 and "stain -" in drift.finding.describe()
    assert "stain paler" in drifted(drift.finding)
    with speaking("de"):
        assert "Färbung" in drifted(drift.finding)
    assert drifted(None) == ""


def test_one_odd_image_is_no_drift(groups: dict[str, Group]) -> None:
    drift = Drift(groups)
    facts, features, predicted = home(np.random.default_rng(3), runs=1)
    for row in range(15):
        drift.add(facts[row] + (100 if row == 3 else 0), features[row], DETECTOR, int(predicted[row]))
    assert drift.images == 15 and drift.finding is None


def test_other_features_are_noticed_without_a_change_of_light(groups: dict[str, Group]) -> None:
    facts, features, predicted = home(np.random.default_rng(5), runs=1)
    drift = Drift(groups)
    for row in range(15):
        drift.add(facts[row], features[row] * np.linspace(0, 2, 32, dtype=np.float32), DETECTOR, int(predicted[row]))
    assert drift.finding is not None and drift.finding.probability[FEATURES] < drift.finding.probability[IMAGE]
    assert "not the light" in drifted(drift.finding)


def test_facts_follow_lamp_stain_and_focus() -> None:
    random = np.random.default_rng(0)
    pixels = np.full((64, 64, 3), (220, 210, 200), np.uint8)
    pixels[14:50, 14:50] = (120, 80, 150)
    pixels = np.clip(pixels + random.normal(0, 5, pixels.shape), 0, 255).astype(np.uint8)

    def change(changed: Any) -> dict[str, float]:
        after = image_facts(np.clip(changed, 0, 255).astype(np.uint8)) - image_facts(pixels)
        return dict(zip(FACTS, after, strict=True))

    assert change(pixels * 0.7)["brightness"] < -0.2
    assert change(pixels * np.array([1, 0.95, 0.8]))["warmth"] > 0.1
    assert change(pixels.astype(float) + (pixels.mean(axis=-1, keepdims=True) < 150) * 40)["stain"] < -0.1
    soft = (pixels.astype(float) + np.roll(pixels, 2, 0) + np.roll(pixels, 2, 1) + np.roll(pixels, -2, 0)) / 4
    assert change(soft)["sharpness"] < -0.1


def test_runs_are_successive_images_of_one_class() -> None:
    runs = chosen_runs(np.repeat([0, 1], [700, 620]))
    assert runs.shape == (40, 30) and (np.diff(runs, axis=1) == 1).all()
    assert {0, 1} == {int(row[0] >= 700) for row in runs} and not any(row[0] < 700 <= row[-1] for row in runs)
    assert chosen_runs(np.array([0, 0, 1])).shape == (0, 5)
    facts, features, predicted = home(np.random.default_rng(0), runs=10)
    few = np.stack([coordinates(each, DETECTOR) for each in features])
    assert fit_drift(facts, few, predicted, 10, LABELS) == {}, "too few runs: no reference"


@pytest.mark.parametrize("damage", ["missing", "shape", "numbers", "runs"])
def test_a_damaged_reference_is_refused(reference: dict[str, Any], damage: str) -> None:
    facts = copy.deepcopy(reference)
    if damage == "missing":
        del facts[FEATURES]
    elif damage == "shape":
        facts[IMAGE]["means"] = facts[IMAGE]["means"][:1]
    elif damage == "numbers":
        facts[IMAGE]["between"] = np.zeros((6, 6)).tolist()
    else:
        facts[IMAGE]["runs"] = 3
    with pytest.raises(BundleError, match="drift reference"):
        read_drift(facts, LABELS, "x")
    assert read_drift({}, LABELS, "x") == {}


def packed(reference: dict[str, Any]) -> Any:
    """A stand-in for a classifier with a reference."""
    bundle = SimpleNamespace(manifest=SimpleNamespace(drift=reference))
    names = {"labels": ("Benign", "Pre"), "model": SimpleNamespace(name="x"), "pooled": lambda units: units}
    return SimpleNamespace(bundle=bundle, ood_detector=DETECTOR, **names)


def test_run_notes_an_alarm_at_its_end(reference: dict[str, Any]) -> None:
    def lines(shift: float) -> list[str]:
        facts, features, _ = home(np.random.default_rng(2), runs=2)
        found = [
            Prediction(str(row), "Benign" if row < RUN else "Pre", units=features[row], facts=facts[row] + shift)
            for row in range(2 * RUN)
        ]
        noted: list[str] = []
        model = packed(reference)
        every = [*found, Prediction("x", error="damaged")]
        assert list(followed(model, drift_groups(model), every, noted.append)) == every
        return noted

    assert lines(0) == []
    (line,) = lines(-5)
    assert line.startswith("warning: after 60 images") and "brightness -" in line
    assert drift_groups(packed({})) == {}, "and nothing is followed"


def test_the_rig_counts_each_cell_once_and_records_the_alarm(
    make_rig: Callable[..., Rig], reference: dict[str, Any]
) -> None:
    rig = make_rig(unit="cell")
    session, follow = rig.session(), SlideDrift(packed(reference), rig.record)
    follow.start(session)
    dark = np.zeros((32, 32, 3), np.uint8)
    shown = [(dark, Prediction("frame", "Pre", units=np.ones(32, np.float32)))]
    for _ in range(40):
        follow.see([1], shown)
    assert follow.finding is None
    for number in range(2, 16):
        follow.see([number], shown)
    assert follow.finding is not None and follow.finding.images == 15
    assert drift_of(rig.record, session) == follow.finding and len(rig.record.events(9, kind=EVENT)) == 1
    with TestClient(rig.app, base_url="http://localhost") as client:
        client.get("/login")
        assert "differ from those that the model was fitted on" in client.get(f"/slides/{session}").text
    follow.start(session + 1)
    assert follow.finding is None and drift_of(rig.record, session + 1) is None


def test_the_live_view_says_it(make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    rig, seen = make_rig(unit="cell"), list[int]()
    finding = Finding(15, {IMAGE: 1e-6, FEATURES: 0.5}, {"brightness": -9.0})

    def see(self: SlideDrift, ids: list[int], judged: list[Any]) -> None:
        assert len(ids) == len(judged) and all(prediction.units is not None for _, prediction in judged)
        seen.extend(ids)

    monkeypatch.setattr(SlideDrift, "see", see)
    monkeypatch.setattr(SlideDrift, "finding", finding)
    rig.session()
    rig.station.start()
    try:
        live = rig.station.live()
        while not (seen and live.drift):
            live = rig.station.wait(live.number, HANG_S)
    finally:
        rig.station.stop()
    page: Any = SimpleNamespace(unit="cell", labels=demo_classifier().labels, record=rig.record)
    assert any("darker" in text for text in json.loads(LiveEncoder(page)(live))["notes"])


def test_run_gives_the_facts_of_each_image(tmp_path: Any) -> None:
    folder = draw_site(tmp_path / "site", (2, 1, 0, 0))
    classifier = demo_classifier()
    single = list(pipeline.classify(classifier, [folder], with_facts=True))
    layout = lambda images: SimpleNamespace(interpreters=1, threads=1)  # noqa: E731
    parallel = list(pipeline.classify(classifier, [folder], layout, with_facts=True))  # type: ignore[arg-type]
    assert all(
        one.facts is not None and (one.facts == two.facts).all() for one, two in zip(single, parallel, strict=True)
    )
    assert next(iter(pipeline.classify(classifier, [folder]))).facts is None


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_percentiles_by_counting_are_those_of_numpy(size: int) -> None:
    values = np.random.default_rng(size).integers(0, 766, size).astype(np.int16)
    np.testing.assert_allclose(_percentiles(values, (25, 75)), np.percentile(values, (25, 75)))


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file with a reference, one adapted from it, and fresh cells of home, of the site and under a third lamp."""
    top = tmp_path_factory.mktemp("moved")
    homes = [draw_site(top / f"home-{seed}", (count,) * 4, seed) for seed, count in ((1, 40), (2, 8))]
    parent = with_reference(DEMO_MODEL, top / "parent.tflite", homes[0])
    warm, blue = (1.0, 0.85, 0.65), (0.7, 0.8, 1.0)
    site = lit(draw_site(top / "site", (12, 12, 12, 4), 3), warm)
    adapted = adapt(AdaptConfig(parent, site, top / "adapted.tflite"))
    assert adapted.written and not any("drift" in each for each in adapted.warnings)
    fresh = lit(draw_site(top / "fresh", (8,) * 4, 4), warm)
    third = lit(draw_site(top / "third", (10,) * 4, 5), blue)
    return {"parent": parent, "adapted": adapted.out, "home": homes[1], "site": fresh, "third": third}


def lit(folder: Path, lamp: tuple[float, float, float]) -> Path:
    """The images of a folder under another lamp."""
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            pixels = np.asarray(image) * lamp
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.mark.parametrize(
    ("model", "shown", "alarm"),
    [
        ("parent", "home", False),
        ("parent", "site", True),
        ("adapted", "site", False),
        ("adapted", "home", True),
        ("adapted", "third", True),
    ],
)
def test_an_adapted_file_knows_its_site_as_its_parent_knows_home(
    moved: dict[str, Path],
    model: str,
    shown: str,
    alarm: bool,
    capfd: pytest.CaptureFixture[str],
    make_rig: Callable[..., Rig],
) -> None:
    assert main(["run", str(moved[model]), str(moved[shown])]) == 0
    assert ("differ from those that the model was fitted on" in capfd.readouterr().err) == alarm
    record = make_rig(unit="cell").record
    classifier = Classifier.open(moved[model], threads=1)
    follow = SlideDrift(classifier, record)
    follow.start(record.start_session(SessionNotes("S-1")))
    for number, path in enumerate(sorted(moved[shown].rglob("*.png"))):
        pixels = load_input(path, classifier.input)
        follow.see([number], [(pixels, pipeline.prediction(classifier, "cell", classifier.infer(pixels)))])
    assert (follow.finding is not None) == alarm == bool(record.events(9, kind=EVENT))


def test_an_adapted_file_can_be_adapted_again_and_its_scatter_stays(moved: dict[str, Path], tmp_path: Path) -> None:
    parent, adapted = (drift_groups(Classifier.open(moved[name], threads=1)) for name in ("parent", "adapted"))
    assert parent[IMAGE].site is None and adapted[IMAGE].site == 40
    again = adapt(AdaptConfig(moved["adapted"], moved["third"], tmp_path / "again.tflite", unlabelled=True))
    groups = read_drift(again.learned.drift, 4, "x")
    for found in (adapted, groups):
        np.testing.assert_array_equal(found[IMAGE].between, parent[IMAGE].between)
        assert (found[IMAGE].spread > parent[IMAGE].spread).all()
    assert np.abs(groups[IMAGE].means - adapted[IMAGE].means).max() > 0.1


def test_too_few_images_for_a_reference_are_said(moved: dict[str, Path], tmp_path: Path) -> None:
    few = lit(draw_site(tmp_path / "few", (6, 6, 6, 0), 6), (1.0, 0.85, 0.65))
    home = draw_site(tmp_path / "home", (40,) * 4, 1)
    parent = with_reference(DEMO_MODEL, tmp_path / "parent.tflite", home, exemplars=False)
    result = adapt(AdaptConfig(parent, few, tmp_path / "out.tflite"))
    assert result.learned.drift == {} and any("drift alarm" in each for each in result.warnings)
