"""Writes TFLite metadata, which other tools read, into a model's flatbuffer.

Source: ``metadata_schema.fbs`` 1.0 and ``schema.fbs`` of TensorFlow Lite. MediaPipe's own writer does not import in
its current release, and tflite-support is no longer maintained.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import flatbuffers

from ...edge_runtime.flatbuffer import MARKER, MARKER_FORMAT, MARKER_MAGIC, read_graph
from ...edge_runtime.preprocess import InputSpec

_RGB = 1
_IMAGE_PROPERTIES = 2
_FEATURE_PROPERTIES = 1
_NORMALIZATION = 1
_SCORE_THRESHOLDING = 3
_NEVER = 1e30
_TENSOR_AXIS_LABELS = 2
_PARSER = "1.0.0"
_MODEL_FIELDS = 8
_ALIGN = 16
"""schema.fbs aligns buffer data to 16 bytes; kernels may rely on it."""


def model_metadata(name: str, description: str, label_file: str, spec: InputSpec, outputs: Sequence[str]) -> bytes:
    """The ``TFLITE_METADATA`` blob of a model: one RGB image in, one label per score or channel out.

    Args:
        outputs: names of the one or two outputs. MediaPipe treats a second one as another classification; an
            unreachable score threshold keeps it from reporting its values.
    """
    builder = flatbuffers.Builder(1024)
    means, stds = ((values,) if isinstance(values, float) else tuple(values) for values in (spec.mean, spec.std))
    options = _table(builder, 2, {0: _floats(builder, means), 1: _floats(builder, stds)})
    unit = _table(builder, 2, {1: options}, {0: _NORMALIZATION})
    image = _tensor(builder, "image", _IMAGE_PROPERTIES, _table(builder, 2, {}, {0: _RGB}), {4: _vector(builder, unit)})
    file_name = builder.CreateString(label_file)
    file = _table(builder, 5, {0: file_name}, {2: _TENSOR_AXIS_LABELS})
    scores = _tensor(builder, outputs[0], _FEATURE_PROPERTIES, _table(builder, 0, {}), {6: _vector(builder, file)})
    found = [scores]
    for second in outputs[1:]:
        never = _table(builder, 1, {}, floats={0: _NEVER})
        unit = _vector(builder, _table(builder, 2, {1: never}, {0: _SCORE_THRESHOLDING}))
        found.append(_tensor(builder, second, _FEATURE_PROPERTIES, _table(builder, 0, {}), {4: unit}))
    described = {2: _vector(builder, image), 3: _vector(builder, *found)}
    subgraph = _vector(builder, _table(builder, 10, described))
    texts = {0: builder.CreateString(name), 1: builder.CreateString(description)}
    model = _table(builder, 8, {**texts, 3: subgraph, 7: builder.CreateString(_PARSER)})
    builder.Finish(model, b"M001")
    return bytes(builder.Output())


def with_metadata(flatbuffer: bytes, entries: Mapping[str, bytes], outputs: Sequence[int] | None = None) -> bytes:
    """A copy of a model with added metadata entries; entries of the same name are replaced.

    Flatbuffer offsets point forwards only. A new root table, buffer list and metadata list are therefore written in
    *front* of the old bytes, which do not change, alignment included (repacking through the generated schema moves
    every weight). The old root becomes a few unused bytes.

    Args:
        flatbuffer: a TFLite model.
        entries: content by name.
        outputs: tensors that become the outputs of the main subgraph; None keeps them.

    Raises:
        BundleError: not a TFLite flatbuffer, or damaged.
    """
    graph = read_graph(flatbuffer, "the converted model")
    merged = {**graph.metadata, **entries}
    return _Front(flatbuffer).build(merged, outputs)


def marked(flatbuffer: bytes, entries: Mapping[str, bytes]) -> bytes:
    """`with_metadata`, and the ``edgeall`` marker with the resulting length."""
    draft = with_metadata(flatbuffer, {**entries, MARKER: MARKER_FORMAT.pack(MARKER_MAGIC, 0)})
    return with_metadata(flatbuffer, {**entries, MARKER: MARKER_FORMAT.pack(MARKER_MAGIC, len(draft))})


class _Front:
    """The new head of a model, written forwards; offsets into the old bytes are resolved at the end."""

    def __init__(self, old: bytes) -> None:
        self.old = old
        self.out = bytearray(struct.pack("<I4s", 0, b"TFL3"))
        self.into_old: list[tuple[int, int]] = []

    def build(self, metadata: Mapping[str, bytes], outputs: Sequence[int] | None = None) -> bytes:
        model = self._old_u32(0)
        buffers = self._old_vector(model, 4)
        # Model: field 0 is the version; buffers 4 and metadata 6 are new; the other fields keep their targets.
        offsets = {number: self._target(model, number) for number in (1, 2, 3, 5, 7)}
        if outputs is not None:
            del offsets[2]
        new = (4, 6) if outputs is None else (2, 4, 6)
        root, slots = self._model_table(self._old_version(model), offsets, new)
        self._point(0, root)
        if outputs is not None:
            self._subgraphs(slots[2], self._old_vector(model, 2), outputs)
        vector = self._list(len(buffers) + len(metadata), slots[4])
        for slot, target in zip(vector, buffers, strict=False):
            self.into_old.append((slot, target))
        for slot, content in zip(vector[len(buffers) :], metadata.values(), strict=True):
            self._buffer(slot, content)
        for index, (slot, name) in enumerate(zip(self._list(len(metadata), slots[6]), metadata, strict=True)):
            self._entry(slot, name, len(buffers) + index)
        self._pad(_ALIGN)
        for slot, target in self.into_old:
            self._point(slot, len(self.out) + target)
        return bytes(self.out) + self.old

    def _model_table(
        self, version: int, offsets: Mapping[int, int | None], new: Sequence[int]
    ) -> tuple[int, dict[int, int]]:
        present = [0, *new, *(number for number, target in offsets.items() if target is not None)]
        places = {number: 4 + 4 * place for place, number in enumerate(present)}
        root = self._table(_MODEL_FIELDS, places, 4 + 4 * len(present))
        struct.pack_into("<I", self.out, root + places[0], version)
        for number, target in offsets.items():
            if target is not None:
                self.into_old.append((root + places[number], target))
        return root, {number: root + places[number] for number in new}

    def _subgraphs(self, owner: int, old: Sequence[int], outputs: Sequence[int]) -> None:
        """The list of subgraphs; the first one gets other outputs, which are its field 2."""
        slots = self._list(len(old), owner)
        self.into_old += list(zip(slots[1:], old[1:], strict=True))
        targets = {number: self._target(old[0], number) for number in (0, 1, 3, 4)}
        kept = {number: target for number, target in targets.items() if target is not None}
        places = {number: 4 + 4 * place for place, number in enumerate((2, *kept))}
        table = self._table(5, places, 4 + 4 * len(places))
        self._point(slots[0], table)
        self.into_old += [(table + places[number], target) for number, target in kept.items()]
        self._pad(4)
        self._point(table + places[2], len(self.out))
        self.out += struct.pack(f"<I{len(outputs)}i", len(outputs), *outputs)

    def _entry(self, slot: int, name: str, buffer: int) -> None:
        table = self._table(2, {0: 4, 1: 8}, 12)
        self._point(slot, table)
        struct.pack_into("<I", self.out, table + 8, buffer)
        self._pad(4)
        self._point(table + 4, len(self.out))
        text = name.encode()
        self.out += struct.pack("<I", len(text)) + text + b"\0"

    def _buffer(self, slot: int, content: bytes) -> None:
        table = self._table(1, {0: 4}, 8)
        self._point(slot, table)
        self.out += bytes(-(len(self.out) + 4) % _ALIGN)
        self._point(table + 4, len(self.out))
        self.out += struct.pack("<I", len(content)) + content

    def _table(self, fields: int, places: Mapping[int, int], size: int) -> int:
        """Reserve a table behind its vtable and return its position; ``places`` holds each present field's offset."""
        self._pad(2)
        vtable = len(self.out)
        slots = [places.get(number, 0) for number in range(fields)]
        self.out += struct.pack(f"<{2 + fields}H", 4 + 2 * fields, size, *slots)
        self._pad(4)
        table = len(self.out)
        self.out += bytes(size)
        struct.pack_into("<i", self.out, table, table - vtable)
        return table

    def _list(self, count: int, owner: int) -> list[int]:
        """Reserve a vector of offsets; returns the position of each."""
        self._pad(4)
        self._point(owner, len(self.out))
        self.out += struct.pack("<I", count)
        start = len(self.out)
        self.out += bytes(4 * count)
        return [start + 4 * index for index in range(count)]

    def _point(self, slot: int, target: int) -> None:
        struct.pack_into("<I", self.out, slot, target - slot)

    def _pad(self, multiple: int) -> None:
        self.out += bytes(-len(self.out) % multiple)

    # `read_graph` has checked the old flatbuffer, so unchecked reads are safe here.

    def _old_u32(self, at: int) -> int:
        return at + int(struct.unpack_from("<I", self.old, at)[0])

    def _field(self, table: int, number: int) -> int | None:
        vtable = table - int(struct.unpack_from("<i", self.old, table)[0])
        if 4 + 2 * number + 2 > int(struct.unpack_from("<H", self.old, vtable)[0]):
            return None
        offset = int(struct.unpack_from("<H", self.old, vtable + 4 + 2 * number)[0])
        return table + offset if offset else None

    def _old_version(self, model: int) -> int:
        at = self._field(model, 0)
        return 0 if at is None else int(struct.unpack_from("<I", self.old, at)[0])

    def _target(self, table: int, number: int) -> int | None:
        at = self._field(table, number)
        return None if at is None else self._old_u32(at)

    def _old_vector(self, model: int, number: int) -> list[int]:
        at = self._target(model, number)
        if at is None:
            return []
        count = int(struct.unpack_from("<I", self.old, at)[0])
        return [self._old_u32(at + 4 + 4 * index) for index in range(count)]


def _table(
    builder: flatbuffers.Builder,
    fields: int,
    offsets: Mapping[int, int],
    codes: Mapping[int, int] | None = None,
    floats: Mapping[int, float] | None = None,
) -> int:
    """A table of references to other objects, one-byte numbers and floats."""
    builder.StartObject(fields)
    for number, target in offsets.items():
        builder.PrependUOffsetTRelativeSlot(number, target, 0)
    for number, code in (codes or {}).items():
        builder.PrependInt8Slot(number, code, 0)
    for number, value in (floats or {}).items():
        builder.PrependFloat32Slot(number, value, 0.0)
    return int(builder.EndObject())


def _tensor(builder: flatbuffers.Builder, name: str, kind: int, properties: int, extra: Mapping[int, int]) -> int:
    # TensorMetadata: name 0, content 3 (Content: content_properties_type 0, content_properties 1)
    text = builder.CreateString(name)
    content = _table(builder, 3, {1: properties}, {0: kind})
    return _table(builder, 7, {0: text, 3: content, **extra})


def _vector(builder: flatbuffers.Builder, *items: int) -> int:
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return int(builder.EndVector())


def _floats(builder: flatbuffers.Builder, values: tuple[float, ...]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return int(builder.EndVector())
