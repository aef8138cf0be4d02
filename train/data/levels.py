"""The wording of split levels in tables and reports."""

from __future__ import annotations

LEVEL_TEXTS = {
    "laboratory": "one laboratory left out",
    "subject": "subject-level split",
    "block": "blocks of neighbouring file numbers",
    "image": "image-level split: optimistic",
    "given": "split as given",
    "none": "no split known",
    "site": "external validation",
}


def split_text(level: str) -> str:
    """The wording of a split level. An unknown level is returned unchanged."""
    return LEVEL_TEXTS.get(level, level)
