"""A frame: one picture from a camera, a video or a file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        pixels: uint8 ``(height, width, 3)``, RGB. Shared between threads: do not write to it.
        taken: time in UTC; for a file, its modification time.
        number: counts from 0 since the camera was opened.
        source: name of the file, for a video with the frame's number; such a frame is never skipped. Empty for a
            camera, where a new frame replaces an old one.
        digest: hex SHA-256 of the file, for a video of the frame's pixels; empty for a camera.
        waits: whether it belongs to a replay that waits for the start of a slide.
        clock_s: seconds on a monotonic clock, for consecutive frames; None otherwise.
        used_bits: 10, 12 or 14 if a file with 16-bit samples uses only that many, which makes it nearly black; else
            None. See `edgeall.edge_runtime.images.open_rgb`.
    """

    pixels: NDArray[np.uint8]
    taken: datetime
    number: int
    source: str = ""
    digest: str = ""
    waits: bool = False
    clock_s: float | None = None
    used_bits: int | None = None
