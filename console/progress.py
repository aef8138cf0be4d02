"""Progress of long work on stderr: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, str], None]
"""``advance(done, info)``: items done so far in all, and what to show beside them."""

LINE_EVERY_S = 15.0


class Progress:
    """Notes and bars. One bar at a time.

    Args:
        quiet: print nothing at all.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, title: str, total: int, start: int = 0) -> Iterator[Advance]:
        """A bar from ``start`` (done by an earlier call) to ``total`` items; yields the function that moves it."""
        if self._live:
            with self._bar(title, total, start) as advance:
                yield advance
        elif self._quiet:
            yield _nothing
        else:
            yield self._lines(title, total, start)

    @contextmanager
    def _bar(self, title: str, total: int, start: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}"),
        )
        with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total, completed=start, info="")

            def advance(done: int, info: str) -> None:
                bar.update(task, completed=done, info=info)

            yield advance

    def _lines(self, title: str, total: int, start: int) -> Advance:
        begin = last = time.monotonic()

        def advance(done: int, info: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= LINE_EVERY_S:
                last = now
                left_s = (now - begin) / max(done - start, 1) * (total - done)
                self.note(f"  {title}: {done}/{total}, {left_s:.0f} s left {info}".rstrip())

        return advance


QUIET = Progress(quiet=True)
"""Prints nothing: the default of functions that report progress."""


def _nothing(done: int, info: str) -> None:
    """The bar of a quiet `Progress`."""
