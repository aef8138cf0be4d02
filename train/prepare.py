"""Prepares a run before anything is trained: scans the data, makes or restores the split, checks the workers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..console.progress import Progress
from ..edge_runtime.errors import DataError, UsageError
from ..edge_runtime.results import from_json
from .config import TrainSettings
from .data.balance import parse_per_class, sample_subsets
from .data.blocks import EMBARGO
from .data.dataset import independent_notes, unit
from .data.make_split import make_split
from .data.samples import Dataset
from .data.scan import Scan, narrow_range, scan
from .data.split import Split, check_split, load_split, save_split
from .data.split_settings import SplitSettings
from .data.subsets import LEFT_OUT
from .data.synth import is_synthetic
from .run_folder import check_out
from .run_info import DataInfo, Facts
from .run_settings import RunSettings
from .runs import input_spec, positive_of, read_json, start_over
from .settings import filled, parse_fold, resolve
from .tasks import registry as tasks
from .teacher import Teacher, check_teachers
from .transfer import Source, check_source
from .workers import Workers

NAMED_PROBLEMS = 20
"""Largest number of problems of images with masks that are noted one by one."""


@dataclass(frozen=True)
class Others:
    """The other runs that a run learns from: its teachers, and the one whose backbone it starts from."""

    teachers: tuple[Teacher, ...] = ()
    source: Source | None = None


@dataclass(frozen=True)
class Prepared:
    """What is known before the training.

    Attributes:
        resuming: whether an unfinished run is resumed.
        split: of the run.
        facts: for ``run.json``; with ``teachers`` and ``transfer`` in a run of `train`.
    """

    resuming: bool
    split: Split
    facts: Facts


def prepare(settings: TrainSettings, progress: Progress) -> tuple[Split, Facts]:
    """The split that `train` would make and the facts of the data, for several runs that are begun with `claim`."""
    found = prepare_data(resolve(settings), False, progress)
    return found.split, found.facts


def prepare_run(settings: TrainSettings, others: Others, workers: Workers, progress: Progress) -> Prepared:
    """Prepare a run on every worker. The chief decides; the others receive its split and facts.

    Raises:
        UsageError: a run folder that cannot be used, or settings that differ from those of the first worker.
        DataError: data, teachers or a split that do not match.
    """
    if workers.alone:
        return _prepare_alone(settings, others, progress)
    check_shares(settings, workers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "split.json")

        def begin() -> tuple[Any, ...]:
            found = _prepare_alone(settings, others, progress)
            images = len(found.split.subset("train"))
            if images < filled(settings.batch_size):
                raise UsageError(
                    f"--batch-size {settings.batch_size}: the train subset has {images} images",
                    hint="several workers share whole batches: give a smaller one",
                )
            save_split(found.split, path)
            return settings.as_json(), found.resuming, found.facts.to_json(), path.read_text(encoding="utf-8")

        wanted, resuming, found, text = workers.from_chief(begin)
        facts = from_json(Facts, found)
        path.write_text(text, encoding="utf-8")
        split = load_split(path)
    own = settings.as_json()
    differing = [f"{key} is {own[key]}, the first worker's {wanted[key]}" for key in own if own[key] != wanted[key]]
    if differing:
        raise UsageError(
            f"settings differ from the first worker's ({', '.join(differing)})", hint="give the same command"
        )
    if not workers.chief:
        check_split(split, settings.data)
        if facts.teachers != [teacher.record() for teacher in others.teachers]:
            raise DataError("--teacher: not the same run as on the first worker", hint="copy it from there")
        if facts.transfer != (others.source.record() if others.source else None):
            raise DataError("--weights: not the same run as on the first worker", hint="copy it from there")
    return Prepared(resuming, split, facts)


def check_shares(settings: TrainSettings, workers: Workers) -> None:
    """Raise UsageError if the workers cannot share the training equally."""
    if filled(settings.batch_size) % workers.replicas:
        raise UsageError(
            f"--batch-size {settings.batch_size} can't be shared equally by {workers.replicas} devices",
            hint=f"it is the batch of all devices together: give a multiple of {workers.replicas}",
        )
    if settings.epochs_finetune == 0:
        raise UsageError("several workers have nothing to share", hint="they share the fine-tuning: --epochs-finetune")


def prepare_data(settings: TrainSettings, resuming: bool, progress: Progress) -> Prepared:
    """The split of a run, which is made once, and the facts of the data."""
    if resuming:
        split = _own_split(settings.out)
        check_split(split, settings.data)
        facts = read_json(settings.out / "data.json", start_over(settings.out))
        return Prepared(True, split, from_json(Facts, facts))
    scanned = _scan(settings, progress)
    dataset = scanned.dataset
    if settings.split is not None:
        split = load_split(settings.split / "split.json" if settings.split.is_dir() else settings.split)
        check_split(split, settings.data)
    else:
        wanted = SplitSettings(
            by=settings.split_by,
            val_frac=settings.val_frac,
            test_frac=settings.test_frac,
            seed=settings.seed,
            fold=parse_fold(settings.fold),
            embargo=EMBARGO if settings.embargo is None else settings.embargo,
        )
        split = make_split(scanned, wanted, note=progress.note)
        if split.level in ("laboratory", "block", "given"):
            progress.note(split.level_text)
    if settings.per_class is not None:
        split = sample_subsets(split, parse_per_class(settings.per_class), settings.seed)
    positive_of(settings.positive, tasks.get(settings.task).labels(split))
    return Prepared(False, split, Facts(unit(dataset), data_info(settings.data, dataset, split)))


def _prepare_alone(settings: TrainSettings, others: Others, progress: Progress) -> Prepared:
    """Prepare a run on one worker, without the others."""
    resuming = check_out(settings.out, RunSettings.of(settings), settings.force)
    found = prepare_data(settings, resuming, progress)
    check_teachers(others.teachers, tasks.get(settings.task), found.split, input_spec(RunSettings.of(settings)))
    check_source(others.source, found.split)
    record = [teacher.record() for teacher in others.teachers]
    transfer = others.source.record() if others.source else None
    if found.facts.teachers not in (None, record):
        raise UsageError(
            f"{settings.out}: was begun with another run at {', '.join(map(str, settings.teacher))}",
            hint="restore that, or --force to start over",
        )
    if found.facts.transfer not in (None, transfer):
        raise UsageError(
            f"{settings.out}: was begun with another run at {settings.weights}",
            hint="restore that, or --force to start over",
        )
    return Prepared(resuming, found.split, replace(found.facts, teachers=record, transfer=transfer))


def _scan(settings: TrainSettings, progress: Progress) -> Scan:
    """Read all images, with notes on skipped files and other findings."""
    listed = tasks.get(settings.task).list_data(settings.data)
    with progress.task("reading images", len(listed.samples)) as advance:
        scanned = scan(listed, lambda done, total: advance(done, ""))
    problems = scanned.dataset.problems
    shown = NAMED_PROBLEMS if scanned.facts[0].mask_sha256 else 0
    if len(problems) > shown:
        progress.note(f"{len(problems)} files skipped, first: {problems[0].path}: {problems[0].reason}")
    for problem in problems if len(problems) <= shown else ():
        progress.note(f"skipped {problem.path}: {problem.reason}")
    for text in independent_notes(scanned.dataset):
        progress.note(text)
    narrow = narrow_range(scanned.facts)
    if narrow:
        progress.note(f"warning: {narrow}")
    return scanned


def data_info(root: Path, dataset: Dataset, split: Split) -> DataInfo:
    return DataInfo(
        root=str(root.resolve()),
        layout=dataset.layout,
        synthetic=is_synthetic(dataset),
        dataset_sha256=split.dataset_sha256,
        images=len(split.entries),
        left_out=sum(entry.side == LEFT_OUT for entry in split.entries),
        problems=list(dataset.problems),
        exact_duplicates=split.exact_duplicates,
        near_duplicates=split.near_duplicates,
    )


def _own_split(out: Path) -> Split:
    """The split of an unfinished run. Raises DataError if it is damaged."""
    try:
        return load_split(out / "split.json")
    except DataError as error:
        raise DataError(error.message, hint=start_over(out)) from error
