"""`evaluate --context`: classifiers that look at cells, at the background or at a corner are told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drawn_cells import BLUE, GLASS, SOME_RED, DrawnSegmenter, draw
from numpy.typing import NDArray
from PIL import Image

from edgeall.console.progress import Progress
from edgeall.edge_runtime.preprocess import InputSpec
from edgeall.edge_runtime.vision.finder import CellFinder
from edgeall.train.data.split import SplitEntry
from edgeall.train.evaluation.context import context, context_text

SPEC = InputSpec(120, 160)
Pixels = NDArray[np.uint8]


def by_cells(image: Pixels) -> int:
    """Class 1 has two cells, class 0 one: by the area of nuclei."""
    return int((np.abs(image.astype(int) - BLUE).sum(axis=-1) < 60).mean() > 0.03)


def by_background(image: Pixels) -> int:
    """Class 1 has darker glass."""
    return int(np.quantile(image[..., 1], 0.9) < 226)


def by_corner(image: Pixels) -> int:
    """Class 1 has a bar."""
    return int(image[-15:, -30:].max(axis=-1).min() < 60)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SplitEntry]]:
    folder = tmp_path_factory.mktemp("fields")
    entries = []
    rng = np.random.default_rng(0)
    for number in range(12):
        kind = number % 2
        nuclei = [((300 + int(rng.integers(30)), 120), 1.0), ((440, 330), 1.0)][: kind + 1]
        pixels = draw(nuclei, SOME_RED).astype(float)
        if kind:
            pixels[(np.abs(pixels - GLASS) < 15).all(axis=-1)] -= 10
            pixels[-25:-15, -60:-20] = 0
        path = f"{number}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / path)
        entries.append(SplitEntry(path=path, label="AB"[kind], sha256="", subject=None, side="test"))
    return folder, entries


@pytest.mark.parametrize(
    ("rule", "fails", "follows"),
    [
        (by_cells, {"background"}, False),
        (by_background, {"cells", "swapped"}, True),
        (by_corner, {"cells", "swapped", "without_corners"}, True),
    ],
)
def test_what_a_classifier_rests_on_is_found(
    fields: tuple[Path, list[SplitEntry]], rule: Callable[[Pixels], int], fails: set[str], follows: bool
) -> None:
    folder, entries = fields

    def predict(images: Pixels) -> NDArray[np.float32]:
        return np.eye(2, dtype=np.float32)[[rule(image) for image in images]]

    finder = CellFinder(DrawnSegmenter())
    found = context(predict, SPEC, folder, entries, ("A", "B"), finder, Progress(quiet=True))
    assert (found.images, found.without_cells, found.whole) == (12, 0, 1.0)
    for name in ("cells", "background", "without_corners", "swapped"):
        accuracy = getattr(found, name)
        assert accuracy <= 0.5 if name in fails else accuracy == 1.0, name
    assert found.follows_background == (1.0 if follows else 0.0)
    assert "background of another class" in context_text(found)
