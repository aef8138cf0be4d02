"""The layer report finds the layer that spoils an int8 network, and leaving it in float mends it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fixtures_networks import LABELS, SPEC, blobs, network

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.preprocess import normalize
from edgeall.optimize.quantization.convert import convert
from edgeall.optimize.quantization.fold import fold_batch_normalization
from edgeall.optimize.quantization.layer_error import LayerError, layer_error_text, layer_errors
from edgeall.optimize.quantization.placement import extremes, input_range, place, ranges, rounded

PIXELS = blobs(8)
IMAGES = normalize(PIXELS, SPEC)
CULPRIT = "conv1"


@pytest.fixture(scope="module")
def spoilt() -> Any:
    """One channel of a layer is 500 times the others, what reads it takes that back: the same answers in float."""
    folded = fold_batch_normalization(network("activation_inside"))
    kernel, bias = folded.get_layer(CULPRIT).get_weights()
    factor = np.where(np.arange(len(bias)) == 2, 500.0, 1.0)
    before = folded(IMAGES, training=False).numpy()
    folded.get_layer(CULPRIT).set_weights([kernel * factor, bias * factor])
    kernel, bias = folded.get_layer("bn1").get_weights()
    folded.get_layer("bn1").set_weights([kernel / factor[:, None], bias])
    np.testing.assert_allclose(folded(IMAGES, training=False).numpy(), before, atol=1e-5)
    return folded


def _errors(folded: Any, worst: int = 3) -> list[LayerError]:
    placement = place(folded, input_range(SPEC))
    spanned = ranges(placement, extremes(folded, placement, [IMAGES]))
    return layer_errors(folded, placement, spanned, [IMAGES[:5], IMAGES[5:]], worst)


def _answers(folded: Any, float_layers: tuple[str, ...] = ()) -> Any:
    placement = place(folded, input_range(SPEC), float_layers)
    spanned = ranges(placement, extremes(folded, placement, [IMAGES]))
    flatbuffer = convert(rounded(folded, placement, spanned), "ptq-int8", SPEC, placement.floats)
    classifier = Classifier.from_flatbuffer(flatbuffer, LABELS, SPEC)
    return np.stack([classifier.predict(image) for image in PIXELS])


def test_the_worst_layer_comes_first_and_in_float_the_answers_return(spoilt: Any) -> None:
    errors = _errors(spoilt)
    assert errors[0].layer == CULPRIT
    assert errors[0].kl > 10 * errors[1].kl >= 0
    assert errors[0].sqnr_db > 30, "taken together, the large channel hides it"
    assert errors[0].channel_sqnr_db < 10
    exact = spoilt(IMAGES, training=False).numpy()
    assert np.abs(_answers(spoilt, (CULPRIT,)) - exact).mean() < 0.2 * np.abs(_answers(spoilt) - exact).mean()


def test_every_rounded_output_has_its_figures(spoilt: Any) -> None:
    placement = place(spoilt, input_range(SPEC))
    measured = extremes(spoilt, placement, [IMAGES])
    measured["conv2"] = (0.0, 0.5 * measured["conv2"][1])
    errors = {
        row.layer: row
        for row in layer_errors(spoilt, placement, ranges(placement, measured), [IMAGES[:5], IMAGES[5:]], worst=2)
    }
    assert set(errors) == set(placement.outputs) - {spoilt.layers[0].name}
    halved, high = errors["conv2"], measured["conv2"][1]
    values = _output(spoilt, "conv2")
    assert halved.scale == pytest.approx(high / 255)
    assert halved.clipped_frac == pytest.approx((values > high * (1 + 1 / 510)).mean()) != 0
    assert halved.rmse_scale > 1
    assert 0.2 < errors["features" if "features" in errors else "fc1"].rmse_scale < 1
    assert halved.kind == "Conv2D"
    assert all(row.network_sqnr_db < row.sqnr_db + 3 for row in errors.values())
    assert all(30 < row.weights_sqnr_db < 60 for row in errors.values() if row.weights_sqnr_db)
    assert sum(row.kl is not None for row in errors.values()) == 2


def test_the_effect_is_that_of_the_layer_alone(spoilt: Any) -> None:
    errors = {row.layer: row for row in _errors(spoilt, worst=99)}
    logits = _output(spoilt, "logits")
    step = errors["logits"].scale
    # its kernel is rounded too, so only the size of the effect is known: about a step of a logit
    assert 0.05 * step < errors["logits"].max_change < 2 * step
    assert np.abs(logits).max() / 255 < step < np.ptp(logits) / 200


def _output(folded: Any, name: str) -> Any:
    from edgeall.models.keras_compat import keras

    return keras.Model(folded.input, folded.get_layer(name).output)(IMAGES, training=False).numpy()


def test_the_table_names_the_worst_and_counts_the_rest(spoilt: Any) -> None:
    errors = _errors(spoilt)
    text = layer_error_text(errors, most=2)
    lines = text.splitlines()
    assert lines[2].startswith(CULPRIT)
    assert len(lines) == 5
    assert f"{len(errors) - 2} layers with less error left out" in lines[-1]
    assert "left out" not in layer_error_text(errors, most=len(errors))
