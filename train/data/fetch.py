"""Downloads a public data set from Kaggle and checks that it is the published version."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...edge_runtime.errors import DISK_FULL, DataError, EdgeallError, UsageError
from .dataset import load_dataset
from .samples import Dataset


@dataclass(frozen=True)
class Part:
    """The expected content of a part of a data set.

    Attributes:
        word: a text in the path of every image of the part; empty for all images.
        images: their number.
        by_label: the number in each class, if published.
    """

    word: str
    images: int
    by_label: Mapping[str, int]


@dataclass(frozen=True)
class Source:
    """A data set on Kaggle.

    Attributes:
        handle: ``owner/name``.
        folder: name of the folder with the data inside the download; empty for the download itself.
        parts: checked after the download.
    """

    handle: str
    folder: str
    parts: tuple[Part, ...]

    @property
    def page(self) -> str:
        """The page for a manual download."""
        return f"https://www.kaggle.com/datasets/{self.handle}"


INSTALL_TRAIN = "pip install '.[train]' in a checkout of edgeall"

SOURCES: Mapping[str, Source] = {
    # Original/ holds the fields; Segmented/ holds the same fields without background.
    "all4": Source(
        "mehradaria/leukemia",
        "Original",
        (Part("", 3256, {"Benign": 504, "Early": 985, "Pre": 963, "Pro": 804}),),
    ),
    "cnmc2019": Source(
        "andrewmvd/leukemia-classification",
        "",
        (Part("fold_", 10_661, {"all": 7272, "hem": 3389}), Part("prelim", 1867, {})),
    ),
}


def fetch(name: str, out: Path | None = None, sources: Mapping[str, Source] = SOURCES) -> Path:
    """Download a data set, unless ``out`` already holds it, and check its number of images.

    Args:
        name: a key of ``sources``.
        out: a new or empty folder, or one filled by an earlier call. Default: the cache of kagglehub
            (``KAGGLEHUB_CACHE``, else ``~/.cache/kagglehub``).
        sources: the known data sets.

    Returns:
        The folder to give to ``--data``.

    Raises:
        UsageError: an unknown name.
        DataError: Kaggle cannot be reached or refuses, or the content of the download or of ``out`` is unexpected.
    """
    if name not in sources:
        raise UsageError(f"no data set called {name!r}", hint=f"choose one of {', '.join(sources)}")
    source = sources[name]
    if out is not None and out.is_dir() and any(out.iterdir()):
        try:
            found = _data_folder(out, source)
            _check(found, source)
        except DataError as error:  # it may be a folder of the user: nothing is removed
            raise DataError(f"{out}: not empty, and {error.message}", hint="choose another --out") from error
        return found
    found = _data_folder(_download(source, out), source)
    _check(found, source)
    return found


def _download(source: Source, out: Path | None) -> Path:
    by_hand = f"or download {source.page} in a browser, unpack it, and give the unpacked folder to --data"
    # kagglehub prints to stdout from its import on; stdout is for data.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            import kagglehub
            import requests
        except ImportError as error:
            raise EdgeallError("fetching needs kagglehub", hint=f"{INSTALL_TRAIN}, {by_hand}") from error
        try:
            return Path(kagglehub.dataset_download(source.handle, output_dir=None if out is None else str(out)))
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise DataError("Kaggle can't be reached", hint=f"check the network, {by_hand}") from error
        except requests.exceptions.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403):
                raise DataError(
                    f"Kaggle refuses to send {source.handle} (status {status})",
                    hint="create an API token on https://www.kaggle.com/settings and set KAGGLE_API_TOKEN or put "
                    f"kaggle.json into ~/.kaggle, {by_hand}",
                ) from error
            raise DataError(f"Kaggle answers with status {status} for {source.handle}", hint=by_hand[3:]) from error
        except Exception as error:  # a damaged archive, or one of kagglehub's exceptions, which have no common base
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(
                f"{source.handle}: the download failed ({first_line})", hint=f"try again, {by_hand}"
            ) from error


def _data_folder(download: Path, source: Source) -> Path:
    """The folder with the data: `Source.folder` at any depth, or the download without enclosing folders."""
    if source.folder:
        below = sorted(path for path in download.rglob(source.folder) if path.is_dir())
        return below[0] if below else download
    inner = [path for path in download.iterdir() if not path.name.startswith(".")]
    while len(inner) == 1 and inner[0].is_dir():
        download = inner[0]
        inner = [path for path in download.iterdir() if not path.name.startswith(".")]
    return download


def _check(folder: Path, source: Source) -> None:
    dataset = load_dataset(folder)
    faults = [fault for part in source.parts for fault in _faults(dataset, part)]
    if faults:
        raise DataError(
            f"{folder}: not {source.handle} as published: {'; '.join(faults)}",
            hint=f"remove the folder and fetch again; {source.page} says whether the data set has changed",
        )


def _faults(dataset: Dataset, part: Part) -> list[str]:
    every = (*dataset.samples, *dataset.independent)
    found = Counter(sample.label for sample in every if part.word in sample.path)
    where = f" in {part.word}*" if part.word else ""
    faults = []
    if found.total() != part.images:
        faults.append(f"{found.total()} images{where}, expected {part.images}")
    faults += [
        f"{found[label]} of class {label}{where}, expected {count}"
        for label, count in part.by_label.items()
        if found[label] != count
    ]
    return faults
