"""Lists a data set with one folder per class, optionally below folders called train, validation and test."""

from __future__ import annotations

import re
from pathlib import Path

from ...edge_runtime.errors import DataError
from ...edge_runtime.images import is_output, not_an_image
from .samples import (
    Dataset,
    Problem,
    Sample,
    is_image,
    list_files,
    make_dataset,
    visible_children,
    visible_folders,
)
from .subsets import GIVEN_SUBSETS

_VARIANT_NAMES = frozenset({"original", "segmented", "raw", "images", "augmented", *GIVEN_SUBSETS})
"""Folder names, in lower case, that are not classes but variants or subsets of one data set."""


def load_folders(root: Path) -> Dataset:
    """List a folder of class folders. Raises DataError, see `edgeall.train.data.dataset.load_dataset`."""
    subsets = _subset_folders(root)
    if not subsets:
        _check_level(root, visible_folders(root))
    problems = _stray_items(root, [root, *subsets])
    samples: list[Sample] = []
    classes = [(folder, subsets.get(parent)) for parent in subsets or {root: ""} for folder in visible_folders(parent)]
    for folder, subset in classes:
        found = 0
        for file in list_files(folder, root, problems):
            relative = file.relative_to(root).as_posix()
            if is_image(file):
                samples.append(Sample(relative, folder.name, side=subset))
                found += 1
            else:
                problems.append(Problem(relative, not_an_image(file)))
        where = folder.relative_to(root).as_posix()
        if not found and not any(problem.path == where for problem in problems):
            problems.append(Problem(where, "no image in this folder: not taken as a class"))
    if not samples:
        raise DataError(
            f"{root}: no class folder with images in it",
            hint="the layout is ROOT/<class>/<images>; see `edgeall data ls --help`",
        )
    return make_dataset(root, "folders", samples, problems)


def _stray_items(root: Path, parents: list[Path]) -> list[Problem]:
    """Images outside of class folders, and folders written by edgeall."""
    images = [
        Problem(item.relative_to(root).as_posix(), "lies in no class folder")
        for parent in parents
        for item in visible_children(parent)
        if is_image(item) and item.is_file()
    ]
    outputs = [
        Problem(item.relative_to(root).as_posix(), "written by edgeall: no data")
        for parent in parents
        for item in visible_children(parent)
        if item.is_dir() and is_output(item)
    ]
    return images + outputs


def _subset_folders(root: Path) -> dict[Path, str]:
    """The folders of a data set that comes split, with the subset of each; empty if it does not come split.

    A data set comes split if all folders with images have subset names, one of them is train, and each holds class
    folders.

    Raises:
        DataError: two folders for one subset, or no test subset.
    """
    filled = [folder for folder in visible_folders(root) if _holds_images(folder)]
    subsets = {folder: GIVEN_SUBSETS.get(folder.name.lower(), "") for folder in filled}
    names = set(subsets.values())
    nested = all(any(map(_holds_images, visible_folders(folder))) for folder in filled)
    if len(filled) < 2 or "" in names or "train" not in names or not nested:
        return {}
    if len(names) < len(subsets):
        found = ", ".join(folder.name for folder in filled)
        raise DataError(f"{root}: two folders for one subset ({found})", hint="keep one of them")
    if "test" not in names:
        raise DataError(
            f"{root}: split into {' and '.join(folder.name for folder in filled)}, without a test subset",
            hint="add a folder test, or merge the classes into one folder to have them split again",
        )
    return subsets


def _check_level(root: Path, folders: list[Path]) -> None:
    """Raise DataError if ``folders`` are variants or subsets of one data set (Original/, train/) and not classes."""
    inner = {folder: _image_folders(folder) for folder in folders}
    nested = {folder: names for folder, names in inner.items() if len(names) > 1}
    if not nested:
        return
    filled = [folder for folder in folders if inner[folder] or _has_image(folder)]
    # Equal inner folders are classes, unless they are numbered: then they are slides or patients of each class.
    alike = len(filled) == len(nested) and len(set(nested.values())) == 1
    numbered = len(nested) > 1 and all(re.search(r"\d", name) for names in nested.values() for name in names)
    named = [folder for folder in nested if folder.name.lower() in _VARIANT_NAMES]
    if named or (alike and not numbered):
        best = named[0] if named else next(iter(nested))
        raise DataError(
            f"{root}: the classes seem to be one level further down (it holds "
            f"{', '.join(folder.name for folder in filled)}; {best.name} holds {', '.join(nested[best][:6])})",
            hint=f"give one of them, as in --data {best}; if they are the classes, list the images in a manifest",
        )


def _image_folders(folder: Path) -> tuple[str, ...]:
    """Names of the visible folders in ``folder`` that hold images at any depth; () if it has images of its own."""
    if _has_image(folder):
        return ()
    return tuple(child.name for child in visible_folders(folder) if _holds_images(child))


def _holds_images(folder: Path) -> bool:
    """Whether there are images in the folder, at any depth."""
    return any(map(is_image, list_files(folder)))


def _has_image(folder: Path) -> bool:
    """Whether there are images directly in the folder."""
    return any(is_image(child) and child.is_file() for child in visible_children(folder))
