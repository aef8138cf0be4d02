"""Texts and number formats of the pages, and the template renderer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import jinja2
import markupsafe

from ... import __version__
from ...edge_runtime.manifest import RESEARCH_USE
from ..counting.tracker import Tally
from ..record.results import Counts

REASONS = {
    "blurred": ("Out of focus", "turn the fine focus"),
    "dark": ("Too dark", "turn the lamp up"),
    "bright": ("Too bright", "turn the lamp down"),
    "moving": ("Moving", "let the stage rest"),
    "empty": ("Empty field", "move to where there are cells"),
    "thick": ("Too thick", "move to where the cells do not overlap; if the lamp was turned down, wait a moment"),
    "not a smear": ("Not a smear", "check slide, stain and objective"),
}
"""For each reason of the quality gate: its name, and advice for the operator."""
SPACE = {
    "ok": "Enough space for images and records",
    "no images": "The disk is nearly full: frames are judged and recorded, images are not saved",
    "full": "The disk is full: nothing is judged or recorded",
}
NOTHING = "-"
"""Shown for a missing value."""
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that change the writing direction."""
_UNITS = ("B", "kB", "MB", "GB", "TB")
STATUSES = {"judged": "judged", "refused": "refused", "unjudged": "not judged"}
REVIEW_REQUESTS = {"unfamiliar": "needs review: out of distribution", "uncertain": "needs review: uncertain"}
REVIEWS = {"needed": "needs review", "done": "reviewed", "corrected": "corrected"}


def reason(name: str) -> str:
    """The display name of one of the gate's reasons: ``Out of focus``."""
    return REASONS[name][0] if name in REASONS else name.capitalize()


def advice(name: str) -> str:
    """Advice for one of the gate's reasons; may be empty."""
    return REASONS[name][1] if name in REASONS else ""


def review_request(review_reason: str | None) -> str:
    """The model's request for a review with its reason, which rows from older versions do not have."""
    return REVIEW_REQUESTS.get(review_reason or "", "needs review")


def counted(labels: Iterable[str]) -> str:
    """Counts by label, most frequent first: ``2 Pre, 1 Benign``."""
    counts = Counter(labels)
    return ", ".join(f"{counts[label]} {label}" for label in sorted(counts, key=lambda label: (-counts[label], label)))


def count_of(number: int, name: str) -> str:
    """A number with its noun: ``1 field``, ``2 fields``; patches take ``es``."""
    return f"{number} {name}{'' if number == 1 else 'es' if name.endswith('ch') else 's'}"


def tally(counts: Tally | Counts, unit: str) -> str:
    """What was found on a slide: ``12 fields, 37 different cells, 2 patches``."""
    patches = "" if counts.patches < 2 else f", {count_of(counts.patches, 'patch')}"
    if unit != "cell":
        return f"{count_of(counts.fields, 'different field')}{patches}"
    return f"{count_of(counts.fields, 'field')}, {count_of(counts.cells, 'different cell')}{patches}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """``0.123`` as ``12.3 %``."""
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f} %"


def named(text: str) -> markupsafe.Markup:
    """A text that a person typed or a file name, as HTML: its writing direction does not change that of the page."""
    return markupsafe.Markup("<bdi>{}</bdi>").format(text)


def isolated(text: str) -> str:
    """`named` where HTML has no elements: in a title or a list of options. Source: Unicode Standard Annex 9, 2.4."""
    return f"\u2068{_DIRECTIONS.sub('', text)}\u2069" if _DIRECTIONS.search(text) else text


def sentence(text: str) -> str:
    """The text with its first letter capitalized. The rest, for example a path, is unchanged."""
    return text[:1].upper() + text[1:]


def moment(value: str | datetime | None) -> str:
    """A UTC time, or its ISO 8601 text, to the second: ``2026-11-21 10:00:00``."""
    if value is None:
        return NOTHING
    return str(value)[:19].replace("T", " ")


def size(count: float | None) -> str:
    """Bytes with a decimal unit: ``1.5 GB``."""
    if count is None:
        return NOTHING
    power = min(max(len(str(int(abs(count)))) - 1, 0) // 3, len(_UNITS) - 1)
    return f"{count / 1000**power:.{1 if power > 2 else 0}f} {_UNITS[power]}"


def renderer() -> Callable[..., str]:
    """``render(name, **values)`` renders a template of ``templates/``: values are escaped, unknown names are errors."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeall.rig.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(named=named, isolated=isolated)
    environment.filters.update(percent=percent, moment=moment, size=size, reason=reason, advice=advice)
    environment.filters.update(review_request=review_request, counted=counted, sentence=sentence, tally=tally)
    environment.globals.update(
        research_use=RESEARCH_USE, version=__version__, STATUSES=STATUSES, REVIEWS=REVIEWS, SPACE=SPACE
    )

    def render(name: str, **values: Any) -> str:
        return environment.get_template(name).render(values)

    return render
