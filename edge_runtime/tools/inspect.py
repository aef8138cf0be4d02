"""Everything a model file says about itself, and whether it is true."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ...console.tables import record
from .. import interpreter
from ..bundle import Bundle, open_bundle
from ..classifier import Classifier
from ..errors import BundleError
from ..flatbuffer import METADATA, Tensor
from ..foreign import scores_of, sizes_of
from .golden import check_golden


def inspect_model(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Open, check and describe a packed or foreign model.

    Returns:
        path, file_bytes, flatbuffer_bytes, weights_bytes (constant data of all tensors);
        packed: whether it is one of ours;
        manifest: ``edgeall.json`` as it is, None for a foreign model;
        labels, normalization (``[mean, std]``): None where the file doesn't say;
        digest_ok: True (a wrong one raises), None for a foreign model, which has none;
        golden_ok: whether every golden image gives here what it gave where the model was packed; None without;
        golden: name, pixels_ok, ok, difference, tolerance, unit of each;
        input, output: name, type, shape (of the input None for each size that the model leaves open, but for the
            batch), scale, zero_point;
        scores: what a foreign model's output is, see `edgeall.edge_runtime.foreign.scores_of`; None where it scores no
            labels that exclude each other; ``probabilities`` of a packed one;
        operators, tensor_types: name to count; float_tensors: how many of them hold floats;
        tflite_metadata: whether it has some; model_card: Markdown or None; runtime.

    Raises:
        BundleError: as `open_bundle`, `Classifier.open` and `check_golden` do.
    """
    bundle = open_bundle(path)
    graph = bundle.graph
    types = graph.tensor_types()
    golden = _golden(bundle)
    return {
        "path": bundle.path,
        "file_bytes": bundle.file_bytes,
        "flatbuffer_bytes": len(bundle.flatbuffer),
        "weights_bytes": sum(tensor.constant_bytes for subgraph in graph.subgraphs for tensor in subgraph.tensors),
        "packed": bundle.manifest is not None,
        "manifest": json.loads(bundle.manifest.to_json()) if bundle.manifest else None,
        "labels": list(bundle.labels) if bundle.labels is not None else None,
        "normalization": list(bundle.normalization) if bundle.normalization is not None else None,
        "digest_ok": True if bundle.manifest else None,
        "golden_ok": all(result["ok"] for result in golden) if golden else None,
        "golden": golden,
        "input": [_input(graph.main.tensors[index]) for index in graph.main.inputs],
        "output": [_tensor(graph.main.tensors[index]) for index in graph.main.outputs],
        "scores": "probabilities" if bundle.manifest else _scores(bundle),
        "operators": graph.op_counts(),
        "tensor_types": types,
        "float_tensors": sum(count for name, count in types.items() if "FLOAT" in name),
        "tflite_metadata": METADATA in graph.metadata,
        "model_card": bundle.model_card,
        "runtime": interpreter.runtime_version(),
    }


def _golden(bundle: Bundle) -> list[dict[str, Any]]:
    if bundle.manifest is None:
        return []
    classifier = Classifier.from_bundle(bundle, threads=1)
    return [
        {
            "name": result.name,
            "ok": result.ok,
            "pixels_ok": result.pixels_ok,
            "difference": result.difference,
            "tolerance": result.tolerance,
            "unit": result.unit,
        }
        for result in check_golden(classifier)
    ]


def _scores(bundle: Bundle) -> str | None:
    try:
        return scores_of(bundle.graph, bundle.path)
    except BundleError:
        return None


def _input(tensor: Tensor) -> dict[str, Any]:
    sizes = [None if size < 0 else size for size in sizes_of(tensor)]
    return _tensor(tensor) | {"shape": [*tensor.shape[:1], *sizes[1:]]}


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "type": tensor.type,
        "shape": list(tensor.shape),
        "scale": tensor.scale[0] if tensor.scale else None,
        "zero_point": tensor.zero_point[0] if tensor.zero_point else None,
    }


_SCORES = {
    "probabilities": "probabilities of the labels",
    "logits": "logits, or a model that is no classifier: a softmax is applied to them",
    "sigmoid": "one sigmoid: the second label's probability",
    None: "no classifier of one label: each output is scored by itself",
}


def inspect_text(facts: Mapping[str, Any]) -> str:
    """What `edgeall.edge_runtime.tools.inspect.inspect_model` found."""
    manifest = facts["manifest"] or {}
    labels = facts["labels"]
    rows: dict[str, object] = {
        "file": f"{facts['path']}, {facts['file_bytes']:,} bytes",
        "flatbuffer": f"{facts['flatbuffer_bytes']:,} bytes, of which weights {facts['weights_bytes']:,}",
        "packed by edgeall": "yes" if facts["packed"] else "no: a foreign model, without digest and golden images",
    }
    if manifest:
        rows |= {
            "name": f"{manifest['name']}, created {manifest['created']}",
            "digest": "matches",
            "golden images": _golden_verdict(facts),
            "quantization": manifest["quantization"],
            "trained": manifest["training"],
            "metrics": {key: value for key, value in manifest["metrics"].items() if _is_short(value)},
            "positive labels": manifest["positive_labels"] or "none known",
            "calibration": manifest["calibration"] or "none",
            "decision": manifest["decision"] or "the most probable label",
            "novelty": {key: value for key, value in manifest["novelty"].items() if _is_short(value)} or "none",
            "fit": manifest["input"]["fit"],
        }
    rows |= {
        "labels": "not in the file" if labels is None else labels if len(labels) <= 20 else f"{len(labels):,}",
        "normalization": "not in the file" if facts["normalization"] is None else _normalization(facts),
        "input": "; ".join(map(_tensor_text, facts["input"])),
        "output": "; ".join(map(_tensor_text, facts["output"])),
        "scores": _SCORES[facts["scores"]],
        "TFLite metadata": "yes" if facts["tflite_metadata"] else "no",
        "tensors": facts["tensor_types"],
        "operators": facts["operators"],
        "runtime": facts["runtime"],
        "intended use": manifest.get("intended_use"),
    }
    return record(rows)


def _golden_verdict(facts: Mapping[str, Any]) -> str:
    results = facts["golden"]
    if not results:
        return "none"
    worst = max(results, key=lambda result: result["difference"])
    source = facts["manifest"]["golden"].get("source", "unknown")
    pixels = "" if all(result["pixels_ok"] for result in results) else ", PREPROCESSING DIFFERS"
    verdict = "as packed" if facts["golden_ok"] else "NOT as packed"
    return (
        f"{len(results)} {verdict}, largest difference {worst['difference']:g} {worst['unit']} "
        f"(allowed {worst['tolerance']:g}){pixels}; from: {source}"
    )


def _normalization(facts: Mapping[str, Any]) -> str:
    mean, std = facts["normalization"]
    return f"(pixel - {mean:g}) / {std:g}"


def _tensor_text(tensor: Mapping[str, Any]) -> str:
    shape = "x".join("any" if size is None else str(size) for size in tensor["shape"])
    if tensor["scale"] is None:
        return f"{tensor['type']} {shape}"
    return f"{tensor['type']} {shape}, (unit - {tensor['zero_point']}) * {tensor['scale']:.8g}"


def _is_short(value: object) -> bool:
    return isinstance(value, (str, int, float)) or value is None
