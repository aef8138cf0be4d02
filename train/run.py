"""One training run: from a folder of images to a run folder. The same command after a kill resumes the run."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..console.progress import Progress
from ..edge_runtime.files import output_lock
from ..edge_runtime.images import refuse_inside
from ..models import registry
from ..models.head import build_head, copy_head
from ..models.keras_compat import keras
from ..models.macs import macs
from .batches import plain
from .config import TrainSettings
from .data import balance, cache
from .data.subsets import SUBSETS
from .features import feature_batches
from .fit import fit, keep_statistics_current, pretrained_statistics, strategy_for, use_accelerator
from .prepare import Others, prepare_run
from .run_folder import claim
from .run_info import ModelInfo, RunInfo, read_run
from .run_settings import RunSettings
from .runs import build_args, complete_run, input_spec, provenance
from .settings import HEAD_PATIENCE, filled, optimizer_of, resolve
from .stage import FitOptions, Row, Stage
from .tasks import registry as tasks
from .teacher import WEIGHT, open_teachers
from .transfer import open_source
from .workers import Workers, join

__all__ = ["TrainSettings", "train"]


def train(
    settings: TrainSettings,
    progress: Progress,
    devices: list[str] | None = None,
    *,
    on_epoch: Callable[[Row], None] | None = None,
    evaluated: Sequence[str] = SUBSETS,
) -> RunInfo:
    """Fine-tune a backbone on a folder of images, evaluate it on the test subset and write a report.

    Args:
        settings: see `TrainSettings`.
        progress: receives notes and progress bars.
        devices: TensorFlow device names to mirror over; by default all GPUs.
        on_epoch: see `edgeall.train.fit.fit`.
        evaluated: see `complete_run`.

    Raises:
        UsageError: invalid settings; a run folder that holds another run, lies in the data folder, or is in use.
        DataError: data that cannot be trained on, weights that do not fit, no space for preprocessed images.
    """
    started = time.perf_counter()
    settings = resolve(settings)
    refuse_inside(settings.data, settings.out)
    others = Others(open_teachers(settings.teacher, settings.out), open_source(settings))
    settings = replace(settings, cache_dir=cache.ready(settings.cache_dir))
    workers = join(os.environ.get("TF_CONFIG"), progress) or Workers(strategy=strategy_for(devices))
    with workers.together(), ExitStack() as lock:
        workers.from_chief(lambda: lock.enter_context(output_lock(settings.out, "train")))
        return _Session(settings, others, workers, progress, on_epoch).run(evaluated, started)


class _Session:
    """The training of one run on one worker. `run` lists its steps in order."""

    def __init__(
        self,
        settings: TrainSettings,
        others: Others,
        workers: Workers,
        progress: Progress,
        on_epoch: Callable[[Row], None] | None,
    ) -> None:
        self.settings = settings
        self.others = others
        self.workers = workers
        self.progress = progress
        self.on_epoch = on_epoch
        self.task = tasks.get(settings.task)
        self.args = build_args(RunSettings.of(settings))
        self.spec = input_spec(RunSettings.of(settings))
        self.backbone: Any = None
        self.model: Any = None

    def run(self, evaluated: Sequence[str], started: float) -> RunInfo:
        """Train, evaluate and complete the run folder. ``started`` is of `time.perf_counter`."""
        settings, workers = self.settings, self.workers
        made_with = provenance()
        prepared = prepare_run(settings, self.others, workers, self.progress)
        self.split = prepared.split
        self.labels = self.task.labels(self.split)
        accelerated = use_accelerator()
        with workers.scope():
            teachers = self.others.teachers
            self.teach = self.task.teach(teachers, self.spec) if teachers else None
        keras.utils.set_random_seed(settings.seed)
        workers.from_chief(self._build_for_head)
        self._load_images()
        if not prepared.resuming:  # only now, so that a command that fails leaves no folder behind
            workers.from_chief(lambda: claim(settings.out, RunSettings.of(settings), self.split, prepared.facts))
        self.loaded_at = self.featured_at = time.perf_counter()
        history = workers.from_chief(self._train_head)
        self._share_head()
        history += self._finetune()
        self._convert_to_float32(accelerated)
        epochs = self.task.epochs(settings, self.training["train"]).epochs
        run = RunInfo(
            settings=RunSettings.of(settings).with_(epochs_finetune=epochs),
            **vars(prepared.facts),
            model=self._model_info(),
            timing=self._timing(history, prepared.resuming, started),
            workers=workers.count,
            replicas=workers.replicas,
            **vars(made_with),
        )
        complete = workers.from_chief(lambda: self._complete(run, history, started, evaluated).to_json())
        return read_run(complete)

    def _build(self, weights: str) -> None:
        self.backbone = registry.get(self.settings.model).build(replace(self.args, weights=weights))
        self.model = self.task.add_head(self.backbone, RunSettings.of(self.settings), len(self.labels))

    def _build_for_head(self) -> None:
        """Build the network. With several workers the chief trains the head on a network of its own."""
        with self.workers.scope() if self.workers.alone else nullcontext():
            source = self.others.source
            self._build("none" if source else self.args.weights)
            if source:
                source.copy_to(self.backbone)

    def _load_images(self) -> None:
        """Load the preprocessed images; ``training`` is the same with classes filled up to ``--per-class``."""
        settings = self.settings
        assert settings.cache_dir is not None
        self.images = self.task.load(self.split, settings.data, self.spec, settings.cache_dir, self.progress)
        self.training = self.images
        if settings.per_class is not None:
            count = balance.parse_per_class(settings.per_class).train
            self.training = {**self.images, "train": balance.filled(self.images["train"], count)}

    def _features(self) -> NDArray[np.float32]:
        """The output of the frozen backbone for every image of the split, ``(images, features)``, cached on disk."""
        settings, entries = self.settings, self.split.entries
        weights = [hashlib.sha256(value.tobytes()).hexdigest() for value in self.backbone.get_weights()]
        policy = keras.mixed_precision.global_policy().name
        digests = [entry.sha256 for entry in entries]
        facts = [cache.FORMAT, asdict(self.spec), settings.model, self.args.alpha, policy, weights, digests]
        assert settings.cache_dir is not None
        path = settings.cache_dir / f"features-{cache.digest(facts)}.npy"
        shape = (len(entries), int(self.backbone.output_shape[-1]))
        features = cache.load(path, shape, np.float32, self.progress)
        if features is None:
            every = np.arange(len(entries))
            images = replace(self.images["train"], rows=every, labels=np.zeros_like(every))
            values = []
            with self.progress.task("features", len(every)) as advance:
                for batch, _ in plain(images, 64):
                    values.append(self.backbone.predict_on_batch(batch))
                    advance(sum(map(len, values)), "")
            features = np.concatenate(values).astype(np.float32)
            cache.save(path, shape, np.float32, [features])
        return features

    def _train_head(self) -> list[Row]:
        """Train the head on cached features and copy it into the network."""
        settings = self.settings
        features = self._features() if settings.epochs_head else None
        self.featured_at = time.perf_counter()
        if features is None:
            return []
        images, validation = self.training["train"], self.training["validation"]
        classes = self.model.output_shape[-1]
        keras.utils.set_random_seed(settings.seed)
        head = build_head(features.shape[1], classes, settings.dropout, settings.dense)
        weights = images.class_weights(classes) if settings.class_weights else None
        patience = HEAD_PATIENCE if settings.patience is None else settings.patience
        batch_size = filled(settings.batch_size)
        stage = Stage(
            "head",
            settings.epochs_head,
            settings.lr_head,
            patience,
            len(images),
            batch_size,
            optimizer=optimizer_of(settings),
        )
        history = fit(
            head,
            stage,
            lambda epoch: feature_batches(features, images, stage, settings.seed, epoch, weights),
            feature_batches(features, validation),
            settings.out / "checkpoints" / "head.npz",
            self.progress,
            FitOptions(tensorboard=settings.out / "tensorboard" / "head", on_epoch=self.on_epoch),
        )
        copy_head(head, self.model)
        return history

    def _share_head(self) -> None:
        """With several workers, rebuild the network in their scope, with the weights of the chief."""
        if self.workers.alone:
            return
        begun = self.model.get_weights() if self.workers.chief else []
        with self.workers.scope():
            self._build("none")
        if self.workers.chief:
            self.workers.put(self.model, begun)

    def _finetune(self) -> list[Row]:
        """Train the network, or its last layers, on augmented images."""
        settings = self.settings
        if settings.epochs_finetune == 0:
            return []
        images = self.training["train"]
        planned = self.task.epochs(settings, images)
        stage = Stage(
            "finetune",
            planned.epochs,
            filled(settings.lr_finetune),
            planned.epochs if settings.patience is None else settings.patience,
            planned.images,
            filled(settings.batch_size),
            # The weights at the start are never kept. With the statistics of an untrained network activations vanish,
            # and int8 has no range. The head on a frozen backbone may have the lower loss on unchanged validation
            # images, but it has learned nothing of other microscopes.
            settle=1,
            optimizer=optimizer_of(settings),
        )
        self._freeze()
        keep_statistics_current(self.model, stage.steps)
        learner = self.model
        if self.teach:
            with self.workers.scope():
                learner = self.task.student(self.model, self.teach, settings.teacher_weight or WEIGHT)
        keras.utils.set_random_seed(settings.seed)
        with pretrained_statistics(self.model) if settings.epochs_head else nullcontext():
            return fit(
                learner,
                stage,
                self.task.batches(images, settings, stage, len(self.labels)),
                self.task.validation(self.training["validation"]),
                settings.out / "checkpoints" / "finetune.npz",
                self.progress,
                FitOptions(
                    self.workers,
                    settings.out / "tensorboard" / "finetune",
                    on_epoch=self.on_epoch,
                    objective=self.task.objective,
                    changed=self.task.changed(self.training["validation"], settings),
                ),
            )

    def _freeze(self) -> None:
        """Freeze all backbone layers but the last ``unfreeze``. An untrained backbone is trained as a whole."""
        unfreeze = self.settings.unfreeze
        if unfreeze is None and self.settings.weights != "none":
            unfreeze = registry.get(self.settings.model).unfreeze
        if unfreeze is not None:
            for layer in self.backbone.layers[: max(len(self.backbone.layers) - unfreeze, 0)]:
                layer.trainable = False

    def _convert_to_float32(self, accelerated: bool) -> None:
        """Rebuild a network of mixed precision or of several workers: the saved model is plain float32."""
        weights = self.workers.weights(self.model)
        if accelerated:
            keras.mixed_precision.set_global_policy("float32")
        if accelerated or not self.workers.alone:
            self._build("none")
            self.model.set_weights(weights)

    def _model_info(self) -> ModelInfo:
        parameters = int(self.model.count_params())
        return ModelInfo(self.settings.model, self.settings.alpha, parameters, macs(self.model), self.spec)

    def _timing(self, history: list[Row], resuming: bool, started: float) -> dict[str, float | None]:
        return {
            "prepare_s": self.loaded_at - started,
            "features_s": self.featured_at - self.loaded_at,
            "head_s": _seconds(history, "head"),
            "finetune_s": _seconds(history, "finetune"),
            "resumed": resuming,  # if true, total_s is of the last process only; the stages count all processes
            "head_images_per_s": _rate(history, "head"),
            "finetune_images_per_s": _rate(history, "finetune"),
        }

    def _complete(self, run: RunInfo, history: list[Row], started: float, evaluated: Sequence[str]) -> RunInfo:
        out = self.settings.out
        trained = tasks.Trained(self.model, self.split, self.images, history)
        complete = complete_run(out, run, trained, started, self.progress, evaluated)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return complete


def _seconds(history: list[Row], stage: str) -> float:
    return float(sum(row["seconds"] for row in history if row["stage"] == stage))


def _rate(history: list[Row], stage: str) -> float | None:
    """Median images/s of a stage's epochs. The median discounts the first epoch, which traces the graph."""
    rates = [row["images_per_s"] for row in history if row["stage"] == stage]
    return float(np.median(rates)) if rates else None
