"""Tiles for training and validation: what a segmentation network sees, at its scale or near it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...edge_runtime.masks import CLASSES
from ...edge_runtime.preprocess import rescaled
from ...edge_runtime.vision.tiles import padded, starts
from .images import RED_CELL_PX, MaskedImages, Picture, resized_classes

Array = NDArray[np.uint8]
IGNORED = 255
"""Class of a pixel that does not count in the loss of the mask."""
NEAR = (0.72, 1.38)
"""Range of the scale of most tiles, relative to `RED_CELL_PX`."""
FAR, FAR_SHARE = (0.5, 2.0), 0.3
"""Range of the scale of the other tiles, and their share. They teach the network to tell the size of red cells."""
COUNTED = 0.6
"""Largest log2 of a scale at which the mask of a tile counts."""
SHEAR = 0.08
"""Largest shear in each direction."""


def mosaic_tile(pictures: Sequence[Picture], size: int, random: np.random.Generator) -> tuple[Array, Array, float]:
    """A tile that is cut out of several pictures, side by side.

    A cell's image is smaller than a tile, so most of a tile would be padding. The pictures come from one laboratory:
    the network shall not tell cells by a change of the stain. Scale, rotation, mirroring and shear are drawn.

    Args:
        pictures: of one laboratory.
        size: of the tile, pixels.
        random: of all draws.

    Returns:
        uint8 RGB ``(size, size, 3)``, classes ``(size, size)``, `IGNORED` at a scale outside `COUNTED`; and log2 of the
        scale, NaN if a picture's is unknown.
    """
    low, high = FAR if random.random() < FAR_SHARE else NEAR
    scale = math.exp(random.uniform(math.log(low), math.log(high)))
    side = math.ceil(size * math.sqrt(2)) + 2
    canvas, known = _mosaic(pictures, side, scale * RED_CELL_PX, random)
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), random.uniform(0, 360), 1.0)
    matrix[0, 1], matrix[1, 0] = np.array([matrix[0, 1], matrix[1, 0]]) + random.uniform(-SHEAR, SHEAR, 2)
    matrix[:, 2] = size / 2 - matrix[:, :2] @ np.full(2, side / 2)  # centre on centre
    image = cv2.warpAffine(
        canvas[..., :3], matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    mask = cv2.warpAffine(
        canvas[..., 3], matrix, (size, size), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101
    )
    octaves = math.log2(scale)
    if abs(octaves) > COUNTED:
        mask = np.full_like(mask, IGNORED)
    return image, mask, octaves if known else math.nan


def _mosaic(
    pictures: Sequence[Picture], side: int, red_cell_px: float, random: np.random.Generator
) -> tuple[Array, bool]:
    """Rows of pictures that fill ``(side, side, 4)``, and whether the scale of all of them is known."""
    canvas = np.empty((side, side, 4), np.uint8)
    known, top = True, 0
    while top < side:
        left, height = 0, 0
        while left < side:
            picture = pictures[int(random.integers(len(pictures)))]
            known &= picture.known
            piece = _piece(picture, red_cell_px, side, random)
            if left == 0:  # the borders of the pictures shall not lie at the same places
                piece = piece[:, random.integers(0, max(1, piece.shape[1] // 2)) :]
            if top == 0:
                piece = piece[random.integers(0, max(1, piece.shape[0] // 2)) :]
            if left == 0:
                height = min(piece.shape[0], side - top)
            piece = _of_height(piece, height)[:, : side - left]
            canvas[top : top + height, left : left + piece.shape[1]] = piece
            left += piece.shape[1]
        top += height
    return canvas, known


def _piece(picture: Picture, red_cell_px: float, side: int, random: np.random.Generator) -> Array:
    """A picture at the wanted scale, mirrored or turned; of a large one a random part of at most ``side`` pixels."""
    zoom = red_cell_px / picture.red_cell_px
    pixels, most = picture.pixels, math.ceil(side / zoom)
    top = random.integers(0, max(pixels.shape[0] - most, 0) + 1)
    left = random.integers(0, max(pixels.shape[1] - most, 0) + 1)
    pixels = scaled(np.ascontiguousarray(pixels[top : top + most, left : left + most]), zoom)
    turn = random.integers(8)
    if turn & 1:
        pixels = pixels[:, ::-1]
    if turn & 2:
        pixels = pixels[::-1]
    return pixels.transpose(1, 0, 2) if turn & 4 else pixels


def scaled(pixels: Array, zoom: float) -> Array:
    """RGB and classes in another size; at least 8 pixels."""
    size = max(8, round(pixels.shape[1] * zoom)), max(8, round(pixels.shape[0] * zoom))
    image = cv2.resize(pixels[..., :3], size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    return np.dstack([image, cv2.resize(pixels[..., 3], size, interpolation=cv2.INTER_NEAREST)])


def _of_height(piece: Array, height: int) -> Array:
    """The top of a piece; a lower one is mirrored at its bottom."""
    missing = height - piece.shape[0]
    return piece[:height] if missing <= 0 else np.pad(piece, ((0, missing), (0, 0), (0, 0)), mode="symmetric")


def plain_tiles(images: MaskedImages, scale: float = 1.0) -> tuple[Array, Array, NDArray[np.float32]]:
    """All pictures at one scale, cut into tiles that cover them; small ones are mirrored at their borders.

    Args:
        images: their pictures.
        scale: diameter of a red cell, relative to `RED_CELL_PX`.

    Returns:
        uint8 RGB ``(tiles, size, size, 3)``, classes ``(tiles, size, size)``, and log2 of the scale ``(tiles,)``, NaN
        if it is unknown.
    """
    size, octave = images.spec.width, math.log2(scale)
    tiles, octaves = [], []
    for picture in images.pictures:
        pixels, _ = padded(_at_scale(picture, scale), size)
        for top in starts(pixels.shape[0], size):
            for left in starts(pixels.shape[1], size):
                tiles.append(pixels[top : top + size, left : left + size])
                octaves.append(octave if picture.known else math.nan)
    stacked = np.stack(tiles)
    assert stacked[..., 3].max() < len(CLASSES)
    return stacked[..., :3], stacked[..., 3], np.array(octaves, np.float32)


def _at_scale(picture: Picture, scale: float) -> Array:
    """A picture at a scale relative to `RED_CELL_PX`, resized as on the device."""
    zoom = scale * RED_CELL_PX / picture.red_cell_px
    height, width = picture.pixels.shape[:2]
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    image = rescaled(Image.fromarray(np.ascontiguousarray(picture.pixels[..., :3])), size)
    return np.dstack([np.asarray(image), resized_classes(picture.pixels[..., 3], size)])
