"""Imports a Keras model that was trained elsewhere: a run folder like any other."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...console.progress import Progress
from ...edge_runtime.bundle import read_labels
from ...edge_runtime.errors import DataError, EdgeallError, UsageError
from ...edge_runtime.files import output_lock
from ...edge_runtime.images import refuse_inside
from ...models.head import LOGITS
from ...models.keras_compat import exact_float32
from ...models.keras_files.build import build
from ...models.keras_files.flatten import read_network
from ...models.keras_files.graph import Network, Node
from ...models.keras_files.head import Head, with_head
from ...models.keras_files.input_map import InputMap, Start, find_start, with_map, without_start
from ...models.macs import macs
from ..config import TrainSettings
from ..data import cache
from ..data.split import Split
from ..data.subsets import SUBSETS
from ..prepare import prepare_data
from ..run_folder import check_out, claim
from ..run_info import ImportedInfo, ModelInfo, RunInfo
from ..run_settings import RunSettings
from ..runs import IMPORTED, complete_run, input_spec, provenance
from ..tasks import registry as tasks
from .config import ImportSettings
from .conventions import (
    GIVEN,
    INSIDE,
    TRIED,
    Choice,
    Trials,
    applicable,
    check_order,
    choose,
    compare,
    given_map,
)

EQUAL = 1e-5
"""Largest difference of a probability between the network as read and the network of the run."""


def import_model(settings: ImportSettings, progress: Progress) -> RunInfo:
    """Make a run of a foreign Keras model, and evaluate it.

    Args:
        settings: see `ImportSettings`.
        progress: receives notes and progress bars.

    Returns:
        The content of ``run.json``. ``model.imported`` tells where the network came from, its normalization and how
        that is known, and the result under every normalization that was tried.

    Raises:
        UsageError: a normalization or an order of labels that is neither named nor unambiguous; a run folder that
            cannot be used.
        DataError: a file that is not a Keras model, or a layer that has no twin in Keras 2; it is named.
    """
    started = time.perf_counter()
    refuse_inside(settings.data, settings.out)
    network = read_network(settings.model)
    start = find_start(network)
    size = _input_size(settings, network, start)
    core, head = with_head(without_start(network, start), size)
    own = _run_settings(settings, size)
    recorded = RunSettings.of(own)
    cache_dir = cache.ready(settings.cache_dir)
    with output_lock(settings.out, "import"):
        resuming = check_out(settings.out, recorded, settings.force)
        prepared = prepare_data(own, resuming, progress)
        order = _labels(settings, head, prepared.split)
        split = replace(prepared.split, labels=tuple(sorted(order)))
        spec = input_spec(recorded)
        images = tasks.get(own.task).load(split, settings.data, spec, cache_dir, progress)
        session = _Session(settings, core, head, start, size, progress)
        trials, choice = session.tried(images, split, order)
        network, model = session.network(choice, order)
        imported = session.facts(network, choice, trials)
        if not resuming:
            claim(settings.out, recorded, split, prepared.facts)
        model_info = ModelInfo(core.name, None, int(model.count_params()), macs(model), spec, imported=imported)
        run = RunInfo(
            settings=recorded,
            **vars(prepared.facts),
            model=model_info,
            timing={"import_s": time.perf_counter() - started},
            workers=1,
            replicas=1,
            **vars(provenance()),
        )
        return complete_run(settings.out, run, tasks.Trained(model, split, images, []), started, progress)


def _input_size(settings: ImportSettings, network: Network, start: Start) -> tuple[int, int]:
    """Height and width of the run's input."""
    height, width, _ = network.input.config["shape"]
    if start.size is not None:
        height, width = start.size
    if height is None or width is None:
        if settings.input_size is None:
            raise UsageError(
                f"{settings.model}: its input has no fixed size",
                hint="give the size that it was trained with in pixels, e.g. --input-size 224",
            )
        height, width = height or settings.input_size, width or settings.input_size
    elif settings.input_size not in (None, height, width):
        raise UsageError(
            f"--input-size {settings.input_size}: {settings.model} takes {width}x{height} pixels", hint="leave it out"
        )
    if height != width:
        raise UsageError(f"{settings.model}: takes {width}x{height} pixels; a run needs a square input")
    return int(height), int(width)


def _run_settings(settings: ImportSettings, size: tuple[int, int]) -> TrainSettings:
    """The settings of the run, as those of a training that has no epoch."""
    shared = {name: getattr(settings, name) for name in ("split_by", "embargo", "val_frac", "test_frac", "fold")}
    own = TrainSettings(
        data=settings.data,
        out=settings.out,
        model=IMPORTED,
        weights=str(settings.model),
        input_size=size[0],
        epochs_head=0,
        epochs_finetune=0,
        augment=settings.augment,
        split=settings.split,
        positive=settings.positive,
        seed=settings.seed,
        cache_dir=settings.cache_dir,
        force=settings.force,
        **shared,
    )
    return tasks.get(own.task).resolve(own)


def _labels(settings: ImportSettings, head: Head, split: Split) -> tuple[str, ...]:
    """The label of each output, in order."""
    data = split.labels
    if settings.labels is None:
        if len(data) != head.labels:
            raise UsageError(
                f"{settings.model}: has {head.labels} outputs, the data {len(data)} classes: {', '.join(data)}",
                hint="give the label of each output, one per line: --labels FILE",
            )
        return tuple(sorted(data))
    labels = read_labels(settings.labels)
    if len(labels) != head.labels or len(set(labels)) != len(labels):
        raise UsageError(
            f"--labels {settings.labels}: {len(set(labels))} different labels for {head.labels} outputs",
            hint="one label per line, in the order of the outputs; a background class is a label too",
        )
    unknown = [label for label in data if label not in labels]
    if unknown:
        raise DataError(
            f"{settings.data}: class {unknown[0]} is not in {settings.labels} ({', '.join(labels)})",
            hint="rename the folder, or correct the label",
        )
    return labels


