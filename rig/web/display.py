"""Texts and number formats of the pages, and the template renderer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import jinja2
import markupsafe

from ... import __version__
from ...edge_runtime.drift import Finding
from ...edge_runtime.vision.scale_bar import SHARE, ScaleBar, is_estimated, scale_bar
from ..counting.tracker import Tally
from ..language import LANGUAGES, N_, SOURCE, current, localized, ngettext
from ..language import gettext as _
from ..record.results import Counts

REASONS = {
    "blurred": (N_("Out of focus"), N_("turn the fine focus")),
    "dark": (N_("Too dark"), N_("turn the lamp up")),
    "bright": (N_("Too bright"), N_("turn the lamp down")),
    "moving": (N_("Moving"), N_("let the stage rest")),
    "empty": (N_("Empty field"), N_("move to where there are cells")),
    "thick": (
        N_("Too thick"),
        N_("move to where the cells do not overlap; if the lamp was turned down, wait a moment"),
    ),
    "not a smear": (N_("Not a smear"), N_("check slide, stain and objective")),
}
"""For each reason of the quality gate: its name, and advice for the operator."""
SPACE = {
    "ok": N_("Enough space for images and records"),
    "no images": N_("The disk is nearly full: frames are judged and recorded, images are not saved"),
    "full": N_("The disk is full: nothing is judged or recorded"),
}
LABELS = frozenset({N_("not a cell"), N_("artefact"), N_("taken back"), N_("can't tell")})
"""The labels of a review that are the rig's own, not the model's or the laboratory's."""
CAMERA = {"live": N_("live"), "reopening": N_("reopening"), "stalled": N_("stalled"), "ended": N_("ended")}
"""The states of a camera."""
DEVICE = {
    "machine": N_("machine"),
    "board": N_("board"),
    "cpu": N_("processor"),
    "cores": N_("cores"),
    "memory_bytes": N_("memory"),
    "os": N_("operating system"),
    "python": N_("Python"),
    "runtime": N_("runtime"),
}
"""The fields of `edgeall.edge_runtime.tools.device.Device`."""
THROTTLED = (N_("under-voltage"), N_("frequency capped"), N_("throttled"), N_("soft temperature limit"))
"""`edgeall.edge_runtime.tools.throttle.REASONS`, marked for translation."""
SHIFTS = {
    "brightness": (N_("darker"), N_("brighter")),
    "warmth": (N_("light bluer"), N_("light yellower")),
    "tint": (N_("light more magenta"), N_("light greener")),
    "stain": (N_("stain paler"), N_("stain deeper")),
    "stain colour": (N_("stain redder"), N_("stain bluer")),
    "sharpness": (N_("less sharp"), N_("sharper")),
}
"""For each fact of the drift alarm: how less and how more of it is called."""
NOTHING = "-"
"""Shown for a missing value."""
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that change the writing direction."""
_SCRIPT_TEXT = re.compile(r'\b_\(\s*("(?:[^"\\]|\\.)*")')
_UNITS = ("B", "kB", "MB", "GB", "TB")
STATUSES = {"judged": N_("judged"), "refused": N_("refused"), "unjudged": N_("not judged")}
REVIEW_REQUESTS = {
    "unfamiliar": N_("needs review: out of distribution"),
    "uncertain": N_("needs review: uncertain"),
}
REVIEWS = {"needed": N_("needs review"), "done": N_("reviewed"), "corrected": N_("corrected")}


def reason(name: str) -> str:
    """The display name of one of the gate's reasons: ``Out of focus``."""
    return _(REASONS[name][0]) if name in REASONS else name.capitalize()


def advice(name: str) -> str:
    """Advice for one of the gate's reasons; may be empty."""
    return _(REASONS[name][1]) if name in REASONS else ""


def review_request(review_reason: str | None) -> str:
    """The model's request for a review with its reason, which rows from older versions do not have."""
    return _(REVIEW_REQUESTS.get(review_reason or "", REVIEWS["needed"]))


def drifted(finding: Finding | None) -> str:
    """The drift alarm as a sentence; empty if there is none."""
    if finding is None:
        return ""
    changes = [_(SHIFTS[name][shift > 0]) for name, shift in finding.shifts.items() if name in SHIFTS]
    what = ", ".join(changes) or _("not the light but what is in them")
    text = _(
        "The images of this slide differ from those that the model was fitted on: {changes}. Its verdicts may be wrong."
    )
    return text.format(changes=what)


