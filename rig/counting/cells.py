"""Follows the cells of a slide by their position in the map, and compares their looks when the stage comes back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.vision.cells import Box
from ..record.found import CELL, Found
from .pool import Opinion, Pool
from .registration import Scan, opencv
from .slide_map import Join, Position

NEAR = 0.4
"""Maximum distance of two sightings of one cell, in diameters of the smaller box."""
ALIKE = 0.2
"""Minimum correlation of the looks of a cell before and after the stage was elsewhere."""
LEAST_SEEN = 0.3
"""A cell counts if it was found in this fraction of the judged frames that show its place."""
_LOOK_PX = 16
_INSIDE = 0.1
"""Margin inside the view, in diameters: nearer to the border it may be found or not."""

Look = NDArray[np.float32]
"""``(_LOOK_PX * _LOOK_PX,)``, mean 0, length 1: the texture of a cell's place."""


@dataclass
class Track:
    """One cell; see `Found` for the names."""

    id: int
    field_id: int
    patch: int
    x: float
    y: float
    width: float
    height: float
    look: Look | None
    pool: Pool = field(default_factory=Pool)
    frames: int = 0
    chances: int = 0
    seen_at: int = 0
    """Number of the judged frame that showed it last."""
    home: int = 0
    """The field of that frame."""
    same_as: int | None = None

    @staticmethod
    def of(found: Found) -> Track:
        """A track that continues a recorded cell."""
        return Track(
            *(found.id, found.field_id, found.patch, found.x, found.y, found.width, found.height, None),
            pool=Pool.of(found),
            home=found.field_id,
            frames=found.frames,
            chances=found.chances,
            same_as=found.same_as,
        )

    @property
    def counted(self) -> bool:
        """It was found often enough."""
        return self.frames >= LEAST_SEEN * self.chances

    def found(self) -> Found:
        """Its state as a row, without the verdict."""
        return Found(
            kind=CELL,
            id=self.id,
            field_id=self.field_id,
            patch=self.patch,
            x=round(self.x),
            y=round(self.y),
            width=round(self.width),
            height=round(self.height),
            frames=self.frames,
            chances=self.chances,
            sharpness=self.pool.sharpness,
            counted=self.counted,
            same_as=self.same_as,
        )


