"""``edgeall data synth``: a labelled data set of procedural blood smears, for trials and tests without real data.

The images look like blood, but they are no evidence about blood. The class determines the shape of the cells (nucleus
size, nucleus to cell ratio, chromatin, nucleoli, folds). Stain, lamp, focus and noise belong to the synthetic
subject and are independent of the class, so colour alone does not reveal the class.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image, PngImagePlugin

from ...edge_runtime.errors import DataError, UsageError
from ...edge_runtime.files import is_empty, output_lock
from ...edge_runtime.masks import mask_image
from ...edge_runtime.network import cores
from ...edge_runtime.threads import Threads
from ...edge_runtime.tools.atomic import atomic_write, sync_tree
from .samples import Dataset
from .synth_draw import (
    CELL_KINDS,
    CELL_UM,
    FIELD_KINDS,
    FIELD_UM,
    RED_CELL_UM,
    Picture,
    draw_cell,
    draw_field,
)
from .synth_shapes import make_texture
from .synth_slide import make_slide

Layout = Literal["all4", "cnmc"]
COMMENT = "SYNTHETIC, edgeall data synth"
TRUTH = ".truth"
MARKER = ".synthetic.json"
"""A file in the root and in every folder below it, because parts of the data set may be copied elsewhere."""
MANIFEST = "manifest.csv"
MASKS_MANIFEST = "masks.csv"
"""The manifest for training a segmentation network, of the layout all4."""
CLASSES_SUFFIX = ".classes.png"
"""Ending of a mask with the values of `edgeall.edge_runtime.masks`, without that of its image."""
_HEAD = 512
"""Bytes at the start of a PNG that contain its comment. Pillow writes it before the pixels."""
_SIZE: dict[Layout, int] = {"all4": 224, "cnmc": 450}
_STATEMENT = "SYNTHETIC IMAGES, drawn by `edgeall data synth`. Not blood of anybody; not evidence about any disease.\n"
_README = """
layout {layout}, {images} images of {size} x {size} px, {subjects} synthetic subjects, seed {seed}

manifest.csv names each image's class and synthetic subject, who has one stain, lamp, focus and noise;
give it to `edgeall train --data` for a split by subject.

Truth, in {truth}/ beside the images:
  <image without suffix>.mask.png     8 bits: 0 background, 2n-1 cytoplasm of cell n, 2n nucleus of cell n
  <image without suffix>.classes.png  8 bits, of fields: 0 background, 128 cytoplasm, 255 nucleus; see masks.csv
  boxes.json                          for each image its nucleated cells: number, kind, box (left, top, right, bottom)
