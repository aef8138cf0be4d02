"""How well `edgeall cells` finds, outlines and measures cells, how fast, beside its limits.

python benchmarks/cells.py DATA [--model FILE] [--float FILE] [--points FILE...] [--case loo|held-out|unseen]
                           [--labs NAME,...] [--only FILE] [--scales FILE] [--out PAGE.md] [--json FILE]

DATA holds masks/<laboratory>/{images,masks} (or is one laboratory's folder) and bccd/{JPEGImages,Annotations}. Each
image is searched with default settings: the scale is measured in it. A file of ``--scales``, {"<laboratory>": px}, adds
the same figures with a known scale, which separates errors of the scale from those of the outline. ``--points`` names
images with cells marked by eye, see `cells_truth.read_points`. ``--only`` names a file of image names, one per line, or
``cell_model_split.json``: its test images.

From Python: `judge(finder, Data(...))` with any `edgeall.edge_runtime.vision.finder.Finder`, such as
`CellFinder(segmenter)`. Times are of the thread's processor. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from PIL import Image

from edgeall.benchmarks.cells_truth import (
    Field,
    at_border,
    dice,
    inside,
    mask_folders,
    match_boxes,
    match_points,
    read_boxes,
    read_masks,
    read_points,
    true_cells,
)
from edgeall.edge_runtime.vision import DEFAULT_MODEL
from edgeall.edge_runtime.vision.finder import Finder, open_finder
from edgeall.edge_runtime.vision.scale import given_scale

FIELD = (1280, 960)
MOST_MS, MOST_BYTES, MOST_LOST = 60.0, 400_000, 0.01
MOST_RATIO_ERROR = 0.05
BOXES, POINTS, BLASTS = (0.97, 0.95), (0.95, 0.95), (0.90, None)
"""Minimum recall and precision."""
DICE: dict[str, dict[str, tuple[float, float]]] = {
    "loo": {"worst": (0.90, 0.88), "mean": (0.93, 0.92)},
    "held-out": {"all-idb2": (0.94, 0.94), "bccd": (0.92, 0.90)},
    "unseen": {"worst": (0.90, 0.90)},
}
"""Minimum Dice of nucleus and whole cell by case: of a laboratory, of the worst one, or of their mean."""


@dataclass(frozen=True)
class Measure:
    """One figure beside its limit; ``at_most`` says on which side of the limit it must be."""

    name: str
    value: float
    limit: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool:
        if self.limit is None:
            return True
        return bool(self.value <= self.limit if self.at_most else self.value >= self.limit)


@dataclass(frozen=True)
class Data:
    """What to measure on.

    Attributes:
        root: see the module.
        case: of `DICE`: how the network has seen these laboratories.
        labs: names of the laboratories with masks; empty takes all.
        only: stems of the images with masks to count; None takes all.
        points: files of marked cells; for one whose name has ``blast``, the limit is recall alone.
        scales: diameter of a red cell in pixels by laboratory.
        boxes: whether BCCD's boxes are searched too.
    """

    root: Path
    case: str = "loo"
    labs: Sequence[str] = ()
    only: frozenset[str] | None = None
    points: Sequence[Path] = ()
    scales: Mapping[str, float] = field(default_factory=dict)
    boxes: bool = True


def judge(finder: Finder, data: Data) -> list[Measure]:
    """All figures of accuracy."""
    measures = outlines(finder, data)
    if data.boxes and (data.root / "bccd" / "Annotations").is_dir():
        measures += boxes(finder, read_boxes(data.root / "bccd"))
    for file in data.points:
        measures += points(finder, file, data.root)
    return measures


def outlines(finder: Finder, data: Data) -> list[Measure]:
    """Dice of nucleus and whole cell and the error of the N:C ratio, by laboratory."""
    limits = DICE[data.case]
    measures, all_labs = [], []
    for name, (images, masks) in mask_folders(data.root).items():
        if data.labs and name not in data.labs:
            continue
        for known in (None, data.scales.get(name)) if name in data.scales else (None,):
            fields = read_masks(images, masks, set(data.only) if data.only is not None else None, known)
            nucleus, cell, ratio, found = outline(finder, fields)
            if not len(nucleus):
                continue
            label = f"{name} ({len(nucleus)} images{', known scale' if known else ''})"
            worst = limits.get(name, limits.get("worst", (None, None))) if not known else (None, None)
            measures += [
                Measure(f"{label}: Dice of the nucleus", float(nucleus.mean()), worst[0]),
                Measure(f"{label}: Dice of the whole cell", float(cell.mean()), worst[1]),
                Measure(f"{label}: images below a Dice of 0.8 of the nucleus", float((nucleus < 0.8).mean())),
                Measure(f"{label}: median error of N:C", ratio, MOST_RATIO_ERROR if not known else None, True),
                Measure(f"{label}: whole cells found", found),
            ]
            if known is None:
                all_labs.append((float(nucleus.mean()), float(cell.mean())))
    if len(all_labs) > 1:
        mean = np.mean(all_labs, axis=0)
        limit = limits.get("mean", (None, None))
        measures += [
            Measure("mean of the laboratories: Dice of the nucleus", float(mean[0]), limit[0]),
            Measure("mean of the laboratories: Dice of the whole cell", float(mean[1]), limit[1]),
        ]
    return measures


def outline(finder: Finder, fields: Iterable[Field]) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Dice of nucleus and of whole cell by image; median error of the N:C ratio; share of whole cells found."""
    nucleus, cell, errors, missed = [], [], [], 0
    for each in fields:
        assert each.mask is not None
        found = finder.find(each.pixels, given_scale(each.red_cell_px) if each.red_cell_px else None)
        mask = found.mask()
        nucleus.append(dice(mask == 255, each.mask == 255))
        cell.append(dice(mask > 0, each.mask > 0))
        for where, ratio in true_cells(each.mask):
            there = [one for one in found.cells if where[int(one.centre[1]), int(one.centre[0])]]
            if len(there) != 1:
                missed += 1
            else:
                errors.append(abs(there[0].nc_ratio - ratio))
    judged = len(errors) + missed
    error = float(np.median(errors)) if errors else float("nan")
    return np.array(nucleus), np.array(cell), error, len(errors) / judged if judged else float("nan")


