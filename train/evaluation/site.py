"""A model on another laboratory's images, beside what it reached on its own test side: `edgeall evaluate --site`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ...console.progress import Progress
from ...console.tables import percent, record, table
from ...edge_runtime.errors import DataError
from ..data import duplicates
from ..data.dataset import Dataset, Sample, load_dataset
from ..data.scan import Facts, Scan, scan
from ..data.split import SIDES, Split, SplitEntry

FIGURES = ("macro_f1", "ece", "sensitivity", "specificity")


@dataclass(frozen=True)
class Site:
    """Another laboratory's images.

    Attributes:
        root: what the entries' paths start at.
        facts: of each image, as looked at.
        entries: the same images, with the model's own names for their classes.
        missing: classes of the model that no image here has.
    """

    root: Path
    facts: tuple[Facts, ...]
    entries: tuple[SplitEntry, ...]
    missing: tuple[str, ...]


def read_site(path: Path, labels: Sequence[str], model: Path, progress: Progress) -> Site:
    """Look at a folder or manifest whose classes are named like the model's, capitals aside; some may be missing.

    Raises:
        DataError: a class that the model doesn't know; see `load_dataset` and `scan` too.
    """
    listed = load_dataset(path)
    known = {label.casefold(): label for label in labels}
    names = {label: label if label in labels else known.get(label.casefold()) for label in listed.labels}
    unknown = [label for label, name in names.items() if name is None]
    if unknown:
        raise DataError(
            f"{path}: {', '.join(unknown)}: {model} knows no such class, but {', '.join(labels)}",
            hint="name the folders like its classes, or list the images with its labels in a CSV manifest",
        )
    found = _scanned(listed, "reading the site's images", progress)
    for problem in found.dataset.problems:
        progress.note(f"skipped {problem.path}: {problem.reason}")
    entries = tuple(
        SplitEntry(item.sample.path, names[item.sample.label] or "", item.sample.subject, item.sha256, "site")
        for item in found.facts
    )
    there = {entry.label for entry in entries}
    missing = tuple(label for label in labels if label not in there)
    if missing:
        progress.note(f"{path}: no images of {', '.join(missing)}; compared on the other classes")
    return Site(found.dataset.root, found.facts, entries, missing)


def repeated(site: Site, split: Split | None, own: Path | None, progress: Progress) -> dict[str, Any]:
    """How many of the site's images are the model's own: it has seen them, and they make the site seem easy.

    Args:
        site: the images.
        split: that the model was made with, where it is known.
        own: where its images are now, where that is known.

    Returns:
        ``looked_for``: ``files`` of equal bytes, or ``pictures`` too, equal or nearly so, see
        `edgeall.train.data.duplicates`; None without a split. ``images``: how many repeat one; ``by_side``: of which
        side, the first of train, validation and test; ``first``: an example's path. A picture that overlaps one that
        repeats counts as well.
    """
    if split is None:
        return {"looked_for": None, "images": 0, "by_side": {}, "first": None}
    used = [entry for side in reversed(SIDES) for entry in split.side(side)]  # of equal files the first side counts
    of_file = {entry.sha256: entry.side for entry in used}
    sides = {index: of_file[item.sha256] for index, item in enumerate(site.facts) if item.sha256 in of_file}
    here = [] if own is None else [entry for entry in used if (own / entry.path).is_file()]
    if own is not None and here:
        samples = tuple(Sample(entry.path, entry.label, entry.subject) for entry in here)
        found = _scanned(Dataset(own, "split", split.labels, samples), "reading the model's own images", progress)
        unchanged = [item for item in found.facts if item.sha256 in of_file]
        for index, side in _alike(site.facts, unchanged, of_file).items():
            sides[index] = min(sides.get(index, side), side, key=SIDES.index)
    first = min(sides, default=None)
    return {
        "looked_for": "pictures" if here else "files",
        "images": len(sides),
        "by_side": {side: sum(found == side for found in sides.values()) for side in SIDES},
        "first": None if first is None else site.facts[first].sample.path,
    }


def beside_own(
    path: Path, site: Site, metrics: Mapping[str, Any], own: Mapping[str, Any], twins: dict[str, Any]
) -> dict[str, Any]:
    """The comparison.

    Args:
        path: the site's folder or manifest.
        site: what is there.
        metrics: of the model on it, with what `edgeall.train.evaluation.reliability.trust` says.
        own: of the model on its own test side, from its manifest or ``run.json``.
        twins: from `repeated`.

    Returns:
        - folder, missing (classes), repeated;
        - here and own: images; accuracy, its interval ``accuracy_ci95`` and ``ci_unit`` (the bootstrap's by subject,
          else Wilson's by image); balanced_accuracy, the mean of the classes' recalls; recall by class; reviewed, the
          share sent to review, None where unknown; `FIGURES`. Where classes are missing here, ``own`` is of the images
          of the others, and has None for what can't be told of those alone;
        - drop_points: percentage points of accuracy lost, and their 95 % interval ``drop_points_ci95``.
    """
    labels = [label for label in metrics["labels"] if label not in site.missing]
    here, there = _side(metrics, labels, False), _side(own, labels, bool(site.missing))
    here["reviewed"] = metrics["review"] and metrics["review"]["reviewed"]
    there["reviewed"] = None if site.missing else own.get("reviewed")
    low, high = _difference(there, here)
    return {
        "folder": str(path),
        "missing": list(site.missing),
        "repeated": twins,
        "here": here,
        "own": there,
        "drop_points": 100 * (there["accuracy"] - here["accuracy"]),
        "drop_points_ci95": [100 * low, 100 * high],
    }


def site_text(found: Mapping[str, Any]) -> str:
    """`beside_own` for people."""
    here, own, twins = found["here"], found["own"], found["repeated"]
    rows: list[list[object]] = [["images", own["images"], here["images"]]]
    rows += [["accuracy", percent(own["accuracy"]), percent(here["accuracy"])]]
    rows += [["  95 % interval", *(" to ".join(map(str, map(percent, side["accuracy_ci95"]))) for side in (own, here))]]
    rows += [["  by", own["ci_unit"], here["ci_unit"]]]
    names = ["balanced_accuracy", "sensitivity", "specificity", "reviewed"]
    rows += [[_HEADS.get(name, name), percent(own[name]), percent(here[name])] for name in names]
    rows += [[_HEADS[name], *(_four(side[name]) for side in (own, here))] for name in ("macro_f1", "ece")]
    rows += [
        [f"recall of {label}", percent(own["recall"][label]), percent(value)] for label, value in here["recall"].items()
    ]
    low, high = found["drop_points_ci95"]
    facts = {
        "accuracy lost": f"{found['drop_points']:.2f} points (95 % interval {low:.2f} to {high:.2f})",
        "classes missing here": ", ".join(found["missing"]) or "none",
        "the model's own images": _REPEATED[twins["looked_for"]].format(twins["images"]),
    }
    if twins["images"]:
        facts["of these"] = ", ".join(
            f"{count:,} of its {side} side" for side, count in twins["by_side"].items() if count
        )
    return f"{table(['', 'own test side', 'this site'], rows)}\n\n{record(facts)}"


_HEADS = {"balanced_accuracy": "balanced accuracy", "reviewed": "sent to review"} | {
    "macro_f1": "macro F1",
    "ece": "calibration error",
}
_REPEATED = {
    None: "unknown: no split.json says which they are",
    "files": "{} of these files are among them; nearly equal pictures were not looked for: its data isn't here",
    "pictures": "{} of these pictures are among them, or nearly so",
}


def _scanned(dataset: Dataset, title: str, progress: Progress) -> Scan:
    with progress.task(title, len(dataset.samples)) as advance:
        return scan(dataset, lambda done, _: advance(done, ""))


def _alike(site: Sequence[Facts], own: Sequence[Facts], of_file: Mapping[str, str]) -> dict[int, str]:
    """To each of the site's images that shows what one of the model's own shows, that one's side."""
    both = [*_below("site", site), *_below("own", own)]
    whole = Dataset(Path(), "both", (), tuple(item.sample for item in both))
    found: dict[int, str] = {}
    for group in duplicates.groups(Scan(whole, tuple(both))).near:
        sides = [of_file[both[index].sha256] for index in group if index >= len(site)]
        if sides:
            found |= {index: min(sides, key=SIDES.index) for index in group if index < len(site)}
    return found


def _below(folder: str, facts: Sequence[Facts]) -> list[Facts]:
    """The same, in a folder of that name: file numbers of two laboratories have nothing to do with each other."""
    return [replace(item, sample=replace(item.sample, path=f"{folder}/{item.sample.path}")) for item in facts]


def _side(metrics: Mapping[str, Any], labels: Sequence[str], part: bool) -> dict[str, Any]:
    """Figures of one side; with ``part`` of its images of ``labels`` alone, as far as they can be told."""
    rows = {label: metrics["per_class"][label] for label in labels}
    images = sum(row["support"] for row in rows.values())
    right = round(sum(row["recall"] * row["support"] for row in rows.values()))
    interval, unit = metrics.get("accuracy_ci95"), metrics.get("ci_unit")
    if unit != "subject" or part or interval is None or interval[0] == interval[1]:  # without errors it is a point
        wilson, unit = binomtest(right, images).proportion_ci(method="wilson"), "image"
        interval = [float(wilson.low), float(wilson.high)]
    return {
        "images": images,
        "accuracy": right / images,
        "accuracy_ci95": interval,
        "ci_unit": unit,
        "balanced_accuracy": float(np.mean([row["recall"] for row in rows.values() if row["support"]])),
        "recall": {label: row["recall"] if row["support"] else None for label, row in rows.items()},
        **{name: None if part else metrics.get(name) for name in FIGURES},
    }


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float, float]:
    """Interval of the difference of two independent shares, from each one's own.

    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions: comparison of
    eleven methods, 1998, method 10; G. Y. Zou and A. Donner 2008 for other intervals than Wilson's.
    """
    (one, (low, high)), (other, (below, above)) = (
        (side["accuracy"], side["accuracy_ci95"]) for side in (first, second)
    )
    middle = one - other
    return middle - float(np.hypot(one - low, above - other)), middle + float(np.hypot(high - one, other - below))


def _four(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
