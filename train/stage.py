"""What one training stage does, and what it reports of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .workers import ALONE, Workers

AfterStep = Callable[[int, list[NDArray[Any]]], None]
"""``after_step(done, average)`` may change the weights of the model and, in place, their running average (in the order
of ``model.get_weights()``). Called with the number of finished steps: before the first step and after each."""

Row = dict[str, Any]
"""One epoch: stage, epoch, loss, accuracy, val_loss, val_accuracy (of masks: dice, val_dice), learning_rate,
images_per_s (training only), seconds (with validation); and, when the stage has ended, kept: 1 for the epoch whose
weights the model has."""


@dataclass(frozen=True)
class Optimizer:
    """How a stage follows the gradient.

    Attributes:
        name: ``adam``; ``adamw``, the same with weight decay; ``sgd`` with Nesterov momentum 0.9; ``rmsprop`` with
            momentum 0.9.
        schedule: of the learning rate after the warm-up: ``cosine`` down to zero (Loshchilov and Hutter 2017),
            ``constant``, or ``step``: a tenth after half of all steps, a hundredth after three quarters (He et al.
            2016).
        weight_decay: decoupled from the gradient (Loshchilov and Hutter 2019): every step subtracts this share times
            the learning rate from each kernel. Biases and the scales of BatchNormalization do not decay.
        warmup: share of all steps in which the rate rises to its peak, in [0, 1).
    """

    name: str = "adam"
    schedule: str = "cosine"
    weight_decay: float = 0.0
    warmup: float = 0.1


ADAM = Optimizer()


@dataclass(frozen=True)
class Stage:
    """The settings of one training stage.

    Attributes:
        name: ``head``, ``finetune`` or ``qat``; names the rows of the history.
        epochs: at most this many.
        learning_rate: the peak, reached after the warm-up.
        patience: stop after this many epochs in a row without a lower validation loss than the best epoch's. The
            weights at the start do not count.
        images: training images per epoch.
        batch_size: images per step.
        soft: labels are probabilities ``(batch, classes)``, in training and validation, not class indices.
        xla: compile the step where a GPU is present (on a CPU XLA makes MobileNetV2 thirteen times slower).
        settle: number of first epochs that are never kept, except the last of them: later epochs are compared with
            that one. The weights at the start are then not kept either.
        optimizer: see `Optimizer`.
    """

    name: str
    epochs: int
    learning_rate: float
    patience: int
    images: int
    batch_size: int
    xla: bool = True
    soft: bool = False
    settle: int = 0
    optimizer: Optimizer = ADAM

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return max(self.images // self.batch_size, 1)


@dataclass(frozen=True)
class Objective:
    """What a stage minimizes, and how its model is validated.

    Attributes:
        metric: name of the figure beside the loss: the columns ``metric`` and ``val_metric`` of the history.
        logged: its name in Keras' logs.
        compiled: losses and metrics for Keras' ``compile``, from `Stage.soft`.
        validate: mean loss and metric, from pairs of the targets and the model's outputs of every validation batch.
    """

    metric: str
    logged: str
    compiled: Callable[[bool], dict[str, Any]]
    validate: Callable[[list[tuple[Any, Any]]], tuple[float, float]]


@dataclass(frozen=True)
class FitOptions:
    """What goes on around a stage.

    Attributes:
        workers: the machines that train the model; it was built in their scope. All start from the weights or the
            checkpoint of the chief.
        tensorboard: folder of TensorBoard logs, or None.
        after_step: see `AfterStep`.
        on_epoch: called with the row of every epoch when it is saved, and first with the rows of a resumed stage. An
            exception from it ends the training, which can be resumed.
        objective: of the task; None: classification.
        changed: tf.data of augmented validation images, or None. The validation loss is then the mean of theirs and of
            the unchanged images'; the metric is of the unchanged images.
    """

    workers: Workers = ALONE
    tensorboard: Path | None = None
    after_step: AfterStep | None = None
    on_epoch: Callable[[Row], None] | None = None
    objective: Objective | None = None
    changed: Any = None