def boxes(finder: Finder, fields: Iterable[Field]) -> list[Measure]:
    """White cells of BCCD by their boxes: all, and those that the border does not cut; and the scale by its red cells.

    Of whole cells, a cell found in a box that ends at the border is neither right nor wrong.
    """
    counts = {whole: np.zeros(3) for whole in (False, True)}
    octaves = []
    for each in fields:
        found = finder.find(each.pixels)
        if each.red_cell_px:
            octaves.append(abs(np.log2(found.scale.red_cell_px / each.red_cell_px)))
        height, width = each.pixels.shape[:2]
        for whole, count in counts.items():
            counted = [not (whole and at_border(box, width, height)) for box in each.boxes]
            judged = [cell for cell in found.cells if not (whole and cell.touches_border)]
            taken = match_boxes(judged, each.boxes)
            right = sum(counted[box] for box in taken.values())
            count += (right, sum(counted), len(judged) - (len(taken) - right))
    measures = []
    for whole, (right, true, said) in counts.items():
        label = "BCCD's white cells" + (", whole ones" if whole else "")
        measures += [
            Measure(f"{label}: recall", right / true, None if whole else BOXES[0]),
            Measure(f"{label}: precision", right / max(said, 1), None if whole else BOXES[1]),
        ]
    return [
        *measures,
        Measure("BCCD: median error of the scale, octaves", float(np.median(octaves))),
        Measure("BCCD: 95th percentile of the error of the scale, octaves", float(np.percentile(octaves, 95))),
    ]


def points(finder: Finder, file: Path, data: Path) -> list[Measure]:
    """Recall and precision of whole cells marked by eye. A found cell that the border cuts is right or not counted."""
    right = true = wrong = 0
    for each in read_points(file, data):
        found = finder.find(each.pixels).cells
        taken = match_points(found, each.points)
        right, true = right + len(taken), true + len(each.points)
        rest = [cell for n, cell in enumerate(found) if n not in taken and not cell.touches_border]
        wrong += sum(not any(inside(point, cell.box) for point in each.ignored) for cell in rest)
    recall, precision = BLASTS if "blast" in file.stem.lower() else POINTS
    return [
        Measure(f"{file.stem} ({true} cells): recall", right / max(true, 1), recall),
        Measure(f"{file.stem} ({true} cells): precision", right / max(right + wrong, 1), precision),
    ]


