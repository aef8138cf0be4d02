"""Predictions as lines of text, CSV or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from ...console.tables import csv_line, plain
from ..pipeline import Prediction

MAX_LABEL_COLUMNS = 24
"""Width limit of the label column: ImageNet has a label of 112 characters."""
_REVIEW = len("review: unfamiliar")


def prediction_lines(predictions: Iterable[Prediction], labels: Sequence[str], form: str) -> Iterator[str]:
    """One line per prediction.

    Args:
        predictions: see `edgeall.edge_runtime.pipeline.classify`.
        labels: the model's.
        form: ``table``, ``json`` (one object per line) or ``csv`` (with a header).
    """
    if form == "json":
        for prediction in predictions:
            yield json.dumps(prediction.as_json())
    elif form == "csv":
        names = ["image", "label", "probability", "review", "reason", "novelty", "error"]
        yield csv_line([*names, *(f"p_{label}" for label in labels)])
        for p in predictions:
            values = [p.probabilities.get(label, "") for label in labels]
            if p.error is not None:
                yield csv_line([p.image, "", "", "", "", "", p.error, *values])
            else:
                review = ["yes" if p.review else "no", p.reason or "", "" if p.novelty is None else p.novelty, ""]
                yield csv_line([p.image, p.label, p.probability, *review, *values])
    else:
        width = min(max((len(plain(label)) for label in labels), default=0), MAX_LABEL_COLUMNS)
        for p in predictions:
            if p.error is not None:
                yield f"{'error'.ljust(width)}  {'':8}  {'':{_REVIEW}}  {plain(p.error)}"
            else:
                reason = (f"review: {p.reason}" if p.review else "").ljust(_REVIEW)
                yield f"{plain(p.label).ljust(width)}  {p.probability * 100:6.2f} %  {reason}  {plain(p.image)}"
