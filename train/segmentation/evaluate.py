"""`edgeall evaluate` of a segmentation run or model file: the figures of whole images with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...console.progress import Progress
from ...edge_runtime.errors import DataError, UsageError
from ...edge_runtime.segmenter import Segmenter
from ...edge_runtime.vision.tiles import TileSegmenter
from ..data.masked import load_masked
from ..data.scan import hash_files
from ..data.split import Split, check_split
from ..data.synth import is_synthetic
from ..evaluation.config import EvaluateSettings
from ..evaluation.selection import model_images, model_split
from ..evaluation.site import Site, find_own_images
from .assess import KerasSegmenter, Score, assess_images, figures
from .explain import write_differences
from .images import MaskedImages
from .paired import PairedMasks, paired_masks
from .report import draw_overlays, evaluation_texts, write_masks_report
from .results import MaskEvaluation
from .robustness import robustness_of_masks
from .site import entries_of, external_masks, read_mask_site, scanned_masks

_UNUSED = ("labels_file", "mean", "std", "input_size", "context", "cell_model")
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
    opened = (_open_run if target.is_dir() else _open_model)(target, settings)
    chosen = _select(opened, settings, progress)
    other = None if settings.against is None else _open_other(settings.against, target, opened, chosen)
    scores = _assessed(opened.segmenter, chosen.images, "evaluating", progress)
    found = MaskEvaluation(str(target), figures(scores, chosen.subset, chosen.level, opened.seed))
    if settings.robust:
        found = replace(found, robustness=robustness_of_masks(opened.segmenter, chosen.images, progress))
    if settings.against is not None and other is not None:
        others = _assessed(other, chosen.images, f"evaluating {settings.against}", progress)
        found = replace(found, against=_paired(settings.against, chosen.images, scores, others, opened.seed))
    if settings.site is not None and chosen.site is not None:
        repeated = find_own_images(chosen.site, opened.own, opened.own_images, progress)
        found = replace(found, site=external_masks(settings.site, found.metrics, opened.metrics, repeated))
    dice = [score.dice for score in scores]
    if settings.explain is not None:
        written = write_differences(settings.explain, opened.segmenter, chosen.images, dice)
        progress.note(f"{settings.explain}: {len(written)} images explained")
    if settings.html is not None:
        overlays = draw_overlays(opened.segmenter, chosen.images, dice)
        title = f"{target} on {settings.site or settings.data or 'its own data'}"
        write_masks_report(settings.html, title, evaluation_texts(found), overlays, chosen.synthetic)
        progress.note(f"{settings.html}: written")
    return found


@dataclass(frozen=True)
class _Opened:
    """A segmentation network to evaluate.

    Attributes:
        segmenter: the network.
        own: the split that it was made with, if known.
        root: folder or manifest to evaluate on; None without one.
        own_images: the folder of the images of ``own``, if known.
        metrics: JSON of the metrics of its own test subset.
        split_sha256: digest of ``own``, as the model says it.
        seed: of the run.
    """

    segmenter: TileSegmenter
    own: Split | None
    root: Path | None
    own_images: Path | None
    metrics: Mapping[str, Any]
    split_sha256: str | None
    seed: int


@dataclass(frozen=True)
class _Chosen:
    """The images to evaluate on; ``site`` is None unless they are those of a site."""

    images: MaskedImages
    subset: str
    level: str
    synthetic: bool
    site: Site | None = None


def _open_run(run: Path, settings: EvaluateSettings) -> _Opened:
    from .. import runs

    for option, value in (
        ("--robustness", settings.robust),
        ("--split", settings.split),
        ("--against", settings.against),
    ):
        if value:
            hint = "quantize the run, then give the model file"
            raise UsageError(f"{run}: {option} requires a model file", hint=hint)
    facts = runs.load_run(run)
    root = settings.data or runs.data_root(facts)
    own = runs.load_own_split(run, facts)
    test = facts.segmented.get("test")
    if settings.site is not None and test is None:
        raise DataError(f"{run}: was never evaluated on its test subset", hint="give the run that a search has chosen")
    return _Opened(
        segmenter=KerasSegmenter(runs.load_model(run, facts), runs.input_spec(facts.settings)),
        own=own,
        root=root,
        own_images=runs.image_folder(root),
        metrics={} if test is None else test.to_json(),
        split_sha256=own.sha256,
        seed=facts.settings.seed,
    )


def _open_model(path: Path, settings: EvaluateSettings) -> _Opened:
    if settings.data is None and settings.site is None:
        raise UsageError(f"{path}: nothing to evaluate on", hint="name a folder or manifest with masks with --data")
    segmenter = Segmenter.open(path, threads=1)
    assert segmenter.bundle is not None and segmenter.bundle.manifest is not None
    training, metrics = segmenter.bundle.manifest.training, segmenter.bundle.manifest.metrics
    if settings.site is not None and "dice" not in metrics:
        raise UsageError(
            f"{path}: its manifest has no metrics of a test subset to compare with", hint=f"use --data {settings.site}"
        )
    split_sha256 = training.get("split_sha256")
    own = model_split(path, split_sha256, settings.split)
    images = model_images(path, settings.data, own)
    return _Opened(segmenter, own, settings.data, images, metrics, split_sha256, int(training.get("seed", 0)))


def _open_other(path: Path, model: Path, first: _Opened, chosen: _Chosen) -> Segmenter:
    """Open the other model. Raises DataError if it may have been trained on the images."""
    other = Segmenter.open(path, threads=1)
    assert other.bundle is not None and other.bundle.manifest is not None
    known = first.split_sha256 if chosen.level not in ("none", "site") else None
    if known is not None and other.bundle.manifest.training.get("split_sha256") != known:
        raise DataError(
            f"{path}: was not made with the split of {model}: it may have been trained on these images",
            hint="train it with --split, or compare both on images that neither was trained on, as with --site",
        )
    return other


def _assessed(segmenter: TileSegmenter, images: MaskedImages, title: str, progress: Progress) -> list[Score]:
    own = replace(images, spec=segmenter.input)
    return assess_images(segmenter, own, title, progress)


def _paired(
    path: Path, images: MaskedImages, scores: Sequence[Score], others: Sequence[Score], seed: int
) -> PairedMasks:
    first, second = (np.array([score.dice for score in each]) for each in (scores, others))
    return paired_masks(str(path), first, second, [entry.subject for entry in images.entries], seed)


def _select(opened: _Opened, settings: EvaluateSettings, progress: Progress) -> _Chosen:
    """Those of the site, or of the model's own split, or all of other data."""
    spec, own, root = opened.segmenter.input, opened.own, opened.root
    if settings.site is not None:
        synthetic = is_synthetic(load_masked(settings.site))
        site = read_mask_site(settings.site, progress)
        return _Chosen(MaskedImages((), site.entries, site.root, spec), "site", "site", synthetic, site)
    assert root is not None
    dataset = load_masked(root)
    synthetic = is_synthetic(dataset)
    if own is not None and _shares_images([dataset.root / sample.path for sample in dataset.samples], own):
        check_split(own, root)
        subset = settings.side or "test"
        return _Chosen(MaskedImages((), own.subset(subset), dataset.root, spec), subset, own.level, synthetic)
    if settings.side not in (None, "all"):
        raise UsageError(
            f"--side {settings.side}: no split says which images those are", hint="give --split RUN/split.json"
        )
    found = scanned_masks(root, progress)
    if own is None:
        progress.note(f"all images of {root}: if the model was trained on any of them, the figures are too good")
    return _Chosen(MaskedImages((), entries_of(found, "all"), dataset.root, spec), "all", "none", synthetic)


def _shares_images(files: Sequence[Path], split: Split) -> bool:
    known = {entry.sha256 for entry in split.entries}
    return any(digest in known for digest in hash_files(list(files)))
