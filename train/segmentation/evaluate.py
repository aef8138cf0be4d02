"""`edgeall evaluate` of a segmentation run or model file: the figures of whole images with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...console.progress import Progress
from ...edge_runtime.errors import UsageError
from ...edge_runtime.segmenter import Segmenter
from ...edge_runtime.vision.tiles import TileSegmenter
from ..data.masked import load_masked
from ..data.scan import hash_files, scan
from ..data.split import Split, check_split, make_entries
from ..data.subsets import TEST
from ..evaluation.config import EvaluateSettings
from ..evaluation.selection import model_split
from .assess import KerasSegmenter, assess_images, figures
from .images import MaskedImages
from .results import MaskEvaluation
from .robustness import robustness_of_masks

_UNUSED = ("site", "against", "explain", "labels_file", "mean", "std", "input_size", "context", "cell_model")
"""Settings that a segmentation model does not take."""


def evaluate_masks(target: Path, settings: EvaluateSettings, progress: Progress) -> MaskEvaluation:
    """Segment images with masks by the device's code, and compute the figures.

    Args:
        target: a run folder (its Keras model is evaluated), or a model file.
        settings: see `EvaluateSettings`.
        progress: receives notes and progress bars.

    Returns:
        The figures without the duration; with ``robust`` of a model file also its robustness.
    """
    given = [name for name in _UNUSED if getattr(settings, name) not in (None, False)]
    if given:
        option = given[0].removesuffix("_file").replace("_", "-")
        raise UsageError(f"{target}: --{option} does not take a segmentation model yet", hint="leave it out")
    segmenter, own, root, seed = (_open_run if target.is_dir() else _open_model)(target, settings)
    images, subset, level = _select(segmenter, own, root, settings, progress)
    with progress.task("evaluating", len(images)) as advance:
        scores = assess_images(segmenter, images, lambda done: advance(done, ""))
    robust = robustness_of_masks(segmenter, images, progress) if settings.robust else None
    return MaskEvaluation(str(target), figures(scores, subset, level, seed), robust)


Opened = tuple[TileSegmenter, Split | None, Path, int]
"""The model, the split that it was made with, the images, and the seed of the run."""


def _open_run(run: Path, settings: EvaluateSettings) -> Opened:
    from .. import runs

    if settings.robust or settings.split is not None:
        option = "--robustness" if settings.robust else "--split"
        raise UsageError(f"{run}: {option} requires a model file", hint="quantize the run, then give the model file")
    facts = runs.load_run(run)
    spec = runs.input_spec(facts.settings)
    segmenter = KerasSegmenter(runs.load_model(run, facts), spec)
    return segmenter, runs.load_own_split(run, facts), settings.data or runs.data_root(facts), facts.settings["seed"]


def _open_model(path: Path, settings: EvaluateSettings) -> Opened:
    if settings.data is None:
        raise UsageError(f"{path}: nothing to evaluate on", hint="name a folder or manifest with masks with --data")
    segmenter = Segmenter.open(path, threads=1)
    assert segmenter.bundle is not None and segmenter.bundle.manifest is not None
    training = segmenter.bundle.manifest.training
    own = model_split(path, training.get("split_sha256"), settings.split)
    return segmenter, own, settings.data, int(training.get("seed", 0))


def _select(
    segmenter: TileSegmenter, own: Split | None, root: Path, settings: EvaluateSettings, progress: Progress
) -> tuple[MaskedImages, str, str]:
    """The images, the subset and the level of the split: those of the model's own split, or all of other data."""
    dataset = load_masked(root)
    if own is not None and _shares_images([dataset.root / sample.path for sample in dataset.samples], own):
        check_split(own, root)
        subset = settings.side or "test"
        return MaskedImages((), own.subset(subset), dataset.root, segmenter.input), subset, own.level
    if settings.side not in (None, "all"):
        raise UsageError(
            f"--side {settings.side}: no split says which images those are", hint="give --split RUN/split.json"
        )
    scanned = scan(dataset)
    for problem in scanned.dataset.problems:
        progress.note(f"skipped {problem.path}: {problem.reason}")
    if own is None:
        progress.note(f"all images of {root}: if the model was trained on any of them, the figures are too good")
    facts = scanned.facts
    entries = make_entries(facts, [TEST] * len(facts), [None] * len(facts))
    entries = tuple(replace(entry, side="all") for entry in entries)
    return MaskedImages((), entries, dataset.root, segmenter.input), "all", "none"


def _shares_images(files: Sequence[Path], split: Split) -> bool:
    known = {entry.sha256 for entry in split.entries}
    return any(digest in known for digest in hash_files(list(files)))
