"""Which trials of a shared Optuna study are still running: signs of life, and release of what a dead process left.

A journal file has no heartbeat of its own. A running trial therefore keeps the time of its last sign of life in the
attribute ``alive``; until the first one, the time of its start counts.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HEARTBEAT_S = 30.0


def sign_of_life(trial: Any) -> None:
    """Record that the process of a trial is alive now."""
    trial.set_user_attr("alive", time.time())


def is_silent(trial: Any, limit_s: float) -> bool:
    """Whether the last sign of life of a running trial is more than ``limit_s`` seconds ago."""
    seen = trial.user_attrs.get("alive", trial.datetime_start.timestamp())
    return bool(time.time() - seen > limit_s)


@contextlib.contextmanager
def heartbeat(trial: Any) -> Iterator[None]:
    """Record this process as the trial's ``worker``, and a sign of life every `HEARTBEAT_S` seconds."""
    trial.set_user_attr("worker", {"machine": machine(), "pid": os.getpid()})
    sign_of_life(trial)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception):  # a storage out of reach for a moment must not stop the training
                sign_of_life(trial)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def has_exited(trial: Any) -> bool:
    """Whether the process in a trial's ``worker`` has exited. False for another machine, which cannot be checked."""
    worker = trial.user_attrs.get("worker")
    if not worker or worker["machine"] != machine():
        return False
    try:
        os.kill(worker["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def machine() -> str:
    """Equal for two processes that can see each other's process numbers: one boot, one container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def release_dead(study: Any, is_dead: Callable[[Any], bool]) -> list[Any]:
    """End the running trials whose process is dead.

    Args:
        study: an Optuna study.
        is_dead: called with each running trial.

    Returns:
        The trials that this process ended. Another process may have ended others at the same time.
    """
    import optuna

    released = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state == optuna.trial.TrialState.RUNNING and is_dead(trial):
            # ValueError: another process was faster. The others: GridSampler asks the study to stop, which Optuna
            # allows inside `optimize` alone.
            with contextlib.suppress(ValueError, RuntimeError, KeyError):
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                released.append(trial)
    return released
