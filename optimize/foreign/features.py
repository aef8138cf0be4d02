"""Gives a foreign classifier a second output, the features in front of its last layer, without changing the first."""

from __future__ import annotations

from dataclasses import replace

from ...edge_runtime.classifier import Classifier
from ...edge_runtime.flatbuffer import Graph, read_graph
from ...edge_runtime.interpreter import load
from ..packaging.metadata import with_metadata

FEWEST, MOST = 8, 8192
"""Numbers of features that an out-of-distribution detector can be fitted to."""
_BEHIND = frozenset({"SOFTMAX", "LOGISTIC", "RESHAPE", "SQUEEZE", "DEQUANTIZE", "QUANTIZE"})
_LAST = ("FULLY_CONNECTED", "CONV_2D")


def features_tensor(graph: Graph) -> int | None:
    """The tensor that the last dense layer or 1x1 convolution reads, one vector per image; None if there is no such."""
    main = graph.main
    operator = main.producer(main.outputs[0])
    for _ in main.operators:
        if operator is None or operator.name not in _BEHIND:
            break
        operator = main.producer(operator.inputs[0])
    if operator is None or operator.name not in _LAST:
        return None
    index = operator.inputs[0]
    tensor = main.tensors[index]
    count = tensor.shape[-1] if tensor.shape else 0
    vector = len(tensor.shape) in (2, 4) and all(size == 1 for size in tensor.shape[:-1])
    known = tensor.type == "FLOAT32" or (tensor.type in ("INT8", "UINT8") and len(tensor.scale) == 1)
    return index if vector and known and FEWEST <= count <= MOST else None


def with_features(flatbuffer: bytes, graph: Graph) -> bytes | None:
    """The model with the features as its second output; None if it has none."""
    index = features_tensor(graph)
    if index is None or len(graph.main.outputs) != 1:
        return None
    return with_metadata(flatbuffer, {}, outputs=(graph.main.outputs[0], index))


def with_flatbuffer(own: Classifier, flatbuffer: bytes) -> Classifier:
    """The classifier with another flatbuffer of the same input and first output."""
    bundle = own.bundle
    assert bundle is not None
    graph = read_graph(flatbuffer, bundle.path)
    model = load(flatbuffer, own.threads, bundle.path, graph.main.outputs[0], own.model.input.shape)
    changed = replace(bundle, flatbuffer=flatbuffer, graph=graph)
    return Classifier(
        model, own.labels, own.input, threads=own.threads, logits=own.logits, sigmoid=own.sigmoid, bundle=changed
    )
