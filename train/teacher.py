"""Distillation: a student network learns from the probabilities of trained teacher networks.

`edgeall.train.segmentation.teaching` is the same for masks.

Teachers and student get the same augmented images. The teachers run in the training step, once per batch.

Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent"; the loss is that of
Hinton et al. 2015, "Distilling the knowledge in a neural network".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..edge_runtime.errors import UsageError
from ..edge_runtime.preprocess import InputSpec
from ..models.keras_compat import keras, tf
from .data.split import Split
from .run_info import RunInfo, TeacherInfo
from .runs import input_spec, load_model, load_run, run_digest
from .tasks.registry import Task, of_run

TEMPERATURE = 4.0
"""Divisor of the logits before teachers and student are compared. Teachers are nearly certain of the images that they
were trained on. Softened, their probabilities carry more information than the label."""

WEIGHT = 0.5
"""Share of the teachers in the loss. The labels have the rest."""

TeacherFunction = Callable[[Any], Any]
"""Normalized images, float32 ``(batch, h, w, 3)``, to float32 probabilities ``(batch, classes)``."""


@dataclass(frozen=True)
class Teacher:
    """A complete run to learn from.

    Attributes:
        run: its folder.
        sha256: of its ``run.json``, which identifies its data, its split and its settings.
        facts: the content of ``run.json``.
    """

    run: Path
    sha256: str
    facts: RunInfo

    def record(self) -> TeacherInfo:
        """The entry in the student's ``run.json``."""
        own = self.facts.settings
        accuracy = {side: metrics.accuracy for side, metrics in self.facts.classified.items()}
        dice = {side: metrics.dice for side, metrics in self.facts.segmented.items()} or None
        return TeacherInfo(
            run=str(self.run),
            run_sha256=self.sha256,
            model=own.model,
            alpha=own.alpha,
            input_size=own.input_size,
            accuracy=accuracy,
            dice=dice,
        )


def open_teachers(runs: Sequence[Path], out: Path, option: str = "--teacher ") -> tuple[Teacher, ...]:
    """Read the ``run.json`` of each teacher.

    Args:
        runs: run folders.
        out: the run folder of the student.
        option: stands before the run in messages.

    Raises:
        UsageError: a teacher that its student would overwrite.
        DataError: a run that is not complete.
    """
    for run in runs:
        if run.resolve() == out.resolve():
            raise UsageError(f"{option}{run}: is --out itself", hint="choose another --out")
    return tuple(Teacher(run, facts=load_run(run), sha256=run_digest(run)) for run in runs)


def check_teachers(teachers: Sequence[Teacher], task: Task, split: Split, spec: InputSpec) -> None:
    """Make sure that the teachers fit the student and were not trained on its test subset.

    Args:
        teachers: from `open_teachers`.
        task: of the student.
        split: of the student.
        spec: input contract of the student.

    Raises:
        UsageError: a teacher of another task, with other labels, another split or another normalization.
    """
    wanted = task.labels(split)
    for teacher in teachers:
        own_task = of_run(teacher.facts).name
        if own_task != task.name:
            raise UsageError(
                f"--teacher {teacher.run}: is a {own_task} run, the student is trained for {task.name}",
                hint=f"give a {task.name} run",
            )
        hint = f"train the student on its split: --split {teacher.run}"
        check_split_of(teacher.facts, f"--teacher {teacher.run}", wanted, split.sha256, hint)
        own = input_spec(teacher.facts.settings)
        if (own.mean, own.std) != (spec.mean, spec.std):
            raise UsageError(
                f"--teacher {teacher.run}: normalizes with {own.normalization}, the student with {spec.normalization}"
            )


def check_split_of(run: RunInfo, name: str, labels: Sequence[str], split_sha256: str, hint: str) -> None:
    """Raise UsageError for a run of other labels or of another split. ``name`` begins the message."""
    if run.labels != list(labels):
        raise UsageError(
            f"{name}: has the classes {', '.join(run.labels)}, not {', '.join(labels)}",
            hint="give a run of the same classes",
        )
    if run.split.sha256 != split_sha256:
        raise UsageError(
            f"{name}: was trained on another split, which may contain images of this test subset", hint=hint
        )


def ensemble(teachers: Sequence[Teacher]) -> TeacherFunction:
    """Load the teachers. The result is the mean of their probabilities.

    For a teacher with another input size the batch is resized, with the filter of the device's preprocessing. Call this
    in the scope that the student is trained in.

    Raises:
        DataError: a model file is missing or damaged.
    """
    models = [load_model(teacher.run, teacher.facts) for teacher in teachers]
    for model in models:
        model.trainable = False

    def teach(images: Any) -> Any:
        outputs = [model(_resized(images, model.input_shape[1:3]), training=False) for model in models]
        return tf.stop_gradient(tf.add_n(outputs) / len(outputs))

    return teach


def make_student(model: Any, teach: TeacherFunction, weight: float) -> Any:
    """A student for `edgeall.train.fit.fit`: the layers of ``model`` with a training step for distillation.

    The loss is ``(1 - weight) * H(label, p) + weight * T**2 * KL(q_T, p_T)``: the cross-entropy of the student's
    probabilities p, and their divergence from the teachers' q, both as x_T = softmax(log(x) / T). T**2 keeps the
    gradients of both terms equally large. Validation uses the labels only.

    Args:
        model: outputs class probabilities. Training the result trains it in place. Labels are class indices.
        teach: from `ensemble`.
        weight: share of the teachers, in (0, 1].
    """
    classes = model.output_shape[-1]

    def distillation(targets: Any, probabilities: Any) -> Any:
        labels, taught = targets[:, :classes], targets[:, classes:]
        hard = keras.losses.categorical_crossentropy(labels, probabilities)
        soft = keras.losses.kl_divergence(softened(taught), softened(probabilities))
        return (1.0 - weight) * hard + weight * TEMPERATURE**2 * soft

    def accuracy(targets: Any, probabilities: Any) -> Any:
        return keras.metrics.categorical_accuracy(targets[:, :classes], probabilities)

    class Student(keras.Model):
        def compile(self, **settings: Any) -> None:
            super().compile(**{**settings, "loss": distillation, "metrics": [accuracy]})

        def train_step(self, data: Any) -> Any:
            images, labels, weights = data
            images = tf.ensure_shape(images, model.input_shape)  # augmentation loses the static shape
            targets = tf.concat([tf.one_hot(labels, classes), teach(images)], axis=-1)
            return super().train_step((images, targets, weights))

    return Student(model.input, model.output, name=model.name)


def softened(probabilities: Any) -> Any:
    """The probabilities of the network with its logits divided by `TEMPERATURE`."""
    return tf.nn.softmax(tf.math.log(tf.maximum(probabilities, 1e-12)) / TEMPERATURE)


def _resized(images: Any, size: tuple[int, int]) -> Any:
    """Antialiased bilinear resize as matrix products: TensorFlow's own runs neither on a GPU nor under XLA."""
    height, width = images.shape[1:3]
    if (height, width) == size:
        return images
    return tf.einsum("ij,bjkc,lk->bilc", _resampling(height, size[0]), images, _resampling(width, size[1]))


def _resampling(source: int, target: int) -> NDArray[np.float32]:
    """Weight of each source pixel for each target pixel along one axis, ``(target, source)``."""
    step = source / target
    centers = (np.arange(target) + 0.5) * step
    distances = np.abs(np.arange(source) + 0.5 - centers[:, np.newaxis]) / max(step, 1.0)
    triangle = np.maximum(1.0 - distances, 0.0)
    return (triangle / triangle.sum(axis=1, keepdims=True)).astype(np.float32)
