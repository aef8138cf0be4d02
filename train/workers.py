"""Distributed training: several machines train one model. This is the view of one of them.

`tf.distribute.MultiWorkerMirroredStrategy` computes a share of every batch on each machine and sums the gradients. This
module distributes the other tasks. Only the first worker, the chief, reads and writes the run folder, makes the split,
trains the head and validates. The others receive the results over the network, so no shared folder is needed.
"""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..console.progress import Progress
from ..edge_runtime.errors import EdgeallError, UsageError
from ..models.keras_compat import quiet, tf

JOBS = ("chief", "worker")
"""Valid task types in TF_CONFIG, in the order of the workers' numbers."""

EXAMPLE = (
    'TF_CONFIG={"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclass(frozen=True)
class Workers:
    """The processes that train one model, and the number of this one.

    Attributes:
        index: of this process; 0 is the chief.
        count: number of processes.
        strategy: of `tf.distribute`; None is TensorFlow's default.
    """

    index: int = 0
    count: int = 1
    strategy: Any = None

    @property
    def chief(self) -> bool:
        """Whether this process reads and writes the run folder."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        """Whether there is only one process."""
        return self.count == 1

    @property
    def replicas(self) -> int:
        """Devices that a batch is divided among, on all machines."""
        return int(self.strategy.num_replicas_in_sync) if self.strategy else 1

    def scope(self) -> AbstractContextManager[Any]:
        """The scope in which a model must be built. All workers must build in the same order."""
        return (self.strategy or tf.distribute.get_strategy()).scope()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turn TensorFlow's errors about a lost worker into one clear error.

        A killed worker is detected at once; one that lost power or its network after ten seconds.
        """
        try:
            yield
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
            if self.alone:
                raise
            raise _lost() from error

    def share(self, payload: bytes) -> bytes:
        """Send the chief's ``payload`` to every worker. All must call this; the others' ``payload`` is ignored."""
        if self.alone:
            return payload
        size = int(self._sum(np.array([len(payload) if self.chief else 0]))[0])
        words = np.zeros(size // 8 + 1, np.int64)
        if self.chief:
            words.view(np.uint8)[:size] = np.frombuffer(payload, np.uint8)
        return self._sum(words).tobytes()[:size]

    def share_arrays(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Send the chief's ``arrays`` to every worker."""
        if self.alone:
            return arrays
        stream = io.BytesIO()
        if self.chief:
            np.savez(stream, *arrays)
        with np.load(io.BytesIO(self.share(stream.getvalue()))) as shared:
            return [shared[f"arr_{index}"] for index in range(len(arrays))]

    def from_chief(self, make: Callable[[], Any]) -> Any:
        """Call ``make`` on the chief and return its result on every worker. All must call this.

        Args:
            make: returns a JSON value.

        Raises:
            EdgeallError: ``make`` raised it; every worker raises it then.
        """
        if self.alone:
            return make()
        if not self.chief:
            answer = json.loads(self.share(b""))
            if "error" in answer:
                kind = UsageError if answer["status"] == UsageError.exit_status else EdgeallError
                raise kind(f"on the first worker: {answer['error']}", hint=answer["hint"])
            return answer["value"]
        try:
            value = make()
        except EdgeallError as error:
            answer = {"error": error.message, "hint": error.hint, "status": error.exit_status}
            self.share(json.dumps(answer).encode())
            raise
        self.share(json.dumps({"value": value}, default=str).encode())
        return value

    def mean(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """The mean of each floating-point array over all workers, in one exchange. Others are unchanged."""
        if self.alone:
            return arrays
        floats = [index for index, value in enumerate(arrays) if np.issubdtype(value.dtype, np.floating)]
        flat = np.concatenate([arrays[index].ravel().astype(np.float32) for index in floats])
        parts = np.split(self._sum(flat) / self.count, np.cumsum([arrays[index].size for index in floats])[:-1])
        means = list(arrays)
        for index, part in zip(floats, parts, strict=True):
            means[index] = part.reshape(arrays[index].shape).astype(arrays[index].dtype)
        return means

    def weights(self, model: Any) -> list[NDArray[Any]]:
        """``model.get_weights()`` of this worker, without communication.

        Only the statistics of BatchNormalization differ between workers, because each sees other images. Keras' own
        methods exchange each of them: about 10 ms each, a second per step in a deep network.
        """
        if self.alone:
            return list(model.get_weights())
        return [_mean([part.numpy() for part in self._parts(variable)]) for variable in model.weights]

    def put(self, model: Any, weights: list[NDArray[Any]]) -> None:
        """``model.set_weights(weights)`` on this worker only, without communication."""
        if self.alone:
            model.set_weights(weights)
            return
        for variable, value in zip(model.weights, weights, strict=True):
            for part in self._parts(variable):
                part.assign(value)

    def predictor(self, model: Any) -> Callable[[Any], NDArray[np.float32]]:
        """``model.predict_on_batch`` on this worker only, without communication."""
        if self.alone:
            return model.predict_on_batch
        run = tf.function(lambda images: self.strategy.run(model, (images,), {"training": False}))
        return lambda images: tf.nest.map_structure(lambda value: self._parts(value)[0].numpy(), run(images))

    def divided(self, batches: Any) -> Any:
        """tf.data of whole batches, of which every worker takes its share."""
        if self.alone:
            return batches
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        return batches.with_options(options)

    def _parts(self, value: Any) -> tuple[Any, ...]:
        """The parts of a distributed value on the devices of this worker."""
        return tuple(self.strategy.experimental_local_results(value))

    def _sum(self, array: NDArray[Any]) -> NDArray[Any]:
        """The elementwise sum over all workers."""
        devices = self.replicas // self.count

        def value_of(context: Any) -> Any:
            first = context.replica_id_in_sync_group % devices == 0
            return tf.constant(array if first else np.zeros_like(array))

        with _killable():
            distributed = self.strategy.experimental_distribute_values_from_function(value_of)
            total: NDArray[Any] = self.strategy.reduce("SUM", distributed, axis=None).numpy()
        return total


ALONE = Workers()
"""One process that trains alone."""


def join(config: str | None, progress: Progress) -> Workers | None:
    """Connect to the other workers and wait for them. Call this before any other use of TensorFlow.

    Args:
        config: the value of ``TF_CONFIG``: JSON as in `EXAMPLE`.
        progress: receives a note while waiting.

    Returns:
        None if ``config`` does not name a second worker.

    Raises:
        UsageError: an invalid ``config``.
        EdgeallError: the other workers cannot be reached, or the port of this one is taken.
    """
    addresses, index = _parse(config or "")
    if len(addresses) < 2:
        return None
    progress.note(f"worker {index + 1} of {len(addresses)} at {addresses[index]}: waiting for the others")
    return Workers(index, len(addresses), _connected(config))


def refuse_cluster(command: str) -> None:
    """Raise UsageError if ``TF_CONFIG`` names several workers: ``command`` trains several models on one machine."""
    addresses, _ = _parse(os.environ.get("TF_CONFIG") or "")
    if len(addresses) > 1:
        raise UsageError(
            f"TF_CONFIG names {len(addresses)} workers; `edgeall {command}` runs on one machine",
            hint="unset TF_CONFIG; only `edgeall train` trains one model on several machines",
        )


@functools.cache  # TensorFlow can join only one cluster per process
def _connected(config: str) -> Any:
    try:
        with _killable(), quiet():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError) as error:
        raise _lost() from error
    except (tf.errors.OpError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise EdgeallError(
            f"TF_CONFIG: this worker could not be started ({reason})",
            hint="check that its address belongs to this machine and that the port is free",
        ) from error


def _parse(config: str) -> tuple[list[str], int]:
    """The address of every worker, and the index of this one. Raises UsageError."""
    if not config.strip():
        return [], 0
    try:
        document = json.loads(config)
        cluster, task = document.get("cluster", {}), document.get("task", {})
        unknown = [job for job in cluster if job not in JOBS]
        addresses = [str(address) for job in JOBS for address in cluster.get(job, [])]
        if len(addresses) < 2 and not unknown:
            return addresses, 0
        kind, number = str(task["type"]), int(task["index"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"TF_CONFIG: not a cluster ({error!r})", hint=f"write it as in {EXAMPLE}") from error
    if unknown:
        raise UsageError(f"TF_CONFIG: unknown job {unknown[0]!r}", hint=f"as in {EXAMPLE}")
    if not 0 <= number < len(cluster.get(kind, [])):
        raise UsageError(f"TF_CONFIG: the cluster has no {kind} {number}", hint="the first of each job has index 0")
    before = sum(len(cluster.get(job, [])) for job in JOBS[: JOBS.index(kind)])
    return addresses, before + number


def _lost() -> EdgeallError:
    return EdgeallError(
        "another worker has ended or cannot be reached; the training cannot continue without it",
        hint="check the messages of the others, then repeat the command of each: training resumes after the last epoch",
    )


def _mean(parts: list[NDArray[Any]]) -> NDArray[Any]:
    if len(parts) == 1 or not np.issubdtype(parts[0].dtype, np.floating):
        return parts[0]
    mean: NDArray[Any] = np.mean(parts, axis=0, dtype=parts[0].dtype)
    return mean


@contextmanager
def _killable() -> Iterator[None]:
    """Let Ctrl-C end the process at once: Python does not handle it while TensorFlow waits for another machine."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
