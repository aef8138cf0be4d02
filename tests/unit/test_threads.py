"""Calls on several threads: in order, few at a time, and over as soon as the caller is interrupted."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from venvs import HANG_S

from edgeall.edge_runtime.threads import Threads

ROOT = Path(__file__).parents[2]

INTERRUPTED = """
import random, signal, time
from edgeall.edge_runtime.threads import Threads

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
draw, interrupted = random.Random(0), 0
for _ in range(300):
    threads = Threads(2)
    try:
        with threads:
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, 3e-3))
            for _ in threads.map(abs, iter(int, 1)):
                pass
    except KeyboardInterrupt:
        interrupted += 1
print(interrupted)
"""


def test_results_come_in_the_order_of_the_items() -> None:
    def late(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))
        return number * number

    with Threads(3) as threads:
        assert list(threads.map(late, range(20))) == [number * number for number in range(20)]
        assert list(threads.map(str, [])) == []


def test_an_exception_is_raised_in_the_place_of_its_result() -> None:
    with Threads(2) as threads:
        results = threads.map(lambda number: 6 // number, [3, 2, 0, 1])
        assert [next(results), next(results)] == [2, 3]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_few_items_are_in_progress_at_a_time() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with Threads(2) as threads:
        for done, _ in enumerate(threads.map(abs, items()), start=1):
            assert len(taken) <= done + 4


def test_at_the_end_no_other_call_begins() -> None:
    begun, go = [], threading.Event()

    def call(number: int) -> int:
        begun.append(number)
        assert number < 2 or go.wait(HANG_S)
        return number

    with Threads(2) as threads:
        results = threads.map(call, range(100))
        assert [next(results), next(results)] == [0, 1]
        threading.Timer(0.2, go.set).start()
    assert len(begun) <= 4, "two that were done, two in progress"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgeall_")]


def test_an_interrupted_caller_never_waits_for_ever() -> None:
    """An executor of `concurrent.futures` in the same place hangs within a few hundred interruptions."""
    script = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(script, capture_output=True, text=True, timeout=HANG_S, check=True)
    assert int(done.stdout) == 300


def test_nothing_else_in_the_product_starts_a_pool() -> None:
    rooms = ("commands", "console", "deploy", "edge_runtime", "models", "optimize", "rig", "train", "browser")
    files = [file for room in rooms for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 300
    assert [file for file in files if "PoolExecutor" in file.read_text()] == []
