"""A split: the subset of every image, with a digest of its file, and ``split.json``. `make_split` makes one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...edge_runtime.errors import DataError, ImageError, UsageError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.tools.atomic import write_text
from .dataset import load_dataset
from .levels import LEVEL_TEXTS
from .masked import load_masked
from .samples import Sample
from .scan import Facts, hash_files
from .subsets import LEFT_OUT, NOWHERE, SUBSETS

REASONS = ("embargo", "duplicate", "subject")
"""Why a split by block leaves an image out: its file number is too close to another subset, or it duplicates an image
of another subset, or it shows the same subject."""

_SCHEMAS = (1, 2, 3)
"""Schema 2 adds the embargo, the reason why an image is left out, and data sets that come split; schema 3 adds masks. A
split is written in the lowest schema that has all that it uses."""


@dataclass(frozen=True)
class SplitEntry:
    """One image of a split.

    Attributes:
        path: relative to the root of the data set.
        label: the class name.
        subject: the person the image was taken from, if known.
        sha256: of the bytes of the file.
        side: one of `SUBSETS`, or `LEFT_OUT`.
        reason: one of `REASONS` for an image that the split had to leave out, else None.
        mask: path of its mask; None in a data set without masks. ``label`` is then the laboratory.
        mask_sha256: of the bytes of the mask.
        red_cell_px: diameter of a red cell in pixels of the image, if known.
    """

    path: str
    label: str
    subject: str | None
    sha256: str
    side: str
    reason: str | None = None
    mask: str | None = None
    mask_sha256: str | None = None
    red_cell_px: float | None = None


@dataclass(frozen=True)
class Split:
    """The subset of every image, and how the split was made.

    Attributes:
        level: what was kept together in addition to duplicates: ``laboratory``, ``subject``, ``block`` or ``image``
            (nothing);
            ``given``: the data set comes split.
        seed: the same scan, settings and seed give the same split.
        labels: sorted class names.
        dataset_sha256: `Scan.digest` of the data.
        entries: in the order of the scan, that is by path.
        fold: (i, k) if the test subset is fold i of k, counted from 1.
        exact_duplicates: images with the same pixels as an earlier image.
        near_duplicates: images that show the same as an earlier image, with other pixels.
        across: with level ``given``: groups of duplicates that lie in several subsets, by path. They are not moved.
        validation_by: with level ``given``: how a missing validation subset was taken from train: ``subject``,
            ``block`` or ``image``.
        embargo: with level ``block``, or `validation_by` block: images of one series in different subsets differ by
            more than this many file numbers. None in an older split, whose blocks are runs of 20 numbers assigned at
            random.
    """

    level: str
    seed: int
    labels: tuple[str, ...]
    dataset_sha256: str
    entries: tuple[SplitEntry, ...]
    fold: tuple[int, int] | None = None
    exact_duplicates: int = 0
    near_duplicates: int = 0
    embargo: int | None = None
    across: tuple[tuple[str, ...], ...] = ()
    validation_by: str | None = None

    def subset(self, name: str) -> tuple[SplitEntry, ...]:
        """The entries of ``train``, ``validation``, ``test`` or ``all``. Raises `UsageError` for another name."""
        if name not in (*SUBSETS, "all"):
            raise UsageError(f"no subset called {name!r}", hint=f"choose one of {', '.join(SUBSETS)}, all")
        return tuple(entry for entry in self.entries if name in (entry.side, "all"))

    @property
    def masked(self) -> bool:
        """Whether the images have masks."""
        return any(entry.mask is not None for entry in self.entries)

    @property
    def left_out(self) -> dict[str, int]:
        """How many images the split had to leave out, for each of `REASONS` that occurs."""
        counts = {reason: sum(entry.reason == reason for entry in self.entries) for reason in REASONS}
        return {reason: count for reason, count in counts.items() if count}

    @property
    def level_text(self) -> str:
        """How the split was made, in words."""
        text = LEVEL_TEXTS[self.level]
        if self.embargo is not None:
            count = sum(self.left_out.values())
            images = f"{count:,} image{'s' * (count != 1)} left out"
            text = f"contiguous blocks of file numbers, embargo {self.embargo}: {images}"
        if self.level != "given":
            return text
        parts = [LEVEL_TEXTS["given"]]
        if self.validation_by is not None:
            how = text if self.validation_by == "block" else LEVEL_TEXTS[self.validation_by]
            parts.append(f"validation taken from train ({how})")
        if self.across:
            parts.append(f"{len(self.across):,} group{'s' * (len(self.across) != 1)} of duplicates in several subsets")
        return "; ".join(parts)

    @property
    def sha256(self) -> str:
        """Digest of the whole split. It depends on the content only, not on the layout of the file."""
        return hashlib.sha256(json.dumps(_as_json(self), sort_keys=True).encode()).hexdigest()


def make_entries(facts: Sequence[Facts], subset: Iterable[int], reason: Sequence[str | None]) -> tuple[SplitEntry, ...]:
    """The entries of scanned images.

    Args:
        facts: of the images.
        subset: for each image an index into `SUBSETS`, or `NOWHERE`.
        reason: for each image one of `REASONS`, or None.
    """
    return tuple(
        SplitEntry(
            item.sample.path,
            item.sample.label,
            item.sample.subject,
            item.sha256,
            LEFT_OUT if number == NOWHERE else SUBSETS[number],
            why,
            item.sample.mask,
            item.mask_sha256,
            item.sample.red_cell_px,
        )
        for item, number, why in zip(facts, subset, reason, strict=True)
    )


def save_split(split: Split, path: Path) -> None:
    """Write ``split.json`` atomically."""
    write_text(path, json.dumps({**_as_json(split), "sha256": split.sha256}, indent=1) + "\n")


def load_split(path: Path) -> Split:
    """Read a file written by `save_split`. Raises `DataError` if it is missing, malformed or was edited."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] not in _SCHEMAS:
            known = ", ".join(map(str, _SCHEMAS))
            raise DataError(f"{path}: split of schema {document['schema']}, known are {known}", hint="update edgeall")
        split = Split(
            level=_typed(document["level"], str),
            seed=_typed(document["seed"], int),
            labels=tuple(_typed(label, str) for label in document["labels"]),
            dataset_sha256=_typed(document["dataset_sha256"], str),
            entries=tuple(SplitEntry(**entry) for entry in document["entries"]),
            fold=None if document["fold"] is None else (int(document["fold"][0]), int(document["fold"][1])),
            exact_duplicates=_typed(document["exact_duplicates"], int),
            near_duplicates=_typed(document["near_duplicates"], int),
            embargo=None if "embargo" not in document else _typed(document["embargo"], int),
            across=tuple(tuple(_typed(path, str) for path in group) for group in document.get("across", ())),
            validation_by=None if "validation_by" not in document else _typed(document["validation_by"], str),
        )
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})", hint="give the split.json of a run") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: not a split of edgeall ({error!r})", hint="give the split.json of a run") from error
    if document.get("sha256") != split.sha256:
        raise DataError(f"{path}: changed since it was written", hint="restore it, or make a new split")
    return split


