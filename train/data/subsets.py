"""The names of the three subsets of a split."""

from __future__ import annotations

SUBSETS = ("train", "validation", "test")
LEFT_OUT = "left out"
"""The subset of an image that is in none of `SUBSETS`. It stays in the split, so that the data can still be checked."""

TRAIN, VALIDATION, TEST, NOWHERE = 0, 1, 2, -1
"""Indices into `SUBSETS`, and the index of an image that is left out."""

GIVEN_SUBSETS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Subset names that a data set may use, in lower case, and the names in edgeall."""
