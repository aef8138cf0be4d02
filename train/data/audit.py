"""``edgeall data audit``: finds problems of a data set that make results look better than they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...console.tables import percent, table
from ...edge_runtime.errors import DataError
from ...edge_runtime.results import SPREAD, Result
from .dataset import load_dataset
from .duplicates import Duplicates, groups
from .listing import DataListing, describe
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
class Finding(Result):
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
class ProbeRow(Result):
    """Balanced, cross-validated accuracy of a probe, with its interval.

    ``of_possible`` is its share of the way from chance to certainty.
    """

    looks_at: str
    sees_cells: bool
    accuracy: float
    low: float
    high: float
    of_possible: float


@dataclass(frozen=True)
class AuditReport(Result):
    """The findings of an audit, by severity, and the measurements behind them.

    Attributes:
        listing: see `edgeall.train.data.listing.describe`.
        chance: accuracy of guessing.
        kept_together: in the cross-validation: ``subject`` or ``duplicates``.
        probes: by name; empty if there are too few images.
    """

    listing: DataListing = field(metadata=SPREAD)
    chance: float
    kept_together: str
    probes: dict[str, ProbeRow]
    findings: list[Finding]


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        report: what the command prints.
        scan: of the data.
        duplicates: of the scan.
        features: of each probe, by name; empty if there are too few images.
        scores: of each probe.
    """

    report: AuditReport
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
    listing = describe(found, duplicates)
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
    probes = {probe.name: _row(probe, scores[probe.name], chance) for probe in PROBES} if scores else {}
    report = AuditReport(listing, chance, "duplicates" if listing.subjects is None else "subject", probes, [])
    report = replace(report, findings=_findings(report, found.facts, duplicates))
    return Audit(report, found, duplicates, features, scores)


def audit_text(report: AuditReport) -> str:
    """The report of an audit as text."""
    parts = []
    if report.probes:
        rows = [
            [name, percent(row.accuracy), f"{percent(row.low)} to {percent(row.high)}", row.looks_at]
            for name, row in report.probes.items()
        ]
        parts.append(
            f"Accuracy of classifiers that do not see the cells (chance {percent(report.chance)}; {FOLDS}-fold, "
            f"{report.kept_together} kept together):\n\n" + table(["probe", "accuracy", "95 % interval", "from"], rows)
        )
    parts += [f"{finding.level.upper()}: {finding.text}\n  {finding.advice}" for finding in report.findings] or [
        "Nothing found. The audit only checks for known problems."
    ]
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


def _row(probe: Probe, found: Score, chance: float) -> ProbeRow:
    of_possible = (found.accuracy - chance) / (1 - chance)
    return ProbeRow(probe.looks_at, probe.sees_cells, found.accuracy, found.low, found.high, of_possible)


def _findings(report: AuditReport, images: Sequence[Facts], duplicates: Duplicates) -> list[Finding]:
    listing = report.listing
    found = [*_unreadable(listing), *_narrow_range(listing), *_duplicate_images(listing, images, duplicates)]
    found += [*_subjects(listing, images), *_imbalance(listing), *_shortcuts(report)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _unreadable(listing: DataListing) -> list[Finding]:
    count = len(listing.problems)
    if not count:
        return []
    text = f"{count:,} files cannot be used, first {listing.problems[0].path}: {listing.problems[0].reason}."
    return [Finding("warning", "unreadable", text, "Training skips them. Copy them again, or remove them.")]


def _narrow_range(listing: DataListing) -> list[Finding]:
    if listing.narrow_range is None:
        return []
    advice = "Scale them to 16 bits in the camera software, or save 8-bit images. Do the same for images to classify."
    return [Finding("warning", "range", f"{listing.narrow_range}.", advice)]


def _duplicate_images(listing: DataListing, images: Sequence[Facts], duplicates: Duplicates) -> list[Finding]:
    found = []
    if duplicates.conflicts:
        named = " = ".join(images[index].sample.path for index in duplicates.conflicts[0][:3])
        text = f"{len(duplicates.conflicts):,} groups of duplicates have different labels ({named})."
        found.append(Finding("problem", "duplicates", text, "One of the labels is wrong: check them."))
    repeated = listing.exact_duplicates + listing.near_duplicates
    if repeated:
        text = (
            f"{repeated:,} of {listing.images:,} images are duplicates: {listing.exact_duplicates:,} exact, "
            f"{listing.near_duplicates:,} near duplicates or overlapping fields."
        )
        advice = "edgeall never puts them into two subsets. Figures from a random split made elsewhere are too good."
        found.append(Finding("warning", "duplicates", text, advice))
    if listing.split.counts and (across := listing.split.counts.across):
        text = f"{len(across):,} groups of duplicates lie in several subsets of the given split ({across[0][0]})."
        advice = "Remove them from train, or split again: the figures of the test subset are too good."
        found.append(Finding("problem", "duplicates", text, advice))
    others = [group for group in duplicates.near if len({images[index].sample.subject for index in group} - {None}) > 1]
    if others:
        text = f"{len(others):,} groups of duplicates lie in different subjects ({images[others[0][0]].sample.path})."
        found.append(Finding("problem", "subjects", text, "Either the subjects or the images are wrong: check them."))
    return found


def _subjects(listing: DataListing, images: Sequence[Facts]) -> list[Finding]:
    if listing.subjects is None:
        advice = (
            "Split by block if files are numbered in the order of taking; that is the default then. Figures of a split "
            "by image are optimistic."
        )
        text = "The subject or slide of each image is not known: no split can keep them together."
        return [Finding("note", "subjects", text, advice)]
    found = []
    for label in listing.labels:
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


def _imbalance(listing: DataListing) -> list[Finding]:
    counts = {label: row.images for label, row in listing.labels.items()}
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] < IMBALANCE * counts[least]:
        return []
    text = f"{most} has {counts[most]:,} images, {least} {counts[least]:,}."
    advice = "Training weighs classes by default; read recall by class, not accuracy."
    return [Finding("warning", "imbalance", text, advice)]


def _shortcuts(report: AuditReport) -> list[Finding]:
    if not report.probes:
        text = f"Too few images for the probes: every class needs {FEWEST} from different subjects, without duplicates."
        return [Finding("note", "probes", text, "Shortcuts were not searched for.")]
    found = []
    real = report.probes["shape"].of_possible
    for name, row in report.probes.items():
        if name == "shape":
            continue
        limit = max(SHORTCUT, COLOUR_SHORTCUT * real) if row.sees_cells else SHORTCUT
        certain = (row.low - report.chance) / (1 - report.chance)
        if min(row.of_possible, certain + 0.05) < limit:
            continue
        seen = percent(report.probes["shape"].accuracy)
        text = (
            f"{percent(row.accuracy)} of the images can be classified from {row.looks_at} (chance "
            f"{percent(report.chance)}; shape and texture without colour: {seen})."
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
