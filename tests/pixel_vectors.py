"""Writes the golden vectors that Python and JavaScript share: ``python tests/pixel_vectors.py``.

Images are drawn by code, and the expected pixels are those of `edge_runtime`. Run it only when the contract of the
pixels changes on purpose: models that are packed already were trained with the old ones.
"""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cell_vectors
import numpy as np
from cell_vectors import digest, drawn
from PIL import Image

from edgeall.edge_runtime.calibration import apply_temperature
from edgeall.edge_runtime.errors import ImageError
from edgeall.edge_runtime.images import decode_rgb
from edgeall.edge_runtime.preprocess import InputSpec, preprocess

VECTORS = Path(__file__).parent / "javascript" / "vectors.json"
SIZES = [
    *((640, 480, 224, 224, "stretch"), (480, 640, 224, 224, "stretch"), (480, 640, 224, 224, "center-crop")),
    *((300, 300, 224, 224, "stretch"), (50, 40, 224, 224, "stretch"), (224, 224, 224, 224, "stretch")),
    *((1, 1, 24, 24, "stretch"), (7, 900, 33, 20, "stretch"), (900, 7, 20, 33, "stretch")),
    *((1024, 768, 192, 160, "center-crop"), (51, 40, 20, 20, "center-crop"), (1, 500, 200, 20, "center-crop")),
    *((224, 100, 224, 50, "stretch"), (100, 224, 50, 224, "center-crop")),
]
"""Width and height of an image, of an input, and the fit."""
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the colour type of a PNG file."""
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
WIDTH, HEIGHT = 13, 11
PROBABILITIES = [[250, 6, 0, 0], [68, 45, 83, 61], [0, 0, 255, 1]]


def decoded(content: bytes) -> dict[str, Any]:
    """Size and digest of the decoded image; None for both if it is refused."""
    try:
        image = decode_rgb(content, "x.png")
    except ImageError:
        return {"size": None, "sha256": None}
    return {"size": list(image.size), "sha256": digest(np.asarray(image))}


def png_files() -> Iterator[tuple[str, bytes]]:
    """PNG files of every colour type and depth, with every filter, interlaced, with transparency, turned, damaged."""
    rng = random.Random(19)
    for color, channels in CHANNELS.items():
        for depth in DEPTHS[color]:
            for interlaced in (False, True):
                rows = _rows(rng, channels * depth, interlaced)
                before = _chunk(b"PLTE", rng.randbytes(3 << depth)) if color == 3 else b""
                name = f"color {color}, {depth} bits{', interlaced' if interlaced else ''}"
                yield name, _png(depth, color, rows, before, interlaced)
                clear = {0: struct.pack(">H", 1), 2: struct.pack(">HHH", 1, 2, 3), 3: bytes([0, 100][: 1 << depth])}
                if color in clear:
                    yield f"{name}, tRNS", _png(depth, color, rows, before + _chunk(b"tRNS", clear[color]), interlaced)
    image = Image.fromarray(drawn(WIDTH, HEIGHT))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = turn
        yield f"orientation {turn}", _saved(image, exif=exif)
    whole = _saved(image)
    yield "a transparent colour", _saved(image, transparency=image.getpixel((3, 2)))
    yield "truncated", whole[: len(whole) // 2]
    yield "one bit is wrong", bytes(byte ^ (at == len(whole) - 30) for at, byte in enumerate(whole))
    yield "rows are missing", _png(8, 2, _rows(rng, 24, False)[: 5 * WIDTH], b"", False)
    yield "two frames", _saved(image, save_all=True, append_images=[image.rotate(180)])


def make() -> dict[str, Any]:
    resized = [
        {"image": [w, h], "input": [width, height], "fit": fit}
        | {"sha256": digest(preprocess(Image.fromarray(drawn(w, h)), InputSpec(height, width, fit=fit)))}
        for w, h, width, height, fit in SIZES
    ]
    decode = [
        {"what": what, "png": base64.b64encode(content).decode()} | decoded(content) for what, content in png_files()
    ]
    calibrated = [
        {"units": units, "temperature": t, "probabilities": apply_temperature(np.float32(units) / 256, t).tolist()}
        for units in PROBABILITIES
        for t in (1.0, 0.5, 1.0802784881370786)
    ]
    return {"preprocess": resized, "png": decode, "calibration": calibrated, **cell_vectors.make()}


def _rows(rng: random.Random, bits: int, interlaced: bool) -> bytes:
    rows = b""
    for left, top, right, down in PASSES if interlaced else [(0, 0, 1, 1)]:
        columns = -(-(WIDTH - left) // right)
        for _ in range(-(-(HEIGHT - top) // down)):
            rows += bytes([rng.randrange(5)]) + rng.randbytes((columns * bits + 7) // 8)
    return rows


def _png(depth: int, color: int, rows: bytes, before: bytes, interlaced: bool) -> bytes:
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, color, 0, 0, interlaced)
    pixels = _chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + before + pixels + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _saved(image: Image.Image, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **settings)
    return file.getvalue()


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