"""


def is_synthetic(dataset: Dataset) -> bool:
    """Whether any folder of the data set holds synthetic images.

    It does if `MARKER` is in the folder or above it, or if a PNG in it has the comment `COMMENT`. One image of each
    folder is read, without its pixels.
    """
    files = {(file.parent, file.suffix): file for file in (dataset.root / sample.path for sample in dataset.samples)}
    folders = {folder.resolve() for folder, _ in files}
    above = {parent for folder in folders for parent in (folder, *folder.parents)}
    return any(os.path.exists(folder / MARKER) for folder in above) or any(map(_says_synthetic, files.values()))


def _says_synthetic(image: Path) -> bool:
    try:
        with image.open("rb") as file:
            return b"tEXtComment\0" + COMMENT.encode() in file.read(_HEAD)
    except OSError:
        return False


@dataclass(frozen=True)
class _Plan:
    """One image to draw: posix path below the root, label, and name and number of its subject."""

    path: str
    label: str
    subject: str
    slide: int


def _plan_all4(images: int) -> list[_Plan]:
    """Every subject has images of every class. The numbers of a class run subject by subject, as on real slides."""
    labels = tuple(FIELD_KINDS)
    subjects = min(max(images // 20, 12), 60, images // len(labels))
    plans = []
    for index, label in enumerate(labels):
        count = images // len(labels) + (index < images % len(labels))
        for i in range(count):
            slide = i * subjects // count
            plans.append(_Plan(f"{label}/synthetic-{label}-{i + 1:03d}.png", label, f"S{slide + 1:02d}", slide))
    return plans


def _plan_cnmc(images: int) -> list[_Plan]:
    """A subject is positive or negative and belongs to one fold. Two cells are cropped from each of its images."""
    plans = []
    slide = 0
    for index, label in enumerate(CELL_KINDS):
        count = images // 2 + (index < images % 2)
        subjects = min(max(count // 12, 6), 40, count)
        for number in range(subjects):
            name = f"{number + 1}" if label == "all" else f"H{number + 1}"
            folder = f"fold_{number % 3}/{label}"
            for i in range((number + 1) * count // subjects - number * count // subjects):
                file = f"UID_{name}_{i // 2 + 1}_{i % 2 + 1}_{label}.bmp"
                plans.append(_Plan(f"{folder}/{file}", label, name, slide))
            slide += 1
    return plans


def _check(out: Path, images: int, seed: int, layout: Layout, size: int) -> None:
    labels = FIELD_KINDS if layout == "all4" else CELL_KINDS
    if images < 4 * len(labels):
        raise UsageError(
            f"{images} images are too few for {len(labels)} classes", hint=f"use at least {4 * len(labels)} images"
        )
    if seed < 0:
        raise UsageError(f"seed {seed} is negative", hint="use 0 or more")
    if not 64 <= size <= 1024:
        raise UsageError(f"size must be in [64, 1024] pixels, got {size}", hint="use a size from 64 to 1024")
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise DataError(f"{out}: not an empty folder", hint="give a new folder, or empty this one first")


def _save(out: Path, plan: _Plan, picture: Picture, fields: bool) -> None:
    """Write the image, and its mask below `TRUTH`; of a field also the mask for segmentation."""
    path = out / plan.path
    mask = (out / TRUTH / plan.path).with_suffix(".mask.png")
    mask.parent.mkdir(parents=True, exist_ok=True)
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", COMMENT)
    if path.suffix == ".png":
        # Noise hardly compresses: a higher level would take longer than the drawing and save nothing.
        Image.fromarray(picture.pixels).save(path, compress_level=1, compress_type=Image.RLE, pnginfo=note)
    else:
        Image.fromarray(picture.pixels).save(path)
    Image.fromarray(picture.mask).save(mask, compress_level=1, pnginfo=note)
    if fields:
        classes = np.where(picture.mask == 0, 0, 2 - picture.mask % 2).astype(np.uint8)
        mask_image(classes).save(mask.with_suffix("").with_suffix(CLASSES_SUFFIX), compress_level=1, pnginfo=note)


def synthesize(
    out: Path,
    images: int,
    seed: int,
    layout: Layout = "all4",
    size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw a balanced, labelled data set of synthetic smears with its ground truth.

    Args:
        out: a new or empty folder.
        images: total number, at least four per class.
        seed: the same seed and arguments give the same bytes.
        layout: ``all4``: ``<Benign|Early|Pre|Pro>/synthetic-<class>-NNN.png``, fields;
            ``cnmc``: ``fold_<0..2>/<all|hem>/UID_<subject>_<image>_<cell>_<all|hem>.bmp``, single cells on black.
            Both have a ``manifest.csv`` (path, label, subject), which is written last; fields also have a
            ``masks.csv`` for ``edgeall train --task segmentation``.
        size: pixels per side; default 224 for all4 and 450 for cnmc.
        on_progress: called with (images done, total).

    Returns:
        {"out", "layout", "images", "size", "seed", "subjects", "labels": {label: images}}.

    Raises:
        UsageError: invalid arguments.
        DataError: ``out`` is not empty.
    """
    if layout not in _SIZE:
        raise UsageError(f"unknown layout {layout!r}", hint=f"choose one of: {', '.join(_SIZE)}")
    with output_lock(out, "data synth"):
        return _synthesize(out, images, seed, layout, _SIZE[layout] if size is None else size, on_progress)


