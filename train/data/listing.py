"""``edgeall data ls``: the contents of a data folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...console.progress import Progress
from ...console.tables import listed, record, table
from ...edge_runtime.errors import DataError
from ...edge_runtime.results import SPREAD, Result
from .dataset import independent_notes, load_dataset, positive_labels, unit
from .duplicates import Duplicates, groups
from .make_split import make_split
from .samples import Problem, Sample
from .scan import Scan, narrow_range, scan
from .subsets import LEFT_OUT, SUBSETS
from .synth import is_synthetic


@dataclass(frozen=True)
class ClassCount(Result):
    """Images of a class, and its subjects, None where unknown."""

    images: int
    subjects: int | None


@dataclass(frozen=True)
class Independent(Result):
    """A folder with a labelled test set that is kept out of any split, and its images."""

    folder: str
    images: int


@dataclass(frozen=True)
class SplitCounts(Result):
    """Images of a split by subset; those left out by reason and by path.

    ``across``: for a data set that comes split, groups of duplicates in several subsets, by path.
    """

    level: str
    embargo: int | None
    train: int
    validation: int
    test: int
    left_out: dict[str, int]
    left_out_paths: list[str]
    across: list[list[str]]
    notes: list[str]


@dataclass(frozen=True)
class DefaultSplit(Result):
    """The split that ``edgeall train`` makes without options, in words and in numbers, None if none is possible."""

    text: str
    counts: SplitCounts | None = field(metadata=SPREAD)


@dataclass(frozen=True)
class DataListing(Result):
    """The contents of a data folder or manifest.

    Attributes:
        unit: content of one image, ``field`` or ``cell``.
        images: the readable ones.
        subjects: None where unknown.
        sizes: images by ``WxH``, the commonest first.
        exact_duplicates: images that repeat an earlier one; ``near_duplicates`` resemble one.
        conflicts: groups of duplicates whose labels differ, by path.
        narrow_range: a sentence or None, see `edgeall.train.data.scan.narrow_range`.
        problems: what was skipped.
        synthetic: see `is_synthetic`.
    """

    root: str
    layout: str
    unit: str
    images: int
    labels: dict[str, ClassCount]
    positive_labels: list[str]
    subjects: int | None
    sizes: dict[str, int]
    exact_duplicates: int
    near_duplicates: int
    conflicts: list[list[str]]
    dataset_sha256: str
    narrow_range: str | None
    problems: list[Problem]
    independent: list[Independent]
    synthetic: bool
    split: DefaultSplit


def list_data(path: Path, progress: Progress) -> DataListing:
    """Read every image of a data folder or manifest, and summarize them.

    Raises:
        DataError: see `load_dataset` and `scan`.
    """
    listed = load_dataset(path)
    with progress.task("reading images", len(listed.samples)) as advance:
        found = scan(listed, lambda done, _: advance(done, ""))
    listing = describe(found, groups(found))
    split_notes = listing.split.counts.notes if listing.split.counts else ()
    for note in (*independent_notes(found.dataset), *split_notes):
        progress.note(note)
    return listing


def describe(found: Scan, duplicates: Duplicates) -> DataListing:
    """The result of `list_data` for a scan and its duplicates."""
    data = found.dataset
    sizes = Counter(f"{facts.width}x{facts.height}" for facts in found.facts)
    kept_out = Counter(PurePosixPath(sample.path).parent.as_posix() for sample in data.independent)
    return DataListing(
        root=str(data.root),
        layout=data.layout,
        unit=unit(data),
        images=len(data.samples),
        labels={label: _class(label, data.samples) for label in data.labels},
        positive_labels=list(positive_labels(data.labels)),
        subjects=_subjects(data.samples),
        sizes=dict(sizes.most_common()),
        exact_duplicates=duplicates.exact_count,
        near_duplicates=duplicates.near_count,
        conflicts=[[found.facts[index].sample.path for index in group] for group in duplicates.conflicts],
        dataset_sha256=found.digest,
        narrow_range=narrow_range(found.facts),
        problems=list(data.problems),
        independent=[Independent(folder, images) for folder, images in sorted(kept_out.items())],
        synthetic=is_synthetic(data),
        split=default_split(found, duplicates),
    )


def default_split(found: Scan, duplicates: Duplicates) -> DefaultSplit:
    """The split that ``edgeall train`` makes without options."""
    notes: list[str] = []
    try:
        split = make_split(found, duplicates=duplicates, note=notes.append)
    except DataError as error:
        return DefaultSplit(f"not possible: {error.message}", None)
    counts = SplitCounts(
        level=split.level,
        embargo=split.embargo,
        **{name: len(split.subset(name)) for name in SUBSETS},
        left_out=split.left_out,
        left_out_paths=[entry.path for entry in split.entries if entry.side == LEFT_OUT],
        across=[list(group) for group in split.across],
        notes=notes,
    )
    return DefaultSplit(split.level_text, counts)


def _class(label: str, samples: tuple[Sample, ...]) -> ClassCount:
    own = tuple(sample for sample in samples if sample.label == label)
    return ClassCount(len(own), _subjects(own))


def _subjects(samples: tuple[Sample, ...]) -> int | None:
    """Number of different subjects; None if any is unknown."""
    subjects = {sample.subject for sample in samples}
    return None if None in subjects else len(subjects)


def data_text(found: DataListing, most: int = 20) -> str:
    """A listing as text, with the first ``most`` problems and conflicts."""
    sizes = list(found.sizes.items())
    shown = ", ".join(f"{size} ({count:,})" for size, count in sizes[:5])
    counts: dict[str, object] = {
        "root": found.root,
        "layout": f"{found.layout}, one image is a {found.unit}",
        "images": found.images,
        "subjects": "unknown" if found.subjects is None else found.subjects,
        "sizes": shown + (f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""),
        "positive classes": found.positive_labels or "none known",
        "exact duplicates": found.exact_duplicates,
        "near duplicates": found.near_duplicates,
        "skipped": len(found.problems),
        "default split": _split_text(found.split),
    }
    if found.independent:
        counts["independent test set"] = ", ".join(f"{one.folder} ({one.images:,})" for one in found.independent)
    parts = [
        record(counts),
        table(
            ["class", "images", "subjects"], [[name, row.images, row.subjects] for name, row in found.labels.items()]
        ),
    ]
    if found.conflicts:
        parts.append(listed("duplicates with different labels:", [" = ".join(g) for g in found.conflicts], most))
    if found.narrow_range:
        parts.append(f"{found.narrow_range}\nscale them to 16 bits in the camera software, or save 8-bit images")
    across = found.split.counts.across if found.split.counts else []
    if across:
        parts.append(listed("duplicates in several subsets:", [" = ".join(group) for group in across], most))
    if found.problems:
        parts.append(listed("skipped:", [f"{p.path}: {p.reason}" for p in found.problems], most))
    return "\n\n".join(parts)


def _split_text(split: DefaultSplit) -> str:
    if split.counts is None:
        return split.text
    counts = ", ".join(f"{getattr(split.counts, name):,} {name}" for name in SUBSETS)
    return f"{split.text} ({counts})"
