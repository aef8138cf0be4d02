"""``edgeall data audit``: finds problems of a data set that make results look better than they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...console.tables import percent, table
from ...edge_runtime.errors import DataError
from .dataset import load_dataset
from .duplicates import Duplicates, groups
from .listing import describe
from .probes import FOLDS, PROBES, Probe, Score, measure, score
from .scan import Facts, Scan, scan

SHORTCUT = 0.25
"""Limit for a probe that sees no cells, as a share of the way from chance to certainty. Above it is a shortcut."""
COLOUR_SHORTCUT = 0.75
"""The same for a probe that also sees cells, as a share of the result of shape and texture. Stain differs between
classes, but if colour alone is nearly as good, a network has no reason to learn more."""
IMBALANCE = 3.0
"""Ratio of the largest to the smallest class from which imbalance is reported."""
FEWEST = 10
"""Minimum number of groups in every class for the probes: two per fold."""
LEVELS = ("problem", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One finding and the advice for it.

    Attributes:
        level: one of `LEVELS`: invalidates results, may invalidate results, information.
        about: ``duplicates``, ``shortcut``, ``subjects``, ``imbalance``, ``unreadable``, ``range`` or ``probes``.
        text: one sentence.
        advice: what to do.
    """

    level: str
    about: str
    text: str
    advice: str


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        facts: the JSON output of the command.
        scan: of the data.
        duplicates: of the scan.
        features: of each probe, by name; empty if there are too few images.
        scores: of each probe.
    """

    facts: dict[str, Any]
    scan: Scan
    duplicates: Duplicates
    features: dict[str, NDArray[np.float64]]
    scores: dict[str, Score]


def audit(path: Path, progress: Progress, seed: int = 0) -> Audit:
    """Find shortcuts, duplicates, imbalance and other problems of a data set.

    Args:
        path: see `edgeall.train.data.dataset.load_dataset`.
        progress: receives the progress bars.
        seed: of the cross-validation.

    Returns:
        `Audit.facts` is the result of `edgeall.train.data.listing.describe` with ``probes`` (for each ``accuracy``,
        balanced and cross-validated; its interval; ``of_possible``, its share of the way from chance to certainty;
        ``looks_at``), ``chance``, ``kept_together`` (``subject`` or ``duplicates``) and ``findings``, by severity.

    Raises:
        DataError: see `load_dataset` and `scan`; or only one class.
    """
    listed = load_dataset(path)
    with progress.task("reading images", len(listed.samples)) as advance:
        found = scan(listed, lambda done, _: advance(done, ""))
    labels = found.dataset.labels
    if len(labels) < 2:
        raise DataError(f"{path}: only one class ({labels[0]}), an audit needs at least two")
    duplicates = groups(found)
    facts = describe(found, duplicates)
    classes = np.array([labels.index(item.sample.label) for item in found.facts])
    together = _together(found.facts, duplicates)
    features: dict[str, NDArray[np.float64]] = {}
    scores: dict[str, Score] = {}
    if _enough(classes, together):
        with progress.task("measuring", len(found.facts)) as advance:
            features = measure(found.dataset.root, found.facts, lambda done: advance(done, ""))
        with progress.task("probing", len(PROBES)) as advance:
            for number, probe in enumerate(PROBES):
                advance(number, probe.name)
                scores[probe.name] = score(features[probe.name], classes, together, seed)
            advance(len(PROBES), "")
    chance = 1 / len(labels)
    facts |= {
        "chance": chance,
        "kept_together": "duplicates" if facts["subjects"] is None else "subject",
        "probes": {probe.name: _row(probe, scores[probe.name], chance) for probe in PROBES} if scores else {},
    }
    facts["findings"] = [asdict(finding) for finding in _findings(facts, found.facts, duplicates)]
    return Audit(facts, found, duplicates, features, scores)


def audit_text(facts: dict[str, Any]) -> str:
    """The facts of an audit as text."""
    parts = []
    if facts["probes"]:
        rows = [
            [name, percent(row["accuracy"]), f"{percent(row['low'])} to {percent(row['high'])}", row["looks_at"]]
            for name, row in facts["probes"].items()
        ]
        parts.append(
            f"Accuracy of classifiers that do not see the cells (chance {percent(facts['chance'])}; {FOLDS}-fold, "
            f"{facts['kept_together']} kept together):\n\n"
            + table(["probe", "accuracy", "95 % interval", "from"], rows)
        )
    parts += [
        f"{finding['level'].upper()}: {finding['text']}\n  {finding['advice']}" for finding in facts["findings"]
    ] or ["Nothing found. The audit only checks for known problems."]
    return "\n\n".join(parts)


def _together(facts: Sequence[Facts], duplicates: Duplicates) -> NDArray[np.int64]:
    """Group numbers for cross-validation, ``(n,)``: subjects if all are known, else duplicates."""
    subjects = [item.sample.subject for item in facts]
    if None not in subjects:
        return np.asarray(np.unique(np.array(subjects), return_inverse=True)[1])
    numbers = np.arange(len(facts))
    for group in duplicates.near:
        numbers[list(group)] = group[0]
    return numbers


def _enough(classes: NDArray[np.int64], together: NDArray[np.int64]) -> bool:
    return min(len(np.unique(together[classes == kind])) for kind in np.unique(classes)) >= FEWEST


def _row(probe: Probe, found: Score, chance: float) -> dict[str, Any]:
    return {
        "looks_at": probe.looks_at,
        "sees_cells": probe.sees_cells,
        "accuracy": found.accuracy,
        "low": found.low,
        "high": found.high,
        "of_possible": (found.accuracy - chance) / (1 - chance),
    }


def _findings(facts: dict[str, Any], images: Sequence[Facts], duplicates: Duplicates) -> list[Finding]:
    found = [*_unreadable(facts), *_narrow_range(facts), *_duplicate_images(facts, images, duplicates)]
    found += [*_subjects(facts, images), *_imbalance(facts), *_shortcuts(facts)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _unreadable(facts: dict[str, Any]) -> list[Finding]:
    count = len(facts["problems"])
    if not count:
        return []
    text = f"{count:,} files cannot be used, first {facts['problems'][0]['path']}: {facts['problems'][0]['reason']}."
    return [Finding("warning", "unreadable", text, "Training skips them. Copy them again, or remove them.")]


def _narrow_range(facts: dict[str, Any]) -> list[Finding]:
    if facts["narrow_range"] is None:
        return []
    advice = "Scale them to 16 bits in the camera software, or save 8-bit images. Do the same for images to classify."
    return [Finding("warning", "range", f"{facts['narrow_range']}.", advice)]


def _duplicate_images(facts: dict[str, Any], images: Sequence[Facts], duplicates: Duplicates) -> list[Finding]:
    found = []
    if duplicates.conflicts:
        named = " = ".join(images[index].sample.path for index in duplicates.conflicts[0][:3])
        text = f"{len(duplicates.conflicts):,} groups of duplicates have different labels ({named})."
        found.append(Finding("problem", "duplicates", text, "One of the labels is wrong: check them."))
    repeated = facts["exact_duplicates"] + facts["near_duplicates"]
    if repeated:
        text = (
            f"{repeated:,} of {facts['images']:,} images are duplicates: {facts['exact_duplicates']:,} exact, "
            f"{facts['near_duplicates']:,} near duplicates or overlapping fields."
        )
        advice = "edgeall never puts them into two subsets. Figures from a random split made elsewhere are too good."
        found.append(Finding("warning", "duplicates", text, advice))
    if across := facts["split"].get("across"):
        text = f"{len(across):,} groups of duplicates lie in several subsets of the given split ({across[0][0]})."
        advice = "Remove them from train, or split again: the figures of the test subset are too good."
        found.append(Finding("problem", "duplicates", text, advice))
    across = [group for group in duplicates.near if len({images[index].sample.subject for index in group} - {None}) > 1]
    if across:
        text = f"{len(across):,} groups of duplicates lie in different subjects ({images[across[0][0]].sample.path})."
        found.append(Finding("problem", "subjects", text, "Either the subjects or the images are wrong: check them."))
    return found


def _subjects(facts: dict[str, Any], images: Sequence[Facts]) -> list[Finding]:
    if facts["subjects"] is None:
        advice = (
            "Split by block if files are numbered in the order of taking; that is the default then. Figures of a split "
            "by image are optimistic."
        )
        text = "The subject or slide of each image is not known: no split can keep them together."
        return [Finding("note", "subjects", text, advice)]
    found = []
    for label in facts["labels"]:
        counts = Counter(item.sample.subject for item in images if item.sample.label == label)
        subject, most = counts.most_common(1)[0]
        total = sum(counts.values())
        if len(counts) > 1 and most > 0.5 * total:
            text = f"{percent(most / total)} of {label} are from one subject ({subject})."
            found.append(Finding("warning", "subjects", text, "A network may learn this person instead of the class."))
        if len(counts) < FEWEST:
            text = f"{label} has {len(counts)} subjects."
            found.append(
                Finding("warning", "subjects", text, "A test subset with one or two people says little about others.")
            )
    return found


def _imbalance(facts: dict[str, Any]) -> list[Finding]:
    counts = {label: row["images"] for label, row in facts["labels"].items()}
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] < IMBALANCE * counts[least]:
        return []
    text = f"{most} has {counts[most]:,} images, {least} {counts[least]:,}."
    advice = "Training weighs classes by default; read recall by class, not accuracy."
    return [Finding("warning", "imbalance", text, advice)]


def _shortcuts(facts: dict[str, Any]) -> list[Finding]:
    if not facts["probes"]:
        text = f"Too few images for the probes: every class needs {FEWEST} from different subjects, without duplicates."
        return [Finding("note", "probes", text, "Shortcuts were not searched for.")]
    found = []
    real = facts["probes"]["shape"]["of_possible"]
    for name, row in facts["probes"].items():
        if name == "shape":
            continue
        limit = max(SHORTCUT, COLOUR_SHORTCUT * real) if row["sees_cells"] else SHORTCUT
        certain = (row["low"] - facts["chance"]) / (1 - facts["chance"])
        if min(row["of_possible"], certain + 0.05) < limit:
            continue
        seen = percent(facts["probes"]["shape"]["accuracy"])
        text = (
            f"{percent(row['accuracy'])} of the images can be classified from {row['looks_at']} (chance "
            f"{percent(facts['chance'])}; shape and texture without colour: {seen})."
        )
        found.append(Finding("problem", "shortcut", text, _ADVICE[name]))
    return found


_OTHER_MICROSCOPE = (
    "A model trained on this may fail on another microscope: train with --augment microscope and report "
    "`edgeall evaluate --robustness`."
)
_ADVICE = {
    "background": _OTHER_MICROSCOPE,
    "colour": _OTHER_MICROSCOPE,
    "border": f"Check for frames, tints and scale bars, and crop them. {_OTHER_MICROSCOPE}",
    "corners": "Crop or blank the corners. `edgeall evaluate --context` measures what a network takes from them.",
    "size": "Classes were taken or cropped differently. Use one size from one source for all images.",
    "file": "Classes were stored differently. Store all images from the originals in one format and quality.",
    "metadata": "Classes were saved by different programs. Store all images from the originals in one format.",
}
