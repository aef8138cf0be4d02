"""Describes and verifies a model file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...console.tables import record
from .. import interpreter
from ..bundle import Bundle, open_bundle
from ..errors import BundleError
from ..flatbuffer import METADATA, Tensor
from ..foreign import scores_of, sizes_of
from ..manifest import Manifest
from ..preprocess import Channels, numbers_text
from ..results import Result
from ..tasks import open_model
from .golden import GoldenResult, check_golden


@dataclass(frozen=True)
class TensorInfo(Result):
    """An input or output. ``shape`` has None for each variable size of the input, except the batch."""

    name: str
    type: str
    shape: list[int | None]
    scale: float | None
    zero_point: int | None


@dataclass(frozen=True)
class Inspection(Result):
    """Description of a model file.

    Attributes:
        weights_bytes: constant data of all tensors.
        packed: whether edgeall packed it.
        manifest: content of ``edgeall.json``; None for a foreign model.
        labels: None if unknown, like ``normalization`` (``[mean, std]``).
        digest_ok: True (a wrong digest raises); None for a foreign model, which has no digest.
        golden_ok: whether every golden image gives the expected output; None without golden images.
        scores: kind of a foreign model's output, see `edgeall.edge_runtime.foreign.scores_of`; None for a multi-label
            model; of a packed classifier as in its manifest; ``mask`` for a segmentation model.
        operators: counts by name, like ``tensor_types``.
        model_card: Markdown.
        signature_ok: whether the file is signed with a given key; None without a key.
    """

    path: str
    file_bytes: int
    flatbuffer_bytes: int
    weights_bytes: int
    packed: bool
    manifest: dict[str, Any] | None
    labels: list[str] | None
    normalization: list[Channels] | None
    digest_ok: bool | None
    golden_ok: bool | None
    golden: list[GoldenResult]
    input: list[TensorInfo]
    output: list[TensorInfo]
    scores: str | None
    operators: dict[str, int]
    tensor_types: dict[str, int]
    float_tensors: int
    tflite_metadata: bool
    model_card: str | None
    runtime: str
    signature_ok: bool | None = None


def inspect_model(path: str | os.PathLike[str]) -> Inspection:
    """Open, verify and describe a packed or foreign model.


    Raises:
        BundleError: as `open_bundle`, `Classifier.open` and `check_golden` do.
    """
    bundle = open_bundle(path)
    graph, packed = bundle.graph, bundle.manifest is not None
    types = graph.tensor_types()
    golden = check_golden(open_model(bundle, 1)) if packed else []
    return Inspection(
        path=bundle.path,
        file_bytes=bundle.file_bytes,
        flatbuffer_bytes=len(bundle.flatbuffer),
        weights_bytes=sum(tensor.constant_bytes for subgraph in graph.subgraphs for tensor in subgraph.tensors),
        packed=packed,
        manifest=json.loads(bundle.manifest.to_json()) if bundle.manifest else None,
        labels=list(bundle.labels) if bundle.labels is not None else None,
        normalization=list(bundle.normalization) if bundle.normalization is not None else None,
        digest_ok=True if packed else None,
        golden_ok=all(result.ok for result in golden) if golden else None,
        golden=golden,
        input=[_input(graph.main.tensors[index]) for index in graph.main.inputs],
        output=[_tensor(tensor, tensor.shape) for tensor in (graph.main.tensors[i] for i in graph.main.outputs)],
        scores=_scores_of(bundle.manifest) if bundle.manifest else _scores(bundle),
        operators=graph.op_counts(),
        tensor_types=types,
        float_tensors=sum(count for name, count in types.items() if "FLOAT" in name),
        tflite_metadata=METADATA in graph.metadata,
        model_card=bundle.model_card,
        runtime=interpreter.runtime_version(),
    )


def _scores(bundle: Bundle) -> str | None:
    try:
        return scores_of(bundle.graph, bundle.path)
    except BundleError:
        return None


def _input(tensor: Tensor) -> TensorInfo:
    sizes = [None if size < 0 else size for size in sizes_of(tensor)]
    return _tensor(tensor, [*tensor.shape[:1], *sizes[1:]])


def _tensor(tensor: Tensor, shape: Iterable[int | None]) -> TensorInfo:
    scale = tensor.scale[0] if tensor.scale else None
    return TensorInfo(tensor.name, tensor.type, list(shape), scale, tensor.zero_point[0] if tensor.zero_point else None)


def _scores_of(manifest: Manifest) -> str:
    return "mask" if manifest.task == "segmentation" else manifest.scores


_SCORES = {
    "probabilities": "probabilities of the labels",
    "mask": "probabilities of the labels for each pixel; the size of the red cells",
    "logits": "logits: edgeall applies a softmax (or the model is not a classifier)",
    "sigmoid": "one sigmoid: the probability of the second label",
    None: "multi-label, which is not supported",
}


def inspect_text(facts: Inspection) -> str:
    """An inspection as text."""
    manifest = facts.manifest or {}
    labels = facts.labels
    rows: dict[str, object] = {
        "file": f"{facts.path}, {facts.file_bytes:,} bytes",
        "flatbuffer": f"{facts.flatbuffer_bytes:,} bytes, {facts.weights_bytes:,} of them weights",
        "packed by edgeall": "yes" if facts.packed else "no: a foreign model has no digest and no golden images",
    }
    if manifest:
        rows |= {
            "name": f"{manifest['name']}, created {manifest['created']}",
            "task": _task_text(manifest),
            "digest": "matches",
            "golden images": _golden_verdict(facts),
            "quantization": manifest["quantization"],
            "trained": manifest["training"],
            "metrics": {key: value for key, value in manifest["metrics"].items() if _is_short(value)},
            **(_decision_rows(manifest) if manifest["task"] == "classification" else {}),
            "fit": manifest["input"]["fit"],
            **_lineage_rows(manifest.get("lineage", [])),
        }
    rows |= {
        "labels": "not in the file" if labels is None else labels if len(labels) <= 20 else f"{len(labels):,}",
        "normalization": "not in the file" if facts.normalization is None else _normalization(*facts.normalization),
        "input": "; ".join(map(_tensor_text, facts.input)),
        "output": "; ".join(map(_tensor_text, facts.output)),
        "scores": _SCORES[facts.scores],
        "TFLite metadata": "yes" if facts.tflite_metadata else "no",
        "tensors": facts.tensor_types,
        "operators": facts.operators,
        "runtime": facts.runtime,
        "intended use": manifest.get("intended_use"),
    }
    return record(rows)


def _task_text(manifest: Mapping[str, Any]) -> str:
    if "segmentation" not in manifest:
        return str(manifest["task"])
    return f"{manifest['task']} of tiles in which a red cell measures {manifest['segmentation']['red_cell_px']:g} px"


def _decision_rows(manifest: Mapping[str, Any]) -> dict[str, object]:
    return {
        "positive labels": manifest["positive_labels"] or "unknown",
        "calibration": manifest["calibration"] or "none",
        "decision": manifest["decision"] or "the most probable label",
        "novelty": {key: value for key, value in manifest["novelty"].items() if _is_short(value)} or "none",
    }


def _lineage_rows(lineage: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """A row for each adaptation to another laboratory."""
    rows: dict[str, object] = {}
    for number, entry in enumerate(lineage, start=1):
        labelled = entry.get("labelled")
        text = f"{entry['when']}, by {entry['by']}, {entry['images']} images of a site"
        text += f", from {entry['parent_sha256'][:12]}"
        if labelled is None:
            text += "; without labels: only the out-of-distribution detector moved"
        else:
            text += f"; balanced accuracy there {_change(labelled['site'])}"
            text += f", at home {_change(labelled['home'])}" if labelled.get("home") else ""
        rows[f"adapted ({number})" if len(lineage) > 1 else "adapted"] = text
    return rows


def _change(parts: Mapping[str, Any]) -> str:
    before, after = (f"{100 * parts[key]['balanced_accuracy']:.1f}" for key in ("before", "after"))
    return f"{before} to {after} %"


def _golden_verdict(facts: Inspection) -> str:
    results = facts.golden
    if not results:
        return "none"
    worst = max(results, key=lambda result: result.difference)
    source = (facts.manifest or {})["golden"].get("source", "unknown")
    pixels = "" if all(result.pixels_ok for result in results) else ", PREPROCESSING DIFFERS"
    verdict = "as packed" if facts.golden_ok else "NOT as packed"
    return (
        f"{len(results)} {verdict}, largest difference {worst.difference:g} {worst.unit} "
        f"(allowed {worst.tolerance:g}){pixels}; from: {source}"
    )


def _normalization(mean: Channels, std: Channels) -> str:
    return f"(pixel - {numbers_text(mean)}) / {numbers_text(std)}"


def _tensor_text(tensor: TensorInfo) -> str:
    shape = "x".join("any" if size is None else str(size) for size in tensor.shape)
    if tensor.scale is None:
        return f"{tensor.type} {shape}"
    return f"{tensor.type} {shape}, (unit - {tensor.zero_point}) * {tensor.scale:.8g}"


def _is_short(value: object) -> bool:
    return isinstance(value, (str, int, float)) or value is None
