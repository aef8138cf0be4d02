"""What reviewers said of each field and cell: the label that counts, disagreements, agreement of two readers."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from .found import CELL, FIELD, FoundOnSlide
from .results import Agreement
from .rows import Review, read_review

Unit = tuple[str, int]
"""Kind and id of a field or cell."""
Readings = Mapping[Unit, Sequence[Review]]
"""The reviews of each reviewed field and cell, oldest first, without those that were withdrawn."""


def read_readings(database: sqlite3.Connection, session_id: int, found: FoundOnSlide) -> dict[Unit, list[Review]]:
    """The readings of a slide, whatever frame of a cell was reviewed."""
    rows = "SELECT row FROM entries WHERE kind = ? AND session = ? ORDER BY number"
    withdrawn = {json.loads(row)["withdrawn"] for (row,) in database.execute(rows, ("withdrawal", session_id))}
    readings: dict[Unit, list[Review]] = {}
    for (text,) in database.execute(rows, ("review", session_id)):
        row = json.loads(text)
        for kind, name in ((FIELD, "field_id"), (CELL, "cell_id")):
            if row.get(name) is not None and row["number"] not in withdrawn:
                readings.setdefault((kind, found.root(kind, row[name])), []).append(read_review(row))
    return readings


def standing(reviews: Sequence[Review]) -> Review:
    """The review that counts: the last adjudication, otherwise the last review."""
    return next((each for each in reversed(reviews) if each.adjudicates), reviews[-1])


def by_reader(reviews: Sequence[Review]) -> dict[str, str]:
    """The last label of each reader; adjudications are no reading."""
    return {each.by: each.label for each in reviews if not each.adjudicates}


def disagree(reviews: Sequence[Review]) -> bool:
    """Whether readers differ and nobody has adjudicated."""
    return len(set(by_reader(reviews).values())) > 1 and not any(each.adjudicates for each in reviews)


def agreement(readings: Readings) -> Agreement | None:
    """The agreement of the two readers with the most in common; None without two readers of one field or cell."""
    labels = [by_reader(reviews) for reviews in readings.values()]
    common = Counter(pair for each in labels for pair in combinations(sorted(each), 2))
    if not common:
        return None
    (first, second), count = max(common.items(), key=lambda item: (item[1], item[0]))
    pairs = [(each[first], each[second]) for each in labels if first in each and second in each]
    return Agreement((first, second), count, sum(a == b for a, b in pairs), kappa(pairs))


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa of pairs of labels; None if chance alone agrees always. Source: Cohen 1960."""
    total = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(first[label] * second[label] for label in first) / total**2
    return None if chance == 1 else (sum(a == b for a, b in pairs) / total - chance) / (1 - chance)
