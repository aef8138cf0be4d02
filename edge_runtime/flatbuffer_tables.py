"""Bounds-checked access to the tables of a flatbuffer.

Every offset goes through one check; a budget limits the work for a malformed file.

Source: the binary format of FlatBuffers, https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct

MAX_ITEMS = 8_000_000
"""Limit of bytes and numbers read from one file, without weights: above any network; 0.2 GB of memory."""


class DamagedError(Exception):
    """An offset, length or index that points outside the file."""


U8 = struct.Struct("<B")
U16 = struct.Struct("<H")
I8 = struct.Struct("<b")
I32 = struct.Struct("<i")
U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


class Reader:
    """Bounds-checked access to the bytes, with a budget that limits the work for a malformed file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = min(2 * len(data), MAX_ITEMS)  # twice: a valid file may share strings and vectors

    def number(self, form: struct.Struct, at: int) -> int:
        if at < 0 or at + form.size > len(self.data):
            raise DamagedError
        value: int = form.unpack_from(self.data, at)[0]
        return value

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise DamagedError

    def root(self) -> Table:
        return Table(self, self.number(U32, 0))

    def follow(self, at: int) -> int:
        return at + self.number(U32, at)


class Table:
    """One flatbuffer table. Finds fields by number through the vtable."""

    def __init__(self, reader: Reader, at: int) -> None:
        reader.spend(4)
        self.reader = reader
        self.at = at
        self.vtable = at - reader.number(I32, at)
        self.vtable_bytes = reader.number(U16, self.vtable)

    def field(self, number: int) -> int | None:
        slot = 4 + 2 * number
        if slot + 2 > self.vtable_bytes:
            return None
        offset = self.reader.number(U16, self.vtable + slot)
        return self.at + offset if offset else None

    def number(self, number: int, form: struct.Struct, default: int = 0) -> int:
        at = self.field(number)
        return default if at is None else self.reader.number(form, at)

    def table(self, number: int) -> Table | None:
        at = self.field(number)
        return None if at is None else Table(self.reader, self.reader.follow(at))

    def vector(self, number: int, item_bytes: int) -> tuple[int, int]:
        """Position of the first item, and the number of items. All are inside the file."""
        at = self.field(number)
        if at is None:
            return 0, 0
        at = self.reader.follow(at)
        count = self.reader.number(U32, at)
        if at + 4 + count * item_bytes > len(self.reader.data):
            raise DamagedError
        return at + 4, count

    def numbers(self, number: int, code: str) -> tuple[int, ...]:
        return self._unpack(number, code)

    def floats(self, number: int) -> tuple[float, ...]:
        return self._unpack(number, "f")

    def _unpack(self, number: int, code: str) -> tuple[int, ...]:
        size = struct.calcsize(f"<{code}")
        start, count = self.vector(number, size)
        self.reader.spend(count)
        return struct.unpack_from(f"<{count}{code}", self.reader.data, start)

    def raw(self, number: int) -> bytes:
        start, count = self.vector(number, 1)
        self.reader.spend(count)
        return bytes(self.reader.data[start : start + count])

    def text(self, number: int) -> str:
        return self.raw(number).decode("utf-8", errors="replace")

    def tables(self, number: int) -> list[Table]:
        start, count = self.vector(number, 4)
        self.reader.spend(4 * count)
        return [Table(self.reader, self.reader.follow(start + 4 * index)) for index in range(count)]
