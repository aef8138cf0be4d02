"""Trains one stage of a model, epoch by epoch. It can be killed at any moment and resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..console.progress import Progress
from ..models.keras_compat import keras, tf
from .checkpoint import TrainingState
from .optimizer import make_optimizer
from .stage import FitOptions, Objective, Row, Stage
from .workers import Workers

ALONE_WITHOUT_LOGS = FitOptions()


def strategy_for(devices: list[str] | None = None) -> Any:
    """``MirroredStrategy`` over several GPUs (or the named devices), else TensorFlow's default."""
    if devices is None:
        gpus = tf.config.list_physical_devices("GPU")
        devices = [f"GPU:{index}" for index in range(len(gpus))] if len(gpus) > 1 else []
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()


def use_accelerator() -> bool:
    """Use mixed precision if a GPU is present. Call this before a model is built. Returns whether there is a GPU."""
    present = bool(tf.config.list_physical_devices("GPU"))
    keras.mixed_precision.set_global_policy("mixed_float16" if present else "float32")
    return present


def keep_statistics_current(model: Any, steps: int) -> None:
    """Set the momentum of every BatchNormalization so that its averages follow the weights within an epoch.

    ``tf_keras`` MobileNetV2 comes with 0.999: after a short fine-tuning the moving averages still hold the
    old network's statistics, and a model that scores 98 % on training batches scores 86 % at inference.
    With ``exp(-4 / steps)`` the statistics from before an epoch weigh e**-4 = 2 % after it.
    """
    momentum = min(0.99, max(0.5, math.exp(-4.0 / steps)))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum


@contextmanager
def pretrained_statistics(model: Any) -> Iterator[None]:
    """Within the context every BatchNormalization of ``model`` stays as pretrained: its statistics, scale and offset.

    A head that was trained on the features of the frozen backbone fits these statistics. With those of the training
    batches the first loss of fine-tuning is that of an untrained network, and the large gradients destroy pretrained
    features. Source: Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform
    out-of-distribution"; docs/decisions/0016-the-default-recipe.md.
    """
    frozen = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    for layer in frozen:
        layer.trainable = False
    try:
        yield
    finally:
        for layer in frozen:
            layer.trainable = True


def fit(
    model: Any,
    stage: Stage,
    batches: Callable[[int], Any],
    validation: Any,
    checkpoint: Path,
    progress: Progress,
    options: FitOptions = ALONE_WITHOUT_LOGS,
) -> list[Row]:
    """Train ``model`` in place. It ends with the weights of the epoch with the lowest validation loss.

    Of epochs with equal loss the last is kept. The start counts as epoch 0 unless `Stage.settle` is set, so a stage
    cannot make the validation loss worse. A rule that kept the last epoch within two standard errors of the best one
    kept a loss of 0.610 instead of 0.345 on a small validation subset.

    The weights that are validated and kept are a running average over about one epoch, with the BatchNormalization
    statistics. It generalizes better than the last step, and makes the choice of the epoch less random. Source: Polyak
    and Juditsky 1992; Morales-Brotons et al. 2024, "Exponential moving average of weights in deep learning".

    Args:
        model: outputs class probabilities; compiled here.
        stage: see `Stage`.
        batches: called with the epoch (from 0), returns tf.data of (images, labels, weights).
        validation: tf.data of (images, labels).
        checkpoint: file that is replaced after every epoch. If it exists, training resumes from it.
        progress: notes and progress bar.
        options: see `FitOptions`.

    Returns:
        One row per epoch, including the epochs before a restart.

    Raises:
        DataError: the checkpoint is damaged, or an older version wrote it.
    """
    return _Fit(model, stage, batches, validation, checkpoint, progress, options).run()


