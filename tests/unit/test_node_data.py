"""The overlay for Model Explorer names the operators of the file, and holds the figures of the layer report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema
from fixtures_networks import SPEC, blobs, network

from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.preprocess import normalize
from edgeall.optimize.quantization.config import QuantizeConfig
from edgeall.optimize.quantization.convert import convert, layers_of, with_second_output
from edgeall.optimize.quantization.fold import fold_batch_normalization
from edgeall.optimize.quantization.layer_error import LayerError, layer_errors
from edgeall.optimize.quantization.node_data import write_node_data
from edgeall.optimize.quantization.placement import extremes, input_range, place, ranges, rounded

IMAGES = normalize(blobs(4), SPEC)


def _converted(name: str, float_layers: tuple[str, ...] = ()) -> tuple[list[LayerError], bytes]:
    folded = fold_batch_normalization(network(name))
    placement = place(folded, input_range(SPEC), float_layers)
    spanned = ranges(placement, extremes(folded, placement, [IMAGES]))
    whole = with_second_output(rounded(folded, placement, spanned), False)
    errors = layer_errors(folded, placement, spanned, [IMAGES], worst=0)
    return errors, convert(whole, "ptq-int8", SPEC, placement.floats)


def _operators(flatbuffer: bytes) -> tuple[str, list[str]]:
    """Name of the graph, and names of all tensors that its operators write, by Google's reader."""
    (graph,) = schema.ModelT.InitFromPackedBuf(flatbuffer, 0).subgraphs
    return graph.name.decode(), [graph.tensors[at].name.decode() for one in graph.operators for at in one.outputs]


@pytest.mark.parametrize("name", ["squeeze_excite", "pooled_then_rectified", "dense_block"])
def test_every_layer_with_an_error_colours_its_operator(name: str, tmp_path: Path) -> None:
    errors, flatbuffer = _converted(name)
    write_node_data(tmp_path / "layers.json", errors, flatbuffer)
    data = json.loads((tmp_path / "layers.json").read_text())
    graph, written = _operators(flatbuffer)
    assert list(data) == [graph]
    results: dict[str, Any] = data[graph]["results"]
    assert set(results) <= set(written)
    noisy = {row.layer: row.channel_sqnr_db for row in errors if row.channel_sqnr_db is not None}
    shown = {tensor: noisy.keys() & layers_of(tensor) for tensor in written}
    assert set().union(*shown.values()) == noisy.keys()
    assert results == {
        tensor: {"value": min(noisy[layer] for layer in layers)} for tensor, layers in shown.items() if layers
    }
    json.dumps(data, allow_nan=False)
    assert [stop["stop"] for stop in data[graph]["gradient"]] == [0, 0.5, 1]


def test_layers_in_float_have_no_value(tmp_path: Path) -> None:
    errors, flatbuffer = _converted("activation_inside", ("conv2",))
    write_node_data(tmp_path / "layers.json", errors, flatbuffer)
    ((_, data),) = json.loads((tmp_path / "layers.json").read_text()).items()
    named = {layer for tensor in data["results"] for layer in layers_of(tensor)}
    assert "conv1" in named and "conv2" not in named
    assert any("conv2" in layers_of(tensor) for tensor in _operators(flatbuffer)[1])


@pytest.mark.parametrize(("force", "told"), [(False, "exists"), (True, "is a folder")])
def test_a_report_that_cannot_be_written_is_refused_before_any_work(force: bool, told: str, tmp_path: Path) -> None:
    report = tmp_path / "layers.json"
    report.mkdir() if force else report.touch()
    config = QuantizeConfig(tmp_path, "ptq-int8", tmp_path / "m.tflite", layer_report=report, force=force)
    with pytest.raises(UsageError, match=told) as caught:
        config.check()
    assert "--layer-report" in caught.value.hint
    with pytest.raises(UsageError, match="both --out and --layer-report"):
        QuantizeConfig(tmp_path, "ptq-int8", tmp_path / "m", layer_report=tmp_path / "m").check()