class Cells:
    """The cells of one slide. Used by one thread.

    Args:
        found: of a slide that is continued.
    """

    def __init__(self, found: Iterable[Found] = ()) -> None:
        self.tracks = {each.id: Track.of(each) for each in found}
        self._last_id = max(self.tracks, default=0)
        self._frame = 0

    def follow(
        self, seen: Scan, position: Position, field_id: int, boxes: Sequence[Box], opinions: Sequence[Opinion]
    ) -> tuple[list[Track], list[Track]]:
        """The cell in each box of the next judged frame, and the known cells in view that were not found.

        A box without a match is a new cell.

        Args:
            seen: the reduced frame.
            position: of the frame.
            field_id: the field that it shows.
            boxes: of the cells, in the frame's pixels.
            opinions: the verdict on each.
        """
        self._frame += 1
        in_view = [each for each in self.tracks.values() if _in_view(each, position, seen.size, -NEAR)]
        looks = [look_of(seen, box) for box in boxes]
        matched = self._match(in_view, position, boxes, looks)
        tracks = []
        for index, (box, look, opinion) in enumerate(zip(boxes, looks, opinions, strict=True)):
            track = matched.get(index) or self._new(position, field_id, box)
            if opinion.sharpness > track.pool.sharpness or track.look is None:
                track.look = look
                track.x, track.y = _centre(box, position)
                track.width, track.height = box[2] - box[0], box[3] - box[1]
            track.frames, track.seen_at, track.home = track.frames + 1, self._frame, field_id
            track.pool.add(opinion)
            tracks.append(track)
        inside = (each for each in in_view if _in_view(each, position, seen.size, _INSIDE))
        missed = [each for each in inside if each.seen_at < self._frame]
        for track in (*tracks, *missed):
            track.chances += 1
        return tracks, missed

    def join(self, join: Join) -> list[Track]:
        """Move the cells of a joined patch; one that is known there becomes the same. Returns all that changed."""
        known = [each for each in self.tracks.values() if each.patch == join.into and each.same_as is None]
        moved = [each for each in self.tracks.values() if each.patch == join.joined]
        changed = {each.id: each for each in moved}
        for track in moved:
            track.patch, track.x, track.y = join.into, track.x + join.x, track.y + join.y
            near = [(_distance(each, track.x, track.y, track.width, track.height), each) for each in known]
            distance, nearest = min(near, key=lambda pair: pair[0], default=(NEAR, track))
            if distance < NEAR and track.same_as is None:
                _unite(*sorted((nearest, track), key=lambda each: each.id))
                known.remove(nearest)
                changed[nearest.id] = nearest
        return list(changed.values())

    def forget(self, field_id: int) -> list[Track]:
        """Drop the cells last seen in a field that cannot be recognized any more; returns them."""
        dropped = [each for each in self.tracks.values() if each.home == field_id]
        for track in dropped:
            del self.tracks[track.id]
        return dropped

    def _new(self, position: Position, field_id: int, box: Box) -> Track:
        self._last_id += 1
        track = Track(
            *(self._last_id, field_id, position.patch, *_centre(box, position), box[2] - box[0], box[3] - box[1], None)
        )
        self.tracks[track.id] = track
        return track

    def _match(
        self, in_view: Sequence[Track], position: Position, boxes: Sequence[Box], looks: Sequence[Look]
    ) -> dict[int, Track]:
        """The track of each box that has one: the nearest pairs first."""
        pairs = []
        for index, box in enumerate(boxes):
            x, y = _centre(box, position)
            for track in in_view:
                distance = _distance(track, x, y, box[2] - box[0], box[3] - box[1])
                if track.same_as is None and distance < NEAR and self._alike(track, looks[index]):
                    pairs.append((distance, index, track))
        matched: dict[int, Track] = {}
        taken: set[int] = set()
        for _, index, track in sorted(pairs, key=lambda pair: pair[0]):
            if index not in matched and track.id not in taken:
                matched[index] = track
                taken.add(track.id)
        return matched

    def _alike(self, track: Track, look: Look) -> bool:
        """Whether it may be the same cell; one that was in the last judged frame is not compared."""
        if track.look is None or track.seen_at >= self._frame - 1:
            return True
        return float(np.vdot(track.look, look)) >= ALIKE


def _unite(first: Track, second: Track) -> None:
    """Count two tracks of one cell as the first."""
    second.same_as = first.id
    first.pool.absorb(second.pool)
    first.frames, first.chances = first.frames + second.frames, first.chances + second.chances


def look_of(seen: Scan, box: Box) -> Look:
    """The texture of a box of the frame's pixels."""
    left, top, right, bottom = (round(edge / seen.scale) for edge in box)
    height, width = seen.texture.shape
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    part = seen.texture[top : max(bottom, top + 1), left : max(right, left + 1)].astype(np.float32)
    cv2 = opencv()
    look: Look = cv2.resize(part, (_LOOK_PX, _LOOK_PX), interpolation=cv2.INTER_AREA).ravel()
    look = look - look.mean()
    return look / max(float(np.linalg.norm(look)), 1e-6)


def _centre(box: Box, position: Position) -> tuple[float, float]:
    return position.x + (box[0] + box[2]) / 2, position.y + (box[1] + box[3]) / 2


def _distance(track: Track, x: float, y: float, width: float, height: float) -> float:
    """Distance of a box from a track, in diameters of the smaller one."""
    diameter = min(track.width + track.height, width + height) / 2
    return float(np.hypot(track.x - x, track.y - y)) / max(diameter, 1.0)


def _in_view(track: Track, position: Position, size: tuple[int, int], margin: float) -> bool:
    """Whether a track's box, with a margin in its diameters, is in a view."""
    if track.patch != position.patch or track.same_as is not None:
        return False
    x, y = track.x - position.x, track.y - position.y
    across, down = (0.5 + margin) * track.width, (0.5 + margin) * track.height
    return across <= x <= size[0] - across and down <= y <= size[1] - down