def times(finder: Finder, data: Path) -> list[Measure]:
    """Milliseconds for a field of `FIELD` on one core, with the scale measured in it and with a known scale."""
    import cv2

    cv2.setNumThreads(1)
    fields = [
        np.asarray(Image.fromarray(each.pixels).resize(FIELD, Image.Resampling.BICUBIC))
        for each in read_boxes(data / "bccd", slice(0, 24))
    ]
    scale = finder.find(fields[0]).scale
    measures = []
    for name, known in (("", None), (", with a known scale", scale)):
        ms = []
        for pixels in fields:
            begin = time.thread_time()
            finder.find(pixels, known)
            ms.append((time.thread_time() - begin) * 1000)
        p50, p95 = np.percentile(ms, [50, 95])
        label = f"a field of {FIELD[0]}x{FIELD[1]} on one core{name}"
        measures += [
            Measure(f"{label}: ms, median", float(p50), None if known else MOST_MS, True),
            Measure(f"{label}: ms, 95th percentile", float(p95)),
        ]
    return measures


def lost(integer: Sequence[Measure], floating: Sequence[Measure]) -> list[Measure]:
    """Dice that the integer model loses beside the float one."""
    before = {each.name: each.value for each in floating}
    return [
        Measure(f"{each.name}, lost by int8", before[each.name] - each.value, MOST_LOST, True)
        for each in integer
        if ": Dice" in each.name and each.name in before
    ]


def main() -> int:
    arguments = _arguments()
    listed = _listed(arguments.only) if arguments.only else None
    data = Data(
        root=arguments.data,
        case=arguments.case,
        labs=arguments.labs.split(",") if arguments.labs else (),
        only=frozenset(Path(name).stem for name in listed) if listed is not None else None,
        points=arguments.points,
        scales=json.loads(arguments.scales.read_text(encoding="utf-8")) if arguments.scales else {},
    )
    model = arguments.model or DEFAULT_MODEL
    finder = open_finder(arguments.model, threads=1)
    measures = judge(finder, data)
    if arguments.float:
        measures += lost(measures, judge(open_finder(arguments.float, threads=1), data))
    if (data.root / "bccd").is_dir():
        measures += times(finder, data.root)
    if model.exists():
        measures.append(Measure("size of the file, bytes", model.stat().st_size, MOST_BYTES, True))
    page = report(measures)
    print(page)
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")
    if arguments.json:
        values = [vars(each) | {"met": each.met} for each in measures]
        arguments.json.write_text(json.dumps(values, indent=1).replace("NaN", "null"), encoding="utf-8")
    return 0 if all(each.met for each in measures) else 1


def _listed(file: Path) -> list[str]:
    """The names in a file of ``--only``."""
    text = file.read_text(encoding="utf-8")
    names: list[str] = json.loads(text)["test"] if file.suffix == ".json" else text.split("\n")
    return [name.strip() for name in names if name.strip()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, help="packed segmentation model  [default: the one that travels along]")
    parser.add_argument("--float", type=Path, help="the same model in float32")
    parser.add_argument("--points", type=Path, action="append", default=[])
    parser.add_argument("--case", choices=tuple(DICE), default="loo")
    parser.add_argument("--labs", help="laboratories, separated by commas")
    parser.add_argument("--only", type=Path)
    parser.add_argument("--scales", type=Path)
    parser.add_argument("--out", type=Path, help="Markdown file")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def report(measures: Sequence[Measure]) -> str:
    """A Markdown page."""
    from edgeall.edge_runtime.tools.device import describe_device

    def shown(value: float | None) -> str:
        return "" if value is None or np.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"

    rows = [
        f"| {each.name} | {shown(each.value)} | "
        f"{'' if each.limit is None else ('at most ' if each.at_most else 'at least ') + shown(each.limit)} | "
        f"{'' if each.limit is None else 'met' if each.met else '**missed**'} |"
        for each in measures
    ]
    return "\n".join(
        [
            "# Cells: found, outlined, measured",
            "",
            f"`python benchmarks/cells.py {' '.join(sys.argv[1:])}`, {datetime.now(timezone.utc):%Y-%m-%d}. Default",
            "settings: the scale is measured in each image. Dice is the mean over images; N:C is the area of the",
            "nucleus over that of the whole cell.",
            "",
            "| | measured | limit | |",
            "| --- | ---: | ---: | --- |",
            *rows,
            "",
            "Some white cells that the border cuts have no box in BCCD: found, they count as wrong among all, and not",
            "among whole cells.",
            "",
            *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
