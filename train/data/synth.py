"""``edgeall data synth``: a labelled set of procedural blood smears, to try and to test everything without real data.

It looks like blood, but it is not evidence about blood. The class is in the shape of the cells (nucleus size, nucleus
to cell ratio, chromatin, nucleoli, folds); stain, lamp, focus and noise belong to the synthetic subject and are drawn
without regard to the class, so colours alone don't tell it.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image, PngImagePlugin

from ...edge_runtime.errors import DataError, UsageError
from ...edge_runtime.files import is_empty, output_lock
from ...edge_runtime.tools.atomic import atomic_write, sync_tree
from .samples import Dataset
from .synth_draw import (
    CELL_KINDS,
    CELL_UM,
    FIELD_KINDS,
    FIELD_UM,
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
"""Lies in the root and in every folder below it: parts of the set may be copied away."""
MANIFEST = "manifest.csv"
_HEAD = 512
"""Bytes of a PNG that hold its comment: Pillow writes it before the pixels."""
_SIZE: dict[Layout, int] = {"all4": 224, "cnmc": 450}
_STATEMENT = "SYNTHETIC IMAGES, drawn by `edgeall data synth`. Not blood of anybody; not evidence about any disease.\n"
_README = """
layout {layout}, {images} images of {size} x {size} px, {subjects} synthetic subjects, seed {seed}

manifest.csv names each image's class and synthetic subject, who has one stain, lamp, focus and noise;
give it to `edgeall train --data` for a split by subject.

Truth, in {truth}/ beside the images:
  <image without suffix>.mask.png  8 bits: 0 background, 2n-1 cytoplasm of cell n, 2n nucleus of cell n
  boxes.json                       for each image its nucleated cells: number, kind, box (left, top, right, bottom)
"""


def is_synthetic(dataset: Dataset) -> bool:
    """Whether any folder of the data set holds drawn images: a whole set or a part that was copied away.

    So it is where `MARKER` lies in the folder or above it, or where one of its PNGs says so itself. Pixels are not
    looked at, and of each folder one image.
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
    """One image to draw: its posix path under the root, its label, its subject's name and number."""

    path: str
    label: str
    subject: str
    slide: int


def _plan_all4(images: int) -> list[_Plan]:
    """Every subject gives images of every class; a class's numbers run subject by subject, as on real slides."""
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
    """A subject is ill or healthy, and lies in one fold; two cells are cut from each of its images."""
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
            f"{images} images are too few for {len(labels)} classes", hint=f"ask for at least {4 * len(labels)} images"
        )
    if seed < 0:
        raise UsageError(f"seed {seed} is negative", hint="use 0 or more")
    if not 64 <= size <= 1024:
        raise UsageError(f"a size of {size} pixels can't be drawn", hint="use a size from 64 to 1024")
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise DataError(f"{out}: not an empty folder", hint="name a new folder, or empty this one first")


def _save(out: Path, plan: _Plan, picture: Picture) -> None:
    """Write the image and, beside all images, its mask."""
    path = out / plan.path
    mask = (out / TRUTH / plan.path).with_suffix(".mask.png")
    mask.parent.mkdir(parents=True, exist_ok=True)
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", COMMENT)
    if path.suffix == ".png":
        # Noise hardly packs: a harder level would take longer than the drawing and save nothing.
        Image.fromarray(picture.pixels).save(path, compress_level=1, compress_type=Image.RLE, pnginfo=note)
    else:
        Image.fromarray(picture.pixels).save(path)
    Image.fromarray(picture.mask).save(mask, compress_level=1, pnginfo=note)


def synthesize(
    out: Path,
    images: int,
    seed: int,
    layout: Layout = "all4",
    size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw a balanced, labelled set of synthetic smears with its truth.

    Args:
        out: a new or empty folder.
        images: how many in all, at least four a class.
        seed: the same seed and arguments give the same bytes.
        layout: ``all4``: ``<Benign|Early|Pre|Pro>/synthetic-<class>-NNN.png``, fields;
            ``cnmc``: ``fold_<0..2>/<all|hem>/UID_<subject>_<image>_<cell>_<all|hem>.bmp``, single cells on black.
            Both with ``manifest.csv`` (path, label, subject), which is written last.
        size: pixels a side; 224 for all4 and 450 for cnmc unless given.
        on_progress: called with (images done, images in all).

    Returns:
        {"out", "layout", "images", "size", "seed", "subjects", "labels": {label: images}}.

    Raises:
        UsageError: something asked for can't be meant.
        DataError: ``out`` holds something already.
    """
    if layout not in _SIZE:
        raise UsageError(f"unknown layout {layout!r}", hint=f"choose one of: {', '.join(_SIZE)}")
    with output_lock(out, "data synth"):
        return _synthesize(out, images, seed, layout, _SIZE[layout] if size is None else size, on_progress)


def _synthesize(
    out: Path, images: int, seed: int, layout: Layout, size: int, on_progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    _check(out, images, seed, layout, size)
    fields = layout == "all4"
    plans = _plan_all4(images) if fields else _plan_cnmc(images)
    subjects = len({plan.slide for plan in plans})
    labels = {label: sum(plan.label == label for plan in plans) for label in (FIELD_KINDS if fields else CELL_KINDS)}
    summary = {"layout": layout, "images": images, "size": size, "seed": seed, "subjects": subjects, "labels": labels}

    # Said first, so that a run that is cut short leaves nothing unlabelled.
    of_images = {(out / plan.path).parent for plan in plans}
    for folder in sorted({out / parent for plan in plans for parent in PurePosixPath(plan.path).parents}):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(json.dumps({"synthetic": True, "by": COMMENT, **summary}) + "\n", encoding="utf-8")
        if folder not in of_images:  # there, `data ls` would call it skipped
            (folder / "README.txt").write_text(_STATEMENT, encoding="utf-8")
    (out / "README.txt").write_text(_STATEMENT + _README.format(truth=TRUTH, **summary), encoding="utf-8")
    (out / TRUTH).mkdir()

    # One stream a slide and one an image: no drawing depends on how many numbers another one took.
    exposure = 1.0 if fields else 0.6  # the real C-NMC cells are dark
    slides = [make_slide(np.random.default_rng((seed, 1, number)), exposure) for number in range(subjects)]
    texture = make_texture(np.random.default_rng((seed, 0)), size / (FIELD_UM if fields else CELL_UM))

    def draw(index: int) -> list[dict[str, Any]]:
        plan, rng = plans[index], np.random.default_rng((seed, 2, index))
        if fields:
            picture = draw_field(FIELD_KINDS[plan.label], slides[plan.slide], size, texture, rng)
        else:
            picture = draw_cell(CELL_KINDS[plan.label], slides[plan.slide], size, texture, rng)
        _save(out, plan, picture)
        return [asdict(cell) for cell in picture.cells]

    boxes: dict[str, list[dict[str, Any]]] = {}
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 4))
    try:
        for plan, cells in zip(plans, pool.map(draw, range(images)), strict=True):
            boxes[plan.path] = cells
            if on_progress is not None:
                on_progress(len(boxes), images)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt doesn't wait for the rest

    (out / TRUTH / "boxes.json").write_text(json.dumps(boxes, indent=1) + "\n", encoding="utf-8")
    sync_tree(out)
    # Last, so that its presence means complete.
    with atomic_write(out / MANIFEST) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "label", "subject"))
        table.writerows((plan.path, plan.label, plan.subject) for plan in plans)
    return {"out": str(out), **summary}
