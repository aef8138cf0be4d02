from __future__ import annotations

import contextlib
import time
from pathlib import Path

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeall.edge_runtime.errors import BundleError
from edgeall.edge_runtime.flatbuffer import METADATA, packed_length, read_graph, read_metadata
from edgeall.edge_runtime.ops import OPERATORS, TENSOR_TYPES


def test_names_are_the_schema_s() -> None:
    def names(enum: type) -> dict[int, str]:
        return {value: name for name, value in vars(enum).items() if not name.startswith("_")}

    assert dict(enumerate(OPERATORS)) == names(schema.BuiltinOperator)
    assert dict(enumerate(TENSOR_TYPES)) == names(schema.TensorType)


@pytest.mark.parametrize("kind", ["uint8", "int8", "float32", "dynamic", "logits"])
def test_agrees_with_the_generated_schema(tiny_flatbuffers: dict[str, bytes], kind: str) -> None:
    """Compares with Google's reader."""
    data = tiny_flatbuffers[kind]
    graph, reference = read_graph(data, "m"), schema.ModelT.InitFromPackedBuf(data, 0)
    assert graph.version == reference.version
    assert list(graph.metadata) == [entry.name.decode() for entry in reference.metadata]
    (subgraph,) = reference.subgraphs
    assert graph.main.name == subgraph.name.decode()
    assert list(graph.main.inputs) == list(subgraph.inputs)
    assert list(graph.main.outputs) == list(subgraph.outputs)
    for tensor, expected in zip(graph.main.tensors, subgraph.tensors, strict=True):
        assert tensor.name == expected.name.decode()
        assert tensor.type == TENSOR_TYPES[expected.type]
        assert list(tensor.shape) == ([] if expected.shape is None else list(expected.shape))
        scale = expected.quantization.scale if expected.quantization else None
        assert list(tensor.scale) == ([] if scale is None else list(scale))
        content = reference.buffers[expected.buffer].data
        assert tensor.constant_bytes == (0 if content is None else len(content))
    for operator, expected in zip(graph.main.operators, subgraph.operators, strict=True):
        assert operator.name == OPERATORS[reference.operatorCodes[expected.opcodeIndex].builtinCode]
        assert list(operator.inputs) == list(expected.inputs)
        assert list(operator.outputs) == list(expected.outputs)


def test_tensors_may_be_left_until_they_are_asked_for(tiny_flatbuffers: dict[str, bytes]) -> None:
    data = tiny_flatbuffers["uint8"]
    whole, lazy = read_graph(data, "m").main, read_graph(data, "m", whole=False).main
    assert lazy.operators == whole.operators and len(lazy.tensors) == len(whole.tensors)
    assert lazy.tensors[-1] == whole.tensors[-1] and lazy.tensors[1:3] == whole.tensors[1:3]
    for _ in range(1000):  # known tensors are not read again, which would exhaust the budget
        assert tuple(lazy.tensors) == whole.tensors
    with pytest.raises(IndexError):
        lazy.tensors[len(whole.tensors)]


def test_integer_model_has_no_float_tensor(tiny_flatbuffers: dict[str, bytes]) -> None:
    assert not any("FLOAT" in name for name in read_graph(tiny_flatbuffers["uint8"], "m").tensor_types())
    assert "FLOAT32" in read_graph(tiny_flatbuffers["float32"], "m").tensor_types()


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 8, b"PK\x03\x04" + b"\0" * 40, b"\xff\xd8\xff\xe0 a JPEG"])
def test_not_a_model_at_all(data: bytes) -> None:
    with pytest.raises(BundleError, match="not a TFLite model"):
        read_graph(data, "m")
    assert packed_length(data) is None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_truncated_models_are_refused(tiny_flatbuffers: dict[str, bytes], data: st.DataObject) -> None:
    """Every truncation is detected, except for padding at the end."""
    whole = tiny_flatbuffers["uint8"]
    length = data.draw(st.integers(0, len(whole) - 17))
    with pytest.raises(BundleError, match=r"truncated or damaged|not a TFLite model"):
        read_graph(whole[:length], "m")


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_damaged_models_never_crash_the_reader(tiny_flatbuffers: dict[str, bytes], data: st.DataObject) -> None:
    damaged = bytearray(tiny_flatbuffers["uint8"])
    for _ in range(data.draw(st.integers(1, 20))):
        damaged[data.draw(st.integers(8, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    packed_length(bytes(damaged))
    try:
        read_graph(bytes(damaged), "m")
    except BundleError as error:
        assert error.message == "m: the flatbuffer is truncated or damaged"


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(0, 64))
def test_random_bytes_never_crash_the_reader(body: bytes, root: int) -> None:
    for identifier, read in ((b"TFL3", read_graph), (b"M001", read_metadata)):
        data = root.to_bytes(4, "little") + identifier + body
        packed_length(data)
        with contextlib.suppress(BundleError):
            read(data, "m")  # type: ignore[operator]


def test_references_to_one_table_cost_no_more_than_the_file_s_length() -> None:
    """20,000 references to a subgraph with 20,000 references to one tensor are 400 million tensors."""
    builder = flatbuffers.Builder(1 << 20)

    def table(fields: int, number: int, target: int) -> int:
        builder.StartObject(fields)
        builder.PrependUOffsetTRelativeSlot(number, target, 0)
        return int(builder.EndObject())

    def references(target: int) -> int:
        builder.StartVector(4, 20_000, 4)
        for _ in range(20_000):
            builder.PrependUOffsetTRelative(target)
        return int(builder.EndVector())

    tensor = table(6, 3, builder.CreateString("one"))
    builder.Finish(table(8, 2, references(table(5, 0, references(tensor)))), b"TFL3")
    start = time.process_time()
    with pytest.raises(BundleError, match="truncated or damaged"):
        read_graph(bytes(builder.Output()), "m")
    assert time.process_time() - start < 60, "of the processor, which so many would keep for many minutes"


@pytest.mark.parametrize(
    ("name", "label_file"),
    [
        ("mobilenet_v1_0.25_224_1_metadata_1.tflite", "labels.txt"),
        ("mobilenet_v1_0.25_224_quant.tflite", "labels.txt"),
        ("mobilenet_v2_1.0_224_quant.tflite", "imagenet_labels.txt"),
    ],
)
def test_foreign_metadata(test_data: Path, name: str, label_file: str) -> None:
    """Written by TensorFlow's metadata writer."""
    metadata = read_metadata(read_graph((test_data / "foreign" / name).read_bytes(), "m").metadata[METADATA], "m")
    assert metadata.mean == (127.5,)
    assert metadata.std == (127.5,)
    assert metadata.label_files == (label_file,)
