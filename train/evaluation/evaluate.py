"""Metrics of a Keras run or of a ``model.tflite``: same images, same figures."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.bundle import is_keras
from ...edge_runtime.calibration import calibrated, temperature_of
from ...edge_runtime.classifier import Answer, Classifier
from ...edge_runtime.errors import DataError, ImageError, UsageError
from ...edge_runtime.parallel import WORTH_MEASURING, Layout, Pool, choose
from ...edge_runtime.preprocess import load_input
from ..data import cache
from ..data.dataset import Dataset, independent_notes, load_dataset, positive_labels
from ..data.scan import hash_files, scan
from ..data.split import Split, SplitEntry, check_split, load_split
from .against import held_against, open_other
from .metrics import metrics_of
from .reliability import trust
from .robustness import robustness
from .site import Site, beside_own, read_site, repeated


def evaluate(
    target: Path,
    *,
    data: Path | None = None,
    side: str | None = None,
    split: Path | None = None,
    labels_file: Path | None = None,
    mean: float | None = None,
    std: float | None = None,
    input_size: int | None = None,
    cache_dir: Path | None = None,
    robust: bool = False,
    site: Path | None = None,
    against: Path | None = None,
    explain: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Classify labelled images and count.

    Args:
        target: a run folder (its Keras model), or a model file (through the device's own code path).
        data: folder or manifest; a run knows its own.
        side: of the split; by default ``test``.
        split: the ``split.json`` that the model was made with. A run uses its own, and so does a model that lies
            beside it. Data that holds none of the split's images is other data: all of it is used.
        labels_file: of a foreign model, see `Classifier.open`; also ``mean``, ``std`` and ``input_size``.
        cache_dir: of preprocessed images, for a run.
        robust: also measure a model file under corruptions, see `edgeall.train.evaluation.robustness.robustness`.
        site: another laboratory's folder or manifest: measured in place of ``data``, which then only says where the
            model's own images are, to be looked for among the site's.
        against: another model file to hold a model file against, on the same images.
        explain: a folder for what the network of a run sees in the images it gets wrong or is least sure of, see
            `edgeall.train.evaluation.gradcam`.

    Returns:
        `compute_metrics`'s dictionary with ``model``, ``seconds``, what `edgeall.train.evaluation.reliability.trust`
        says, and, if
        asked for, ``robustness``, ``site``, see `edgeall.train.evaluation.site.beside_own`, and ``against``, see
        `edgeall.train.evaluation.against.held_against`; with ``explain`` of a drawn set ``on_cells``, see
        `edgeall.train.evaluation.gradcam.on_cells`.

    Raises:
        UsageError: what can't be combined.
        DataError: the images aren't those of the split any more, or have classes the model doesn't know.
    """
    started = time.perf_counter()
    if site is not None and side is not None:
        raise UsageError(f"--side {side} with --site: all of its images are evaluated", hint="leave one of them out")
    if not target.exists():
        raise DataError(f"{target}: no such run or model file", hint="check the path")
    if is_keras(target):
        from .. import runs

        runs.check_is_run(target)
    if target.is_dir():
        if any(given is not None for given in (split, labels_file, mean, std, input_size)):
            raise UsageError(
                "a run knows its split, labels, normalization and input size", hint="leave those options out"
            )
        if robust or against is not None:
            raise UsageError(
                f"{target}: {'--robustness' if robust else '--against'} is measured on what a device runs",
                hint="quantize the run, name the model file",
            )
        metrics = _run(target, data, side, site, cache.ready(cache_dir), explain, progress)
    else:
        if explain is not None:
            raise UsageError(
                f"{target}: --explain is of a run's network", hint="for a model file: `edgeall run MODEL DIR --explain`"
            )
        if data is None and site is None:
            raise UsageError(f"{target}: nothing to evaluate on", hint="name a folder of labelled images with --data")
        classifier = Classifier.open(
            target, threads=1, labels_file=labels_file, mean=mean, std=std, input_size=input_size
        )
        metrics = _model(classifier, target, data, side, split, robust, site, against, progress)
    return {"model": str(target), **metrics, "seconds": time.perf_counter() - started}


