"""``edgeall data audit``: what is wrong with a data set, before anybody trains on it and believes the result."""

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
from . import duplicates
from .dataset import load_dataset
from .duplicates import Duplicates
from .listing import describe
from .probes import FOLDS, PROBES, Probe, Score, measure, score
from .scan import Facts, Scan, scan

SHORTCUT = 0.25
"""How far from chance to certainty a probe that sees no cell may get before it is called a shortcut."""
COLOUR_SHORTCUT = 0.75
"""The same for one that sees cells too, and of what shape and texture alone reach: stain does differ between classes,
but where colour alone does nearly as well, nothing makes a network look any further."""
IMBALANCE = 3.0
"""Images of the largest class for one of the smallest, from which on it is said."""
FEWEST = 10
"""Groups of every class that probes need, two for each fold."""
LEVELS = ("problem", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something to know, and what to do about it.

    Attributes:
        level: one of `LEVELS`: what breaks a result, what may, what is good to know.
        about: ``duplicates``, ``shortcut``, ``subjects``, ``imbalance``, ``unreadable``, ``range`` or ``probes``.
        text: in a sentence.
        advice: what to do.
    """

    level: str
    about: str
    text: str
    advice: str


@dataclass(frozen=True)
class Audit:
    """What was found, for the report as well.

    Attributes:
        facts: what the command prints as JSON.
        scan: of the data.
        twins: its duplicates.
        features: of each probe, by name; empty where there are too few images.
        scores: of each probe.
    """

    facts: dict[str, Any]
    scan: Scan
    twins: Duplicates
    features: dict[str, NDArray[np.float64]]
    scores: dict[str, Score]


def audit(path: Path, progress: Progress, seed: int = 0) -> Audit:
    """Look for everything that makes a figure of a network trained on this data worth less than it seems.

    Args:
        path: see `edgeall.train.data.dataset.load_dataset`.
        seed: of the cross-validation.

    Returns:
        `Audit.facts` is `edgeall.train.data.listing.describe`'s with ``probes`` (for each ``accuracy``, balanced and
        cross-validated; its interval; ``of_possible``, how far from chance to certainty that is; ``looks_at``),
        ``chance``, ``kept_together`` (``subject`` or ``duplicates``) and ``findings``, the gravest first.

    Raises:
        DataError: see `load_dataset` and `scan`; or one class only.
    """
    listed = load_dataset(path)
    with progress.task("reading images", len(listed.samples)) as advance:
        found = scan(listed, lambda done, _: advance(done, ""))
    labels = found.dataset.labels
    if len(labels) < 2:
        raise DataError(f"{path}: one class only ({labels[0]}); there is nothing to tell apart")
    twins = duplicates.groups(found)
    facts = describe(found, twins)
    classes = np.array([labels.index(item.sample.label) for item in found.facts])
    together = _together(found.facts, twins)
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
    facts["findings"] = [asdict(finding) for finding in _findings(facts, found.facts, twins)]
    return Audit(facts, found, twins, features, scores)


def audit_text(facts: dict[str, Any]) -> str:
    """What `audit` found, for people."""
    parts = []
    if facts["probes"]:
        rows = [
            [name, percent(row["accuracy"]), f"{percent(row['low'])} to {percent(row['high'])}", row["looks_at"]]
            for name, row in facts["probes"].items()
        ]
        parts.append(
            f"How well classes are guessed without looking at a cell (chance {percent(facts['chance'])}; {FOLDS}-fold, "
            f"{facts['kept_together']} kept together):\n\n"
            + table(["probe", "accuracy", "95 % interval", "from"], rows)
        )
    parts += [
        f"{finding['level'].upper()}: {finding['text']}\n  {finding['advice']}" for finding in facts["findings"]
    ] or ["Nothing found. That isn't to say that there is nothing: these are the known ways to go wrong."]
    return "\n\n".join(parts)


def _together(facts: Sequence[Facts], twins: Duplicates) -> NDArray[np.int64]:
    """A number for what cross-validation keeps together: subjects where all are known, else duplicates."""
    subjects = [item.sample.subject for item in facts]
    if None not in subjects:
        return np.asarray(np.unique(np.array(subjects), return_inverse=True)[1])
    numbers = np.arange(len(facts))
    for group in twins.near:
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


def _findings(facts: dict[str, Any], images: Sequence[Facts], twins: Duplicates) -> list[Finding]:
    found = [*_unreadable(facts), *_narrow_range(facts), *_duplicates(facts, images, twins)]
    found += [*_subjects(facts, images), *_imbalance(facts)]
    found += _shortcuts(facts)
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _unreadable(facts: dict[str, Any]) -> list[Finding]:
    count = len(facts["problems"])
    if not count:
        return []
    text = f"{count:,} files can't be used, first {facts['problems'][0]['path']}: {facts['problems'][0]['reason']}."
    return [Finding("warning", "unreadable", text, "Training skips them. Copy them again, or take them away.")]


def _narrow_range(facts: dict[str, Any]) -> list[Finding]:
    if facts["narrow_range"] is None:
        return []
    advice = "Have the camera's program scale them to 16 bits, or save 8-bit images; and so what is classified later."
    return [Finding("warning", "range", f"{facts['narrow_range']}.", advice)]


def _duplicates(facts: dict[str, Any], images: Sequence[Facts], twins: Duplicates) -> list[Finding]:
    found = []
    if twins.conflicts:
        named = " = ".join(images[index].sample.path for index in twins.conflicts[0][:3])
        text = f"{len(twins.conflicts):,} groups of the same or nearly the same image carry different labels ({named})."
        found.append(Finding("problem", "duplicates", text, "One of the labels is wrong: have them looked at."))
    repeated = facts["exact_duplicates"] + facts["near_duplicates"]
    if repeated:
        text = (
            f"{repeated:,} of {facts['images']:,} images repeat another one: {facts['exact_duplicates']:,} exactly, "
            f"{facts['near_duplicates']:,} nearly or as an overlapping field."
        )
        advice = (
            "edgeall never has them on two sides of a split it makes. Figures from a random split elsewhere flatter."
        )
        found.append(Finding("warning", "duplicates", text, advice))
    if across := facts["split"].get("across"):
        text = f"{len(across):,} groups of duplicates lie on several sides of the split as given ({across[0][0]})."
        advice = "Take them off the train side, or have the images split anew: figures of the test side flatter."
        found.append(Finding("problem", "duplicates", text, advice))
    across = [group for group in twins.near if len({images[index].sample.subject for index in group} - {None}) > 1]
    if across:
        text = f"{len(across):,} groups of duplicates lie in different subjects ({images[across[0][0]].sample.path})."
        found.append(
            Finding("problem", "subjects", text, "Either the subjects are wrong or the images are: check them.")
        )
    return found


def _subjects(facts: dict[str, Any], images: Sequence[Facts]) -> list[Finding]:
    if facts["subjects"] is None:
        advice = (
            "Where files are numbered as taken, split by block, which is the default there. Read every figure of a "
            "split by image as optimistic."
        )
        text = "Which images come from one person or slide isn't known: no split can keep them together."
        return [Finding("note", "subjects", text, advice)]
    found = []
    for label in facts["labels"]:
        counts = Counter(item.sample.subject for item in images if item.sample.label == label)
        subject, most = counts.most_common(1)[0]
        total = sum(counts.values())
        if len(counts) > 1 and most > 0.5 * total:
            text = f"{percent(most / total)} of {label} come from one subject ({subject})."
            found.append(Finding("warning", "subjects", text, "What is learnt of this class is that person."))
        if len(counts) < FEWEST:
            text = f"{label} has {len(counts)} subjects."
            found.append(
                Finding("warning", "subjects", text, "A test side of one or two people says little of others.")
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
        text = f"Too few images for the probes: every class needs {FEWEST} that aren't of one subject or duplicates."
        return [Finding("note", "probes", text, "Shortcuts were not looked for.")]
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
            f"{percent(row['accuracy'])} of images are classified from {row['looks_at']} (chance "
            f"{percent(facts['chance'])}; shape and texture without colour: {seen})."
        )
        found.append(Finding("problem", "shortcut", text, _ADVICE[name]))
    return found


_OTHER_MICROSCOPE = (
    "Expect another microscope to break a model trained on this: train with --augment microscope and report "
    "`edgeall evaluate --robustness`."
)
_ADVICE = {
    "background": _OTHER_MICROSCOPE,
    "colour": _OTHER_MICROSCOPE,
    "border": f"Look for frames, tints and scale bars, and crop them away. {_OTHER_MICROSCOPE}",
    "size": "Classes were taken or cut differently. Bring all images to one size from one source, or get others.",
    "file": "Classes were stored differently. Store all images in one format and quality, from the originals.",
    "metadata": "Classes went through different programs. Store all images in one format, from the originals.",
}
