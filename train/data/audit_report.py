"""The HTML page of ``edgeall data audit``: the findings, with example images and background colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...console.tables import percent
from ...edge_runtime.errors import ImageError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.tools.atomic import write_text
from ..reports.page import jpeg_uri, template
from .audit import SHORTCUT, Audit
from .probes import MAX_SIDE, background_of

EXAMPLES = 4
"""Example images per class."""
SWATCHES = 32
"""Background colours per class."""
PAIRS = 8
THUMBNAIL = 120


def write_audit(audit: Audit, path: Path) -> None:
    """One self-contained HTML file, without scripts or external resources."""
    images, root = audit.scan.facts, audit.scan.dataset.root
    by_label = {
        label: [index for index, item in enumerate(images) if item.sample.label == label]
        for label in audit.report.listing.labels
    }
    page = template("edgeall.train.reports", "audit.html", percent=percent).render(
        shortcut=SHORTCUT,
        swatches=SWATCHES,
        report=audit.report,
        facts=audit.report.listing,
        backgrounds={label: _backgrounds(audit, chosen) for label, chosen in by_label.items()} if audit.scores else {},
        examples={
            label: [_shown(root, images[index].sample.path) for index in _spread(chosen, EXAMPLES)]
            for label, chosen in by_label.items()
        },
        conflicts=[
            [(images[index].sample.label, _shown(root, images[index].sample.path)) for index in group[:4]]
            for group in audit.duplicates.conflicts[:PAIRS]
        ],
    )
    write_text(path, page, errors="replace")  # a file name may be invalid Unicode


def _backgrounds(audit: Audit, chosen: Sequence[int]) -> list[str]:
    """Mean background colours of images as CSS colours, dark ones first."""
    colours = audit.features["background"][_spread(chosen, SWATCHES), :3]
    ordered = colours[np.argsort(colours.sum(axis=1))]
    return ["#{:02x}{:02x}{:02x}".format(*(int(value) for value in np.rint(colour))) for colour in ordered]


def _spread(chosen: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, evenly spaced."""
    places = np.unique(np.linspace(0, len(chosen) - 1, count).astype(int))
    return [chosen[place] for place in places]


def _shown(root: Path, name: str) -> dict[str, Any]:
    """An image and its background as data URIs; None if it cannot be read any more."""
    try:
        image = open_rgb(root / name)
    except ImageError:
        return {"name": name, "whole": None, "background": None}
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    pixels = np.array(image)
    pixels[~background_of(pixels)] = (120, 120, 120)
    return {"name": name, "whole": _uri(image), "background": _uri(Image.fromarray(pixels))}


def _uri(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return jpeg_uri(small)
