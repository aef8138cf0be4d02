"""The layer report as node data of Google's Model Explorer, which colours the operators of a file by it.

Model Explorer finds an operator by the name of one of its output tensors, in the graph of that name.
Source: ``node_data_builder.py`` of ai-edge-model-explorer 0.1.34, https://github.com/google-ai-edge/model-explorer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...edge_runtime.flatbuffer import read_graph
from ...edge_runtime.tools.atomic import atomic_write
from .convert import layers_of
from .layer_error import LayerError

GRADIENT = (
    {"stop": 0, "bgColor": "#d7301f", "textColor": "#ffffff"},
    {"stop": 0.5, "bgColor": "#fdcc8a", "textColor": "#000000"},
    {"stop": 1, "bgColor": "#ffffff", "textColor": "#000000"},
)
"""Colours from the smallest value, the worst layer, to the largest one."""


def node_data(errors: Iterable[LayerError], flatbuffer: bytes) -> dict[str, Any]:
    """The ``channel_sqnr_db`` of each layer, by graph and tensor.

    Args:
        errors: of the network in ``flatbuffer``. A layer without noise has no value.
        flatbuffer: the converted model. Its converter names a tensor after the layers that it comes from; an operator
            that computes several of them gets the smallest value.

    Returns:
        ``{graph: {"results": {tensor: {"value": decibels}}, "gradient": [...]}}``
    """
    decibels = {row.layer: row.channel_sqnr_db for row in errors if row.channel_sqnr_db is not None}
    graph = read_graph(flatbuffer, "model").main
    results = {}
    for operator in graph.operators:
        for name in (graph.tensors[index].name for index in operator.outputs):
            if found := [decibels[layer] for layer in layers_of(name) if layer in decibels]:
                results[name] = {"value": min(found)}
    return {graph.name: {"results": results, "gradient": list(GRADIENT)}}


def write_node_data(path: Path, errors: Iterable[LayerError], flatbuffer: bytes) -> None:
    """Write `node_data` as JSON.

    Raises:
        NoSpaceError: the disk is full.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(node_data(errors, flatbuffer), indent=2) + "\n", encoding="utf-8")