def label_name(label: str) -> str:
    """A label as it is shown: the rig's own are translated, the model's and the laboratory's are not."""
    return _(label) if label in LABELS else label


def counted(labels: Iterable[str]) -> str:
    """Counts by label, most frequent first: ``2 Pre, 1 Benign``."""
    counts = Counter(labels)
    return ", ".join(
        f"{counts[label]} {label_name(label)}" for label in sorted(counts, key=lambda label: (-counts[label], label))
    )


def tally(counts: Tally | Counts, unit: str) -> str:
    """What was found on a slide: ``12 fields, 37 different cells, 2 patches``."""
    fields, cells, patches = counts.fields, counts.cells, counts.patches
    if unit == "cell":
        found = [
            ngettext("{count} field", "{count} fields", fields).format(count=fields),
            ngettext("{count} different cell", "{count} different cells", cells).format(count=cells),
        ]
    else:
        found = [ngettext("{count} different field", "{count} different fields", fields).format(count=fields)]
    if patches > 1:
        found.append(ngettext("{count} patch", "{count} patches", patches).format(count=patches))
    return ", ".join(found)


def told(text: str) -> str:
    """A text of the rig, such as an error's, in the current language; any other text unchanged."""
    return _(text)


def decimal(value: float, digits: int) -> str:
    """A number with the decimal sign of the current language."""
    return localized(f"{value:.{digits}f}")


def percent(fraction: float | None, digits: int = 1) -> str:
    """``0.123`` as ``12.3 %``."""
    return NOTHING if fraction is None else localized(f"{100 * fraction:.{digits}f} %")


class Scaled(Protocol):
    """What has a scale: micrometres per pixel, how it is known, and width and height in pixels."""

    @property
    def um_per_px(self) -> float | None: ...

    @property
    def scale_source(self) -> str: ...

    @property
    def size(self) -> Sequence[int] | None: ...


def ruler(shown: Scaled, share: float = SHARE) -> ScaleBar | None:
    """The scale bar of a picture, at most ``share`` of its width; None if its scale or size is unknown."""
    if shown.um_per_px is None or not shown.size:
        return None
    return scale_bar(shown.um_per_px, shown.size[0], estimated=is_estimated(shown.scale_source), share=share)


def digits(value: float) -> str:
    """A number with four significant digits."""
    return localized(f"{value:.4g}")


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
    return localized(f"{count / 1000**power:.{1 if power > 2 else 0}f} {_UNITS[power]}")


def translated(text: str, **values: object) -> markupsafe.Markup:
    """A template's text, which may contain elements, in the current language; ``{names}`` are escaped values."""
    return markupsafe.Markup(_(text)).format(**values)


def translated_count(one: str, many: str, count: int, **values: object) -> markupsafe.Markup:
    """The same with the form for ``count``, which is one of the values."""
    return markupsafe.Markup(ngettext(one, many, count)).format(count=count, **values)


@cache
def script_texts() -> tuple[str, ...]:
    """The texts of the scripts in ``static/``: the first argument of each ``_("...")``."""
    scripts = sorted(Path(__file__).with_name("static").glob("*.js"))
    found = [each for file in scripts for each in _SCRIPT_TEXT.findall(file.read_text(encoding="utf-8"))]
    return tuple(dict.fromkeys(json.loads(each) for each in found))


def script_translations() -> dict[str, str]:
    """The texts of the scripts in the current language; empty for the language of the source."""
    return {} if current() == SOURCE else {text: _(text) for text in script_texts()}


def renderer() -> Callable[..., str]:
    """``render(name, **values)`` renders a template of ``templates/``: values are escaped, unknown names are errors."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeall.rig.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(named=named, isolated=isolated, ruler=ruler, digits=digits)
    environment.filters.update(percent=percent, moment=moment, size=size, reason=reason, advice=advice)
    environment.filters.update(review_request=review_request, counted=counted, sentence=sentence, tally=tally)
    environment.filters.update(told=told, decimal=decimal, label_name=label_name, drifted=drifted)
    environment.globals.update(_=translated, ngettext=translated_count, languages=LANGUAGES, version=__version__)
    environment.globals.update(STATUSES=STATUSES, REVIEWS=REVIEWS, SPACE=SPACE, CAMERA=CAMERA, DEVICE=DEVICE)

    def render(name: str, **values: Any) -> str:
        return environment.get_template(name).render(values)

    return render
