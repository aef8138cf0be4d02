"""Counts the fields and cells of one slide: locates each frame, follows its cells, pools their verdicts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.vision.cells import Box
from ..record.found import CELL, FIELD, Found, FoundOnSlide, News
from .cells import Cells, Track
from .picture import picture_of_cell, picture_of_field
from .pool import Opinion, Pool, Rule
from .registration import Scan, scan
from .slide_map import Join, Place, Position, SlideMap

SHARPER = 1.25
"""A new picture of a cell replaces the last one if it is sharper by this factor."""
_DRIFT = 0.1
"""A change of the pooled probability by this much is recorded."""
_SAME_VIEW = 0.05
"""A frame is a picture of a field if it is not farther from it than this fraction of the view."""

Thumbnails = Callable[[str], "NDArray[np.uint8] | None"]
"""``thumbnails(digest)``: the recorded picture of a field, RGB; None if it was removed."""


@dataclass(frozen=True)
class Tally:
    """What was found on a slide so far.

    Attributes:
        fields: number of different fields.
        cells: number of different cells.
        patches: number of patches of the map.
        labels: count of each pooled label: over different cells, or over fields for a model of fields.
    """

    fields: int = 0
    cells: int = 0
    patches: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Located:
    """What the tracker knows of one judged frame.

    Attributes:
        field_id: the field that it shows.
        position: of its view.
        cell_ids: of its cells, in order.
        news: states of fields and cells that this frame changed, to be recorded with it.
        tally: after this frame.
    """

    field_id: int
    position: Position
    cell_ids: tuple[int, ...]
    news: tuple[News, ...]
    tally: Tally


@dataclass
class _Field:
    """A field and its verdict."""

    found: Found
    pool: Pool
    pictured: bool


class Tracker:
    """Counts one slide. Used by one thread.

    Args:
        rule: see `Rule`.
        before: what was found on the slide already, if it is continued.
        thumbnails: needed to recognize the fields of a slide that is continued.
    """

    def __init__(
        self, rule: Rule, before: FoundOnSlide | None = None, thumbnails: Thumbnails = lambda digest: None
    ) -> None:
        self._rule = rule
        before = before or FoundOnSlide()
        fields = before.fields.values()
        self._fields = {each.id: _Field(each, Pool.of(each), each.image is not None) for each in fields}
        self._cells = Cells(before.cells.values())
        self._recorded = {(each.kind, each.id): each for each in (*fields, *before.cells.values())}
        self._pictured = {each.id: each.sharpness for each in before.cells.values() if each.image}
        self._past: Counter[tuple[str, str | None]] = Counter()
        self._patches = {each.patch for each in fields}
        self._map = SlideMap(
            _restored(before, thumbnails),
            last_id=max(before.fields, default=0),
            last_patch=max(self._patches, default=0),
        )
        self._resend = False
        self.tally = self._count()

    def pass_by(self, pixels: NDArray[np.uint8]) -> None:
        """Follow the stage over a frame that is not judged."""
        self._map.locate(scan(pixels), judged=False)

    def follow(
        self, pixels: NDArray[np.uint8], boxes: Sequence[Box], opinions: Sequence[Opinion], whole: Opinion | None = None
    ) -> Located:
        """Count what the next judged frame shows.

        Args:
            pixels: uint8 ``(height, width, 3)``, RGB.
            boxes: of its cells.
            opinions: the verdict on each cell.
            whole: the verdict on the field, of a model of fields.
        """
        seen = scan(pixels)
        place = self._map.locate(seen, judged=True)
        if place is None or place.field_id is None:
            raise AssertionError("a judged frame always has a place")
        self._patches.add(place.position.patch)
        if place.new:
            self._add(place.field_id, place.position, seen)
        changed, fields = self._join(place.join) if place.join else ([], [])
        entry = self._see(place, seen, whole)
        tracks, missed = self._cells.follow(seen, place.position, entry.found.id, boxes, opinions)
        pictures = {track.id: (index, box) for index, (track, box) in enumerate(zip(tracks, boxes, strict=True))}
        news = [*self._news_of_fields(entry, fields, pixels, place.position)]
        news += self._news_of_cells([*changed, *tracks, *missed], pictures, pixels)
        self._forget()
        if news:
            self.tally = self._count()
        ids = tuple(track.id for track in tracks)
        return Located(entry.found.id, place.position, ids, tuple(news), self.tally)

    def resend(self) -> None:
        """Give all states again with the next frame: some could not be recorded."""
        self._resend = True

    def _add(self, field_id: int, position: Position, seen: Scan) -> None:
        found = Found(FIELD, field_id, field_id, position.patch, round(position.x), round(position.y), *seen.size)
        self._fields[field_id] = _Field(found, Pool(), False)

    def _see(self, place: Place, seen: Scan, whole: Opinion | None) -> _Field:
        """The field that a judged frame shows, with the frame's verdict."""
        entry = self._root(place.field_id or 0)
        if whole is not None:
            entry.pool.add(whole)
        frames = entry.found.frames + 1
        entry.found = dataclasses.replace(entry.found, frames=frames, chances=frames, sharpness=entry.pool.sharpness)
        return entry

    def _root(self, field_id: int) -> _Field:
        entry = self._fields[field_id]
        while entry.found.same_as is not None and entry.found.same_as in self._fields:
            entry = self._fields[entry.found.same_as]
        return entry

    def _join(self, join: Join) -> tuple[list[Track], list[_Field]]:
        """Move the cells and fields of a joined patch; returns those that changed."""
        self._patches.discard(join.joined)
        moved = [each for each in self._fields.values() if each.found.patch == join.joined]
        for entry in moved:
            x, y = round(entry.found.x + join.x), round(entry.found.y + join.y)
            entry.found = dataclasses.replace(entry.found, patch=join.into, x=x, y=y)
        for entry in moved:
            for other_id in self._map.overlapping(entry.found.id):
                first, second = sorted(
                    (self._root(entry.found.id), self._root(other_id)), key=lambda each: each.found.id
                )
                if first is not second:
                    second.found = dataclasses.replace(second.found, same_as=first.found.id)
                    first.pool.absorb(second.pool)
        return self._cells.join(join), moved

    def _news_of_fields(
        self, entry: _Field, changed: Iterable[_Field], pixels: NDArray[np.uint8], position: Position
    ) -> Iterator[News]:
        """The states of the fields that changed; that of the current one with its picture, if it has none."""
        height, width = pixels.shape[:2]
        away = max(abs(entry.found.x - position.x) / width, abs(entry.found.y - position.y) / height)
        chosen = self._fields.values() if self._resend else {each.found.id: each for each in (*changed, entry)}.values()
        for each in tuple(chosen):
            here = each is entry and not each.pictured and away <= _SAME_VIEW
            picture = picture_of_field(pixels) if here else None
            each.pictured |= picture is not None
            if (found := self._to_record(each.found, each.pool, picture is not None)) is not None:
                yield News(found, picture)

    def _news_of_cells(
        self, tracks: Iterable[Track], pictures: Mapping[int, tuple[int, Box]], pixels: NDArray[np.uint8]
    ) -> Iterator[News]:
        chosen = self._cells.tracks.values() if self._resend else {each.id: each for each in tracks}.values()
        for track in tuple(chosen):
            index, box = pictures.get(track.id, (None, None))
            better = box is not None and track.pool.sharpness > SHARPER * self._pictured.get(track.id, 0.0)
            if (found := self._to_record(track.found(), track.pool, better)) is None:
                continue
            found = dataclasses.replace(found, index=index)
            if box is None or not better:
                yield News(found)
                continue
            self._pictured[track.id] = track.pool.sharpness
            yield News(found, picture_of_cell(pixels, box))
        self._resend = False

    def _to_record(self, found: Found, pool: Pool, pictured: bool) -> Found | None:
        """The state with its pooled verdict; None if it is recorded already, but for small changes."""
        if (pooled := pool.verdict(self._rule)) is not None:
            found = dataclasses.replace(found, **vars(pooled))
        last = self._recorded.get((found.kind, found.id))
        if not (pictured or self._resend or last is None or _differs(last, found)):
            return None
        self._recorded[found.kind, found.id] = found
        return found

    def _forget(self) -> None:
        """Drop what the map has forgotten from memory; it stays counted and recorded."""
        for field_id in self._map.forgotten:
            dropped = [(CELL, track.id) for track in self._cells.forget(field_id)]
            self._fields.pop(field_id, None)
            for key in (*dropped, (FIELD, field_id)):
                found = self._recorded.pop(key, None)
                self._pictured.pop(key[1] if key[0] == CELL else 0, None)
                if found is not None and found.counts:
                    self._past[found.kind, found.label] += 1
        self._map.forgotten.clear()

    def _count(self) -> Tally:
        counted: Counter[tuple[str, str | None]] = Counter(self._past)
        counted.update((each.kind, each.label) for each in self._recorded.values() if each.counts)
        fields = sum(count for (kind, _), count in counted.items() if kind == FIELD)
        cells = sum(count for (kind, _), count in counted.items() if kind == CELL)
        labels = {label: count for (_, label), count in counted.items() if label is not None}
        return Tally(fields, cells, len(self._patches), labels)


def _differs(last: Found, new: Found) -> bool:
    """Whether a new state is worth a row."""
    names = ("label", "review_reason", "counted", "same_as", "patch")
    if any(getattr(last, name) != getattr(new, name) for name in names):
        return True
    return abs((last.probability or 0.0) - (new.probability or 0.0)) >= _DRIFT


def _restored(before: FoundOnSlide, thumbnails: Thumbnails) -> Iterator[tuple[int, Position, Scan]]:
    """The recorded fields that can be recognized: their picture was not removed."""
    for found in before.fields.values():
        pixels = thumbnails(found.image) if found.image else None
        if pixels is not None:
            seen = scan(pixels, (found.width, found.height))
            yield found.id, Position(found.patch, found.x, found.y), seen
