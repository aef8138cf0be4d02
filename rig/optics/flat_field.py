"""Flat field and white balance from pictures of an empty field.

The lamp is a smooth surface: a polynomial of degree 4 in both directions, fitted to the logarithm of each channel. Dust
is left out of the fit and is not corrected: on the slide it moves. Division by the surface also makes the empty field
neutral, which is the white balance. A camera's gamma does not matter: a power of a product is a product of powers.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...edge_runtime.errors import EdgeallError
from ...edge_runtime.vision.instances import opencv
from ..language import message

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

LEVEL = 245.0
"""Maximum grey level of the corrected empty field: brighter ones would count as saturated."""
_DEGREE = 4
_BLOCKS = 48
"""The field is reduced to this many block means along its longer side."""
_STORED_PX = 320
"""Longer side of the stored surface."""
_OUTLIER = 0.03
"""Relative deviation from the surface above which a block is not part of the empty field."""
_DIRTY = 0.05
"""Maximum share of such blocks: dust, a few platelets."""
_LEAST, _MOST = 50.0, 250.0
"""Range of the lamp's grey levels in each channel: below it noise is amplified, above it the camera is saturated."""
_MOST_GAIN = 6.0
"""Maximum amplification of a pixel."""


class NotEmptyError(EdgeallError):
    """A picture cannot serve as the empty field."""


@dataclass(frozen=True)
class FlatField:
    """A correction: divides by the empty field.

    Attributes:
        digest: of the stored empty field, by which the record names the correction.
        gain: float32 ``(height, width, 3)`` for frames of this size.
        corners: brightness of the darkest corner of the empty field relative to its brightest place.
        white: colour of the empty field, R, G, B, relative to the brightest channel.
    """

    digest: str
    gain: NDArray[np.float32] = field(repr=False, compare=False)
    corners: float = 1.0
    white: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the frames that it corrects."""
        return self.gain.shape[1], self.gain.shape[0]

    def apply(self, pixels: Pixels) -> Pixels:
        """The corrected picture, uint8 RGB; a new array."""
        cv2 = opencv()
        corrected: Pixels = cv2.multiply(pixels, self.gain, dtype=cv2.CV_8U)
        return corrected


def measure_empty_field(pictures: Sequence[Pixels]) -> Pixels:
    """The smooth empty field, uint8 RGB, `_STORED_PX` on its longer side, from pictures of one size.

    Raises:
        NotEmptyError: there are cells in it, or it is too dark, saturated or cut off by a diaphragm.
    """
    height, width = pictures[0].shape[:2]
    shrink = _BLOCKS / max(width, height)
    across, down = max(round(width * shrink), 8), max(round(height * shrink), 8)
    cv2 = opencv()
    blocks = np.median(
        [cv2.resize(each, (across, down), interpolation=cv2.INTER_AREA) for each in pictures], axis=0
    ).astype(np.float64)
    middle = np.median(blocks, axis=(0, 1))
    if middle.min() < _LEAST:
        raise NotEmptyError("the empty field is too dark", hint="turn the lamp up, or expose longer")
    if np.percentile(blocks, 99) > _MOST:
        raise NotEmptyError("the empty field is saturated", hint="turn the lamp down, or expose for a shorter time")
    surface, odd = _fit(blocks)
    if odd > _DIRTY:
        raise NotEmptyError(
            message("the field is not empty: {share} % of it differ from an even light", share=f"{100 * odd:.0f}"),
            hint="move to a place without cells, out of focus if there is none; open the field diaphragm",
        )
    if surface.min() < surface.max() / _MOST_GAIN:
        raise NotEmptyError("the light is too uneven to be corrected", hint="centre the lamp and the condenser")
    scale = _STORED_PX / max(width, height)
    stored = cv2.resize(
        surface.astype(np.float32), (round(width * scale), round(height * scale)), interpolation=cv2.INTER_CUBIC
    )
    empty: Pixels = np.clip(stored + 0.5, 0, 255).astype(np.uint8)
    return empty


def flat_field(empty: Pixels, size: tuple[int, int], digest: str = "") -> FlatField:
    """The correction for frames of ``size`` (width, height) by a field of `measure_empty_field`."""
    cv2 = opencv()
    surface = cv2.GaussianBlur(empty.astype(np.float32), (0, 0), 3.0)  # steps of one grey level, and those of JPEG
    level = min(float(surface.max()), LEVEL)
    whole = cv2.resize(surface, size, interpolation=cv2.INTER_LINEAR)
    green = surface[..., 1]
    corners = min(float(green[y, x]) for y in (0, -1) for x in (0, -1)) / float(green.max())
    white = surface.reshape(-1, 3).mean(axis=0)
    red, middle, blue = (float(each) for each in white / white.max())
    return FlatField(digest, (level / np.maximum(whole, 1.0)).astype(np.float32), corners, (red, middle, blue))


def to_jpeg(empty: Pixels) -> bytes:
    """The file in which an empty field is stored: JPEG without reduced colour."""
    file = io.BytesIO()
    Image.fromarray(empty).save(file, "JPEG", quality=98, subsampling=0)
    return file.getvalue()


def _fit(blocks: Floats) -> tuple[Floats, float]:
    """The surface at the blocks; and the share of blocks that differ from it."""
    height, width = blocks.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([x**i * y**j for i in range(_DEGREE + 1) for j in range(_DEGREE + 1 - i)], axis=-1)
    terms = terms.reshape(-1, terms.shape[-1])
    level = np.log(np.maximum(blocks, 1.0)).reshape(-1, 3)
    kept = np.ones(len(level), bool)
    fitted = level
    for _ in range(6):
        fitted = terms @ np.linalg.lstsq(terms[kept], level[kept], rcond=None)[0]
        off = np.abs(level - fitted).max(axis=1)
        kept = off <= max(_OUTLIER, float(np.quantile(off, 0.6)))
    odd = float(np.mean(np.abs(level - fitted).max(axis=1) > _OUTLIER))
    return np.exp(fitted).reshape(blocks.shape), odd
