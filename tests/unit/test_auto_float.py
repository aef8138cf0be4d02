"""--auto-float names as few layers as it takes, and ends in the same file as naming them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fixtures_networks import LABELS, SPEC, blobs, network
from hypothesis import given
from hypothesis import strategies as st

from edgeall.console.progress import Progress
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import EdgeallError, GateError, UsageError
from edgeall.edge_runtime.preprocess import normalize
from edgeall.models.keras_compat import keras
from edgeall.optimize.quantization import auto_float
from edgeall.optimize.quantization.auto_float import candidates, fewest, leave_in_float
from edgeall.optimize.quantization.config import QuantizeConfig
from edgeall.optimize.quantization.convert import float_tensors, with_second_output
from edgeall.optimize.quantization.fold import fold_batch_normalization
from edgeall.optimize.quantization.job import Converted, Folded, Job, convert_integer, convert_network
from edgeall.optimize.quantization.placement import input_range, place
from edgeall.train.batches import Images

PIXELS = blobs(8)
BOUNDS = input_range(SPEC)
CULPRIT = "conv1"


@given(st.integers(0, 200), st.integers(1, 210))
def test_the_fewest_layers_are_found_by_few_conversions(most: int, needed: int) -> None:
    tried: list[int] = []

    def meets(count: int) -> bool:
        tried.append(count)
        return count >= needed

    assert fewest(most, meets) == (needed if needed <= most else None)
    assert len(set(tried)) == len(tried) and all(1 <= count <= most for count in tried)
    assert len(tried) <= 2 * math.log2(max(most, 1)) + 1


def test_only_layers_that_change_something_are_candidates() -> None:
    folded = fold_batch_normalization(network("dense_block"))
    placement = place(folded, BOUNDS)
    worst = [name for name in placement.outputs if name != folded.layers[0].name]
    assert len(set(placement.outputs.values())) < len(placement.outputs), "some share a scale"
    found = candidates(folded, BOUNDS, ["probabilities", *worst])
    assert "probabilities" not in found, "its output has a fixed scale"
    assert len(found) < len(worst) and set(found) < set(worst)
    assert found == sorted(found, key=worst.index)
    assert place(folded, BOUNDS, found) == place(folded, BOUNDS, worst), "the others are in float with them"
    assert found[0] not in candidates(folded, BOUNDS, worst, found[:1])


def test_layers_that_move_integers_to_one_in_float_may_be_in_float() -> None:
    placement = place(fold_batch_normalization(network("factorized_reduction")), BOUNDS, ("two",))
    assert placement.movers == () and "two" in placement.floats
    folded = fold_batch_normalization(network("input_maps"))
    assert place(folded, BOUNDS).movers == ()
    assert place(folded, BOUNDS, ("stem",)).movers == ("pad",)


@dataclass(frozen=True)
class _Job(Job):
    """Without a run: its task measures how far a file's answers are from the float network's, in hundredths."""

    @property
    def task(self) -> Any:
        def validation_drop(job: Job, network: Folded) -> Any:
            exact = network.folded(normalize(PIXELS, SPEC), training=False).numpy()
            return lambda flatbuffer: 100.0 * float(np.abs(_answers(flatbuffer) - exact).mean())

        return SimpleNamespace(
            name="classification",
            sample=lambda images, count, seed: images,
            outputs=with_second_output,
            validation_drop=validation_drop,
        )


def _answers(flatbuffer: bytes) -> Any:
    classifier = Classifier.from_flatbuffer(flatbuffer, LABELS, SPEC)
    return np.stack([classifier.predict(image) for image in PIXELS])


Case = tuple[_Job, Folded, Converted, float]


@pytest.fixture(scope="module")
def spoilt() -> Case:
    """A network that one channel of one layer spoils in int8, converted, and what it loses."""
    folded = fold_batch_normalization(network("activation_inside"))
    factor = np.where(np.arange(8) == 2, 500.0, 1.0)
    for name, scale in ((CULPRIT, factor), ("bn1", 1 / factor[:, None])):
        kernel, bias = folded.get_layer(name).get_weights()
        folded.get_layer(name).set_weights([kernel * scale, bias * factor if name == CULPRIT else bias])
    rows = np.arange(len(PIXELS))
    images = Images(PIXELS, rows, rows % len(LABELS), SPEC)
    config = QuantizeConfig(Path("run"), "ptq-int8", Path("model.tflite"), auto_float=True)
    facts: Any = SimpleNamespace(settings=SimpleNamespace(augment="none", seed=0))
    split: Any = None
    subsets = {"train": images, "validation": images}
    job = _Job(config, Progress(quiet=True), facts, Path("data"), split, SPEC, subsets)
    found = Folded(folded, place(folded, BOUNDS), np.zeros((0, 0), np.float32))
    converted = convert_network(job, found)
    return job, found, converted, job.task.validation_drop(job, found)(converted.flatbuffer)


def _with(job: _Job, **settings: Any) -> _Job:
    return replace(job, config=replace(job.config, **settings))


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Job, Folded]]:
    """What is converted in the end, instead of its conversion."""
    found: list[tuple[Job, Folded]] = []

    def recorder(job: Job, network: Folded) -> Converted:
        found.append((job, network))
        return Converted(b"", b"", "")

    monkeypatch.setattr(auto_float, "convert_network", recorder)
    return found


def test_the_culprit_alone_is_left_in_float_as_if_it_had_been_named(
    spoilt: Case, named: list[tuple[Job, Folded]]
) -> None:
    job, network, converted, lost = spoilt
    chosen, placed, result = leave_in_float(_with(job, max_drop=lost / 2), network, converted)
    assert result.auto_float is not None
    assert result.auto_float.layers == [CULPRIT] and chosen.config.float_layers == (CULPRIT,)
    assert result.auto_float.argument == f"--float-layers {CULPRIT}"
    assert [trial.layers for trial in result.auto_float.trials] == [0, 1]
    assert result.auto_float.trials[0].drop_points == pytest.approx(lost)
    assert placed.placement == place(network.folded, BOUNDS, (CULPRIT,))
    assert named == [(chosen, placed)]


def test_the_second_output_is_rounded_where_its_layer_is_in_float(spoilt: Case) -> None:
    job, network, converted, _ = spoilt
    assert converted.integer is not None and converted.integer.second == "fc2_relu"
    placement = place(network.folded, BOUNDS, (CULPRIT, "fc2_relu"))
    flatbuffer, _ = convert_integer(job, converted.integer, placement)
    assert [name for name in float_tensors(flatbuffer) if name.endswith("logits/BiasAdd")], "it reads the float tensor"
    classifier = Classifier.from_flatbuffer(flatbuffer, LABELS, SPEC)
    features = keras.Model(network.folded.input, network.folded.get_layer("fc2_relu").output)
    exact = features(normalize(PIXELS, SPEC), training=False).numpy()
    units = np.stack([classifier.infer(image).units for image in PIXELS])
    assert units.dtype == np.uint8
    np.testing.assert_allclose(units * exact.max() / 255, exact, atol=0.05 * exact.max())


def test_layers_that_the_user_names_stay_in_float_too(
    spoilt: Case, named: list[tuple[Job, Folded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, network, converted, lost = spoilt
    monkeypatch.setattr(auto_float, "measure_layers", lambda *_: [SimpleNamespace(layer=CULPRIT)])
    given = _with(job, float_layers=("conv2",), max_drop=lost / 2)
    chosen, _, result = leave_in_float(given, network, converted)
    assert result.auto_float is not None and result.auto_float.layers == ["conv2", CULPRIT]
    assert chosen.config.float_layers == ("conv2", CULPRIT) and len(named) == 1
    assert [trial.layers for trial in result.auto_float.trials] == [0, 1]


def test_a_file_that_meets_the_gate_stays_integer(spoilt: Case, named: list[tuple[Job, Folded]]) -> None:
    job, network, converted, lost = spoilt
    chosen, placed, result = leave_in_float(_with(job, max_drop=2 * lost), network, converted)
    assert (chosen.config.float_layers, placed, named) == ((), network, [])
    assert result.flatbuffer == converted.flatbuffer
    assert result.auto_float is not None and result.auto_float.layers == []
    assert [trial.layers for trial in result.auto_float.trials] == [0]


def test_a_gate_that_no_layers_meet_is_missed_and_says_what_was_tried(
    spoilt: Case, named: list[tuple[Job, Folded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, network, converted, lost = spoilt
    rows = [SimpleNamespace(layer=name) for name in (CULPRIT, "conv2", "fc1")]
    monkeypatch.setattr(auto_float, "measure_layers", lambda *_: rows)
    convert_integer = auto_float.convert_integer

    def refused(job: Job, integer: Any, placement: Any) -> Any:
        if "fc1" not in placement.outputs:
            return convert_integer(job, integer, placement)
        raise EdgeallError("conversion left others in float")

    monkeypatch.setattr(auto_float, "convert_integer", refused)
    with pytest.raises(GateError) as caught:
        leave_in_float(_with(job, max_drop=-1.0), network, converted)
    message = caught.value.message
    assert caught.value.exit_status == 3 and "model.tflite was not written" in message
    assert f"0: {lost:.2f}, 1: not converted, 2: not converted, 3: " in message
    assert "--auto-float" not in caught.value.hint and named == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scheme": "ptq-int8"}, "--auto-float without --max-drop"),
        ({"scheme": "float16", "max_drop": 1.0}, "--auto-float requires an int8 scheme"),
    ],
)
def test_it_needs_a_gate_and_an_integer_scheme(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        QuantizeConfig(tmp_path, out=tmp_path / "m.tflite", auto_float=True, **settings).check()
