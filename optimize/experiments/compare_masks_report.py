"""Writes ``compare.html`` of segmentation networks, see `edgeall.optimize.experiments.compare_report`."""

from __future__ import annotations

from pathlib import Path

from ...console.tables import four
from .compare_report import Ranked, draw_rows, write_page
from .compare_result import Comparison, MaskRow


def write_masks_comparison(path: Path, result: Comparison) -> None:
    """Draw the plots and write the page. The same result gives the same page.

    Args:
        path: the page; its plots go to ``plots/`` beside it.
        result: see `edgeall.optimize.experiments.compare.compare_runs`.
    """
    folder = path.parent / "plots"
    folder.mkdir(exist_ok=True)
    rows = [(row, row.dice_low, row.dice_high) for row in result.rows if isinstance(row, MaskRow)]
    pictures = draw_rows(rows, folder, "test Dice, hundredths")
    write_page(path, "compare_masks.html", result, Ranked("Dice", "hundredths lost", four), pictures=pictures)
