"""How the level of a split is written for people."""

from __future__ import annotations

_SPLITS = {
    "subject": "subject-level split",
    "block": "blocks of neighbouring file numbers",
    "image": "image-level split: optimistic",
    "given": "split as given",
    "none": "no split known",
    "site": "another laboratory's",
}


def split_text(level: str) -> str:
    """The wording of a split level; of an unknown one the level itself."""
    return _SPLITS.get(level, level)
