"""What commands print: a result on stdout, notes on stderr."""

from __future__ import annotations

from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Any

import click

from ..edge_runtime.results import plain

SYNTHETIC = "SYNTHETIC images: for trying and testing the chain; no evidence about blood"


def print_result(value: Any, json: bool, tables: Callable[[], str]) -> None:
    """Print a result as JSON, or as the text of ``tables``."""
    print(dumps(plain(value)) if json else tables())


class Skipped:
    """Counts skipped files, and keeps the first one."""

    def __init__(self) -> None:
        self._count, self._first = 0, ""

    def __call__(self, path: Path, reason: str) -> None:
        self._count, self._first = self._count + 1, self._first or f"{path}: {reason}"

    def note(self) -> None:
        if self._count:
            note(f"{self._count} skipped, first: {self._first}")


def note(text: str) -> None:
    click.echo(text, err=True)


def note_synthetic(drawn: bool) -> None:
    """Mark results of synthetic images."""
    if drawn:
        note(SYNTHETIC)


def note_research_use(machine: bool) -> None:
    """Mark every table for people that shows predictions."""
    if not machine:
        from ..edge_runtime.manifest import RESEARCH_USE

        note(RESEARCH_USE)