@dataclass(frozen=True)
class _Session:
    """The network that is imported: ``core`` begins behind the layers of ``start``."""

    settings: ImportSettings
    core: Network
    head: Head
    start: Start
    size: tuple[int, int]
    progress: Progress

    @property
    def channels(self) -> int:
        """Channels of the file's own input, in front of its first layers."""
        return int(self.start.map.matrix.shape[1])

    def tried(self, images: Any, split: Split, order: tuple[str, ...]) -> tuple[Trials, Choice]:
        """Try all normalizations and choose one; check the order of the labels."""
        settings, shown = self.settings, str(self.settings.model)
        pixels, labels = _sample(images, settings.seed)
        truth = np.array([order.index(split.labels[label]) for label in labels])
        model = build(self.core, self.size)
        maps = applicable(self.channels, given_map(settings.mean, settings.std, self.channels))
        named = _named(settings)
        if named is not None and named not in maps:
            raise UsageError(f"--normalization {named}: {shown} takes grey images", hint=f"one of {', '.join(maps)}")

        finite: list[bool] = []

        def predict(one: InputMap) -> NDArray[np.float32]:
            found = np.asarray(model.predict(one.then(self.start.map)(pixels), batch_size=32, verbose=0), np.float32)
            finite.append(bool(np.isfinite(found).all()))
            return found

        self.progress.note(f"trying {len(maps)} normalizations on {len(truth)} images")
        with exact_float32():
            trials = compare(predict, maps, truth)
        if not any(finite):
            raise DataError(f"{shown}: its outputs are not finite numbers", hint="its training has diverged")
        choice = choose(trials, named, self.start.normalizes, shown)
        for warning in (
            choice.warning and f"warning: {shown}: {choice.warning}",
            check_order(trials, choice.normalization, order, settings.labels is not None, shown),
        ):
            if warning:
                self.progress.note(warning)
        return trials, choice

    def network(self, choice: Choice, order: tuple[str, ...]) -> tuple[Network, Any]:
        """The network of the run, with its normalization inside and its labels sorted, and its Keras model."""
        given = given_map(self.settings.mean, self.settings.std, self.channels)
        whole = applicable(self.channels, given)[choice.normalization].then(self.start.map)
        rows = [order.index(label) for label in sorted(order)]
        whole_network = with_map(_sorted_outputs(self.core, rows), whole, self.size)
        model = build(whole_network)
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (4, *self.size, 3)).astype(np.uint8)
        with exact_float32():
            before = build(self.core, self.size).predict(whole(pixels), verbose=0)[:, rows]
            after = model.predict((pixels.astype(np.float32) - 127.5) / 127.5, verbose=0)
        difference = float(np.abs(before - after).max())
        if not difference <= EQUAL:
            raise EdgeallError(
                f"{self.settings.model}: with its normalization inside, a probability changes by {difference:.2g}; "
                "please report this"
            )
        return whole_network, model

    def facts(self, network: Network, choice: Choice, trials: Trials) -> ImportedInfo:
        """``model.imported`` of ``run.json``."""
        settings, given = self.settings, choice.normalization == GIVEN
        return ImportedInfo(
            file=str(settings.model),
            sha256=digest_of(settings.model),
            keras=network.version,
            normalization=choice.normalization,
            normalization_from=choice.how,
            mean=settings.mean if given else None,
            std=settings.std if given else None,
            first_layers=list(self.start.names),
            channels=self.channels,
            end=self.head.end,
            labels_named=settings.labels is not None,
            tried_images=trials.images,
            trials=[trial.to_json() for trial in trials.trials],
        )


def _named(settings: ImportSettings) -> str | None:
    """The normalization that the user named. Raises UsageError for two of them."""
    given = GIVEN if settings.mean is not None or settings.std is not None else None
    inside = INSIDE if settings.normalized_inside else None
    settings.check()
    return given or settings.normalization or inside


def _sample(images: Any, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Up to `TRIED` images of the train and validation subsets, balanced by class, and their labels."""
    rows = np.concatenate([images[name].rows for name in SUBSETS[:2]])
    labels = np.concatenate([images[name].labels for name in SUBSETS[:2]])
    generator, classes = np.random.default_rng(seed), np.unique(labels)
    share = -(-TRIED // len(classes))
    chosen = [generator.permutation(np.flatnonzero(labels == label))[:share] for label in classes]
    some = np.sort(np.concatenate(chosen))
    return images["train"].pixels[rows[some]], labels[some]


def _sorted_outputs(network: Network, rows: list[int]) -> Network:
    """The network with its outputs in another order."""

    def changed(node: Node) -> Node:
        if node.name != LOGITS:
            return node
        return replace(node, variables={name: value[..., rows] for name, value in node.variables.items()})

    return network.with_nodes(changed(node) for node in network.nodes)


def digest_of(path: Path) -> str:
    """sha256 of a file, or of the files of a SavedModel in the order of their names."""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            total.update(file.read_bytes())
    return total.hexdigest()
