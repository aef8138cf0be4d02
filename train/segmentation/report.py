"""The HTML page about a segmentation network: its figures, and overlays of its best and its worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...console.tables import plain
from ...edge_runtime.images import open_rgb
from ...edge_runtime.masks import open_mask, outlined
from ...edge_runtime.tools.atomic import scratch, write_text
from ...edge_runtime.vision.tiles import TileSegmenter
from ..evaluation.robustness import robustness_text
from ..evaluation.text import metrics_text
from ..reports import plots
from ..reports.page import jpeg_uri, png_uri, template
from ..run_info import RunInfo
from .assess import answer_of
from .images import MaskedImages
from .paired import paired_text
from .results import MaskEvaluation
from .site import mask_site_text

WORST, BEST = 8, 4
"""Number of images that are shown."""
SIDE = 480
"""Longest side in pixels of a shown image."""


@dataclass(frozen=True)
class Overlays:
    """Pairs of outlines, as drawn and as found, with a caption: the worst images first, then the best."""

    worst: tuple[tuple[Image.Image, str], ...]
    best: tuple[tuple[Image.Image, str], ...]


def draw_overlays(segmenter: TileSegmenter, images: MaskedImages, dice: Sequence[float]) -> Overlays:
    """Draw the worst and the best images of a subset; ``dice`` is that of each, in order."""
    order = np.argsort(dice, kind="stable").tolist()
    worst = order[: min(WORST, len(order))]
    best = order[len(worst) :][-BEST:][::-1]

    def drawn(index: int) -> tuple[Image.Image, str]:
        entry = images.entries[index]
        image = open_rgb(images.root / entry.path)
        truth = open_mask(images.root / str(entry.mask), image.size)
        found = answer_of(segmenter, entry, image, images.spec).classes
        pair = np.hstack([np.asarray(outlined(image, classes)) for classes in (truth, found)])
        picture = Image.fromarray(pair)
        picture.thumbnail((2 * SIDE, SIDE))
        return picture, f"{plain(entry.path)}: Dice {dice[index]:.4f}"

    return Overlays(tuple(map(drawn, worst)), tuple(map(drawn, best)))


def write_masks_report(
    path: Path,
    title: str,
    texts: Sequence[tuple[str, str]],
    overlays: Overlays,
    synthetic: bool,
    history: Sequence[Mapping[str, str]] = (),
) -> None:
    """One self-contained HTML file, without scripts or external resources.

    Args:
        path: the HTML file.
        title: of the page.
        texts: sections: heading, and table of `edgeall.console.tables`.
        overlays: see `Overlays`.
        synthetic: whether the images are synthetic.
        history: rows of ``history.csv``; their curves are shown.
    """
    curves = []
    if history:
        with scratch() as folder:
            plots.plot_curves(history, folder / "curves.png")
            curves.append((png_uri(folder / "curves.png"), "Loss and Dice of training and validation by epoch."))
    shown = [
        (heading, [(jpeg_uri(picture), caption) for picture, caption in pictures])
        for heading, pictures in (("Worst images", overlays.worst), ("Best images", overlays.best))
    ]
    page = template("edgeall.train.reports", "masks.html").render(
        title=title, texts=texts, overlays=shown, plots=curves, synthetic=synthetic
    )
    write_text(path, page, errors="replace")  # a file name may be invalid Unicode


def evaluation_texts(found: MaskEvaluation) -> list[tuple[str, str]]:
    """Headings and tables of an evaluation."""
    texts = [("Figures", metrics_text(found.metrics))]
    if found.site is not None:
        texts.append(("External validation", mask_site_text(found.site)))
    if found.against is not None:
        texts.append(("Paired comparison", paired_text(found.against)))
    if found.robustness is not None:
        texts.append(("When the microscope changes", robustness_text(found.robustness)))
    return texts


def write_run_report(out: Path, run: RunInfo, overlays: Overlays, history: Sequence[Mapping[str, str]]) -> None:
    """``report.html`` of a run."""
    metrics = run.metrics
    texts = [
        (f"On the {name} subset", metrics_text(metrics[name])) for name in ("test", "validation") if name in metrics
    ]
    write_masks_report(
        out / "report.html", f"{out.resolve().name}, segmentation", texts, overlays, run.data.synthetic, history
    )
