"""A simulated microscope stage over a drawn field: stands, moves, jumps and comes back, with the truth of its cells."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeall.edge_runtime.vision.frame import Frame
from edgeall.rig.capture.interface import ReplayEndedError
from edgeall.rig.capture.slide import Slide

START = datetime(2026, 11, 30, 10, tzinfo=timezone.utc)
Point = tuple[int, int]


def draw_field(seed: int, size: tuple[int, int], cells: int, diameter: int = 40) -> Slide:
    """A field of pale discs with ``cells`` dark ones, which do not overlap. Drawn quickly, not for finders of cells."""
    rng, (width, height) = np.random.default_rng(seed), size
    pixels = np.full((height, width, 3), 232, np.uint8)
    for _ in range(round(0.5 * width * height / diameter**2)):
        x, y = (int(value) for value in rng.uniform(0, size))
        cv2.circle(pixels, (x, y), int(diameter * rng.uniform(0.4, 0.5)), (222, 175, 180), -1, cv2.LINE_AA)
        cv2.circle(pixels, (x, y), int(diameter * rng.uniform(0.1, 0.2)), (228, 205, 205), -1, cv2.LINE_AA)
    boxes: list[tuple[int, int, int, int]] = []
    middles: list[tuple[float, float]] = []
    while len(boxes) < cells:
        x, y = (int(rng.uniform(diameter, edge - diameter)) for edge in size)
        if all(math.dist((x, y), middle) > 1.3 * diameter for middle in middles):
            half = int(diameter * rng.uniform(0.45, 0.6))
            cv2.circle(pixels, (x, y), half, (150, 90, 190), -1, cv2.LINE_AA)
            for _ in range(6):
                u, v = (int(value + rng.uniform(-0.5, 0.5) * half) for value in (x, y))
                cv2.circle(pixels, (u, v), max(half // 4, 1), (110, 60, 160), -1, cv2.LINE_AA)
            middles.append((x, y))
            boxes.append((x - half, y - half, x + half, y + half))
    return Slide(pixels, tuple(boxes))


def stand(at: Point, frames: int) -> list[Point]:
    """The stage rests."""
    return [at] * frames


def move(begin: Point, to: Point, px_per_frame: float) -> list[Point]:
    """The stage moves in a straight line."""
    steps = max(math.ceil(math.dist(begin, to) / px_per_frame), 1)
    return [
        (round(begin[0] + (to[0] - begin[0]) * n / steps), round(begin[1] + (to[1] - begin[1]) * n / steps))
        for n in range(1, steps + 1)
    ]


def tour(stops: Sequence[Point], px_per_frame: float, rest: int) -> list[Point]:
    """Rests at each stop, and moves in between."""
    path = stand(stops[0], rest)
    for begin, to in pairwise(stops):
        path += move(begin, to, px_per_frame) + stand(to, rest)
    return path


@dataclass(frozen=True)
class Stage:
    """Views of ``view`` (width, height) pixels over a slide along a path; frames have a defocus, a lamp and noise.

    ``blur``: largest standard deviation of the defocus, as a fraction of the width.
    """

    slide: Slide
    path: Sequence[Point]
    view: tuple[int, int]
    seed: int = 0
    period_s: float = 0.1
    blur: float = 0.004

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """Frame ``number``."""
        (x, y), (width, height) = self.path[number], self.view
        window = self.slide.pixels[y : y + height, x : x + width]
        blur = self.blur * width * (0.5 + 0.5 * math.sin(number / 9))
        rng = np.random.default_rng((self.seed, number))
        noise = rng.integers(-4, 5, (height, width, 1))
        lit = cv2.GaussianBlur(window, (0, 0), max(blur, 0.1)) * (1 + 0.04 * math.sin(number / 31))
        return np.clip(lit + noise, 0, 255).astype(np.uint8)

    def frames(self) -> Iterator[Frame]:
        """All frames, as a camera would return them."""
        for number in range(len(self.path)):
            taken = START + timedelta(seconds=number * self.period_s)
            yield Frame(self.pixels(number), taken, number, clock_s=number * self.period_s)

    def moving(self, number: int) -> bool:
        """Whether the stage moves in a frame."""
        return number > 0 and self.path[number] != self.path[number - 1]

    def boxes(self, number: int) -> list[tuple[int, int, int, int]]:
        """The cells that are whole in a frame."""
        (x, y), (width, height) = self.path[number], self.view
        return [cell.box for cell in self.slide.cells(x, y, width, height) if cell.whole]

    def truth(self) -> int:
        """Number of different cells that were whole in some frame at rest."""
        seen = set()
        for number, (x, y) in enumerate(self.path):
            if not self.moving(number):
                seen |= {(a + x, b + y, c + x, d + y) for a, b, c, d in self.boxes(number)}
        return len(seen)


class StageCamera:
    """Returns the frames of a stage, each once, as a replay does; then none."""

    name = "stage"

    def __init__(self, stage: Stage) -> None:
        self._frames = stage.frames()

    def read(self, timeout_s: float) -> Frame:
        """See `edgeall.rig.capture.interface.Camera`."""
        for frame in self._frames:
            return replace(frame, source=f"frame {frame.number}", waits=True)
        raise ReplayEndedError("the stage has ended")

    def close(self) -> None:
        """Nothing is held."""
