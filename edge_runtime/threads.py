"""Calls a function for many items on several threads, in order, with a few in progress at a time."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Threads:
    """Threads that call functions. A context manager: at its end the calls in progress finish, and no other begins.

    Not `concurrent.futures`: Ctrl-C can interrupt the caller while it holds the lock of a future. A thread that needs
    this lock then waits for ever, and the program waits for the thread. Here caller and threads share only
    `queue.SimpleQueue`, which an interruption cannot leave locked.

    Args:
        count: number of threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ended = False
        self._threads = [threading.Thread(target=self._work, name=f"edgeall_{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for _thread in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results in the order of the items. An exception of a call is raised in place of its result.

        Args:
            function: called in the threads.
            items: taken as needed; only a few are in progress at a time.
        """
        window: deque[queue.SimpleQueue[tuple[R] | BaseException]] = deque()
        for item in items:
            window.append(self._begin(function, item))
            while window and (len(window) >= 2 * self.count or not window[0].empty()):
                yield _result(window.popleft())
        while window:
            yield _result(window.popleft())

    def _begin(self, function: Callable[[T], R], item: T) -> queue.SimpleQueue[tuple[R] | BaseException]:
        """Give a call to the threads. The queue will hold its result, or what it raised."""
        answer: queue.SimpleQueue[tuple[R] | BaseException] = queue.SimpleQueue()

        def task() -> None:
            try:
                answer.put((function(item),))
            except BaseException as error:  # raised again by `map`
                answer.put(error)

        self._tasks.put(task)
        return answer

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not self._ended:
                task()


def _result(answer: queue.SimpleQueue[tuple[R] | BaseException]) -> R:
    found = answer.get()
    if isinstance(found, BaseException):
        raise found
    return found[0]
