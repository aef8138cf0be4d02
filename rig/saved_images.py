"""Which of a slide's frames are saved with their image."""

from __future__ import annotations

import time

from .snapshot import Settings, Verdict

_INTERVAL_S = 0.5
"""Minimum time between saved images of frames that ask for a review. Where a whole slide is out of distribution, saving
all of them would fill a card within the hour and slow down judging."""


class SavedImages:
    """Chooses the judged frames whose images are saved, by the settings. Used by one thread.

    Of the frames that ask for a review, each one of a file is saved; of a camera the first of each field, and of the
    others at most one in `_INTERVAL_S` seconds.
    """

    def __init__(self) -> None:
        self._fields: set[int] = set()
        self._at = -_INTERVAL_S

    def new_slide(self) -> None:
        """Forget the fields of the last slide."""
        self._fields.clear()

    def takes(self, verdict: Verdict, settings: Settings) -> bool:
        """Whether a frame is saved with its image; if so, it counts as saved."""
        if verdict.status != "judged":
            return False
        if settings.save == "every frame":
            return True
        if settings.save != "on review" or verdict.review_reason is None:
            return False
        known = verdict.field_id is None or verdict.field_id in self._fields
        if known and not verdict.picture.frame.source and time.monotonic() < self._at + _INTERVAL_S:
            return False
        if verdict.field_id is not None:
            self._fields.add(verdict.field_id)
        self._at = time.monotonic()
        return True
