"""External validation of a segmentation network: the masks of another laboratory, compared with its own test subset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...console.progress import Progress
from ...console.tables import four, record, table
from ...edge_runtime.results import from_json
from ..data.masked import load_masked
from ..data.scan import Scan, scan
from ..data.split import SplitEntry, make_entries
from ..data.subsets import TEST
from ..evaluation.site import OwnImages, Site, independent_difference, repeated_facts
from .results import ExternalMasks, MaskMetrics, MaskSiteFigures


def scanned_masks(path: Path, progress: Progress) -> Scan:
    """All images with masks of a folder or manifest, with a note for each that is skipped."""
    found = scan(load_masked(path))
    for problem in found.dataset.problems:
        progress.note(f"skipped {problem.path}: {problem.reason}")
    return found


def entries_of(found: Scan, subset: str) -> tuple[SplitEntry, ...]:
    """All images as entries of one subset, which no split knows."""
    facts = found.facts
    entries = make_entries(facts, [TEST] * len(facts), [None] * len(facts))
    return tuple(replace(entry, side=subset) for entry in entries)


def read_mask_site(path: Path, progress: Progress) -> Site:
    """Read a folder or manifest with masks. Raises DataError, see `load_masked`."""
    found = scanned_masks(path, progress)
    return Site(found.dataset.root, found.facts, entries_of(found, "site"), ())


def external_masks(path: Path, metrics: MaskMetrics, own: Mapping[str, Any], repeated: OwnImages) -> ExternalMasks:
    """Compare the figures of a site with those of the network's own test subset.

    Args:
        path: the site's folder or manifest.
        metrics: of the network on the site.
        own: JSON of the metrics of its own test subset, from its manifest or ``run.json``.
        repeated: from `edgeall.train.evaluation.site.find_own_images`.
    """
    here, there = _figures(metrics.to_json()), _figures(own)
    low, high = independent_difference(there.dice, there.dice_ci95, here.dice, here.dice_ci95)
    return ExternalMasks(str(path), repeated, here, there, 100 * (there.dice - here.dice), [100 * low, 100 * high])


def _figures(metrics: Mapping[str, Any]) -> MaskSiteFigures:
    return from_json(MaskSiteFigures, metrics)


def mask_site_text(found: ExternalMasks) -> str:
    """`external_masks` as tables."""
    both = (found.own, found.here)
    rows: list[list[object]] = [["images", *(part.images for part in both)]]
    rows += [["Dice", *(four(part.dice) for part in both)]]
    rows += [["  95 % interval", *(" to ".join(map(four, part.dice_ci95)) for part in both)]]
    heads = {
        "dice_nucleus": "nuclei",
        "dice_cell": "whole cells",
        "nc_error": "error of the nucleus share",
        "aji": "AJI",
    }
    rows += [[head, *(four(getattr(part, name)) for part in both)] for name, head in heads.items()]
    low, high = found.drop_points_ci95
    lost = f"{found.drop_points:.2f} hundredths (95 % interval {low:.2f} to {high:.2f})"
    facts = {"Dice lost": lost} | repeated_facts(found.repeated)
    return f"{table(['', 'own test subset', 'this site'], rows)}\n\n{record(facts)}"