class _Fit:
    """One call of `fit`."""

    def __init__(
        self,
        model: Any,
        stage: Stage,
        batches: Callable[[int], Any],
        validation: Any,
        checkpoint: Path,
        progress: Progress,
        options: FitOptions,
    ) -> None:
        self.model, self.stage, self.batches, self.validation = model, stage, batches, validation
        self.checkpoint, self.progress, self.options, self.workers = checkpoint, progress, options, options.workers
        self.objective = options.objective or CLASSIFICATION
        self._compile()
        self.predict = self.workers.predictor(model)
        self.state = self._begin()

    def _compile(self) -> None:
        on_gpu = bool(tf.config.list_physical_devices("GPU"))
        with self.workers.scope():
            self.model.compile(
                optimizer=make_optimizer(self.stage),
                jit_compile=self.stage.xla and on_gpu,
                **self.objective.compiled(self.stage.soft),
            )
            # All variables now: Keras traces a training step twice if the first step makes some.
            self.model.optimizer.build(self.model.trainable_variables)
            self.model.compiled_loss.build(self.model.output)
            self.model.compiled_metrics.build(self.model.output, self.model.output)
        # Each replica holds the metrics of all replicas: Keras would add them up.
        self.model.distribute_reduction_method = "first"

    def _begin(self) -> TrainingState:
        """The state to resume from, else the state at the start."""
        state = _resumed(self.model, self.checkpoint, self.workers)
        if state is None:
            self.workers.put(self.model, self.workers.share_arrays(self.workers.weights(self.model)))
            loss = self._validated()[0]
            state = TrainingState.fresh(self.model, loss, self.workers)
        if state.history and not state.finished(self.stage):
            done = len(state.history)
            self.progress.note(f"{self.stage.name}: resumed after epoch {done} of {self.stage.epochs}")
        for row in state.history if self.options.on_epoch else ():
            self.options.on_epoch(row)  # type: ignore[misc]
        return state

    def run(self) -> list[Row]:
        """Train until the stage ends."""
        stage, after_step = self.stage, self.options.after_step
        logged = self.options.tensorboard is not None and self.workers.chief
        log = str(self.options.tensorboard)
        writer = tf.summary.create_file_writer(log) if logged else tf.summary.create_noop_writer()
        images = stage.steps * min(stage.batch_size, stage.images)
        done = len(self.state.history)
        if after_step and not self.state.finished(stage):
            after_step(done * stage.steps, self.state.average)
        with self.progress.task(stage.name, stage.epochs * images, done * images) as advance, writer.as_default():
            while not self.state.finished(stage):
                self._finish_epoch(self._epoch(advance))
        self.workers.put(self.model, self.state.kept_weights)
        return [{**row, "kept": int(row["epoch"] == self.state.kept_epoch)} for row in self.state.history]

    def _finish_epoch(self, row: Row) -> None:
        """Save the state, then report the epoch."""
        self.state = self.state.after(row, settling=row["epoch"] <= self.stage.settle)
        if self.workers.chief:
            self.state.save(self.checkpoint, self.model, self.workers.weights(self.model))
        metric = self.objective.metric
        for key in ("loss", metric, "val_loss", f"val_{metric}", "learning_rate", "images_per_s"):
            tf.summary.scalar(key, row[key], step=row["epoch"])
        self.progress.note(_line(self.stage, metric, self.state.history))
        if self.options.on_epoch:
            self.options.on_epoch(row)

    def _validated(self) -> tuple[float, float]:
        """Mean loss and metric of the validation images. The chief computes them: all must agree on when to stop."""

        def validate(batches: Any) -> tuple[float, float]:
            return self.objective.validate([(truth, self.predict(images)) for images, truth in batches])

        def validate_all() -> tuple[float, float]:
            loss, metric = validate(self.validation)
            if self.options.changed is not None:
                loss = (loss + validate(self.options.changed)[0]) / 2
            return loss, metric

        loss, metric = self.workers.from_chief(validate_all)
        return loss, metric

    def _epoch(self, advance: Any) -> Row:
        """Train one epoch and validate the averaged weights."""
        stage, workers, average = self.stage, self.workers, self.state.average
        epoch = len(self.state.history)
        images = min(stage.batch_size, stage.images)
        after_step, metric, logged = self.options.after_step, self.objective.metric, self.objective.logged

        class Ticker(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                _average(average, workers.weights(self.model), epoch * stage.steps + batch, stage.steps)
                if after_step:
                    after_step(epoch * stage.steps + batch + 1, average)
                rate = (batch + 1) * images / (time.perf_counter() - start)
                info = f"loss {logs['loss']:.4f} {metric} {logs[logged]:.4f} {rate:.0f} images/s"
                advance((epoch * stage.steps + batch + 1) * images, f"epoch {epoch + 1}/{stage.epochs} {info}")

        start = time.perf_counter()
        data = workers.divided(self.batches(epoch))
        logs = self.model.fit(data, epochs=1, verbose=0, callbacks=[Ticker()]).history
        training_s = time.perf_counter() - start
        trained = workers.mean(workers.weights(self.model))
        average[:] = workers.mean(average)
        workers.put(self.model, average)
        val_loss, val_metric = self._validated()
        workers.put(self.model, trained)
        return {
            "stage": stage.name,
            "epoch": epoch + 1,
            "loss": float(logs["loss"][0]),
            self.objective.metric: float(logs[self.objective.logged][0]),
            "val_loss": val_loss,
            f"val_{self.objective.metric}": val_metric,
            "learning_rate": float(self.model.optimizer.learning_rate.numpy()),
            "images_per_s": stage.steps * images / training_s,
            "seconds": time.perf_counter() - start,
        }


def _resumed(model: Any, checkpoint: Path, workers: Workers) -> TrainingState | None:
    """Put the state of the chief's checkpoint into ``model``, on every worker; None without a checkpoint."""
    if workers.alone:
        return TrainingState.load(checkpoint.read_bytes(), checkpoint, model, workers) if checkpoint.exists() else None
    begun = workers.share(b"begun" if workers.chief and checkpoint.exists() else b"")
    saved = workers.share(checkpoint.read_bytes() if workers.chief and begun else b"")
    return TrainingState.load(saved, checkpoint, model, workers) if begun else None


def _compiled(soft: bool) -> dict[str, Any]:
    loss = "categorical_crossentropy" if soft else "sparse_categorical_crossentropy"
    accuracy = keras.metrics.CategoricalAccuracy if soft else keras.metrics.SparseCategoricalAccuracy
    return {"loss": loss, "weighted_metrics": [], "metrics": [accuracy(name="accuracy")]}


def _mean_cross_entropy(batches: list[tuple[Any, Any]]) -> tuple[float, float]:
    """Mean cross-entropy of the validation images in nats, and accuracy."""
    truth = np.concatenate([np.asarray(labels) for labels, _ in batches])
    probabilities = np.concatenate([probabilities for _, probabilities in batches]).astype(np.float64)
    if truth.ndim == 1:
        truth = np.eye(probabilities.shape[1])[truth]
    losses = -(truth * np.log(np.maximum(probabilities, keras.backend.epsilon()))).sum(axis=1)
    return float(losses.mean()), float((probabilities.argmax(axis=1) == truth.argmax(axis=1)).mean())


CLASSIFICATION = Objective("accuracy", "accuracy", _compiled, _mean_cross_entropy)


def _average(average: list[Any], weights: list[Any], step: int, steps: int) -> None:
    """Move ``average`` towards ``weights`` in place. It spans about one epoch, less during the first steps."""
    decay = min(math.exp(-1.0 / steps), (1 + step) / (10 + step))
    for index, value in enumerate(weights):
        if np.issubdtype(value.dtype, np.floating):
            average[index] += (1.0 - decay) * (value - average[index])
        else:
            average[index] = value


def _line(stage: Stage, metric: str, history: list[Row]) -> str:
    row = history[-1]
    left_s = (stage.epochs - len(history)) * sum(past["seconds"] for past in history) / len(history)
    return (
        f"{stage.name} {row['epoch']}/{stage.epochs}  loss {row['loss']:.4f}  {metric} {row[metric]:.4f}  "
        f"val_loss {row['val_loss']:.4f}  val_{metric} {row[f'val_{metric}']:.4f}  "
        f"{row['images_per_s']:.0f} images/s  {left_s:.0f} s left at most"
    )
