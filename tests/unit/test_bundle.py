"""Every kind of invalid model file is refused with its own message."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures_models import LABELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeall.edge_runtime import interpreter
from edgeall.edge_runtime.bundle import MAX_FILE_BYTES, MAX_MEMBER_BYTES, Bundle, open_bundle, read_labels
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError

FILES = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write_bytes(content: bytes) -> Path:
        path = tmp_path / "model.tflite"
        path.write_bytes(content)
        return path

    return write_bytes


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if an invalid file reaches the interpreter."""

    def refuse(*_: object) -> None:
        raise AssertionError("the interpreter saw it")

    monkeypatch.setattr(interpreter, "load", refuse)


def with_archive(flatbuffer: bytes, members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    file.write(flatbuffer)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def golden_json(*names: str, probability: float = 0.25, unit: float | None = None) -> bytes:
    entry = {"units": unit if unit is None else [unit] * 4, "probabilities": [probability] * 4, "pixels_sha256": ""}
    return json.dumps({"images": [{"name": name, **entry} for name in names]}).encode()


def test_a_packed_model_opens(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert bundle.manifest is not None
    assert bundle.labels == LABELS
    assert len(bundle.flatbuffer) == bundle.manifest.flatbuffer_bytes
    assert bundle.file_bytes == tiny_bundle.stat().st_size
    assert [len(golden.probabilities) for golden in bundle.golden] == [4, 4]
    assert bundle.model_card is not None
    assert bundle.model_card.startswith("---\n")


@FILES
@given(data=st.data())
def test_one_flipped_byte_in_the_flatbuffer(tiny_bundle: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(tiny_bundle.read_bytes())
    place = data.draw(st.integers(0, len(open_bundle(tiny_bundle).flatbuffer) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "model.tflite"
    damaged.write_bytes(content)
    with pytest.raises(BundleError, match="flatbuffer does not match its digest"):
        open_bundle(damaged)


@FILES
@given(data=st.data())
def test_one_flipped_byte_in_the_archive(tiny_bundle: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Never crashes; accepted content is what was packed (a date in the archive may differ)."""
    content = bytearray(tiny_bundle.read_bytes())
    packed = open_bundle(tiny_bundle)
    content[data.draw(st.integers(len(packed.flatbuffer), len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "model.tflite"
    damaged.write_bytes(content)
    try:
        opened = open_bundle(damaged)
    except BundleError as error:
        assert error.hint
    else:
        assert _same(opened, packed)


def test_truncated_anywhere(tiny_bundle: Path, write: Callable[[bytes], Path], no_interpreter: None) -> None:
    content = tiny_bundle.read_bytes()
    end = len(open_bundle(tiny_bundle).flatbuffer)
    for length in [*range(1, len(content), 61), end - 1, end, end + 1, len(content) - 1]:
        path = write(content[:length])
        with pytest.raises(BundleError) as caught:
            Classifier.open(path)
        message = caught.value.message
        if length < end:
            assert "truncated" in message or "not a TFLite model" in message
        else:
            assert "its archive" in message, length


def test_truncated_inside_the_flatbuffer_says_how_much_is_there(
    tiny_bundle: Path, write: Callable[[bytes], Path]
) -> None:
    content = tiny_bundle.read_bytes()
    end = len(open_bundle(tiny_bundle).flatbuffer)
    with pytest.raises(BundleError, match=f"truncated, has {end - 100:,} of {end:,} flatbuffer bytes"):
        open_bundle(write(content[: end - 100]))


def test_empty_missing_folder(tmp_path: Path, write: Callable[[bytes], Path]) -> None:
    with pytest.raises(BundleError, match="the file is empty"):
        open_bundle(write(b""))
    with pytest.raises(BundleError, match="no such file"):
        open_bundle(tmp_path / "absent.tflite")
    with pytest.raises(BundleError, match=r"a folder, not a \.tflite file"):
        open_bundle(tmp_path)


def test_a_zip_that_is_not_a_model(write: Callable[[bytes], Path]) -> None:
    with pytest.raises(BundleError, match="a zip archive, not a model"):
        open_bundle(write(with_archive(b"", {"a.txt": b"a"})))
    with pytest.raises(BundleError, match="a damaged zip archive"):
        open_bundle(write(with_archive(b"", {"a.txt": b"a" * 100})[:60]))


def test_our_archive_without_a_model(tiny_bundle: Path, write: Callable[[bytes], Path]) -> None:
    with pytest.raises(BundleError, match="does not match its digest"):
        open_bundle(write(with_archive(b"", members_of(tiny_bundle))))


def test_somebody_elses_archive_on_our_flatbuffer(tiny_bundle: Path, write: Callable[[bytes], Path]) -> None:
    flatbuffer = open_bundle(tiny_bundle).flatbuffer
    with pytest.raises(BundleError, match=r"was not written by edgeall, edgeall\.json is missing"):
        open_bundle(write(with_archive(flatbuffer, {"labels.txt": b"a\nb\nc\nd\n"})))


def test_another_models_archive_on_our_flatbuffer(
    tiny_bundle: Path, pack_tiny: Callable[..., Path], write: Callable[[bytes], Path], tmp_path: Path
) -> None:
    other = pack_tiny("float32", tmp_path / "other.tflite")
    with pytest.raises(BundleError, match="does not match its digest"):
        open_bundle(write(with_archive(open_bundle(tiny_bundle).flatbuffer, members_of(other))))


def test_bytes_between_flatbuffer_and_archive(tiny_bundle: Path, write: Callable[[bytes], Path]) -> None:
    flatbuffer = open_bundle(tiny_bundle).flatbuffer
    with pytest.raises(BundleError, match="unexpected bytes between"):
        open_bundle(write(with_archive(flatbuffer + b"\0" * 16, members_of(tiny_bundle))))


def test_unknown_schema(tiny_bundle: Path, write: Callable[[bytes], Path]) -> None:
    members = members_of(tiny_bundle)
    members["edgeall.json"] = json.dumps(json.loads(members["edgeall.json"]) | {"schema": 7}).encode()
    with pytest.raises(BundleError, match="manifest schema 7 is unknown, this version reads 1"):
        open_bundle(write(with_archive(open_bundle(tiny_bundle).flatbuffer, members)))


@pytest.mark.parametrize("member", ["labels.txt", "MODEL_CARD.md", "golden/golden.json", "golden/0.png"])
def test_a_member_that_is_missing(tiny_bundle: Path, write: Callable[[bytes], Path], member: str) -> None:
    members = members_of(tiny_bundle)
    del members[member]
    with pytest.raises(BundleError, match=f"{member} is missing"):
        open_bundle(write(with_archive(open_bundle(tiny_bundle).flatbuffer, members)))


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("labels.txt", b"Benign\nEarly\nPro\nPre\n", "different labels"),
        ("labels.txt", b"\xff\xfe", "not UTF-8"),
        ("edgeall.json", b"[]", "not a JSON object"),
        ("golden/golden.json", b"{}", "golden.json is not what"),
        ("golden/golden.json", b'{"images": [{"name": "0.png"}]}', "golden.json is not what"),
        ("golden/golden.json", b'{"images": []}', "golden.json must list 1 to 16 images"),
        ("golden/golden.json", b'{"images": {"0.png": {}}}', "golden.json must list 1 to 16 images"),
        ("golden/golden.json", golden_json(*["0.png"] * 17), "golden.json must list 1 to 16 images"),
        ("golden/golden.json", golden_json("0.png", probability=10**400), "golden.json is not what"),
        ("golden/golden.json", golden_json("0.png", probability=float("nan")), "golden.json is not what"),
        ("golden/golden.json", golden_json("0.png", probability=float("-inf")), "golden.json is not what"),
        ("golden/golden.json", golden_json("0.png", unit=10**400), "golden.json is not what"),
        ("golden/golden.json", golden_json("0.png", unit=-129), "golden.json is not what"),
        ("golden/golden.json", golden_json("0\n.png"), "golden.json is not what"),
        ("golden/golden.json", golden_json("0.png", unit=float("inf")), "golden.json is not what"),
        (
            "golden/golden.json",
            b'{"images": [{"name": "0.png", "units": null, "probabilities": [1], "pixels_sha256": ""}]}',
            "golden.json is not what",
        ),
    ],
)
def test_a_member_that_is_something_else(
    tiny_bundle: Path, write: Callable[[bytes], Path], member: str, content: bytes, message: str
) -> None:
    members = members_of(tiny_bundle) | {member: content}
    with pytest.raises(BundleError, match=message):
        open_bundle(write(with_archive(open_bundle(tiny_bundle).flatbuffer, members)))


def test_an_archive_that_swells_is_refused(tiny_bundle: Path, write: Callable[[bytes], Path]) -> None:
    file = io.BytesIO()
    file.write(open_bundle(tiny_bundle).flatbuffer)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members_of(tiny_bundle).items():
            archive.writestr(name, content if name != "MODEL_CARD.md" else bytes(50_000_000))
    with pytest.raises(BundleError, match="larger than"):
        open_bundle(write(file.getvalue()))


def test_golden_images_are_bounded_together(tiny_bundle: Path, write: Callable[[bytes], Path]) -> None:
    """Sixteen names for one member whose size is just below the limit."""
    members = members_of(tiny_bundle) | {"golden/golden.json": golden_json(*["0.png"] * 16)}
    flatbuffer = open_bundle(tiny_bundle).flatbuffer
    assert len(open_bundle(write(with_archive(flatbuffer, members))).golden) == 16
    members["golden/0.png"] = bytes(MAX_MEMBER_BYTES // 16)
    assert len(open_bundle(write(with_archive(flatbuffer, members))).golden) == 16
    members["golden/0.png"] += b"x"
    with pytest.raises(BundleError, match="png in its archive is larger than"):
        open_bundle(write(with_archive(flatbuffer, members)))


@pytest.mark.parametrize("length", [10**13, 10**30, 10**400, -1, 0])
def test_a_length_that_the_file_has_not_is_not_read(
    tiny_bundle: Path, write: Callable[[bytes], Path], length: int
) -> None:
    members = members_of(tiny_bundle)
    members["edgeall.json"] = json.dumps(json.loads(members["edgeall.json"]) | {"flatbuffer_bytes": length}).encode()
    with pytest.raises(BundleError, match="unexpected bytes between" if length > 0 else "does not match its digest"):
        open_bundle(write(with_archive(open_bundle(tiny_bundle).flatbuffer, members)))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("input.mean", {"input": {"mean": 10**400}}),
        ("input.std", {"input": {"std": 10**400}}),
        ("decision.review_below", {"decision": {"review_below": 10**400}}),
    ],
)
def test_numbers_that_no_float_holds(
    tiny_bundle: Path, write: Callable[[bytes], Path], field: str, change: dict[str, dict[str, int]]
) -> None:
    members = members_of(tiny_bundle)
    values = json.loads(members["edgeall.json"])
    for key, inner in change.items():
        values[key] |= inner
    members["edgeall.json"] = json.dumps(values).encode()
    with pytest.raises(BundleError, match=f"`{field}` must be a number"):
        open_bundle(write(with_archive(open_bundle(tiny_bundle).flatbuffer, members)))


class CountingReader(io.BytesIO):
    """A file that counts the bytes read."""

    most = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.most = max(self.most, len(content))
        return content


@pytest.mark.parametrize("begin", [b"\0\0\0\x18ftypmp42", b"PK\x03\x04", b"TFL3"])
def test_a_large_file_that_is_not_a_model_is_not_read(monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    file = CountingReader(begin + bytes(10_000_000))
    monkeypatch.setattr("builtins.open", lambda *_: file)
    with pytest.raises(BundleError, match=r"not a TFLite model|a damaged zip archive"):
        open_bundle("film.mp4")
    assert file.most < 200_000  # zipfile looks for its directory in the last 64 KB


def test_a_file_of_an_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.tflite"
    with path.open("wb") as file:
        file.write(b"\x1c\0\0\0TFL3")
        file.truncate(MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(BundleError, match=r"above the limit of 512,000,000 for a model"):
        open_bundle(path)


def test_a_flatbuffer_of_millions_of_tables_is_not_taken_apart(write: Callable[[bytes], Path]) -> None:
    """Twelve megabytes of references to one operator code, which would be half a gigabyte of objects."""
    count = 3_000_000
    model = struct.pack("<I4s4HiII", 16, b"TFL3", 8, 8, 0, 4, 8, 4, count)  # a vtable, the model, its vector's length
    code = struct.pack("<HHi", 4, 4, 4)
    references = np.arange(4 * count + 4, 4, -4, dtype="<u4")
    path = write(model + references.tobytes() + code)
    tracemalloc.start()
    with pytest.raises(BundleError, match="truncated or damaged"):
        open_bundle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * path.stat().st_size


@pytest.mark.parametrize("zip64", [False, True])
def test_an_archive_with_a_huge_directory_is_not_opened(
    tiny_bundle: Path, write: Callable[[bytes], Path], zip64: bool
) -> None:
    """Each entry takes zipfile seven times its size: half a gigabyte would fill the memory of a board."""
    fields = (b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
    directory = (struct.pack("<4s4B4HL2L5H2L", *fields) + b"a") * 30_000
    model = open_bundle(tiny_bundle).flatbuffer.replace(b"edgeall", b"another")
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 30_000, 30_000, len(directory), len(model), 0)
    if zip64:
        begin = len(model) + len(directory)
        counts = (30_000, 30_000, len(directory), len(model))
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, *counts)
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
        end = record + struct.pack("<4sLQL", b"PK\6\7", 0, begin, 1) + end
    path = write(model + directory + end)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == 30_000
    tracemalloc.start()
    opened = open_bundle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened.manifest is None
    assert peak < 4_000_000


@FILES
@given(data=st.data())
def test_damaged_foreign_models_never_crash(test_data: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Without a digest a changed weight is not detected, but truncation is, and nothing crashes."""
    whole = (test_data / "foreign" / "mobilenet_v1_0.25_224_quant.tflite").read_bytes()
    path = tmp_path / "foreign.tflite"
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole) // 2))])
    with pytest.raises(BundleError):
        open_bundle(path)
    content = bytearray(whole)
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        open_bundle(path)
    except BundleError as error:
        assert error.message.startswith(str(path))


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbfone \r\ntwo\r\n")
    assert read_labels(path) == ("one", "two")
    with pytest.raises(BundleError, match="can't be read"):
        read_labels(tmp_path / "absent.txt")


def _same(one: Bundle, other: Bundle) -> bool:
    def content(bundle: Bundle) -> Bundle:
        return dataclasses.replace(bundle, path="")

    return content(one) == content(other)
