"""External validation: a model on the images of another laboratory, compared with its own test subset."""

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
from ...edge_runtime.results import Result
from ..data import duplicates
from ..data.dataset import load_dataset
from ..data.samples import Dataset, Sample
from ..data.scan import Facts, Scan, scan
from ..data.split import Split, SplitEntry
from ..data.subsets import SUBSETS
from .metrics import Metrics

FIGURES = ("macro_f1", "ece", "sensitivity", "specificity")


@dataclass(frozen=True)
class OwnImages(Result):
    """The images of a site that the model was made with.

    Attributes:
        looked_for: ``files`` (equal bytes), or ``pictures`` (also near duplicates, see
            `edgeall.train.data.duplicates`); None without a split.
        images: how many are the model's own, including images that overlap one.
        by_side: in which subset, the first of train, validation and test.
        first: the path of an example.
    """

    looked_for: str | None
    images: int
    by_side: dict[str, int]
    first: str | None


@dataclass(frozen=True)
class SiteFigures(Result):
    """Figures of a site, or of the model's own test subset.

    Attributes:
        accuracy_ci95: bootstrap by subject, else Wilson by image; see ``ci_unit``.
        balanced_accuracy: mean of the classes' recalls.
        recall: by class.
        reviewed: share of images sent to review; None if unknown.
    """

    images: int
    accuracy: float
    accuracy_ci95: list[float]
    ci_unit: str
    balanced_accuracy: float
    recall: dict[str, float | None]
    macro_f1: float | None
    ece: float | None
    sensitivity: float | None
    specificity: float | None
    reviewed: float | None


@dataclass(frozen=True)
class ExternalValidation(Result):
    """A site compared with the model's own test subset.

    Attributes:
        folder: of the site.
        missing: classes without images at the site. ``own`` then only counts images of the other classes; figures
            that cannot be computed for them alone are None.
        repeated: the model's own images at the site.
        here: figures of the site.
        own: figures of the model's own test subset.
        drop_points: percentage points of accuracy lost, and their 95 % interval ``drop_points_ci95``.
    """

    folder: str
    missing: list[str]
    repeated: OwnImages
    here: SiteFigures
    own: SiteFigures
    drop_points: float
    drop_points_ci95: list[float]


@dataclass(frozen=True)
class Site:
    """The images of another laboratory.

    Attributes:
        root: the paths of the entries are relative to it.
        facts: of each image, from the scan.
        entries: the same images, with the class names of the model.
        missing: classes of the model that the site has no image of.
    """

    root: Path
    facts: tuple[Facts, ...]
    entries: tuple[SplitEntry, ...]
    missing: tuple[str, ...]


