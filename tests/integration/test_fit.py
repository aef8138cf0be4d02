"""The training loop: right statistics at inference, restarts, best weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.models.head import add_head
from edgeall.models.keras_compat import keras
from edgeall.models.plain import build_basic_cnn
from edgeall.models.registry import BuildArgs
from edgeall.train.batches import Images, changed, plain, shuffled
from edgeall.train.checkpoint import TrainingState
from edgeall.train.fit import _average, fit, keep_statistics_current, pretrained_statistics
from edgeall.train.stage import FitOptions, Stage
from edgeall.train.workers import ALONE

SIZE = 32
QUIET = Progress(quiet=True)


def _images(count: int, seed: int) -> Images:
    """Two classes told apart by the direction of stripes, on a background far from mid-grey."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    stripes = np.tile(np.arange(SIZE) % 4 < 2, (SIZE, 1)) * 60
    pixels = np.stack([stripes if label else stripes.T for label in labels])[..., None]
    pixels = (pixels + 150 + generator.normal(0, 10, (count, SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
    return Images(pixels, np.arange(count), labels, InputSpec(SIZE, SIZE))


def _model(momentum: float) -> Any:
    keras.utils.set_random_seed(0)
    model = add_head(build_basic_cnn(BuildArgs(SIZE, SIZE, None, "none")), 2, 0.0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
    return model


def _stage(images: Images, epochs: int = 3) -> Stage:
    return Stage("finetune", epochs, 3e-3, patience=99, images=len(images), batch_size=16)


def _fit(model: Any, images: Images, stage: Stage, checkpoint: Path, progress: Progress = QUIET) -> list[Any]:
    def batches(epoch: int) -> Any:
        return shuffled(images, 16, augment="none", seed=0, epoch=epoch, class_weights=None)

    return fit(model, stage, batches, plain(_images(64, 9), 64), checkpoint, progress)


def _off(model: Any, images: Images) -> float:
    """How far off the images' own the mean is that the first BatchNormalization works with, in standard deviations.

    The average over channels. What it takes in are colours under a convolution that hardly changes in a few steps.
    """
    norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    batch, _ = next(iter(plain(images, len(images))))
    values = keras.Model(model.input, norm.input)(batch, training=False).numpy()
    own, spread = values.mean(axis=(0, 1, 2)), values.std(axis=(0, 1, 2))
    return float(np.abs((norm.moving_mean.numpy() - own) / spread).mean())


def test_batch_normalization_is_right_at_inference(tmp_path: Path) -> None:
    """With tf_keras MobileNetV2's own momentum the statistics stay where they began; with our rule they must not."""
    images = _images(128, 0)
    stage = _stage(images)
    kept = _model(0.999)
    keep_statistics_current(kept, stage.steps)
    _fit(kept, images, stage, tmp_path / "kept.npz")
    stale = _model(0.999)
    before = _off(stale, images)
    _fit(stale, images, stage, tmp_path / "stale.npz")
    assert before > 1, "no trap, no proof"
    assert _off(stale, images) > 0.5 * before
    assert _off(kept, images) < 0.25 * _off(stale, images)


def test_pretrained_statistics_are_used_and_kept(tmp_path: Path) -> None:
    """The first training loss is that of inference, and no statistic, scale or offset changes."""
    images = _images(64, 0)
    model = _model(0.5)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    norms[0].trainable = False
    before = [layer.get_weights() for layer in norms]
    truth = np.eye(2)[images.labels]
    batch, _ = next(iter(plain(images, 64)))
    loss = -np.log((truth * model.predict_on_batch(batch)).sum(axis=1)).mean()
    stage = replace(_stage(images, epochs=1), learning_rate=1e-9)
    with pretrained_statistics(model):
        [row] = _fit(model, images, stage, tmp_path / "fixed.npz")
        _fit(model, images, _stage(images, epochs=2), tmp_path / "trained.npz")
    assert row["loss"] == pytest.approx(loss, rel=1e-3)
    for layer, values in zip(norms, before, strict=True):
        for one, other in zip(layer.get_weights(), values, strict=True):
            np.testing.assert_array_equal(one, other)
    assert [layer.trainable for layer in norms] == [False, True, True]
    [other] = _fit(_model(0.5), images, stage, tmp_path / "current.npz")
    assert other["loss"] != pytest.approx(loss, rel=1e-3), "with the statistics of the batches the loss is another"


def test_the_validation_loss_counts_changed_images_too(tmp_path: Path) -> None:
    images, others = _images(64, 1), _images(64, 2)
    harder = replace(others, labels=1 - others.labels)

    def rows(name: str, changed: Any) -> Any:
        def batches(epoch: int) -> Any:
            return shuffled(images, 16, augment="none", seed=0, epoch=epoch, class_weights=None)

        path, options = tmp_path / f"{name}.npz", FitOptions(changed=changed)
        return fit(_model(0.9), _stage(images, 2), batches, plain(others, 64), path, QUIET, options)

    alone, both = rows("alone", None), rows("both", plain(harder, 64))
    assert [row["val_accuracy"] for row in both] == [row["val_accuracy"] for row in alone]
    for row, same in zip(alone, rows("same", plain(others, 64)), strict=True):
        assert row["val_loss"] == pytest.approx(same["val_loss"], rel=1e-5), "the mean of two equal losses"
    assert [row["val_loss"] for row in both] != [row["val_loss"] for row in alone]


@pytest.mark.parametrize("augment", ["light", "microscope", "rotation,jpeg"])
def test_changed_images_are_the_same_on_every_pass(augment: str) -> None:
    images = _images(9, 3)  # the last batch has one image
    data = changed(images, 4, augment=augment)
    first, second = ([(pixels.numpy(), labels.numpy()) for pixels, labels in data] for _ in range(2))
    assert [len(labels) for _, labels in first] == [4, 4, 1]
    assert sorted(np.concatenate([labels for _, labels in first])) == sorted(images.labels)
    for (pixels, labels), (again, as_well) in zip(first, second, strict=True):
        np.testing.assert_array_equal(pixels, again)
        np.testing.assert_array_equal(labels, as_well)
    unchanged = np.concatenate([pixels.numpy() for pixels, _ in plain(images, 4)])
    assert not np.array_equal(np.sort(unchanged.ravel()), np.sort(np.concatenate([p for p, _ in first]).ravel()))


def test_a_stage_resumes_where_it_was_interrupted(tmp_path: Path) -> None:
    images = _images(64, 1)
    stage = _stage(images, epochs=4)
    whole = _model(0.9)
    history = _fit(whole, images, stage, tmp_path / "whole.npz")

    class Stop(Progress):
        """Interrupts after the second epoch's checkpoint is written."""

        def note(self, text: str) -> None:
            if text.startswith("finetune 2/"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _fit(_model(0.9), images, stage, tmp_path / "cut.npz", Stop(quiet=True))
    resumed = _model(0.9)
    resumed_history = _fit(resumed, images, stage, tmp_path / "cut.npz")
    assert [row["epoch"] for row in resumed_history] == [1, 2, 3, 4]
    assert whole.train_tf_function.experimental_get_tracing_count() == 1, "tracing takes longer than small epochs"
    for one, other in zip(history, resumed_history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"])
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("damage", [b"", b"garbage" * 99, slice(5000), slice(-1), "zeroed", "of another network"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path: Path, damage: Any) -> None:
    model, path = _model(0.9), tmp_path / "finetune.npz"
    model.compile(optimizer="adam")
    model.optimizer.build(model.trainable_variables)
    TrainingState.fresh(model, 0.0).save(path, model, model.get_weights())
    whole = path.read_bytes()
    assert TrainingState.load(whole, path, model, ALONE).kept_epoch == 0
    if damage == "of another network":
        other = add_head(build_basic_cnn(BuildArgs(SIZE, SIZE, None, "none")), 3, 0.0)
        other.compile(optimizer="adam")
        other.optimizer.build(other.trainable_variables)
        TrainingState.fresh(other, 0.0).save(path, other, other.get_weights())
        cut = path.read_bytes()
    elif damage == "zeroed":  # a page in the middle, as a power cut leaves it
        cut = whole[: len(whole) // 2] + bytes(4096) + whole[len(whole) // 2 + 4096 :]
    else:
        cut = whole[damage] if isinstance(damage, slice) else damage
    before = model.get_weights()
    with pytest.raises(DataError, match=rf"^{path}: the checkpoint is damaged \(") as error:
        TrainingState.load(cut, path, model, ALONE)
    assert "remove it" in error.value.hint
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    images = _images(64, 1)
    stage = _stage(images, epochs=2)
    first = _model(0.9)
    _fit(first, images, stage, tmp_path / "done.npz")
    again = _model(0.9)
    fit(again, stage, _never, plain(images, 64), tmp_path / "done.npz", QUIET)
    for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def _never(epoch: int) -> Any:
    raise AssertionError("a finished stage asked for batches")


def _knowing() -> Any:
    """A network that is right from the start, by hand: what changes along each axis, and a dense layer to be trained.

    Any step towards the wrong labels makes all its answers worse.
    """
    inputs = keras.layers.Input((SIZE, SIZE, 3))
    edges = keras.layers.Conv2D(2, 2, activation="relu", use_bias=False, trainable=False)
    x = keras.layers.GlobalAveragePooling2D()(edges(inputs))
    head = keras.layers.Dense(2, use_bias=False)
    model = keras.Model(inputs, keras.layers.Softmax()(head(x)))
    kernel = np.zeros((2, 2, 3, 2), np.float32)
    kernel[0, 0], kernel[1, 0, :, 0], kernel[0, 1, :, 1] = -1 / 3, 1 / 3, 1 / 3
    edges.set_weights([kernel])
    head.set_weights([20 * np.eye(2)])
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    assert model.evaluate(plain(_images(64, 9), 64), verbose=0)[1] == 1
    return model


def test_weights_that_validation_finds_worse_are_not_kept_and_patience_ends_the_stage(tmp_path: Path) -> None:
    images = _images(64, 1)
    misled = replace(images, labels=1 - images.labels)  # each epoch makes the validation loss worse
    stage = Stage("finetune", 50, 1e-2, patience=2, images=64, batch_size=16)
    history = _fit(_knowing(), misled, stage, tmp_path / "worse.npz")
    assert len(history) == 3, "no epoch was as good as the first"
    assert not any(row["kept"] for row in history), "the start was better"


def test_the_kept_weights_have_the_validation_loss_of_their_row(tmp_path: Path) -> None:
    images = _images(64, 2)
    model = _model(0.5)
    start = float(keras.losses.sparse_categorical_crossentropy(*_answers(model)).numpy().mean())
    history = _fit(model, images, Stage("finetune", 12, 2e-2, patience=3, images=64, batch_size=16), tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as arrays:
        kept = json.loads(str(arrays["facts"]))["kept_epoch"]
    loss, accuracy = model.evaluate(plain(_images(64, 9), 64), verbose=0)
    losses = [start, *(row["val_loss"] for row in history)]
    assert loss == pytest.approx(losses[kept], rel=1e-3, abs=1e-5)  # of a probability near 1 it is all rounding
    assert not kept or accuracy == pytest.approx(history[kept - 1]["val_accuracy"])
    assert [row["kept"] for row in history] == [int(row["epoch"] == kept) for row in history]


def _answers(model: Any) -> tuple[Any, Any]:
    """The labels of the validation subset, and the predictions for its images."""
    batch, labels = next(iter(plain(_images(64, 9), 64)))
    return labels, model(batch, training=False)


def _after(losses: list[float]) -> TrainingState:
    """The state after a start and epochs with these validation losses."""
    state = TrainingState.fresh(_model(0.9), losses[0])
    for epoch, value in enumerate(losses[1:], start=1):
        state = state.after({"epoch": epoch, "val_loss": value})
    return state


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([1.386, 0.9, 0.345, 0.5, 0.47, 0.610], 2),  # the older rule kept the last, with few images
        ([1.0, 0.3, 0.30000001], 1),
        ([1.0, 0.3, 0.3, 0.4], 2),  # of equals the last
        ([1.0, 0.1, float("nan"), 0.2], 1),
        ([0.2, 0.3, 0.4], 0),
        ([0.5, 0.4, 0.45, 0.39, 0.6], 3),
    ],
)
def test_the_lowest_validation_loss_is_kept(losses: list[float], kept: int) -> None:
    state = _after(losses)
    assert (state.kept_epoch, state.kept_loss) == (kept, losses[kept])


def test_patience_counts_from_the_best_epoch_and_not_from_the_start() -> None:
    def finished(losses: list[float], patience: int) -> bool:
        return _after(losses).finished(Stage("finetune", 99, 1e-2, patience, images=64, batch_size=16))

    assert not finished([1.0, 0.5, 0.6, 0.55], 3)
    assert finished([1.0, 0.5, 0.6, 0.55, 0.51], 3)
    assert not finished([1.0, 0.5, 0.6, 0.55, 0.49], 3)
    assert finished([1.0, 0.5, float("nan"), float("nan"), float("nan")], 3)
    # Two real folds of the four-class set. The rule that counted from the start ended them after the eighth epoch,
    # with the head on the frozen backbone.
    assert not finished([0.0768, 0.366, 0.225, 0.114, 0.259, 0.201, 0.122, 0.102, 0.082], 8)
    assert not finished([0.0768, 0.398, 0.310, 0.161, 0.224, 0.226, 0.102, 0.100, 0.188], 8)


def test_after_settling_the_first_epoch_is_kept_whatever_its_loss() -> None:
    state = TrainingState.fresh(_model(0.9), 0.1).after({"epoch": 1, "val_loss": 0.9}, settling=True)
    assert (state.kept_epoch, state.kept_loss) == (1, 0.9)
    assert state.after({"epoch": 2, "val_loss": 0.8}).kept_epoch == 2


def test_a_checkpoint_of_the_older_rule_is_refused_in_one_line(tmp_path: Path) -> None:
    images, path = _images(64, 1), tmp_path / "old.npz"
    _fit(_model(0.9), images, _stage(images, epochs=1), path)
    with np.load(path) as arrays:
        old = dict(arrays)
    facts = json.loads(str(old["facts"]))
    del facts["kept_loss"]
    np.savez(path, **{**old, "facts": np.array(json.dumps(facts)), "best_losses": np.zeros(64)})
    with pytest.raises(DataError, match="written by an older edgeall") as caught:
        _fit(_model(0.9), images, _stage(images, epochs=2), path)
    assert "\n" not in caught.value.message and "--force" in (caught.value.hint or "")


def test_a_stage_that_only_harms_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    good = _knowing()
    before = [value.copy() for value in good.get_weights()]
    wrong = replace(_images(64, 1), labels=1 - _images(64, 1).labels)
    _fit(good, wrong, Stage("finetune", 2, 1e-2, 99, 64, 16), tmp_path / "harm.npz")
    for one, other in zip(before, good.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_average_of_the_weights_remembers_about_an_epoch() -> None:
    steps = 50
    average = [np.zeros(3, np.float32), np.array(0, np.int32)]
    for step in range(steps * 4):
        _average(average, [np.full(3, 1.0, np.float32), np.array(7, np.int32)], step, steps)
    np.testing.assert_allclose(average[0], 1.0, atol=0.03)
    for step in range(1000, 1000 + steps):
        _average(average, [np.full(3, 2.0, np.float32), np.array(7, np.int32)], step, steps)
    np.testing.assert_allclose(average[0], 1.0 + (1.0 - np.exp(-1.0)), atol=0.03)
    assert average[1] == 7


def test_the_kept_weights_are_the_average_not_the_last_steps(tmp_path: Path) -> None:
    images = _images(128, 0)
    model = _model(0.5)
    stage = replace(_stage(images, 1), settle=1)  # the epoch is kept however good it is
    history = _fit(model, images, stage, tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz") as arrays:
        last = [arrays[f"weight_{index}"] for index in range(len(model.weights))]
        average = [arrays[f"average_{index}"] for index in range(len(model.weights))]
    assert len(history) == 1
    for kept, expected in zip(model.get_weights(), average, strict=True):
        np.testing.assert_array_equal(kept, expected)
    assert not all(np.allclose(one, other) for one, other in zip(last, average, strict=True))
