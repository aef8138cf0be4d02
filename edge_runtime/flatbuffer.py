"""Parses the parts of a TFLite flatbuffer that edgeall needs. Raises BundleError for any malformed content.

The interpreter does not check this: it runs most damaged files without an error, and its schema module takes longer to
import than a model takes to run. Every offset goes through one bounds check.

Source: ``tensorflow/lite/schema/schema.fbs``, ``metadata_schema.fbs`` (field numbers in the comments below).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, overload

from .errors import BundleError
from .flatbuffer_tables import I8, I32, U8, U32, U64, DamagedError, Reader, Table
from .ops import OPERATORS, TENSOR_TYPES

MARKER = "edgeall"
"""Name of the metadata entry in a packed model. Without its archive such a model is damaged, not foreign."""
MARKER_FORMAT = struct.Struct("<8sQ")
"""The entry's content: `MARKER_MAGIC` and the flatbuffer's length in bytes."""
MARKER_MAGIC = b"edgeall\x01"
METADATA = "TFLITE_METADATA"

_CUSTOM = 32
_AXIS_LABELS = 2
_NORMALIZATION = 1

T = TypeVar("T")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a subgraph.

    Attributes:
        name: as converted.
        type: e.g. ``INT8``.
        shape: empty for scalars.
        scale: one value, or one per channel; empty if the tensor is not quantized.
        zero_point: as many values as `scale`.
        constant_bytes: size of its constant data in the file; 0 for an activation.
        constant_at: offset of the constant data in the file; not compared.
        scale_at: offset of the first scale (float32) in the file; not compared.
        zero_point_at: offset of the first zero point (int64) in the file; not compared.
        signature: the shape with -1 for each variable size, for which `shape` has a placeholder; empty if no size is
            variable.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    constant_bytes: int
    constant_at: int = field(default=0, compare=False)
    scale_at: int = field(default=0, compare=False)
    zero_point_at: int = field(default=0, compare=False)
    signature: tuple[int, ...] = ()


@dataclass(frozen=True)
class Operator:
    """One operator: its name and the indices of its tensors (-1 for an omitted input)."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Subgraph:
    """Tensors, operators in execution order, the indices of the graph's inputs and outputs, and its name."""

    tensors: Sequence[Tensor]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    name: str = ""

    def producer(self, tensor: int) -> Operator | None:
        """The operator that writes ``tensor``."""
        return next((operator for operator in self.operators if tensor in operator.outputs), None)


@dataclass(frozen=True)
class Graph:
    """The subgraphs of a model (the interpreter runs the first one), and its metadata entries by name."""

    version: int
    subgraphs: tuple[Subgraph, ...]
    metadata: Mapping[str, bytes]

    @property
    def main(self) -> Subgraph:
        """The subgraph that the interpreter runs."""
        return self.subgraphs[0]

    def op_counts(self) -> dict[str, int]:
        """Number of each operator in all subgraphs, most frequent first."""
        return dict(Counter(operator.name for graph in self.subgraphs for operator in graph.operators).most_common())

    def tensor_types(self) -> dict[str, int]:
        """Number of tensors of each type in all subgraphs, most frequent first."""
        return dict(Counter(tensor.type for graph in self.subgraphs for tensor in graph.tensors).most_common())


