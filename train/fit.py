"""Trains one stage of a model, epoch by epoch, so that it can be killed at any moment and go on."""

from __future__ import annotations

import io
import json
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..console.progress import Progress
from ..edge_runtime.errors import DataError
from ..edge_runtime.tools.atomic import atomic_write
from ..models.keras_compat import keras, tf
from .workers import ALONE, Workers

AfterStep = Callable[[int, list[NDArray[Any]]], None]
"""``after_step(done, average)``: may change the model's weights and, in place, their running average (in the order of
``model.get_weights()``). Called with the number of steps done: before the first, after a restart, and after each."""

Row = dict[str, Any]
"""One epoch: stage, epoch, loss, accuracy, val_loss, val_accuracy, learning_rate, images_per_s (of training), seconds
(validation included); and, once the stage has ended, kept: 1 for the epoch whose weights it left."""


@dataclass(frozen=True)
class Stage:
    """What one stage of training is to do.

    Attributes:
        name: ``head``, ``finetune`` or ``qat``; names the rows of the history.
        epochs: at most this many.
        learning_rate: the peak, reached after the warm-up; cosine down to zero from there
            (Loshchilov and Hutter 2017).
        patience: stop after this many epochs in a row without a lower validation loss than the kept epoch's.
        images: training images seen per epoch.
        batch_size: images a step.
        warmup_frac: share of all steps spent rising to the peak.
        soft: labels are probabilities ``(batch, classes)``, in training and validation, not class indices.
        xla: compile the step where a GPU is present (on a CPU XLA makes MobileNetV2 thirteen times slower).
        settle: epochs at the start whose weights are not what is wanted yet, except the last one's: what comes after
            is held against that, and neither the others nor the weights at the start are kept.
    """

    name: str
    epochs: int
    learning_rate: float
    patience: int
    images: int
    batch_size: int
    warmup_frac: float = 0.1
    xla: bool = True
    soft: bool = False
    settle: int = 0

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return max(self.images // self.batch_size, 1)


def strategy_for(devices: list[str] | None = None) -> Any:
    """``MirroredStrategy`` over several GPUs (or the named devices), else TensorFlow's default."""
    if devices is None:
        gpus = tf.config.list_physical_devices("GPU")
        devices = [f"GPU:{index}" for index in range(len(gpus))] if len(gpus) > 1 else []
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()


def use_accelerator() -> bool:
    """Mixed precision where a GPU is present; says whether one is. Call it before a model is built."""
    present = bool(tf.config.list_physical_devices("GPU"))
    keras.mixed_precision.set_global_policy("mixed_float16" if present else "float32")
    return present


def keep_statistics_current(model: Any, steps: int) -> None:
    """Set the momentum of every BatchNormalization so that its averages follow the weights within an epoch.

    ``tf_keras`` MobileNetV2 comes with 0.999: after a short fine-tuning the moving averages still hold the
    old network's statistics, and a model that scores 98 % on training batches scores 86 % at inference.
    With ``exp(-4 / steps)`` what was there before an epoch weighs e**-4 = 2 % after it.
    """
    momentum = min(0.99, max(0.5, math.exp(-4.0 / steps)))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum


def fit(
    model: Any,
    stage: Stage,
    batches: Callable[[int], Any],
    validation: Any,
    checkpoint: Path,
    progress: Progress,
    *,
    workers: Workers = ALONE,
    tensorboard: Path | None = None,
    after_step: AfterStep | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Train ``model`` in place and leave it with the weights of the epoch whose validation loss is the lowest.

    Of epochs with the same loss the last is kept. A rule that let a later epoch pass as no worse, by the standard error
    of the difference, kept a loss of 0.610 over one of 0.345 where validation had few images: the fewer there are, the
    more such a rule forgives.

    What is validated and kept is a running average of the weights, BatchNormalization statistics included, over
    about one epoch: it generalizes better than the last step's and makes the choice of the best epoch less of a
    lottery. Source: Polyak and Juditsky 1992; Morales-Brotons et al. 2024, "Exponential moving average of weights
    in deep learning".

    Args:
        model: outputs class probabilities; compiled here with Adam.
        stage: see `Stage`.
        batches: called with the epoch (0-based), returns tf.data of (images, labels, weights).
        validation: tf.data of (images, labels).
        checkpoint: one file, replaced after every epoch; where it exists, training goes on from it.
        workers: who trains the model, each with the same arguments; it was built in their scope. They start from the
            chief's weights, or from its checkpoint.
        tensorboard: folder of TensorBoard logs, or none.
        after_step: see `AfterStep`.
        on_epoch: called with the row of every epoch once it is saved, those before a restart first; what it raises
            ends the training, which can be gone on with.

    Returns:
        One row per epoch, those before a restart included.

    Without `Stage.settle` the weights at the start count as a candidate for the best, so a stage never makes
    validation worse.

    Raises:
        DataError: the checkpoint was written by a version that kept epochs by another rule.
    """
    with workers.scope():
        model.compile(
            optimizer=keras.optimizers.Adam(_schedule(stage)),
            loss="categorical_crossentropy" if stage.soft else "sparse_categorical_crossentropy",
            weighted_metrics=[],
            metrics=["accuracy"],
            jit_compile=stage.xla and bool(tf.config.list_physical_devices("GPU")),
        )
        model.optimizer.build(model.trainable_variables)
    model.distribute_reduction_method = "first"  # each replica has the metrics of all: Keras would add them up
    predict = workers.predictor(model)
    state = _resumed(model, checkpoint, workers)
    if state is None:
        workers.put(model, workers.share_arrays(workers.weights(model)))
        state = _State.fresh(model, _validate(predict, validation, workers)[0], workers)
    if state.history and not state.finished(stage):
        progress.note(f"{stage.name}: going on after epoch {len(state.history)} of {stage.epochs}")
    if on_epoch:
        for row in state.history:
            on_epoch(row)
    logged = tensorboard is not None and workers.chief
    writer = tf.summary.create_file_writer(str(tensorboard)) if logged else tf.summary.create_noop_writer()
    seen = stage.steps * min(stage.batch_size, stage.images)
    begun = len(state.history) * seen
    if after_step and not state.finished(stage):
        after_step(len(state.history) * stage.steps, state.average)
    with progress.task(stage.name, stage.epochs * seen, begun) as advance, writer.as_default():
        while not state.finished(stage):
            row = _epoch(model, stage, state, batches, predict, validation, advance, after_step, workers)
            state = state.after(row, settling=row["epoch"] <= stage.settle)
            if workers.chief:
                state.save(checkpoint, model, workers.weights(model))
            for key in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "images_per_s"):
                tf.summary.scalar(key, row[key], step=row["epoch"])
            progress.note(_line(stage, state.history))
            if on_epoch:
                on_epoch(row)
    workers.put(model, state.kept_weights)
    return [{**row, "kept": int(row["epoch"] == state.kept_epoch)} for row in state.history]


def _epoch(
    model: Any,
    stage: Stage,
    state: _State,
    batches: Any,
    predict: Any,
    validation: Any,
    advance: Any,
    after_step: AfterStep | None,
    workers: Workers,
) -> Row:
    """Train one epoch; its row."""
    epoch = len(state.history)
    images = min(stage.batch_size, stage.images)

    class Ticker(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            _average(state.average, workers.weights(model), epoch * stage.steps + batch, stage.steps)
            if after_step:
                after_step(epoch * stage.steps + batch + 1, state.average)
            rate = (batch + 1) * images / (time.perf_counter() - start)
            info = f"loss {logs['loss']:.4f} accuracy {logs['accuracy']:.4f} {rate:.0f} images/s"
            advance((epoch * stage.steps + batch + 1) * images, f"epoch {epoch + 1}/{stage.epochs} {info}")

    start = time.perf_counter()
    logs = model.fit(workers.divided(batches(epoch)), epochs=1, verbose=0, callbacks=[Ticker()]).history
    training_s = time.perf_counter() - start
    trained = workers.mean(workers.weights(model))
    state.average[:] = workers.mean(state.average)
    workers.put(model, state.average)
    val_loss, val_accuracy = _validate(predict, validation, workers)
    workers.put(model, trained)
    return {
        "stage": stage.name,
        "epoch": epoch + 1,
        "loss": float(logs["loss"][0]),
        "accuracy": float(logs["accuracy"][0]),
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "learning_rate": float(model.optimizer.learning_rate.numpy()),
        "images_per_s": stage.steps * images / training_s,
        "seconds": time.perf_counter() - start,
    }


def _resumed(model: Any, checkpoint: Path, workers: Workers) -> _State | None:
    """The state that training goes on from, put into ``model``; the chief's, on every worker."""
    if workers.alone:
        return _State.load(checkpoint.read_bytes(), checkpoint, model, workers) if checkpoint.exists() else None
    begun = workers.share(b"begun" if workers.chief and checkpoint.exists() else b"")
    saved = workers.share(checkpoint.read_bytes() if workers.chief and begun else b"")
    return _State.load(saved, checkpoint, model, workers) if begun else None


def _validate(predict: Any, validation: Any, workers: Workers) -> tuple[float, float]:
    """Mean cross-entropy of the validation images, in nats, and the share that is classified right.

    Of several workers the chief works it out: all must find the same, or they would not agree on when to stop.
    """
    loss, accuracy = workers.from_chief(lambda: _own_validation(predict, validation))
    return loss, accuracy


def _own_validation(predict: Any, validation: Any) -> tuple[float, float]:
    answers = [(np.asarray(labels), predict(images)) for images, labels in validation]
    truth = np.concatenate([labels for labels, _ in answers])
    probabilities = np.concatenate([probabilities for _, probabilities in answers]).astype(np.float64)
    if truth.ndim == 1:
        truth = np.eye(probabilities.shape[1])[truth]
    losses = -(truth * np.log(np.maximum(probabilities, keras.backend.epsilon()))).sum(axis=1)
    return float(losses.mean()), float((probabilities.argmax(axis=1) == truth.argmax(axis=1)).mean())


def _average(average: list[Any], weights: list[Any], step: int, steps: int) -> None:
    """Move ``average`` towards ``weights`` in place; its memory is an epoch long, shorter over the first steps."""
    decay = min(math.exp(-1.0 / steps), (1 + step) / (10 + step))
    for index, value in enumerate(weights):
        if np.issubdtype(value.dtype, np.floating):
            average[index] += (1.0 - decay) * (value - average[index])
        else:
            average[index] = value


def _schedule(stage: Stage) -> Any:
    total = stage.epochs * stage.steps
    warmup = max(int(total * stage.warmup_frac), 1)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=stage.learning_rate * 0.01,
        decay_steps=max(total - warmup, 1),
        warmup_target=stage.learning_rate,
        warmup_steps=warmup,
    )


def _line(stage: Stage, history: list[Row]) -> str:
    row = history[-1]
    left_s = (stage.epochs - len(history)) * sum(past["seconds"] for past in history) / len(history)
    return (
        f"{stage.name} {row['epoch']}/{stage.epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  "
        f"val_loss {row['val_loss']:.4f}  val_accuracy {row['val_accuracy']:.4f}  "
        f"{row['images_per_s']:.0f} images/s  {left_s:.0f} s left at most"
    )


@dataclass(frozen=True)
class _State:
    """Everything a restart needs; written as one file, so that it is either the old state or the new one.

    Attributes:
        history: a row per epoch.
        kept_loss: the lowest validation loss.
        kept_epoch: its epoch, 0 for the start.
        kept_weights: its averaged weights.
        average: the running average of the weights.
    """

    history: list[Row]
    kept_loss: float
    kept_epoch: int
    kept_weights: list[Any]
    average: list[Any]

    @classmethod
    def fresh(cls, model: Any, loss: float, workers: Workers = ALONE) -> _State:
        return cls([], loss, 0, workers.weights(model), workers.weights(model))

    def finished(self, stage: Stage) -> bool:
        done = len(self.history)
        return done >= stage.epochs or done - self.kept_epoch >= stage.patience

    def after(self, row: Row, settling: bool = False) -> _State:
        """With another epoch; it is kept if no loss before was lower, and never if it is not a number."""
        history = [*self.history, row]
        if settling or row["val_loss"] <= self.kept_loss:
            kept = [np.copy(value) for value in self.average]
            return _State(history, row["val_loss"], row["epoch"], kept, self.average)
        return _State(history, self.kept_loss, self.kept_epoch, self.kept_weights, self.average)

    def save(self, path: Path, model: Any, weights: list[Any]) -> None:
        facts = {"history": self.history, "kept_epoch": self.kept_epoch, "kept_loss": self.kept_loss}
        arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts))}
        arrays |= {f"weight_{index}": value for index, value in enumerate(weights)}
        arrays |= {f"kept_{index}": value for index, value in enumerate(self.kept_weights)}
        arrays |= {f"average_{index}": value for index, value in enumerate(self.average)}
        arrays |= {f"optimizer_{index}": value.numpy() for index, value in enumerate(model.optimizer.variables)}
        with atomic_write(path) as temporary:
            np.savez(temporary, **arrays)

    @classmethod
    def load(cls, saved: bytes, name: Path, model: Any, workers: Workers) -> _State:
        """What `save` wrote; every byte is under a checksum. Raises DataError where it is damaged."""
        shapes = [tuple(value.shape) for value in model.weights]

        def of_each(kind: str) -> list[Any]:
            found = [arrays[f"{kind}_{index}"] for index in range(len(shapes))]
            if [value.shape for value in found] != shapes:
                raise ValueError("of another network")
            return found

        try:
            with np.load(io.BytesIO(saved)) as arrays:
                facts = json.loads(str(arrays["facts"]))
                history, kept_epoch = list(facts["history"]), int(facts["kept_epoch"])
                kept_loss = facts.get("kept_loss")
                weights, kept, average = of_each("weight"), of_each("kept"), of_each("average")
                optimizer = [arrays[f"optimizer_{index}"] for index in range(len(model.optimizer.variables))]
        except (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error, NotImplementedError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0] if saved else "empty"
            raise DataError(
                f"{name}: the checkpoint is damaged ({said})",
                hint="remove it and give the command again: this stage then starts over, what was done before is kept",
            ) from error
        if kept_loss is None:
            raise DataError(
                f"{name}: begun by an older edgeall that kept epochs by another rule; it can't be resumed",
                hint="start over with --force, or in another --out",
            )
        workers.put(model, weights)
        for variable, value in zip(model.optimizer.variables, optimizer, strict=True):
            variable.assign(value)
        return cls(history, float(kept_loss), kept_epoch, kept, average)
