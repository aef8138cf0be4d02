"""Makes the Keras optimizer of a training stage, with its schedule of the learning rate."""

from __future__ import annotations

from typing import Any

from ..models.keras_compat import keras, tf
from .stage import Stage

START = 0.01
"""Learning rate at the first step of the warm-up, as a share of the peak."""
MOMENTUM = 0.9
DROPS = (0.5, 0.75)
"""Shares of all steps after which the schedule ``step`` divides the learning rate by ten."""
_NOT_DECAYED = ("bias", "gamma", "beta")


def make_optimizer(stage: Stage) -> Any:
    """An unbuilt Keras optimizer for `Stage.optimizer`."""
    wanted, rate = stage.optimizer, _schedule(stage)
    decay = wanted.weight_decay or None  # Keras takes None for no decay
    made = keras.optimizers
    if wanted.name == "sgd":
        optimizer = made.SGD(rate, momentum=MOMENTUM, nesterov=True, weight_decay=decay)
    elif wanted.name == "rmsprop":
        optimizer = made.RMSprop(rate, momentum=MOMENTUM, weight_decay=decay)
    elif wanted.name == "adamw" and decay is not None:
        optimizer = made.AdamW(rate, weight_decay=decay)
    else:
        optimizer = made.Adam(rate, weight_decay=decay)
    if decay is not None:
        optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
    return optimizer


def _schedule(stage: Stage) -> Any:
    total = stage.epochs * stage.steps
    share = stage.optimizer.warmup
    warmup = max(int(total * share), 1) if share else 0
    if stage.optimizer.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=stage.learning_rate * (START if warmup else 1.0),
            decay_steps=max(total - warmup, 1),
            warmup_target=stage.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    drops = [int(total * drop) for drop in DROPS] if stage.optimizer.schedule == "step" else []
    return _Warmed(stage.learning_rate, warmup, drops)


class _Warmed(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises in ``warmup`` steps to its ``peak``, and is divided by ten after each step in ``drops``."""

    def __init__(self, peak: float, warmup: int, drops: list[int]) -> None:
        self.peak, self.warmup, self.drops = peak, warmup, drops

    def __call__(self, step: Any) -> Any:
        step = tf.cast(step, tf.float32)
        passed = sum((tf.cast(step >= drop, tf.float32) for drop in self.drops), tf.constant(0.0))
        rate = self.peak * 0.1**passed
        if self.warmup:
            rise = START + (1.0 - START) * step / self.warmup
            rate *= tf.minimum(rise, 1.0)
        return rate

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "warmup": self.warmup, "drops": self.drops}
