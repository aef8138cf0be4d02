"""Optimizers, schedules of the learning rate, and the settings that choose them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeall.edge_runtime.errors import UsageError
from edgeall.models.keras_compat import keras, tf
from edgeall.train.optimizer import _schedule, make_optimizer
from edgeall.train.settings import optimizer_of, resolve
from edgeall.train.stage import Optimizer, Stage

STEPS = 100


def _stage(**settings: Any) -> Stage:
    return Stage("finetune", 10, 3e-3, patience=99, images=160, batch_size=16, optimizer=Optimizer(**settings))


def _rates(**settings: Any) -> np.ndarray:
    schedule = _schedule(_stage(**settings))
    return np.array([float(schedule(step)) for step in range(STEPS + 1)])


def test_the_cosine_rises_to_its_peak_and_falls_to_zero() -> None:
    rates = _rates()
    assert rates[0] == pytest.approx(3e-5)
    assert rates.argmax() == 10
    assert rates.max() == pytest.approx(3e-3)
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[STEPS] == pytest.approx(0, abs=1e-9)


def test_without_a_warm_up_every_schedule_starts_at_the_peak() -> None:
    for schedule in ("cosine", "constant", "step"):
        assert _rates(schedule=schedule, warmup=0)[0] == pytest.approx(3e-3), schedule


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    rates = _rates(schedule="constant", warmup=0.2)
    assert (np.diff(rates[:21]) > 0).all()
    np.testing.assert_allclose(rates[20:], 3e-3, rtol=1e-6)


def test_the_step_schedule_divides_by_ten_at_half_and_at_three_quarters() -> None:
    rates = _rates(schedule="step", warmup=0)
    np.testing.assert_allclose(rates[[0, 49, 50, 74, 75, 100]], [3e-3, 3e-3, 3e-4, 3e-4, 3e-5, 3e-5], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"), ("rmsprop", "RMSprop")]
)
def test_each_name_gives_its_optimizer_and_only_kernels_decay(name: str, kind: str) -> None:
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    model.build((None, 2))
    model.set_weights([np.ones_like(value) for value in model.get_weights()])
    optimizer = make_optimizer(_stage(name=name, schedule="constant", weight_decay=0.5, warmup=0))
    assert type(optimizer).__name__ == kind
    optimizer.build(model.trainable_variables)
    optimizer.apply_gradients([(tf.zeros_like(value), value) for value in model.trainable_variables])
    kernel, bias, gamma, beta = (value.numpy() for value in model.trainable_variables)
    np.testing.assert_allclose(kernel, 1 - 0.5 * 3e-3, rtol=1e-6)
    for kept in (bias, gamma, beta):
        np.testing.assert_array_equal(kept, np.ones_like(kept))


def test_the_default_decay_is_that_of_the_optimizer(tiny_settings: Any) -> None:
    assert optimizer_of(resolve(tiny_settings)) == Optimizer()
    assert optimizer_of(resolve(replace(tiny_settings, optimizer="adamw"))) == Optimizer("adamw", weight_decay=0.004)
    given = replace(tiny_settings, optimizer="adamw", weight_decay=0.0, schedule="step", warmup=0.0)
    assert optimizer_of(resolve(given)) == Optimizer("adamw", "step", 0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "no optimizer called 'lion'"),
        ({"schedule": "linear"}, "no schedule called 'linear'"),
        ({"weight_decay": -1.0}, "--weight-decay must be in"),
        ({"warmup": 1.0}, "--warmup must be in"),
        ({"dense": 0}, "--dense must be at least 1"),
        ({"augment": "sharpen"}, "no augmentation called 'sharpen'"),
        ({"augment": "rotation,,jpeg"}, "no augmentation called ''"),
        ({"augment": "rotation,microscope"}, "no augmentation called 'microscope'"),
        ({"augment": "crop,crop:0.7"}, "crop is given twice"),
        ({"augment": "crop:0"}, "the share of crop"),
        ({"augment": "crop:often"}, "the share of crop"),
    ],
)
def test_what_no_training_can_use_is_refused(tiny_settings: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(replace(tiny_settings, **changes))
