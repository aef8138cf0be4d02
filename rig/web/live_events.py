"""The live view's messages: a snapshot of the station as the JSON that ``live.js`` shows."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ...edge_runtime.vision.scale_bar import is_estimated, scale_bar
from ..language import N_, SOURCE, localized, speaking
from ..language import gettext as _
from ..record.chain import RecordError
from ..record.count import differential
from ..record.results import Differential
from ..record.summary import by_laboratory
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
        self._count_key: tuple[object, ...] | None = None
        self._count_read = 0.0
        self._counted_now: Differential | None = None

    def __call__(self, live: Live, language: str = SOURCE) -> str:
        """One line of JSON, with the texts in a language."""
        with speaking(language):
            return self._encode(live)

    def _encode(self, live: Live) -> str:
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
                "bar": _bar(live),
                "focus": round(live.quality.focus, 3) if live.quality else 0,
                "rate": _("{rate} frames/s").format(rate=localized(f"{live.frames_per_s:.1f}")),
                "camera": f"{_(live.camera.name)}: {_(live.camera.state)}{_scale(live)}",
                "files": _files(live),
                "asks": live.asked_session_id is not None,
                "session": self._session_facts(live.asked_session_id or live.session_id),
                "count": self._count(live),
                "problems": [_(text) for text in (*live.problems, *live.doubts)],
                "notes": [*(_(text) for text in live.notes), *filter(None, [display.drifted(live.drift)])],
            }
        )

    def _prediction(self, live: Live) -> tuple[str, str, dict[str, tuple[float, str]]]:
        """A judged frame's label, its probability, and for each label the bar's length, 0..1, and text."""
        if self._page.unit == "cell":
            labels = [cell.label for cell in live.cells]
            bars = {
                name: (n / len(labels), _("{count} of {total}").format(count=n, total=len(labels)))
                for name, n in Counter(labels).items()
            }
            return display.counted(labels) or _("no cells"), "", bars
        bars = {label: (round(share, 4), display.percent(share)) for label, share in live.probabilities.items()}
        return live.label, display.percent(live.probability), bars

    def _count(self, live: Live) -> dict[str, Any] | None:
        """The differential of the open slide; read again when something was found, and every `_COUNT_S` seconds."""
        now, names = time.monotonic(), live.settings.names
        key = (live.session_id, live.tally, tuple(names.items()))
        if live.session_id is None:
            return None
        if key != self._count_key or now - self._count_read > _COUNT_S:
            with suppress(RecordError):
                self._counted_now = differential(self._page.record, live.session_id)
                self._count_key, self._count_read = key, now
        found = self._counted_now
        shares = by_laboratory(found.shares, names) if found else ()
        return {
            "total": found.total if found else 0,
            "shares": [(each.label, each.count, round(each.fraction, 4)) for each in shares],
            "text": display.tally(found.counts, self._page.unit) if found else "",
            "target": live.settings.target,
            "paused": live.settings.paused,
        }

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
    found = []
    if waiting:
        found.append(_("{count} waiting").format(count=waiting))
    if skipped:
        found.append(_("{count} skipped").format(count=skipped))
    return ", ".join(found)


def quality_light(live: Live) -> tuple[str, str, str]:
    """The quality light: ``good``, ``warn`` or ``bad``, its title, and advice for the operator."""
    if live.asked_session_id is not None:
        return "warn", _("Continue or new slide?"), _("nothing is recorded until you choose")
    if live.waits:
        return "warn", _("Replay waiting"), _("start a slide to start the replay")
    if live.camera.state == "ended":
        return "warn", _("Replay ended"), _(live.camera.detail)
    if not live.camera.works:
        return "bad", _("No picture"), _(live.camera.detail) or _("waiting for the camera")
    if live.status == "waiting" or live.quality is None:
        new_slide = _("no picture of this slide yet") if live.session_id is not None else _("waiting for the camera")
        return "bad", _("No picture yet"), new_slide
    if live.status == "refused":
        title, advice = ", ".join(map(display.reason, live.quality.reasons)), map(_advice(live), live.quality.reasons)
        return "warn", title, "; ".join(filter(None, advice))
    if live.misfit:
        why = _("is this the objective that the slide's magnification names? If so, calibrate it again")
        return "bad", _("The scale does not fit"), why
    if live.settings.paused and live.session_id is not None:
        return "warn", _("Paused"), _("nothing is counted or recorded until you press Go on")
    if live.status == "unjudged":
        why = N_("judging is switched off in the settings")
        return "warn", _("Not judged"), _(live.problems[0] if live.settings.judge and live.problems else why)
    return "good", _("Good field"), "" if live.session_id is not None else _("start a slide to record frames")


def _bar(live: Live) -> dict[str, Any] | None:
    """The scale bar of the shown frame; None without a scale."""
    if live.scale is None or live.size is None:
        return None
    return scale_bar(live.scale.um_per_px, live.size[0], estimated=is_estimated(live.scale.source)).to_json()


def _scale(live: Live) -> str:
    """The scale and the correction of the shown frame, for the line of status."""
    corrected = " · " + _("flat field and white balance corrected") if live.flat_field else ""
    if live.scale is None:
        return corrected
    if live.scale.source == "calibrated":
        return (
            " · " + _("{value} µm/px (calibrated)").format(value=localized(f"{live.scale.um_per_px:.4g}")) + corrected
        )
    size = f"{live.scale.red_cell_px:.0f}"
    if live.scale.source == "image":
        text = _("red cell {size} px (measured, confidence {confidence})")
        return " · " + text.format(size=size, confidence=display.percent(live.scale.confidence, 0)) + corrected
    sources = {"given": N_("given"), "remembered": N_("as before")}
    text = _("red cell {size} px ({source})")
    return " · " + text.format(size=size, source=_(sources[live.scale.source])) + corrected


def _advice(live: Live) -> Callable[[str], str]:
    """Advice for each reason; for a dark image that uses few bits of its file, not about the lamp."""
    used = live.picture.frame.used_bits if live.picture else None
    if used is None:
        return display.advice
    few = _(
        "the file uses {used} of its 16 bits, so the lamp may be right: have the camera's program save 8-bit images,"
        " or stretch them to 16 bits"
    ).format(used=used)
    return lambda reason: few if reason == "dark" else display.advice(reason)