def check_split(split: Split, root: Path) -> None:
    """Make sure that ``root`` still holds exactly the images of the split.

    Args:
        split: from `load_split`.
        root: the value of ``--data``: the folder or the CSV manifest.

    Raises:
        DataError: images are missing, changed, relabelled or added; with the count and the first three names of each.
            Files that cannot be decoded do not count as added, because a split never holds them.
    """
    dataset = load_masked(root) if split.masked else load_dataset(root)
    now = {sample.path: sample for sample in (*dataset.independent, *dataset.samples)}
    independent = {sample.path for sample in dataset.independent}  # splits of older versions hold them
    then = {entry.path: entry for entry in split.entries}
    here = [entry for entry in split.entries if entry.path in now]
    digests = hash_files([dataset.root / entry.path for entry in here])
    faults = {
        "missing": [path for path in then if path not in now],
        "changed": [entry.path for entry, digest in zip(here, digests, strict=True) if digest != entry.sha256],
        "with another mask": _with_another_mask(here, now, dataset.root),
        "of another class or subject": [
            entry.path
            for entry in here
            if (now[entry.path].label, now[entry.path].subject) != (entry.label, entry.subject)
        ],
        "moved to another subset": [
            entry.path for entry in here if split.level == "given" and not _still_given(entry, now[entry.path].side)
        ],
        "new": [
            path for path in now if path not in then and path not in independent and _readable(dataset.root / path)
        ],
    }
    found = [
        f"{len(paths)} {what} ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''})"
        for what, paths in faults.items()
        if paths
    ]
    if found:
        raise DataError(
            f"{root}: no longer the {len(split.entries)} images of the split: {'; '.join(found)}",
            hint="restore the data, or train again on the data as it is now",
        )


def _with_another_mask(entries: list[SplitEntry], now: dict[str, Sample], root: Path) -> list[str]:
    masked = [entry for entry in entries if entry.mask is not None]
    digests = hash_files([root / str(entry.mask) for entry in masked])
    return [
        entry.path
        for entry, digest in zip(masked, digests, strict=True)
        if digest != entry.mask_sha256 or now[entry.path].red_cell_px != entry.red_cell_px
    ]


def _still_given(entry: SplitEntry, side: str | None) -> bool:
    """Whether the data still assigns an image to the subset of its entry. Validation may have been taken from train."""
    return entry.side == side or (side == "train" and entry.side in ("validation", LEFT_OUT))


def _readable(path: Path) -> bool:
    try:
        open_rgb(path)
    except ImageError:
        return False
    return True


def _as_json(split: Split) -> dict[str, Any]:
    """JSON without the keys that schema 1 does not have, if the split does not use them: older digests stay valid."""
    document = asdict(split)
    for entry in document["entries"]:
        for key in ("reason", "mask", "mask_sha256", "red_cell_px"):
            if entry[key] is None:
                del entry[key]
    absent = {"embargo": split.embargo is None, "across": not split.across, "validation_by": not split.validation_by}
    for key in (key for key, is_absent in absent.items() if is_absent):
        del document[key]
    newer = split.level == "given" or not all(absent.values()) or any(entry.reason for entry in split.entries)
    return {"schema": 3 if split.masked else 2 if newer else 1, **document}


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
