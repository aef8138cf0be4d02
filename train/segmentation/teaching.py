"""Distillation of masks: a student learns from the pixels' probabilities of trained teachers, and from their red cells.

The loss of the pixels is that of `edgeall.train.teacher`; teachers and student get the same tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ...edge_runtime.preprocess import InputSpec
from ...models.keras_compat import keras, tf
from ..runs import load_model
from ..teacher import TEMPERATURE, Teacher, softened
from .objective import RED_CELL_WEIGHT, dice, mask_loss, red_cell_loss
from .tiles import IGNORED

TeacherFunction = Callable[[Any], tuple[Any, Any]]
"""Normalized tiles, float32 ``(batch, h, w, 3)``, to the outputs of a segmentation network: the probabilities
``(batch, h, w, classes)`` and the red cells' size ``(batch, 1)``."""


def ensemble(teachers: Sequence[Teacher], spec: InputSpec) -> TeacherFunction:
    """Load the teachers. The result is the mean of their outputs.

    The teachers are built for the student's tiles, whatever size their own had: all see red cells of one diameter, to
    which a resized tile would not keep.

    Raises:
        DataError: a model file is missing or damaged.
    """
    models = []
    for teacher in teachers:
        settings = teacher.facts.settings.with_(input_size=spec.width)
        models.append(load_model(teacher.run, replace(teacher.facts, settings=settings)))
        models[-1].trainable = False

    def teach(images: Any) -> tuple[Any, Any]:
        masks, sizes = zip(*(model(images, training=False) for model in models), strict=True)
        mask, size = (tf.stop_gradient(tf.add_n(outputs) / len(models)) for outputs in (masks, sizes))
        return mask, size

    return teach


def make_student(model: Any, teach: TeacherFunction, weight: float) -> Any:
    """A student for `edgeall.train.fit.fit`: the layers of ``model`` with a training step for distillation.

    The loss of the mask is ``(1 - weight) * mask_loss + weight * T**2 * KL(q_T, p_T)``, the mean over the pixels that
    count, see `edgeall.train.teacher.make_student`; that of the red cells' size is shared in the same way. Validation
    uses the masks only.

    Args:
        model: outputs a mask and the red cells' size. Training the result trains it in place.
        teach: from `ensemble`.
        weight: share of the teachers, in (0, 1].
    """

    def of_mask(targets: Any, probabilities: Any) -> Any:
        truth, taught = targets[..., 0], targets[..., 1:]
        counted = tf.cast(truth != IGNORED, tf.float32)
        apart = keras.losses.kl_divergence(softened(taught), softened(probabilities))
        soft = tf.reduce_sum(counted * apart) / tf.maximum(tf.reduce_sum(counted), 1.0)
        return (1.0 - weight) * mask_loss(truth, probabilities) + weight * TEMPERATURE**2 * soft

    def of_red_cell(targets: Any, found: Any) -> Any:
        return (1.0 - weight) * red_cell_loss(targets[:, :1], found) + weight * red_cell_loss(targets[:, 1:], found)

    def own_dice(targets: Any, probabilities: Any) -> Any:
        return dice(targets[..., 0], probabilities)

    class Student(keras.Model):
        def compile(self, **settings: Any) -> None:
            metric = keras.metrics.MeanMetricWrapper(own_dice, name="dice")
            losses = {"loss": [of_mask, of_red_cell], "loss_weights": [1.0, RED_CELL_WEIGHT]}
            super().compile(**{**settings, **losses, "metrics": [[metric], []]})

        def train_step(self, data: Any) -> Any:
            images, (masks, octaves) = data
            taught, sizes = teach(images)
            of_pixels = tf.concat([tf.cast(masks, tf.float32)[..., tf.newaxis], taught], axis=-1)
            return super().train_step((images, (of_pixels, tf.concat([octaves, sizes], axis=-1))))

    return Student(model.input, model.output, name=model.name)