def read_site(path: Path, labels: Sequence[str], model: Path, progress: Progress) -> Site:
    """Read a folder or manifest with the class names of the model. Case is ignored, and classes may be missing.

    Args:
        path: folder or manifest.
        labels: of the model.
        model: its path, for messages.

    Raises:
        DataError: a class that the model does not have; see also `load_dataset` and `scan`.
    """
    listed = load_dataset(path)
    known = {label.casefold(): label for label in labels}
    names = {label: label if label in labels else known.get(label.casefold()) for label in listed.labels}
    unknown = [label for label, name in names.items() if name is None]
    if unknown:
        raise DataError(
            f"{path}: {', '.join(unknown)}: {model} has no such class; it has {', '.join(labels)}",
            hint="name the folders like the classes of the model, or list the images with its labels in a CSV manifest",
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
        progress.note(f"{path}: no images of {', '.join(missing)}; only the other classes are compared")
    return Site(found.dataset.root, found.facts, entries, missing)


def find_own_images(site: Site, split: Split | None, own: Path | None, progress: Progress) -> OwnImages:
    """Count the images of the site that the model was made with. They make the site easier than it is.

    Args:
        site: the images.
        split: that the model was made with, if known.
        own: the folder of the model's images, if known.
        progress: receives a warning if there are any, and the progress bars.
    """
    if split is None:
        progress.note("the images that the model was trained on are not known here: give --split RUN/split.json")
        return OwnImages(None, 0, {}, None)
    used = [entry for name in reversed(SUBSETS) for entry in split.subset(name)]  # the first subset counts
    of_file = {entry.sha256: entry.side for entry in used}
    subsets = {index: of_file[item.sha256] for index, item in enumerate(site.facts) if item.sha256 in of_file}
    here = [] if own is None else [entry for entry in used if (own / entry.path).is_file()]
    if own is not None and here:
        samples = tuple(Sample(entry.path, entry.label, entry.subject) for entry in here)
        found = _scanned(Dataset(own, "split", split.labels, samples), "reading the model's own images", progress)
        unchanged = [item for item in found.facts if item.sha256 in of_file]
        for index, name in _duplicates_of(site.facts, unchanged, of_file).items():
            subsets[index] = min(subsets.get(index, name), name, key=SUBSETS.index)
    first = site.facts[min(subsets)].sample.path if subsets else None
    if first is not None:
        progress.note(
            f"warning: {len(subsets):,} of the site's {len(site.entries):,} images are the model's own or nearly so "
            f"(first: {first}): the figures are too good"
        )
    by_subset = {name: sum(found == name for found in subsets.values()) for name in SUBSETS}
    return OwnImages("pictures" if here else "files", len(subsets), by_subset, first)


def external_validation(
    path: Path, site: Site, metrics: Metrics, reviewed: float | None, own: Mapping[str, Any], repeated: OwnImages
) -> ExternalValidation:
    """Compare the figures of a site with those of the model's own test subset.

    Args:
        path: the site's folder or manifest.
        site: its images.
        metrics: of the model on the site.
        reviewed: share of the site's images that the model sends to review; None if it sends none.
        own: JSON of the metrics of the model on its own test subset, from its manifest or ``run.json``.
        repeated: from `find_own_images`.
    """
    labels = [label for label in metrics.labels if label not in site.missing]
    here = _figures(metrics.to_json() | {"reviewed": reviewed}, labels, False)
    there = _figures(own, labels, bool(site.missing))
    low, high = independent_difference(there.accuracy, there.accuracy_ci95, here.accuracy, here.accuracy_ci95)
    drop = 100 * (there.accuracy - here.accuracy)
    return ExternalValidation(str(path), list(site.missing), repeated, here, there, drop, [100 * low, 100 * high])


def site_text(found: ExternalValidation) -> str:
    """`external_validation` as tables."""
    here, own, repeated = found.here, found.own, found.repeated
    both = (own, here)
    rows: list[list[object]] = [["images", own.images, here.images]]
    rows += [["accuracy", *(percent(part.accuracy) for part in both)]]
    rows += [["  95 % interval", *(" to ".join(map(str, map(percent, part.accuracy_ci95))) for part in both)]]
    rows += [["  by", own.ci_unit, here.ci_unit]]
    for name in ("balanced_accuracy", "sensitivity", "specificity", "reviewed"):
        rows += [[_HEADS.get(name, name), *(percent(getattr(part, name)) for part in both)]]
    rows += [[_HEADS[name], *(_four(getattr(part, name)) for part in both)] for name in ("macro_f1", "ece")]
    rows += [[f"recall of {label}", percent(own.recall[label]), percent(value)] for label, value in here.recall.items()]
    low, high = found.drop_points_ci95
    facts = {
        "accuracy lost": f"{found.drop_points:.2f} points (95 % interval {low:.2f} to {high:.2f})",
        "classes missing here": ", ".join(found.missing) or "none",
    }
    facts |= repeated_facts(repeated)
    return f"{table(['', 'own test subset', 'this site'], rows)}\n\n{record(facts)}"


def repeated_facts(repeated: OwnImages) -> dict[str, str]:
    """Rows about the model's own images at a site."""
    facts = {"the model's own images": _REPEATED[repeated.looked_for].format(repeated.images)}
    if repeated.images:
        facts["of these"] = ", ".join(
            f"{count:,} in its {name} subset" for name, count in repeated.by_side.items() if count
        )
    return facts


_HEADS = {"balanced_accuracy": "balanced accuracy", "reviewed": "sent to review"} | {
    "macro_f1": "macro F1",
    "ece": "calibration error",
}
_REPEATED = {
    None: "unknown: the split.json of the model is not available",
    "files": "{} of these files are among them; near duplicates not searched: the data of the model is not available",
    "pictures": "{} of these images are among them, or are near duplicates",
}


def _scanned(dataset: Dataset, title: str, progress: Progress) -> Scan:
    with progress.task(title, len(dataset.samples)) as advance:
        return scan(dataset, lambda done, _: advance(done, ""))


def _duplicates_of(site: Sequence[Facts], own: Sequence[Facts], of_file: Mapping[str, str]) -> dict[int, str]:
    """For each image of the site that duplicates one of the model's own images, the subset of that image."""
    both = [*_below("site", site), *_below("own", own)]
    whole = Dataset(Path(), "both", (), tuple(item.sample for item in both))
    found: dict[int, str] = {}
    for group in duplicates.groups(Scan(whole, tuple(both))).near:
        subsets = [of_file[both[index].sha256] for index in group if index >= len(site)]
        if subsets:
            found |= {index: min(subsets, key=SUBSETS.index) for index in group if index < len(site)}
    return found


def _below(folder: str, facts: Sequence[Facts]) -> list[Facts]:
    """The same images in a folder of that name, so that file numbers of two laboratories are not one series."""
    return [replace(item, sample=replace(item.sample, path=f"{folder}/{item.sample.path}")) for item in facts]


def _figures(metrics: Mapping[str, Any], labels: Sequence[str], only_labels: bool) -> SiteFigures:
    """Figures of one of the two; with ``only_labels`` of the images of ``labels`` only, None if impossible."""
    rows = {label: metrics["per_class"][label] for label in labels}
    images = sum(row["support"] for row in rows.values())
    right = round(sum(row["recall"] * row["support"] for row in rows.values()))
    interval, unit = metrics.get("accuracy_ci95"), metrics.get("ci_unit")
    is_point = interval is None or interval[0] == interval[1]  # a bootstrap without errors
    if interval is None or unit != "subject" or only_labels or is_point:
        wilson, unit = binomtest(right, images).proportion_ci(method="wilson"), "image"
        interval = [float(wilson.low), float(wilson.high)]
    return SiteFigures(
        images=images,
        accuracy=right / images,
        accuracy_ci95=interval,
        ci_unit=unit,
        balanced_accuracy=float(np.mean([row["recall"] for row in rows.values() if row["support"]])),
        recall={label: row["recall"] if row["support"] else None for label, row in rows.items()},
        **{name: None if only_labels else metrics.get(name) for name in (*FIGURES, "reviewed")},
    )


def independent_difference(
    first: float, interval: Sequence[float], second: float, other: Sequence[float]
) -> tuple[float, float]:
    """Interval of the difference of two independent figures, from the interval of each.

    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions: comparison of
    eleven methods, 1998, method 10; G. Y. Zou and A. Donner 2008 for intervals other than Wilson's.
    """
    (low, high), (below, above), middle = interval, other, first - second
    ends = np.hypot(first - low, above - second), np.hypot(high - first, second - below)
    return middle - float(ends[0]), middle + float(ends[1])


def _four(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
