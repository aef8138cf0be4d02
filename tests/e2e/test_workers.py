"""Several machines train one model: two processes on loopback stand for two machines."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import UsageError
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.models.keras_compat import keras
from edgeall.optimize.experiments.backbones import BackbonesConfig, compare_backbones
from edgeall.optimize.experiments.compare_config import CompareOptions
from edgeall.optimize.experiments.grid import run_grid
from edgeall.optimize.experiments.grid_config import GridConfig
from edgeall.optimize.experiments.search import search
from edgeall.optimize.experiments.search_config import SearchSettings
from edgeall.train.batches import Images, plain, shuffled
from edgeall.train.fit import fit
from edgeall.train.prepare import check_shares
from edgeall.train.run import TrainSettings
from edgeall.train.stage import FitOptions, Stage
from edgeall.train.workers import ALONE, Workers, join

QUIET = Progress(quiet=True)
PATIENCE_S = 900
"""More than a loaded machine needs for anything here: who is not done then hangs."""
CLI = "import sys; from edgeall.cli import main; sys.exit(main())"


def one_stage(workers: Workers, checkpoint: Path) -> list[Any]:
    """Train a network without BatchNormalization, whose statistics would be each worker's own."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 72)
    pixels = (generator.integers(0, 200, (72, 32, 32, 3)) + 55 * labels[:, None, None, None]).astype(np.uint8)
    images = Images(pixels, np.arange(72), labels, InputSpec(32, 32))
    keras.utils.set_random_seed(0)
    with workers.scope():
        inputs = keras.layers.Input((32, 32, 3))
        x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
        x = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
        model = keras.Model(inputs, keras.layers.Softmax()(x))
    # All are to start from the chief's weights, whatever they have themselves.
    workers.put(model, [value + workers.index for value in workers.weights(model)])

    def batches(epoch: int) -> Any:
        return shuffled(images, 16, augment="light", seed=0, epoch=epoch, class_weights=images.class_weights(2))

    stage = Stage("finetune", 3, 1e-2, patience=9, images=72, batch_size=16)
    history = fit(model, stage, batches, plain(images, 50), checkpoint, QUIET, FitOptions(workers))
    return [workers.replicas, history, [value.tolist() for value in workers.weights(model)]]


def refused(workers: Workers) -> str:
    """What a worker hears of an error of the chief's."""

    def refuse() -> None:
        raise UsageError("that can't be meant", hint="do this")

    try:
        workers.from_chief(refuse)
    except UsageError as error:
        return f"{error.message}, {error.hint}"
    return ""


Ended = tuple[int, str, str]
"""Status, stdout and stderr of a process."""


class Pair:
    """Two workers, started at once."""

    def __init__(self, commands: list[list[str]], folder: Path) -> None:
        sockets = [socket.socket() for _ in commands]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        cluster = {"worker": [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]}
        for each in sockets:
            each.close()
        folder.mkdir()
        self.files = [(folder / f"out{index}", folder / f"err{index}") for index in range(len(commands))]
        self.processes = []
        for index, command in enumerate(commands):
            config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
            environment = {**os.environ, "TF_CONFIG": config, "TF_NUM_INTRAOP_THREADS": "1"}
            with self.files[index][0].open("w") as out, self.files[index][1].open("w") as err:
                self.processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err))

    def ends(self) -> list[Ended]:
        """Once both have ended."""
        try:
            for process in self.processes:
                process.wait(PATIENCE_S)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
        return [
            (process.returncode, out.read_text(), err.read_text())
            for process, (out, err) in zip(self.processes, self.files, strict=True)
        ]