def _drawn(
    draw: Callable[[int], list[dict[str, Any]]], paths: Sequence[str], on_progress: Callable[[int, int], None] | None
) -> dict[str, list[dict[str, Any]]]:
    """``draw(index)`` of every path, on all cores: the boxes of its cells, by path."""
    boxes: dict[str, list[dict[str, Any]]] = {}
    with Threads(min(cores(), 4)) as threads:
        for path, found in zip(paths, threads.map(draw, range(len(paths))), strict=True):
            boxes[path] = found
            if on_progress is not None:
                on_progress(len(boxes), len(paths))
    return boxes


def _synthesize(
    out: Path, images: int, seed: int, layout: Layout, size: int, on_progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    _check(out, images, seed, layout, size)
    fields = layout == "all4"
    plans = _plan_all4(images) if fields else _plan_cnmc(images)
    subjects = len({plan.slide for plan in plans})
    labels = {label: sum(plan.label == label for plan in plans) for label in (FIELD_KINDS if fields else CELL_KINDS)}
    summary = {"layout": layout, "images": images, "size": size, "seed": seed, "subjects": subjects, "labels": labels}

    # The markers are written first, so that an interrupted command leaves no unmarked images.
    of_images = {(out / plan.path).parent for plan in plans}
    for folder in sorted({out / parent for plan in plans for parent in PurePosixPath(plan.path).parents}):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(json.dumps({"synthetic": True, "by": COMMENT, **summary}) + "\n", encoding="utf-8")
        if folder not in of_images:  # in image folders `data ls` would report it as skipped
            (folder / "README.txt").write_text(_STATEMENT, encoding="utf-8")
    (out / "README.txt").write_text(_STATEMENT + _README.format(truth=TRUTH, **summary), encoding="utf-8")
    (out / TRUTH).mkdir()

    # Each slide and each image has its own random stream, so no image depends on another.
    exposure = 1.0 if fields else 0.6  # the real C-NMC cells are dark
    slides = [make_slide(np.random.default_rng((seed, 1, number)), exposure) for number in range(subjects)]
    texture = make_texture(np.random.default_rng((seed, 0)), size / (FIELD_UM if fields else CELL_UM))

    def draw(index: int) -> list[dict[str, Any]]:
        plan, rng = plans[index], np.random.default_rng((seed, 2, index))
        if fields:
            picture = draw_field(FIELD_KINDS[plan.label], slides[plan.slide], size, texture, rng)
        else:
            picture = draw_cell(CELL_KINDS[plan.label], slides[plan.slide], size, texture, rng)
        _save(out, plan, picture, fields)
        return [asdict(cell) for cell in picture.cells]

    boxes = _drawn(draw, [plan.path for plan in plans], on_progress)
    (out / TRUTH / "boxes.json").write_text(json.dumps(boxes, indent=1) + "\n", encoding="utf-8")
    sync_tree(out)
    if fields:
        _write_masks_manifest(out, plans, RED_CELL_UM * size / FIELD_UM)
    # Last: it means that the data set is complete.
    with atomic_write(out / MANIFEST) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "label", "subject"))
        table.writerows((plan.path, plan.label, plan.subject) for plan in plans)
    return {"out": str(out), **summary}


def _write_masks_manifest(out: Path, plans: Sequence[_Plan], red_cell_px: float) -> None:
    """`MASKS_MANIFEST`, for ``edgeall train --task segmentation``."""
    with atomic_write(out / MASKS_MANIFEST) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "mask", "laboratory", "subject", "red_cell_px"))
        for plan in plans:
            mask = PurePosixPath(TRUTH, plan.path).with_suffix(CLASSES_SUFFIX)
            table.writerow((plan.path, mask, "synthetic", plan.subject, f"{red_cell_px:.1f}"))
