"""One picture that a camera took, or a file, on its way through the quality gate and the model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        pixels: uint8 (height, width, 3), RGB. Shared between threads: nobody writes to it.
        taken: UTC; of a file, when it was written.
        number: counts from 0 since the camera was opened.
        source: the name of the file that it is, of a video with the frame's number; such a frame waits until it is
            looked at. Empty for a camera's, where the newest wins.
        digest: SHA-256 of the file, of a video's frame of its pixels, hex; empty for a camera's.
        waits: it is of a replay, which waits for a slide to be begun.
        clock_s: seconds on a clock that is never set, of frames that follow each other; None where they don't.
    """

    pixels: NDArray[np.uint8]
    taken: datetime
    number: int
    source: str = ""
    digest: str = ""
    waits: bool = False
    clock_s: float | None = None
