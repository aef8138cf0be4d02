"""Distillation: the loss, the input of the teachers, and runs that are refused as teachers."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.models.keras_compat import keras, tf
from edgeall.train.fit import fit
from edgeall.train.run import TrainSettings, train
from edgeall.train.run_folder import check_out
from edgeall.train.run_settings import RunSettings
from edgeall.train.runs import load_model, load_run
from edgeall.train.stage import Stage
from edgeall.train.teacher import TEMPERATURE, _resized, ensemble, make_student, open_teachers

QUIET = Progress(quiet=True)


def _network(seed: int = 0) -> Any:
    """Without BatchNormalization: equal output in training and at inference."""
    keras.utils.set_random_seed(seed)
    inputs = keras.layers.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(16, 3, activation="relu")(inputs))
    return keras.Model(inputs, keras.layers.Softmax()(keras.layers.Dense(3)(x)))


def _soft(probabilities: np.ndarray) -> np.ndarray:
    powers = probabilities ** (1 / TEMPERATURE)
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_loss_is_the_labels_and_the_softened_teachers() -> None:
    generator = np.random.default_rng(0)
    images = generator.normal(size=(6, 8, 8, 3)).astype(np.float32)
    labels, weights = generator.integers(0, 3, 6), generator.uniform(0.5, 2, 6).astype(np.float32)
    model, teachers = _network(1), [_network(2), _network(3)]
    before = model.predict(images, verbose=0).astype(np.float64)
    said = np.mean([teacher.predict(images, verbose=0) for teacher in teachers], axis=0).astype(np.float64)
    learner = make_student(model, lambda batch: tf.add_n([teacher(batch) for teacher in teachers]) / 2.0, 0.3)
    learner.compile(optimizer="sgd", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    logs = learner.fit(tf.data.Dataset.from_tensors((images, labels, weights)), verbose=0).history
    hard = -np.log(before[np.arange(6), labels])
    soft = (_soft(said) * np.log(_soft(said) / _soft(before))).sum(axis=1)
    expected = (weights * (0.7 * hard + 0.3 * TEMPERATURE**2 * soft)).mean()
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-5)
    assert logs["accuracy"][0] == pytest.approx((before.argmax(axis=1) == labels).mean())
    assert not np.allclose(model.predict(images, verbose=0), before), "the model itself was to be trained"


@pytest.mark.parametrize("size", [17, 24, 50])
def test_a_batch_is_resized_as_the_device_would(size: int) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)
    expected = tf.image.resize(images, (size, size), antialias=True)
    np.testing.assert_allclose(_resized(tf.constant(images), (size, size)), expected, atol=1e-5)


@pytest.mark.parametrize(("weight", "followed"), [(1.0, "teacher"), (0.01, "labels")])
def test_whom_a_student_follows_where_teacher_and_labels_disagree(weight: float, followed: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    bright = generator.integers(0, 2, 64)
    images = (generator.normal(size=(64, 8, 8, 3)) * 0.2 + bright[:, None, None, None] - 0.5).astype(np.float32)
    labels = 1 - bright

    def teach(batch: Any) -> Any:
        known = tf.cast(tf.reduce_mean(batch, axis=(1, 2, 3)) > 0, tf.float32)
        return tf.stack([0.95 - 0.9 * known, 0.05 + 0.9 * known, tf.zeros_like(known)], axis=1)

    model = _network()
    batch = tf.data.Dataset.from_tensors((images, labels, np.ones(64, np.float32))).repeat(20)
    stage = Stage("finetune", 3, 3e-2, patience=9, images=64 * 20, batch_size=64)
    validation = tf.data.Dataset.from_tensors((images, bright if followed == "teacher" else labels))
    fit(make_student(model, teach, weight), stage, lambda epoch: batch, validation, tmp_path / "c.npz", QUIET)
    answers = model.predict(images, verbose=0)[np.arange(64)[:, None], np.stack([bright, labels], axis=1)].mean(axis=0)
    assert answers.argmax() == ("teacher", "labels").index(followed), "whose answers it finds the likelier"


def test_teachers_of_another_size_say_their_mean_and_learn_nothing(
    tiny_run: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    teacher = load_model(tiny_run, load_run(tiny_run))
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    kernel, bias = teacher.get_layer("logits").get_weights()
    teacher.get_layer("logits").set_weights([-kernel, bias])
    teacher.save(other / "model.keras")
    teach = ensemble(open_teachers([tiny_run, other], tmp_path))
    images = np.random.default_rng(0).uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32)
    large = _resized(tf.constant(images), (48, 48))
    expected = [load_model(run, load_run(run)).predict(large, verbose=0) for run in (tiny_run, other)]
    assert np.abs(expected[0] - expected[1]).max() > 1e-3, "each differs from the mean by far more than rounding"
    said = teach(images).numpy()
    np.testing.assert_allclose(said, np.mean(expected, axis=0), atol=1e-5)
    inputs = keras.layers.Input((32, 32, 3))
    x = keras.layers.Dense(said.shape[1])(keras.layers.GlobalMaxPooling2D()(inputs))
    learner = make_student(keras.Model(inputs, keras.layers.Softmax()(x)), teach, 1.0)
    learner.compile(optimizer="sgd")
    learner.fit(tf.data.Dataset.from_tensors((images, said.argmax(axis=1), np.ones(16, np.float32))), verbose=0)
    np.testing.assert_array_equal(teach(images), said)


def _student(settings: TrainSettings, out: Path, *teachers: Path, **changes: Any) -> TrainSettings:
    return replace(settings, out=out, input_size=32, epochs_finetune=2, teacher=teachers, **changes)


def test_a_run_learns_from_runs_and_continues_after_a_kill(
    tiny_run: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_run, teacher)
    settings = _student(tiny_settings, tmp_path / "run", teacher, tiny_run)

    class Killed(Progress):
        def note(self, text: str) -> None:
            if text.startswith("finetune 1/"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, Killed(quiet=True))
    content = (teacher / "run.json").read_text()
    (teacher / "run.json").write_text(content.replace('"schema": 1', '"schema":  1'))
    with pytest.raises(UsageError, match="begun with another run"):
        train(settings, QUIET)
    (teacher / "run.json").write_text(content)
    run = train(settings, QUIET).to_json()
    assert run["timing"]["resumed"] is True
    assert run == {**json.loads((tmp_path / "run" / "run.json").read_text()), "timing": run["timing"]}
    digest = hashlib.sha256(content.encode()).hexdigest()
    assert [(item["run"], item["run_sha256"]) for item in run["teachers"]] == [
        (str(teacher), digest),
        (str(tiny_run), digest),
    ]
    assert run["settings"]["teacher"] == [str(teacher), str(tiny_run)]
    assert run["settings"]["teacher_weight"] == 0.5


def test_a_run_begun_before_there_were_teachers_continues(tiny_settings: TrainSettings, tmp_path: Path) -> None:
    wanted = tiny_settings.as_json()
    old = {key: value for key, value in wanted.items() if not key.startswith("teacher")}
    (tmp_path / "settings.json").write_text(json.dumps({"edgeall_run": 1, "settings": old}))
    assert check_out(tmp_path, RunSettings.read(wanted), force=False)
    with pytest.raises(UsageError, match="teacher was None"):
        check_out(tmp_path, RunSettings.of(replace(tiny_settings, teacher=(tmp_path,))), force=False)


def _changed(run: Path, to: Path, **facts: Any) -> Path:
    shutil.copytree(run, to)
    found = json.loads((to / "run.json").read_text())
    (to / "run.json").write_text(json.dumps({**found, **facts}))
    return to


def test_an_invalid_teacher_is_refused_before_any_work(
    tiny_run: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    labels = _changed(tiny_run, tmp_path / "labels", labels=["all", "hem"])
    damaged = _changed(tiny_run, tmp_path / "damaged")
    (damaged / "model.keras").write_bytes(b"PK")
    for teacher, changes, kind, message in (
        (labels, {}, UsageError, "has the classes all, hem, not Benign"),
        (tiny_run, {"seed": 1}, UsageError, "another split"),
        (tiny_run, {"fold": "1/3"}, UsageError, "another split"),
        (damaged, {}, DataError, "missing or damaged"),
        (tmp_path / "nothing", {}, DataError, "not a complete run"),
        (tiny_run, {"out": tiny_run, "force": True}, UsageError, "is --out itself"),
        (tiny_run, {"teacher_weight": 1.5}, UsageError, r"must be in \(0, 1\]"),
        (
            tiny_run,
            {"weights": str(tiny_run / "model.keras"), "epochs_finetune": 0},
            UsageError,
            "requires fine-tuning",
        ),
    ):
        settings = replace(_student(tiny_settings, out, teacher), **changes)
        with pytest.raises(kind, match=message) as error:
            train(settings, QUIET)
        assert error.value.hint, message
    with pytest.raises(UsageError, match="without a --teacher"):
        train(replace(tiny_settings, out=out, teacher_weight=0.5), QUIET)
    assert not out.exists()
    assert (tiny_run / "run.json").exists()