@pytest.mark.long
def test_two_workers_train_as_one_with_the_same_batches(tmp_path: Path) -> None:
    _, expected, expected_weights = one_stage(ALONE, tmp_path / "alone.npz")
    paths = [tmp_path / "chief.npz", tmp_path / "other.npz"]
    ends = Pair([[sys.executable, __file__, str(path)] for path in paths], tmp_path / "pair").ends()
    for (status, printed, complaint), who in zip(ends, ("", "on the first worker: "), strict=True):
        assert status == 0, complaint
        (replicas, history, weights), heard = json.loads(printed)
        assert replicas == 2
        assert heard == f"{who}that can't be meant, do this"
        for key in ("loss", "val_loss", "accuracy", "val_accuracy", "learning_rate", "kept"):
            assert [row[key] for row in history] == pytest.approx([row[key] for row in expected], abs=1e-4), key
        for one, other in zip(weights, expected_weights, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    assert len({row["loss"] for row in expected}) == 3, "it learns"
    assert not paths[1].exists(), "the chief alone writes"


@pytest.mark.long
def test_a_killed_worker_ends_the_others_and_the_same_commands_continue(synthetic_fields: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("chief", "other")]
    command = [sys.executable, "-c", CLI, "train", "--data", str(synthetic_fields), "--cache-dir", str(tmp_path / "c")]
    command += ["--model", "basic_cnn", "--weights", "none", "--input-size", "32", "--augment", "none"]
    command += ["--epochs-finetune", "6", "--patience", "6", "--json"]
    commands = [[*command, "--out", str(out)] for out in outs]
    checkpoint = outs[0] / "checkpoints" / "finetune.npz"

    pair = Pair(commands, tmp_path / "first")
    deadline = time.monotonic() + PATIENCE_S
    while not checkpoint.exists() and all(process.poll() is None for process in pair.processes):
        assert time.monotonic() < deadline, "training did not get to an epoch's end"
        time.sleep(0.01)
    pair.processes[1].send_signal(signal.SIGKILL)
    (status, _, complaint), (killed, _, _) = pair.ends()
    assert killed == -signal.SIGKILL
    assert status == 1, complaint
    assert "another worker has ended" in complaint
    assert "repeat the command of each" in complaint
    assert "Traceback" not in complaint
    assert not (outs[0] / "run.json").exists()

    ends = Pair(commands, tmp_path / "second").ends()
    for status, printed, complaint in ends:
        assert status == 0, complaint
        assert "finetune: resumed after epoch" in complaint
        run = json.loads(printed)
        assert (run["workers"], run["replicas"]) == (2, 2)
    assert ends[0][1] == ends[1][1]
    assert json.loads((outs[0] / "run.json").read_text())["metrics"]["test"]["images"] > 0
    with open(outs[0] / "history.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 7))
    assert not outs[1].exists(), "the chief alone writes"


TWO = {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not a cluster"),
        ("[]", "not a cluster"),
        (json.dumps({"cluster": TWO}), "not a cluster"),
        (json.dumps({"cluster": TWO, "task": {"type": "worker", "index": 2}}), "no worker 2"),
        (json.dumps({"cluster": TWO, "task": {"type": "chief", "index": 0}}), "no chief 0"),
        (json.dumps({"cluster": {**TWO, "ps": ["10.0.0.3:2222"]}, "task": {"type": "worker", "index": 0}}), "'ps'"),
    ],
)
def test_an_invalid_cluster_is_refused(config: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        join(config, QUIET)
    assert error.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"batch_size": 33}, "shared equally by 2"), ({"batch_size": 32, "epochs_finetune": 0}, "have nothing to share")],
)
def test_what_two_workers_cannot_share(changes: dict[str, int], message: str, tmp_path: Path) -> None:
    settings = TrainSettings(data=tmp_path, out=tmp_path, **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message) as error:
        check_shares(settings, Workers(1, 2, SimpleNamespace(num_replicas_in_sync=2)))
    assert error.value.hint


@pytest.mark.parametrize("command", ["compare", "grid", "search"])
def test_what_trains_many_models_is_not_shared(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": TWO, "task": {"type": "worker", "index": 0}}))
    out = tmp_path / "out"
    start = {
        "compare": lambda: compare_backbones(
            BackbonesConfig(tmp_path, ["basic_cnn"], "60-20-20", out), CompareOptions(), QUIET
        ),
        "grid": lambda: run_grid(GridConfig(tmp_path, out), QUIET),
        "search": lambda: search(SearchSettings(data=tmp_path, out=out, max_bytes=1), QUIET),
    }
    with pytest.raises(UsageError, match="2 workers"):
        start[command]()
    assert not out.exists()


@pytest.mark.parametrize("cluster", [None, {}, {"worker": ["10.0.0.1:2222"]}])
def test_one_worker_is_none(cluster: Any) -> None:
    assert join(None if cluster is None else json.dumps({"cluster": cluster}), QUIET) is None


if __name__ == "__main__":  # as a worker of its own
    joined = join(os.environ["TF_CONFIG"], QUIET) or ALONE
    print(json.dumps([one_stage(joined, Path(sys.argv[1])), refused(joined)]))