@dataclass(frozen=True)
class TfliteMetadata:
    """Content of ``TFLITE_METADATA`` for a classifier.

    Attributes:
        mean: one value or one per channel; empty when absent.
        std: as `mean`.
        label_files: names of the label files of the first output, those without a locale first.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_files: tuple[str, ...]


def read_graph(data: bytes, name: str, *, whole: bool = True) -> Graph:
    """Parse a model. Checks all offsets and buffers against the end of ``data``.

    Args:
        data: a TFLite flatbuffer; bytes after its end are allowed.
        name: of the file, for errors.
        whole: False reads each tensor on first access, which makes the start faster. Only for a file with a verified
            digest.

    Raises:
        BundleError: not a TFLite flatbuffer, or truncated or damaged.
    """
    if data[4:8] != b"TFL3":
        raise BundleError(f"{name}: not a TFLite model", hint="give a .tflite file made by `edgeall quantize`")
    return _guarded(data, name, lambda model: _read_graph(model, name, whole))


def read_metadata(blob: bytes, name: str) -> TfliteMetadata:
    """Parse the content of a ``TFLITE_METADATA`` entry. Raises BundleError if it is damaged."""
    if blob[4:8] != b"M001":
        raise BundleError(f"{name}: its TFLite metadata is damaged", hint="get the file again")
    return _guarded(blob, name, _read_metadata)


def packed_length(data: bytes) -> int | None:
    """The flatbuffer length from the ``edgeall`` marker; None if there is no readable marker.

    The marker is in the first few KB, so this works for a truncated file too.
    """
    if data[4:8] != b"TFL3":
        return None
    try:
        reader = Reader(data)
        content = _metadata_entries(reader, reader.root(), only=MARKER).get(MARKER, b"")
        magic, length = MARKER_FORMAT.unpack(content)
    except (DamagedError, struct.error):
        return None
    return int(length) if magic == MARKER_MAGIC else None


class _Tensors(Sequence[Tensor]):
    """The tensors of a subgraph, each read on first access. The access may raise BundleError."""

    def __init__(self, table: Table, buffers: list[tuple[int, int]], name: str) -> None:
        self._reader, self._buffers, self._name = table.reader, buffers, name
        self._start, self._count = table.vector(0, 4)
        self._known: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, index: int | slice) -> Tensor | tuple[Tensor, ...]:
        places = range(self._count)[index]
        return tuple(map(self._read, places)) if isinstance(places, range) else self._read(places)

    def _read(self, index: int) -> Tensor:
        if index not in self._known:
            try:
                table = Table(self._reader, self._reader.follow(self._start + 4 * index))
                self._known[index] = _read_tensor(table, self._buffers)
            except DamagedError as error:
                raise _damaged(self._name) from error
        return self._known[index]


def _guarded(data: bytes, name: str, read: Callable[[Table], T]) -> T:
    try:
        return read(Reader(data).root())
    except DamagedError as error:
        raise _damaged(name) from error


def _damaged(name: str) -> BundleError:
    return BundleError(f"{name}: the flatbuffer is truncated or damaged", hint="copy the file again")


def _read_graph(model: Table, name: str, whole: bool) -> Graph:
    # Model: version 0, operator_codes 1, subgraphs 2, buffers 4, metadata 6
    names = [_operator_name(code) for code in model.tables(1)]
    buffers = [_buffer(buffer) for buffer in model.tables(4)]
    subgraphs = tuple(_read_subgraph(table, names, _Tensors(table, buffers, name), whole) for table in model.tables(2))
    if not subgraphs:
        raise DamagedError
    return Graph(model.number(0, U32), subgraphs, _metadata_entries(model.reader, model))


def _operator_name(code: Table) -> str:
    # OperatorCode: deprecated_builtin_code 0, custom_code 1, builtin_code 3; codes below 127 may be in either
    number = max(code.number(0, I8), code.number(3, I32))
    if number == _CUSTOM:
        return f"CUSTOM {code.text(1)}"
    return OPERATORS[number] if 0 <= number < len(OPERATORS) else f"OPERATOR {number}"


def _buffer(buffer: Table) -> tuple[int, int]:
    """Start and length of the data, in bytes."""
    # Buffer: data 0; offset 1 and size 2 if the data follow the flatbuffer (models of more than 2 GB)
    at, count = buffer.vector(0, 1)
    offset, size = buffer.number(1, U64), buffer.number(2, U64)
    if offset <= 1:
        return at, count
    if offset + size > len(buffer.reader.data):
        raise DamagedError
    return (offset, size) if size > count else (at, count)


def _read_subgraph(table: Table, names: list[str], lazy: _Tensors, whole: bool) -> Subgraph:
    # SubGraph: tensors 0, inputs 1, outputs 2, operators 3, name 4
    tensors = tuple(lazy) if whole else lazy
    operators = []
    for operator in table.tables(3):
        # Operator: opcode_index 0, inputs 1, outputs 2
        code = operator.number(0, U32)
        if code >= len(names):
            raise DamagedError
        operators.append(Operator(names[code], operator.numbers(1, "i"), operator.numbers(2, "i")))
    subgraph = Subgraph(tensors, tuple(operators), table.numbers(1, "i"), table.numbers(2, "i"), table.text(4))
    ends = [(subgraph.inputs, 0), (subgraph.outputs, 0)]
    for indices, lowest in ends + [(op.inputs, -1) for op in operators] + [(op.outputs, 0) for op in operators]:
        if any(not lowest <= index < len(tensors) for index in indices):
            raise DamagedError
    return subgraph


def _read_tensor(table: Table, buffers: list[tuple[int, int]]) -> Tensor:
    # Tensor: shape 0, type 1, buffer 2, name 3, quantization 4 (QuantizationParameters: scale 2, zero_point 3),
    # shape_signature 7
    code, buffer = table.number(1, U8), table.number(2, U32)
    if code >= len(TENSOR_TYPES) or buffer >= len(buffers):
        raise DamagedError
    quantization = table.table(4)
    return Tensor(
        name=table.text(3),
        type=TENSOR_TYPES[code],
        shape=table.numbers(0, "i"),
        scale=quantization.floats(2) if quantization else (),
        zero_point=quantization.numbers(3, "q") if quantization else (),
        constant_bytes=buffers[buffer][1],
        constant_at=buffers[buffer][0],
        scale_at=quantization.vector(2, 4)[0] if quantization else 0,
        zero_point_at=quantization.vector(3, 8)[0] if quantization else 0,
        signature=table.numbers(7, "i"),
    )


def _metadata_entries(reader: Reader, model: Table, only: str | None = None) -> dict[str, bytes]:
    # Metadata: name 0, buffer 1
    start, count = model.vector(4, 4)
    entries = {}
    for entry in model.tables(6):
        name, buffer = entry.text(0), entry.number(1, U32)
        if buffer >= count:
            raise DamagedError
        if only in (None, name):
            entries[name] = Table(reader, reader.follow(start + 4 * buffer)).raw(0)
    return entries


def _read_metadata(model: Table) -> TfliteMetadata:
    # ModelMetadata: subgraph_metadata 3; SubGraphMetadata: input_tensor_metadata 2, output_tensor_metadata 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    files: list[tuple[bool, str]] = []
    for subgraph in model.tables(3)[:1]:
        for tensor in subgraph.tables(2)[:1]:
            # TensorMetadata: process_units 4, associated_files 6; ProcessUnit: options_type 0, options 1
            for unit in tensor.tables(4):
                options = unit.table(1)
                if unit.number(0, U8) == _NORMALIZATION and options is not None:
                    mean, std = options.floats(0), options.floats(1)
        for tensor in subgraph.tables(3)[:1]:
            # AssociatedFile: name 0, type 2, locale 3
            files += [
                (bool(file.text(3)), file.text(0)) for file in tensor.tables(6) if file.number(2, I8) == _AXIS_LABELS
            ]
    return TfliteMetadata(mean, std, tuple(name for _, name in sorted(files, key=lambda item: item[0])))
