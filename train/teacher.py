"""Distillation: a network learns from the probabilities that trained ones give to the images it sees.

Teachers and student see the same augmented view: what the teachers say of it is worked out in the training step, once
a batch. Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent"; the loss is
that of Hinton et al. 2015, "Distilling the knowledge in a neural network".
"""

from __future__ import annotations

import hashlib
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
from .runs import input_spec, load_model, load_run

TEMPERATURE = 4.0
"""What logits are divided by before teachers and student are compared: teachers trained on these very images are
nearly certain of each, and only softened do they tell more than the label."""

WEIGHT = 0.5
"""Share of the teachers in the loss; the labels have the rest."""

Teach = Callable[[Any], Any]
"""``teach(images)``: normalized float32 ``(batch, h, w, 3)``; float32 probabilities ``(batch, classes)``."""


@dataclass(frozen=True)
class Teacher:
    """A complete run to learn from.

    Attributes:
        run: its folder.
        sha256: of its ``run.json``, which names its data, its split and its settings.
        facts: what is in there.
    """

    run: Path
    sha256: str
    facts: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """What the student's ``run.json`` says of it."""
        settings = self.facts["settings"]
        return {
            "run": str(self.run),
            "run_sha256": self.sha256,
            **{key: settings[key] for key in ("model", "alpha", "input_size")},
            "accuracy": {side: metrics["accuracy"] for side, metrics in self.facts["metrics"].items()},
        }


def open_teachers(runs: Sequence[Path], out: Path) -> tuple[Teacher, ...]:
    """What the runs to learn from tell of themselves, before any work starts.

    Args:
        runs: run folders.
        out: the student's own.

    Raises:
        UsageError: a run that is to be overwritten by its student.
        DataError: one that isn't complete.
    """
    for run in runs:
        if run.resolve() == out.resolve():
            raise UsageError(f"--teacher {run}: is --out itself", hint="choose another --out")
    return tuple(
        Teacher(run, facts=load_run(run), sha256=hashlib.sha256((run / "run.json").read_bytes()).hexdigest())
        for run in runs
    )


def check_teachers(teachers: Sequence[Teacher], split: Split, spec: InputSpec) -> None:
    """Make sure that the teachers can teach what is to be learnt, and can't give away the test side.

    Args:
        split: the student's.
        spec: the student's input contract.

    Raises:
        UsageError: a teacher of other labels, of another split or of other pixels.
    """
    for teacher in teachers:
        labels = teacher.facts["labels"]
        if labels != list(split.labels):
            raise UsageError(
                f"--teacher {teacher.run}: knows {', '.join(labels)}, the data has {', '.join(split.labels)}",
                hint="give a run of the same classes",
            )
        if teacher.facts["split"]["sha256"] != split.sha256:
            raise UsageError(
                f"--teacher {teacher.run}: was trained on another split and may know images of this test side",
                hint=f"train the student on its split: --split {teacher.run}",
            )
        own = input_spec(teacher.facts["settings"])
        if (own.mean, own.std) != (spec.mean, spec.std):
            raise UsageError(
                f"--teacher {teacher.run}: normalizes with mean {own.mean:g} and std {own.std:g}, "
                f"the student with {spec.mean:g} and {spec.std:g}"
            )


def ensemble(teachers: Sequence[Teacher]) -> Teach:
    """Load the teachers; what they say of a batch is the mean of their probabilities.

    A teacher of another input size gets the batch resized, with the filter of the device's own preprocessing. To be
    called in the scope that the student is trained in.

    Raises:
        DataError: a model file that is missing or damaged.
    """
    models = [load_model(teacher.run, teacher.facts) for teacher in teachers]
    for model in models:
        model.trainable = False

    def teach(images: Any) -> Any:
        said = [model(_resized(images, model.input_shape[1:3]), training=False) for model in models]
        return tf.stop_gradient(tf.add_n(said) / len(said))

    return teach


def student(model: Any, teach: Teach, weight: float) -> Any:
    """``model`` as `edgeall.train.fit.fit` is to train it: the same layers, another training step.

    Its loss is ``(1 - weight) * H(label, p) + weight * T**2 * KL(q_T, p_T)``: the cross-entropy of the student's
    probabilities p, and their divergence from the teachers' q, both as x_T = softmax(log(x) / T). T**2 keeps the
    second term's gradient as large as the first one's. Validation knows the labels alone.

    Args:
        model: outputs class probabilities; trained in place through what is returned. Labels are class indices.
        teach: see `Teach`.
        weight: share of the teachers, in (0, 1].
    """
    classes = model.output_shape[-1]

    def distillation(targets: Any, probabilities: Any) -> Any:
        labels, said = targets[:, :classes], targets[:, classes:]
        hard = keras.losses.categorical_crossentropy(labels, probabilities)
        soft = keras.losses.kl_divergence(_soft(said), _soft(probabilities))
        return (1.0 - weight) * hard + weight * TEMPERATURE**2 * soft

    def accuracy(targets: Any, probabilities: Any) -> Any:
        return keras.metrics.categorical_accuracy(targets[:, :classes], probabilities)

    class Student(keras.Model):
        def compile(self, **settings: Any) -> None:
            super().compile(**{**settings, "loss": distillation, "metrics": [accuracy]})

        def train_step(self, data: Any) -> Any:
            images, labels, weights = data
            images = tf.ensure_shape(images, model.input_shape)  # augmentation forgets it
            targets = tf.concat([tf.one_hot(labels, classes), teach(images)], axis=-1)
            return super().train_step((images, targets, weights))

    return Student(model.input, model.output, name=model.name)


def _soft(probabilities: Any) -> Any:
    """As the network would give them with its logits divided by `TEMPERATURE`."""
    return tf.nn.softmax(tf.math.log(tf.maximum(probabilities, 1e-12)) / TEMPERATURE)


def _resized(images: Any, size: tuple[int, int]) -> Any:
    """Antialiased bilinear, as products of matrices: TensorFlow's own runs neither on a GPU nor under XLA."""
    height, width = images.shape[1:3]
    if (height, width) == size:
        return images
    return tf.einsum("ij,bjkc,lk->bilc", _resampling(height, size[0]), images, _resampling(width, size[1]))


def _resampling(source: int, target: int) -> NDArray[np.float32]:
    """What each source pixel contributes to each target pixel along one side, ``(target, source)``."""
    step = source / target
    centers = (np.arange(target) + 0.5) * step
    distances = np.abs(np.arange(source) + 0.5 - centers[:, np.newaxis]) / max(step, 1.0)
    triangle = np.maximum(1.0 - distances, 0.0)
    return (triangle / triangle.sum(axis=1, keepdims=True)).astype(np.float32)
