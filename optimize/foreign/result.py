"""The result of packing a foreign model, and its text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...console.tables import percent, record
from ...edge_runtime.results import OPTIONAL, SPREAD, Result
from ...edge_runtime.tools.decisions import Decisions
from ...train.evaluation.metrics import Metrics
from ...train.evaluation.reliability import Review
from ...train.evaluation.text import metrics_text
from ...train.imports.conventions import Trial, trials_text
from ...train.imports.summary import UNKNOWN
from ..quantization.result import AutoFloat

MOST_LABELS = 20
"""Largest number of labels that are all listed."""


@dataclass(frozen=True)
class PackResult(Result):
    """What `edgeall.optimize.foreign.packing.pack_foreign` measured and wrote.

    Attributes:
        out: path of the packed model, with ``file_bytes`` its size.
        labels: of the outputs, in order.
        input: in words.
        normalization: its name, and ``normalization_from``, how it is known.
        trials: every normalization that was tried, on ``tried_images``; empty for integer inputs.
        divided: whether temperature, threshold and detector were fitted.
        metrics: of the test subset.
        decided: as in the manifest.
        review: see `edgeall.train.evaluation.reliability.review`.
        golden: number and source of the golden images.
        synthetic: whether the images are drawn.
        drop_points: test accuracy that a quantization lost, in percentage points; None without one.
        auto_float: the search for float layers, if there was one; named by the tensors that they write.
    """

    out: str
    file_bytes: int
    labels: list[str]
    input: str
    normalization: str
    normalization_from: str
    trials: list[Trial]
    tried_images: int
    divided: bool
    metrics: Metrics
    decided: Decisions = field(metadata=SPREAD)
    review: Review | None
    golden: str
    synthetic: bool
    drop_points: float | None = field(default=None, metadata=OPTIONAL)
    auto_float: AutoFloat | None = field(default=None, metadata=OPTIONAL)


def only_seen(metrics: Metrics) -> Metrics:
    """The metrics without the labels that no image has and that are never predicted: a model may know a thousand."""
    confusion, labels = metrics.confusion, metrics.labels
    if len(labels) <= MOST_LABELS:
        return metrics
    columns = [sum(row) for row in zip(*confusion, strict=True)]
    kept = [index for index, row in enumerate(confusion) if sum(row) or columns[index]]
    return replace(
        metrics,
        labels=[labels[index] for index in kept],
        confusion=[[confusion[one][other] for other in kept] for one in kept],
        per_class={labels[index]: metrics.per_class[labels[index]] for index in kept},
    )


def _tried_on(result: PackResult) -> str:
    return "the train and validation subsets" if result.divided else "the data"


def pack_text(result: PackResult) -> str:
    """What ``edgeall pack`` prints."""
    decided = result.decided
    labels = ", ".join(result.labels) if len(result.labels) <= MOST_LABELS else f"{len(result.labels):,}"
    facts: dict[str, object] = {
        "file": f"{result.out}, {result.file_bytes:,} bytes",
        "labels": labels,
        "input": result.input,
        "normalization": f"{result.normalization} ({result.normalization_from})",
        "golden images": result.golden,
        "calibration": f"temperature {decided.calibration.temperature:.2f}" if decided.calibration else "not fitted",
        "review": (
            f"below a probability of {decided.decision.review_below:.4f}" if decided.decision else "no threshold"
        ),
        "out of distribution": (
            f"{percent(decided.novelty.reviewed)} of the validation images, by their features"
            if decided.novelty
            else "no detector"
        ),
    }
    if result.drop_points is not None:
        facts["quantization"] = f"loses {result.drop_points:.2f} points of test accuracy"
    if result.auto_float is not None:
        layers = ", ".join(result.auto_float.layers) or "none"
        facts["layers in float"] = f"{layers}; {result.auto_float.tried('classification')}"
    parts = [record(facts)]
    if result.trials:
        parts.append(trials_text(result.trials, result.tried_images, result.normalization, _tried_on(result)))
    return "\n\n".join([*parts, metrics_text(result.metrics), UNKNOWN])