def _run(
    run: Path,
    data: Path | None,
    side: str | None,
    site: Path | None,
    cache_dir: Path,
    explain: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    from .. import runs
    from ..batches import Images, plain

    facts = runs.load_run(run)
    root = data or runs.data_root(facts)
    own, labels = runs.load_own_split(run, facts), tuple(facts["labels"])
    there = None if site is None else read_site(site, labels, run, progress)
    entries: Sequence[SplitEntry]
    if there is not None:
        folder, entries, side, level = there.root, there.entries, "site", "site"
    else:
        folder = runs.image_folder(root)
        entries, side, level = _entries(load_dataset(root), root, own, data is None, side, labels, run, progress)
    spec = runs.input_spec(facts["settings"])
    pixels = cache.pixels(folder, entries, spec, cache_dir, progress)
    rows = np.arange(len(entries))
    model = runs.load_model(run, facts)
    probabilities = model.predict(plain(Images(pixels, rows, rows, spec), 64), verbose=0)
    if explain is not None:
        from .gradcam import on_cells, write_overlays

        truth = np.array([labels.index(entry.label) for entry in entries])
        names = [entry.path for entry in entries]
        written = write_overlays(explain, model, pixels, spec, probabilities, truth, labels, names)
        progress.note(f"{explain}: {len(written)} images explained")
        cells = on_cells(model, pixels, spec, probabilities, runs.image_folder(root), names)
        if cells is not None:
            said = f"{100 * cells['evidence']:.1f} % of what speaks for the labels lies on nucleated cells"
            progress.note(f"{said}, which cover {100 * cells['area']:.1f} % of the images")
    positive, seed = facts["positive_labels"], facts["settings"]["seed"]
    metrics = metrics_of(entries, labels, probabilities, positive, side, level, seed)
    metrics |= _trust(entries, labels, probabilities, positive, None, None)
    if explain is not None and cells is not None:
        metrics["on_cells"] = cells
    if site is not None and there is not None:
        twins = _repeated(there, own, runs.image_folder(root), progress)
        metrics["site"] = beside_own(site, there, metrics, facts["metrics"]["test"], twins)
    return metrics


def _model(
    classifier: Classifier,
    path: Path,
    data: Path | None,
    side: str | None,
    split: Path | None,
    robust: bool,
    site: Path | None,
    against: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    manifest = classifier.bundle.manifest if classifier.bundle else None
    training = manifest.training if manifest else {}
    own = _own_split(path, training.get("split_sha256"), split)
    there: Site | None = None
    entries: Sequence[SplitEntry]
    if site is not None:
        if manifest is None or not manifest.metrics.get("per_class"):
            raise UsageError(
                f"{path}: says nothing of its own test side to hold a site against", hint=f"use --data {site}"
            )
        there = read_site(site, classifier.labels, path, progress)
        folder, entries, side, level = there.root, there.entries, "site", "site"
    else:
        assert data is not None
        dataset = load_dataset(data)
        folder = dataset.root
        entries, side, level = _entries(dataset, data, own, split is not None, side, classifier.labels, path, progress)
    split_sha256 = training.get("split_sha256") if level not in ("none", "site") else None
    other = None if against is None else open_other(against, path, classifier.labels, split_sha256)
    files = [folder / entry.path for entry in entries]
    layout = choose(classifier, [str(file) for file in files[:WORTH_MEASURING]], note=progress.note)
    raw, unfamiliar = _outputs(classifier, layout, files, "evaluating", progress)
    positive = manifest.positive_labels if manifest else positive_labels(classifier.labels)
    temperature = temperature_of(manifest)
    below = manifest.decision.get("review_below") if manifest else None
    probabilities = calibrated(raw, temperature)
    metrics = metrics_of(entries, classifier.labels, probabilities, positive, side, level, training.get("seed", 0))
    fitted = temperature if manifest and manifest.calibration else None
    metrics |= _trust(entries, classifier.labels, raw, positive, fitted, below, unfamiliar)
    if against is not None and other is not None:
        others, _ = _outputs(other, layout, files, f"evaluating {against}", progress)
        seed = training.get("seed", 0)
        metrics["against"] = held_against(against, entries, classifier.labels, raw, others, seed)
    if robust:
        metrics["robustness"] = robustness(
            classifier, layout, folder, entries, progress, temperature=temperature, review_below=below
        )
    if site is not None and there is not None and manifest is not None:
        twins = _repeated(there, own, _own_images(path, data, own), progress)
        metrics["site"] = beside_own(site, there, metrics, manifest.metrics, twins)
    return metrics


def _outputs(
    classifier: Classifier, layout: Layout, files: Sequence[Path], title: str, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Probabilities ``(files, labels)``, and which images are unfamiliar where the model tells.

    Raises:
        ImageError: an image can't be read.
    """
    rows: list[Answer] = []
    with progress.task(title, len(files)) as advance, Pool(classifier, layout) as pool:
        for _, outcome in pool.map(lambda file: load_input(file, classifier.input), files):
            if isinstance(outcome, ImageError):
                raise outcome
            rows.append(outcome)
            advance(len(rows), "")
    unfamiliar = np.array([row.novelty is not None and row.novelty > 1 for row in rows])
    return np.stack([row.probabilities for row in rows]), unfamiliar if classifier.familiar else None


def _repeated(site: Site, own: Split | None, images: Path | None, progress: Progress) -> dict[str, Any]:
    """See `edgeall.train.evaluation.site.repeated`; said aloud where there are any, or where nobody can tell."""
    twins = repeated(site, own, images, progress)
    if twins["images"]:
        progress.note(
            f"warning: {twins['images']:,} of the site's {len(site.entries):,} images are the model's own or nearly so "
            f"(first: {twins['first']}): the figures flatter it"
        )
    elif twins["looked_for"] is None:
        progress.note("which images the model was trained on isn't known here: give --split RUN/split.json")
    return twins


def _own_images(model: Path, data: Path | None, split: Split | None) -> Path | None:
    """Where the images of a model's split are: as ``--data`` says, or the ``run.json`` beside it if that is its own."""
    if data is not None:
        return data if data.is_dir() else data.parent
    try:
        run = json.loads(model.with_name("run.json").read_text(encoding="utf-8"))
        root = Path(run["data"]["root"]) if split and run["split"]["sha256"] == split.sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return root.parent if root and root.is_file() else root


def _trust(
    entries: Sequence[SplitEntry],
    labels: tuple[str, ...],
    probabilities: NDArray[np.float32],
    positive: Sequence[str],
    temperature: float | None,
    review_below: float | None,
    unfamiliar: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    truth = np.array([labels.index(entry.label) for entry in entries])
    ill = [labels.index(label) for label in positive]
    return trust(probabilities, truth, ill, temperature, review_below, unfamiliar)


def _own_split(model: Path, sha256: str | None, given: Path | None) -> Split | None:
    """The split a model was made with: the one named, or the one beside the model if it is that one."""
    if given is not None:
        split = load_split(given)
        if sha256 is not None and split.sha256 != sha256:
            raise DataError(
                f"{given}: not the split that {model} was made with",
                hint="with another one, images it was trained on would count as unseen; give its own split.json",
            )
        return split
    beside = model.with_name("split.json")
    if sha256 is None or not beside.exists():
        return None
    split = load_split(beside)
    return split if split.sha256 == sha256 else None


def _entries(
    dataset: Dataset,
    root: Path,
    split: Split | None,
    must_match: bool,
    side: str | None,
    labels: tuple[str, ...],
    model: Path,
    progress: Progress,
) -> tuple[Sequence[SplitEntry], str, str]:
    """What to evaluate on: images, the side's name, the split's level (``none`` for other data)."""
    if split is not None and (must_match or _holds_some_of(dataset, split)):
        check_split(split, root)
        _check_labels(split.labels, labels, model)
        side = side or "test"
        return split.side(side), side, split.level
    if side not in (None, "all"):
        raise UsageError(f"--side {side}: no split says which images those are", hint="give --split RUN/split.json")
    scanned = scan(dataset)
    for said in independent_notes(dataset):
        progress.note(said)
    for problem in scanned.dataset.problems:
        progress.note(f"skipped {problem.path}: {problem.reason}")
    _check_labels(scanned.dataset.labels, labels, model)
    if split is None:
        progress.note(f"all images of {root}: if the model was trained on any of them, the figures flatter it")
    entries = [SplitEntry(f.sample.path, f.sample.label, f.sample.subject, f.sha256, "all") for f in scanned.facts]
    return entries, "all", "none"


def _holds_some_of(dataset: Dataset, split: Split) -> bool:
    """Whether any image is one of the split's, by content."""
    known = {entry.sha256 for entry in split.entries}
    return any(digest in known for digest in hash_files([dataset.root / sample.path for sample in dataset.samples]))


def _check_labels(found: tuple[str, ...], known: tuple[str, ...], model: Path) -> None:
    unknown = [label for label in found if label not in known]
    if unknown:
        raise DataError(
            f"the data's classes ({', '.join(found)}) are not those of {model} ({', '.join(known)})",
            hint="evaluate on a folder with classes the model was trained on",
        )
