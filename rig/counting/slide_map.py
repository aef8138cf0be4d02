"""The map of a slide: where each frame lies, built from registered frames.

A field is a view that overlaps every earlier field by less than half. Each field keeps its reduced frame. A new frame
is registered with the field and the frame before it, then with the fields around; if that fails, with every field that
resembles it. If that fails too, the stage has jumped to a place that the map does not know: a new patch begins. When a
field of one patch is recognized in another one, the two are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .registration import COARSE, Scan, Shift, opencv, register, stands

SAME_FIELD = 0.5
"""Minimum overlap of a frame with the field that it shows, as a fraction of the view."""
MAX_FIELDS = 600
"""Number of fields that can be recognized: 25 MB. Beyond it the field that was not seen for longest is forgotten."""
_NEIGHBOURS = 3
_RESEMBLING = 4
"""Number of fields that are registered with a frame whose place is unknown."""


@dataclass(frozen=True)
class Position:
    """Left and top of a view in a patch, pixels of a frame."""

    patch: int
    x: float
    y: float


@dataclass(frozen=True)
class Join:
    """Patch ``joined`` now belongs to patch ``into``; its positions move by ``(x, y)``."""

    joined: int
    into: int
    x: float
    y: float


@dataclass(frozen=True)
class Place:
    """The place of a frame.

    Attributes:
        position: of its view.
        field_id: the field that it shows; None for a frame between fields that was not judged.
        new: the field is new.
        join: the patch was joined with another one.
    """

    position: Position
    field_id: int | None
    new: bool = False
    join: Join | None = None


@dataclass
class _Field:
    field_id: int
    position: Position
    scan: Scan
    spectrum: NDArray[np.complex64]
    used: int = 0


class SlideMap:
    """The map of one slide. Used by one thread.

    Args:
        fields: those of a slide that is continued: id, position and reduced frame.
        last_id: the highest id so far.
        last_patch: the highest number of a patch so far.
    """

    def __init__(
        self, fields: Iterable[tuple[int, Position, Scan]] = (), *, last_id: int = 0, last_patch: int = 0
    ) -> None:
        self._fields: dict[int, _Field] = {}
        self._last_id, self._last_patch = last_id, last_patch
        self._last: tuple[Scan, Position, int | None] | None = None
        self._clock = 0
        self.forgotten: list[int] = []
        """Ids of fields that are not recognized any more; the caller takes them out."""
        for field_id, position, seen in fields:
            self._add(field_id, position, seen)

    def locate(self, seen: Scan, judged: bool) -> Place | None:
        """The place of the next frame. None if it is unknown; a judged frame then begins a new patch instead."""
        self._clock += 1
        position = self._follow(seen)
        if position is None and judged:
            position = self._recognize(seen, self._fields.values())
        if position is None:
            if not judged:
                return None
            self._last_patch += 1
            position = Position(self._last_patch, 0.0, 0.0)
        place = self._assign(seen, position, judged)
        self._last = seen, place.position, place.field_id
        return place

    def position(self, field_id: int) -> Position | None:
        """The position of a field; None if it was forgotten."""
        known = self._fields.get(field_id)
        return None if known is None else known.position

    def overlapping(self, field_id: int) -> Iterator[int]:
        """Ids of other fields that overlap a field by `SAME_FIELD` or more, as they can after a join."""
        own = self._fields[field_id]
        for other in self._fields.values():
            if other is not own and _overlap(other, own.position, own.scan.size) >= SAME_FIELD:
                yield other.field_id

    def _follow(self, seen: Scan) -> Position | None:
        """The position by registration with the last frame and the fields around it."""
        if self._last is None:
            return None
        last, position, field_id = self._last
        own = self._fields.get(field_id or 0)
        if own and stands(own.scan, seen, position.x - own.position.x, position.y - own.position.y):
            return position
        known = [(own.scan, own.position)] if own else []
        known.append((last, position))
        known += [(each.scan, each.position) for each in self._nearest(position, last.size) if each is not own]
        for reference, where in known:
            if shift := register(reference, seen):
                return _moved(where, shift)
        return None

    def _nearest(self, position: Position, size: tuple[int, int]) -> list[_Field]:
        """The fields that overlap a view most."""
        overlaps = [(_overlap(each, position, size), each) for each in self._fields.values()]
        near = sorted((pair for pair in overlaps if pair[0] > 0), key=lambda pair: -pair[0])
        return [each for _, each in near[:_NEIGHBOURS]]

    def _recognize(self, seen: Scan, among: Iterable[_Field]) -> Position | None:
        """The position by registration with the fields that resemble a frame."""
        fields = [each for each in among if each.scan.size == seen.size]
        if not fields:
            return None
        resembling = resemblance(np.stack([each.spectrum for each in fields]), spectrum(seen))
        for index in np.argsort(-resembling)[:_RESEMBLING]:
            if shift := register(fields[index].scan, seen):
                return _moved(fields[index].position, shift)
        return None

    def _assign(self, seen: Scan, position: Position, judged: bool) -> Place:
        """The field at a position; a judged frame begins a new field where there is none."""
        best = next(iter(self._nearest(position, seen.size)), None)
        if best is not None and _overlap(best, position, seen.size) >= SAME_FIELD:
            best.used = self._clock
            before = self._last[2] if self._last else None
            if best.field_id != before and (shift := register(best.scan, seen)):
                position = _moved(best.position, shift)  # ends the drift that a chain of registrations adds up
            return Place(position, best.field_id)
        if not judged:
            return Place(position, None)
        self._last_id += 1
        self._add(self._last_id, position, seen)
        join = self._join(self._fields[self._last_id])
        return Place(self._fields[self._last_id].position, self._last_id, new=True, join=join)

    def _add(self, field_id: int, position: Position, seen: Scan) -> None:
        if len(self._fields) >= MAX_FIELDS:
            oldest = min(self._fields.values(), key=lambda each: each.used)
            del self._fields[oldest.field_id]
            self.forgotten.append(oldest.field_id)
        self._fields[field_id] = _Field(field_id, position, seen, spectrum(seen), self._clock)

    def _join(self, new: _Field) -> Join | None:
        """Join the patch of a new field with another one in which it is recognized."""
        own = new.position
        others = (each for each in self._fields.values() if each.position.patch != own.patch)
        found = self._recognize(new.scan, others)
        if found is None:
            return None
        if found.patch < own.patch:
            join = Join(own.patch, found.patch, found.x - own.x, found.y - own.y)
        else:
            join = Join(found.patch, own.patch, own.x - found.x, own.y - found.y)
        for each in self._fields.values():
            if each.position.patch == join.joined:
                each.position = Position(join.into, each.position.x + join.x, each.position.y + join.y)
        return join


def spectrum(seen: Scan) -> NDArray[np.complex64]:
    """The phases of a coarse reduction of a frame, for `resemblance`."""
    height, width = seen.texture.shape
    small = (max(width // COARSE, 1), max(height // COARSE, 1))
    cv2 = opencv()
    coarse = cv2.resize(seen.texture.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    window = np.sqrt(np.outer(np.hanning(small[1]), np.hanning(small[0])))
    phases = np.fft.rfft2(coarse * window)
    return np.asarray(phases / (np.abs(phases) + 1e-6), np.complex64)


def resemblance(known: NDArray[np.complex64], new: NDArray[np.complex64]) -> NDArray[np.float32]:
    """The highest value of the phase correlation of each ``known`` spectrum, ``(count, ...)``, with a new one."""
    surfaces = np.fft.irfft2(known * np.conj(new))
    return np.asarray(surfaces.max(axis=(1, 2)), np.float32)


def _moved(position: Position, shift: Shift) -> Position:
    return Position(position.patch, position.x + shift.x, position.y + shift.y)


def _overlap(known: _Field, position: Position, size: tuple[int, int]) -> float:
    """Overlap of a field with a view of ``size`` at ``position``, as a fraction of the view."""
    if known.position.patch != position.patch or known.scan.size != size:
        return 0.0
    across = 1 - abs(known.position.x - position.x) / size[0]
    down = 1 - abs(known.position.y - position.y) / size[1]
    return max(across, 0.0) * max(down, 0.0)
