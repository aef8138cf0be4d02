"""What the rig says to people: words for what the gate and the disk report, numbers as people write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import jinja2

from ... import __version__
from ...edge_runtime.manifest import RESEARCH_USE

REASONS = {
    "blurred": ("Out of focus", "turn the fine focus"),
    "dark": ("Too dark", "turn the lamp up"),
    "bright": ("Too bright", "turn the lamp down"),
    "moving": ("Moving", "let the stage rest"),
    "empty": ("Empty field", "move to where there are cells"),
    "thick": ("Too thick", "move to where the cells lie apart; if the lamp was turned down, wait a moment"),
    "not a smear": ("Not a smear", "check slide, stain and objective"),
}
"""Of the gate: what it is, and what the operator can do about it."""
SPACE = {
    "ok": "Room for images and records",
    "no images": "The disk is nearly full: frames are judged and recorded, images are no longer saved",
    "full": "The disk is full: nothing is judged",
}
NOTHING = "-"
"""In place of a number that isn't there."""
_UNITS = ("B", "kB", "MB", "GB", "TB")
STATUSES = {"judged": "judged", "refused": "refused", "unjudged": "not judged"}
ASKS = {"unfamiliar": "asks for review: unlike what it has learnt", "uncertain": "asks for review: not sure"}
REVIEWS = {"needed": "asks for review", "done": "reviewed", "corrected": "corrected"}


def reason(name: str) -> str:
    """One of the gate's reasons in words: ``Out of focus``."""
    return REASONS[name][0] if name in REASONS else name.capitalize()


def advice(name: str) -> str:
    """What to do about it; empty where nothing is known."""
    return REASONS[name][1] if name in REASONS else ""


def asks(review_reason: str | None) -> str:
    """That the model wants somebody to look, and why; rows of before it said why have no reason."""
    return ASKS.get(review_reason or "", "asks for review")


def counted(labels: Iterable[str]) -> str:
    """Cells by label, the most first: ``2 Pre, 1 Benign``."""
    counts = Counter(labels)
    return ", ".join(f"{counts[label]} {label}" for label in sorted(counts, key=lambda label: (-counts[label], label)))


def percent(fraction: float | None, digits: int = 1) -> str:
    """``0.123`` as ``12.3 %``."""
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f} %"


def sentence(text: str) -> str:
    """With a capital at its beginning; the rest, a path say, stays as it is."""
    return text[:1].upper() + text[1:]


def moment(value: str | datetime | None) -> str:
    """A time in UTC to the second, as ``2026-11-21 10:00:00``; of text, what ISO 8601 says."""
    if value is None:
        return NOTHING
    return str(value)[:19].replace("T", " ")


def size(count: float | None) -> str:
    """Bytes as people write them."""
    if count is None:
        return NOTHING
    power = min(max(len(str(int(abs(count)))) - 1, 0) // 3, len(_UNITS) - 1)
    return f"{count / 1000**power:.{1 if power > 2 else 0}f} {_UNITS[power]}"


def renderer() -> Callable[..., str]:
    """``render(name, **values)``: a page from ``templates/``, everything escaped, unknown names refused."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeall.rig.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, moment=moment, size=size, reason=reason, advice=advice)
    environment.filters.update(asks=asks, counted=counted, sentence=sentence)
    environment.globals.update(
        research_use=RESEARCH_USE, version=__version__, STATUSES=STATUSES, REVIEWS=REVIEWS, SPACE=SPACE
    )

    def render(name: str, **values: Any) -> str:
        return environment.get_template(name).render(values)

    return render
