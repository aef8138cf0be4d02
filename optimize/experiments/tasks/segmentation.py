"""Comparison of segmentation networks: Dice of whole images, and Wilcoxon's test against the best one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....console.progress import Progress
from ....console.tables import four
from ....edge_runtime.bundle import Bundle
from ....edge_runtime.images import open_rgb
from ....edge_runtime.segmenter import Segmenter
from ....edge_runtime.tools.atomic import write_text
from ....edge_runtime.vision.tiles import padded
from ....train.data import cache
from ....train.data.split import Split
from ....train.run_info import RunInfo
from ....train.runs import data_root, image_folder, input_spec
from ....train.segmentation.assess import Score, assess_images, figures
from ....train.segmentation.images import MaskedImages
from ....train.segmentation.results import MaskMetrics
from ..compare_config import CompareOptions
from ..compare_result import (
    ComparedModel,
    Comparison,
    FoldMetrics,
    MaskRow,
    MaskSubset,
    SchemeFigures,
    SubsetFigures,
)
from .registry import ComparisonTask, Measured, OpenRun, shared

FIGURES = ("dice_nucleus", "dice_cell", "mean_iou", "aji")
"""Figures of a row beside the Dice."""
_FORMAT = 1
"""Version of the kept scores."""


class SegmentationComparison(ComparisonTask):
    """`OpenRun.images` are the `MaskedImages` of the test subset; `OpenRun.reference` is the `MaskMetrics` of it."""

    name = "segmentation"
    csv_columns = (
        *("model", "scheme", "runs", "split_level", "optimistic", "dice", "dice_low", "dice_high", *FIGURES),
        *("panoptic_quality", "nc_error", "drop_points", "test_images", "parameters", "macs", "file_bytes"),
        *("flatbuffer_bytes", "compressed_bytes", "latency_p50_ms", "latency_p90_ms", "on_front", "train_dice"),
        *("validation_dice", "pruned", "float_layers", "only_this_higher", "only_best_higher", "wilcoxon_p", "error"),
        "epoch_s",
    )
    heads = ("Dice", "p", "drop", "nuclei", "cells", "mean IoU", "AJI")
    explained = (
        "Dice: mean of nucleus and whole cell; drop: hundredths of Dice lost to Keras float32; p50: of one tile",
        "p: probability of such a difference from the best by chance (Wilcoxon's signed-rank test)",
    )

    def load(
        self, folder: Path, facts: RunInfo, split: Split, options: CompareOptions, progress: Progress
    ) -> tuple[MaskedImages, MaskMetrics]:
        root = image_folder(options.data or data_root(facts))
        return MaskedImages((), split.subset("test"), root, input_spec(facts.settings)), facts.segmented["test"]

    def figures(
        self, runs: Sequence[OpenRun]
    ) -> tuple[dict[str, SubsetFigures | MaskSubset], FoldMetrics | MaskMetrics]:
        (run,) = runs  # only classifiers are compared by folds
        return {name: MaskSubset(metrics.dice) for name, metrics in run.facts.segmented.items()}, run.reference

    def measure(self, runs: Sequence[OpenRun], bundles: Sequence[Bundle], out: Path, progress: Progress) -> Measured:
        (run,), (bundle,) = runs, bundles
        segmenter = Segmenter.from_bundle(bundle, threads=1)
        scores = _scores(run, bundle, segmenter, out, progress)
        metrics = figures(scores, "test", run.split.level, run.facts.settings.seed)
        order = np.argsort([entry.sha256 for entry in run.test], kind="stable")
        return Measured(
            drop_points=100.0 * (run.reference.dice - metrics.dice),
            agreement=None,
            max_abs_difference=None,
            metrics=metrics,
            timed=[(segmenter, _tile(run.images))],
            scores=np.array([one.dice for one in scores])[order],
        )

    def row(self, model: ComparedModel, scheme: str, figures: SchemeFigures) -> MaskRow:
        metrics = figures.metrics
        assert isinstance(metrics, MaskMetrics)
        low, high = metrics.dice_ci95
        return MaskRow(
            dice=metrics.dice,
            dice_low=low,
            dice_high=high,
            nc_error=metrics.nc_error,
            panoptic_quality=metrics.panoptic.quality,
            **{name: getattr(metrics, name) for name in FIGURES},
            **shared(model, scheme, figures),
        )

    def csv_of_model(self, model: ComparedModel) -> dict[str, Any]:
        known = [name for name in ("train", "validation") if name in model.by_side]
        return {f"{name}_dice": model.by_side[name].to_json()["dice"] for name in known}

    def cells(self, row: MaskRow, p_value: str) -> tuple[str, ...]:
        return four(row.dice), p_value, f"{row.drop_points:.2f}", *(four(getattr(row, name)) for name in FIGURES)

    def drawn(self, runs: Sequence[OpenRun]) -> Any:
        return None

    def write_report(self, path: Path, result: Comparison, drawn: Mapping[str, Any]) -> None:
        from ..compare_masks_report import write_masks_comparison

        write_masks_comparison(path, result)


TASK = SegmentationComparison()


def _tile(images: MaskedImages) -> NDArray[np.uint8]:
    """A part of the first image that fills the input; latency does not depend on what it shows."""
    size = images.spec.width
    pixels, _ = padded(np.asarray(open_rgb(images.root / images.entries[0].path)), size)
    return np.ascontiguousarray(pixels[:size, :size])


def _scores(run: OpenRun, bundle: Bundle, segmenter: Segmenter, out: Path, progress: Progress) -> list[Score]:
    """The figures of every test image, kept by digest of model and images."""
    images = [[entry.sha256, entry.mask_sha256, entry.red_cell_px] for entry in run.test]
    made_of = cache.digest([_FORMAT, hashlib.sha256(bundle.flatbuffer).hexdigest(), images])
    path = out / "predictions" / f"{made_of}.json"
    scores = _kept(path, len(images))
    if scores is None:
        scores = assess_images(segmenter, run.images, f"{run.model} {Path(bundle.path).stem}", progress)
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps([asdict(score) for score in scores]))
    return scores


def _kept(path: Path, count: int) -> list[Score] | None:
    """The figures of an earlier call; None for a missing or damaged file."""
    try:
        found = [Score(**{**one, "pixels": tuple(one["pixels"])}) for one in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if len(found) == count else None
