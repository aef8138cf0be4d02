"""The live view's messages: a snapshot of the station as the JSON that ``live.js`` shows."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..counting.tracker import Tally
from ..record.chain import RecordError
from ..record.count import differential
from ..snapshot import Live, Picture
from . import display
from .page import Page

_COUNT_S = 3.0


class LiveEncoder:
    """Encodes snapshots for ``live.js``. Used by one thread."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._picture: Picture | None = None
        self._picture_number = 0
        self._session: dict[str, Any] | None = None
        self._counted = 0.0
        self._count_key: tuple[int | None, Tally | None] | None = None
        self._count_read = 0.0
        self._counted_now: dict[str, Any] = {"total": 0, "shares": [], "text": ""}

    def __call__(self, live: Live) -> str:
        """One line of JSON."""
        if live.picture is not self._picture:
            self._picture, self._picture_number = live.picture, live.number
        level, title, advice = quality_light(live)
        judged = live.status == "judged"
        label, probability, bars = self._prediction(live) if judged else ("", "", {})
        cells = live.cells if judged else ()
        return json.dumps(
            {
                "picture": self._picture_number if live.picture else None,
                "size": live.size,
                "level": level,
                "title": title,
                "advice": advice,
                "label": label,
                "probability": probability,
                "bars": {label: bars.get(label, (0, "")) for label in self._page.labels},
                "review": display.review_request(live.review_reason) if live.review and judged else "",
                "cells": [{"box": cell.box, "label": cell.label, "review": cell.review} for cell in cells],
                "focus": round(live.quality.focus, 3) if live.quality else 0,
                "rate": f"{live.frames_per_s:.1f} frames/s",
                "camera": f"{live.camera.name}: {live.camera.state}{_scale(live)}",
                "files": _files(live),
                "asks": live.asked_session_id is not None,
                "session": self._session_facts(live.asked_session_id or live.session_id),
                "count": self._count(live),
                "problems": [*live.problems, *live.doubts],
                "notes": list(live.notes),
            }
        )

    def _prediction(self, live: Live) -> tuple[str, str, dict[str, tuple[float, str]]]:
        """A judged frame's label, its probability, and for each label the bar's length, 0..1, and text."""
        if self._page.unit == "cell":
            labels = [cell.label for cell in live.cells]
            bars = {name: (n / len(labels), f"{n} of {len(labels)}") for name, n in Counter(labels).items()}
            return display.counted(labels) or "no cells", "", bars
        bars = {label: (round(share, 4), display.percent(share)) for label, share in live.probabilities.items()}
        return live.label, display.percent(live.probability), bars

    def _count(self, live: Live) -> dict[str, Any] | None:
        """The differential of the open slide; read again when something was found, and every `_COUNT_S` seconds."""
        now, key = time.monotonic(), (live.session_id, live.tally)
        if live.session_id is None:
            return None
        if key != self._count_key or now - self._count_read > _COUNT_S:
            with suppress(RecordError):
                found = differential(self._page.record, live.session_id)
                self._count_key, self._count_read = key, now
                self._counted_now = {
                    "total": found.total,
                    "shares": [(each.label, each.count, round(each.fraction, 4)) for each in found.shares],
                    "text": display.tally(found.counts, self._page.unit),
                }
        return {**self._counted_now, "target": live.settings.target, "paused": live.settings.paused}

    def _session_facts(self, session_id: int | None) -> dict[str, Any] | None:
        """The slide and its number of frames, which is counted every `_COUNT_S` seconds."""
        now = time.monotonic()
        if session_id is None:
            self._session = None
        elif self._session is None or self._session["id"] != session_id or now - self._counted > _COUNT_S:
            self._counted = now
            with suppress(RecordError):  # `problems` reports a failing disk; the picture still updates
                session = self._page.record.session(session_id)
                self._session = {"id": session_id, "sample": session.notes.sample, "frames": session.frames}
        return self._session


def _files(live: Live) -> str:
    """How many files wait and how many could not be used; empty if none."""
    waiting, skipped = live.camera.waiting, live.camera.skipped
    return ", ".join(f"{count} {name}" for count, name in ((waiting, "waiting"), (skipped, "skipped")) if count)


def quality_light(live: Live) -> tuple[str, str, str]:
    """The quality light: ``good``, ``warn`` or ``bad``, its title, and advice for the operator."""
    if live.asked_session_id is not None:
        return "warn", "Continue or new slide?", "nothing is recorded until you choose"
    if live.waits:
        return "warn", "Replay waiting", "start a slide to start the replay"
    if live.camera.state == "ended":
        return "warn", "Replay ended", live.camera.detail
    if not live.camera.works:
        return "bad", "No picture", live.camera.detail or "waiting for the camera"
    if live.status == "waiting" or live.quality is None:
        new_slide = "no picture of this slide yet" if live.session_id is not None else "waiting for the camera"
        return "bad", "No picture yet", new_slide
    if live.status == "refused":
        title, advice = ", ".join(map(display.reason, live.quality.reasons)), map(_advice(live), live.quality.reasons)
        return "warn", title, "; ".join(filter(None, advice))
    if live.settings.paused and live.session_id is not None:
        return "warn", "Paused", "nothing is counted or recorded until you press Go on"
    if live.status == "unjudged":
        why = "judging is switched off in the settings"
        return "warn", "Not judged", live.problems[0] if live.settings.judge and live.problems else why
    return "good", "Good field", "" if live.session_id is not None else "start a slide to record frames"


def _scale(live: Live) -> str:
    """The scale of the shown frame, for the line of status; empty for a model of fields."""
    if live.scale is None:
        return ""
    sources = {"image": "measured", "given": "given", "remembered": "as before"}
    return f" · red cell {live.scale.red_cell_px:.0f} px ({sources[live.scale.source]})"


def _advice(live: Live) -> Callable[[str], str]:
    """Advice for each reason; for a dark image that uses few bits of its file, not about the lamp."""
    used = live.picture.frame.used_bits if live.picture else None
    if used is None:
        return display.advice
    few = (
        f"the file uses {used} of its 16 bits, so the lamp may be right: have the camera's program save 8-bit images,"
        " or stretch them to 16 bits"
    )
    return lambda reason: few if reason == "dark" else display.advice(reason)
