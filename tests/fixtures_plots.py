"""Plots without their drawing: matplotlib takes half of the time of a small training, and most tests look at none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

DRAW = Figure.savefig


def _blank(figure: Figure, path: Any, **_: Any) -> None:
    Image.new("RGB", (8, 8), "white").save(path, "PNG")


@pytest.fixture(scope="session", autouse=True)
def _no_drawing() -> Iterator[None]:
    """Figures are made as always, and saved as blank pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _blank)
        yield


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Figures are drawn here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", DRAW)
        yield


@pytest.fixture
def drawn_plots() -> Iterator[None]:
    """For a test that looks at plots: figures are drawn."""
    with drawing():
        yield
