"""The audit of confident verdicts: a random sample for review, and the error rate that it shows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from .found import Found
from .readings import Readings, standing
from .results import Audit
from .rows import UNCLEAR
from .wilson import wilson_interval

SHARE, LEAST = 0.1, 20
"""The sample: this fraction of the confident verdicts, and at least this number, if there are so many."""


def audit_sample(session_id: int, units: Iterable[Found]) -> list[Found]:
    """The sample, in its random order: that of a digest, which nobody chooses and a restart does not change."""
    confident = [each for each in units if each.counts and each.label is not None and each.review_reason is None]
    confident.sort(key=lambda each: hashlib.sha256(f"{session_id} {each.kind} {each.id}".encode()).digest())
    return confident[: max(LEAST, round(SHARE * len(confident)))]


def audit(session_id: int, units: Iterable[Found], readings: Readings) -> Audit:
    """What the reviews of the sample show so far."""
    units = list(units)
    sample = audit_sample(session_id, units)
    confident = sum(each.counts and each.label is not None and each.review_reason is None for each in units)
    labels = [
        (each.label, standing(readings[each.kind, each.id]).label)
        for each in sample
        if (each.kind, each.id) in readings
    ]
    told = [pair for pair in labels if pair[1] != UNCLEAR]
    errors = sum(model != label for model, label in told)
    if not told:
        return Audit(confident, len(sample), 0, 0)
    return Audit(confident, len(sample), len(told), errors, errors / len(told), *wilson_interval(errors, len(told)))
