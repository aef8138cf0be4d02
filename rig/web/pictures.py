"""Thumbnails and cut-outs of recorded images, made on request and cached."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress

from PIL import Image

from ...edge_runtime.errors import ImageError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.vision.cells import Box
from ..record.image_store import MODEL_SUFFIX
from ..record.record import Record
from ..record.rows import RecordedFrame

Explain = Callable[[Image.Image, Box | None], bytes]
"""``explain(field, box)``: a PNG of the field, or of the cell in ``box``, with the model's class-activation map.
Called by several threads, so it must not use the station's classifier."""
THUMBNAIL_PX = 320
CELL_PX = 160
CACHE_BYTES = 8_000_000


class Pictures:
    """Thumbnails and cells as JPEG. Thread-safe.

    Args:
        record: has the images.

    Attributes:
        explain: of the current model; None for one without a class-activation map. Its maps are not cached.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self.explain: Explain | None = None
        self._cache: OrderedDict[Hashable, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def with_current_image(self, frame: RecordedFrame) -> RecordedFrame:
        """The frame; without its image if that has been removed since."""
        removed = frame.image is not None and self._record.image_path(frame.image) is None
        return dataclasses.replace(frame, image=None, image_lost="removed") if removed else frame

    def original(self, digest: str) -> bytes | None:
        """The image as recorded; None if there is none, or none any more, or ``digest`` is not that of an image."""
        path = self._record.image_path(digest)
        return None if path is None or path.suffix == MODEL_SUFFIX else path.read_bytes()

    def thumbnail(self, digest: str) -> bytes | None:
        """A thumbnail, at most `THUMBNAIL_PX` wide and high."""
        return self._make((digest, None), digest, lambda image: _within(image, THUMBNAIL_PX))

    def cell(self, frame: RecordedFrame, index: int) -> bytes | None:
        """One cell of a frame with a small margin."""
        if frame.image is None or not 0 <= index < len(frame.row.cells):
            return None
        left, top, right, bottom = frame.row.cells[index]["box"]
        margin = (right - left + bottom - top) // 12
        box = (left - margin, top - margin, right + margin, bottom + margin)

        def cut(image: Image.Image) -> Image.Image:
            inside = (max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height))
            return _within(image.crop(inside), CELL_PX)

        return self._make((frame.image, box), frame.image, cut)

    def explains(self, frame: RecordedFrame) -> bool:
        """Whether `explained` has a map of the frame, or of its cells if it has any."""
        judged = frame.row.label is not None or len(frame.row.cells) > 0
        return self.explain is not None and frame.image is not None and judged

    def explained(self, frame: RecordedFrame, index: int | None = None) -> bytes | None:
        """The class-activation map of a frame, or of one of its cells, as PNG; None if there is none."""
        cells, explain = frame.row.cells, self.explain
        path = self._record.image_path(frame.image) if frame.image and self.explains(frame) else None
        exists = not cells if index is None else 0 <= index < len(cells)
        if explain is None or path is None or not exists:
            return None
        with suppress(ImageError), open_rgb(path) as image:  # a damaged image is reported by `edgeall record verify`
            return explain(image, None if index is None else cells[index]["box"])
        return None

    def _make(self, key: Hashable, digest: str, change: Callable[[Image.Image], Image.Image]) -> bytes | None:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        path = self._record.image_path(digest)
        if path is None:
            return None
        file = io.BytesIO()
        try:
            with open_rgb(path) as image:
                change(image).save(file, "JPEG", quality=82)
        except ImageError:  # damaged, see above
            return None
        picture = file.getvalue()
        with self._lock:
            if key not in self._cache:
                self._cache[key] = picture
                self._bytes += len(picture)
            while self._bytes > CACHE_BYTES:
                self._bytes -= len(self._cache.popitem(last=False)[1])
        return picture


def _within(image: Image.Image, px: int) -> Image.Image:
    image.thumbnail((px, px), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return image
