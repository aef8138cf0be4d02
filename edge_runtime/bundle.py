"""Opens a ``model.tflite``: verifies that it is complete before an interpreter reads it, and extracts its parts."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from . import signature
from .errors import BundleError
from .exemplars import MEMBER as EXEMPLARS
from .exemplars import Exemplars, read_exemplars
from .flatbuffer import METADATA, Graph, packed_length, read_graph, read_metadata
from .manifest import TASKS, Manifest, parse_manifest
from .ood import MEMBER as NOVELTY
from .ood import OodDetector, read_ood_detector
from .preprocess import Channels

MANIFEST = "edgeall.json"
LABELS = "labels.txt"
MODEL_CARD = "MODEL_CARD.md"
GOLDEN = "golden/golden.json"
GOLDEN_FOLDER = "golden/"
MAX_FILE_BYTES = 512_000_000
"""Several times the size of any model that a small board can run. Larger files are refused."""
MAX_MEMBER_BYTES = 16_000_000
"""Far above any member that `edgeall quantize` packs. Stops a crafted archive from filling the memory."""
MAX_DIRECTORY_BYTES = 1_000_000
"""Size limit of the archive's directory, about a thousand names. `edgeall quantize` packs half a dozen members."""
MAX_GOLDEN = 16
"""Maximum number of golden images; `edgeall quantize` packs two. Their total size is limited to `MAX_MEMBER_BYTES`."""
MAX_SIGNED_MEMBERS = 2 * MAX_GOLDEN
"""More than `edgeall quantize` can pack. Limits how many members are read before the signature is verified."""

KERAS_SUFFIXES = frozenset({".keras", ".h5", ".hdf5"})
FROM_KERAS = "make a run of a Keras model that was trained elsewhere: `edgeall import MODEL --data DIR --out RUN`"

_COPY_AGAIN = "copy the file again or re-run `edgeall quantize`"


@dataclass(frozen=True)
class Golden:
    """A golden image: an image in the packed model, with the outputs that it had where the model was packed.

    Attributes:
        name: file name inside the archive.
        image_bytes: the PNG file.
        probabilities: of a classifier: expected probabilities, one per label, after dequantization.
        units: of a classifier: expected raw outputs, for models with integer outputs.
        pixels_sha256: digest of the preprocessed uint8 pixels.
        mask_bytes: of a segmentation model: the PNG file of the expected mask, see `edgeall.edge_runtime.masks`.
        red_cell: of a segmentation model: the expected second output, after dequantization.
    """

    name: str
    image_bytes: bytes
    probabilities: tuple[float, ...]
    units: tuple[int, ...] | None
    pixels_sha256: str
    mask_bytes: bytes | None = None
    red_cell: float | None = None


@dataclass(frozen=True)
class Bundle:
    """A verified model file.

    Attributes:
        path: as given.
        flatbuffer: the model without the appended archive.
        graph: the parsed flatbuffer.
        manifest: None for a foreign model, i.e. one that edgeall did not pack.
        labels: from the manifest, or from a foreign model's TFLite metadata; None if unknown.
        normalization: ``(mean, std)`` from the same sources, each one number or one for each channel; None if unknown.
        golden: empty for a foreign model.
        model_card: Markdown; None for a foreign model.
        file_bytes: size of the whole file.
        ood_detector: the out-of-distribution detector; None for a foreign model or one without a novelty score.
        exemplars: features of images of the home laboratory; None for a foreign model, and in files of older versions.
        is_signed: whether it holds a signature, of any key.
    """

    path: str
    flatbuffer: bytes
    graph: Graph = field(compare=False)  # derived from the flatbuffer, which is compared
    manifest: Manifest | None
    labels: tuple[str, ...] | None
    normalization: tuple[Channels, Channels] | None
    golden: tuple[Golden, ...]
    model_card: str | None
    file_bytes: int
    ood_detector: OodDetector | None = None
    exemplars: Exemplars | None = None
    is_signed: bool = False

    @property
    def task(self) -> str:
        """What the model does, one of `manifest.TASKS`. A foreign model is a classifier."""
        return self.manifest.task if self.manifest else TASKS[0]


def open_bundle(path: str | os.PathLike[str], public_key: str | os.PathLike[str] | None = None) -> Bundle:
    """Read and verify a model file, packed or foreign.

    A packed model must match its digest and have its complete archive. A foreign ``.tflite`` has no digest; every
    offset of its flatbuffer must stay inside the file.

    Args:
        path: the model file.
        public_key: an Ed25519 public key in PEM. If given, the file must be packed and signed with the private key.

    Raises:
        BundleError: missing, empty, above `MAX_FILE_BYTES`, not a model, damaged, truncated, with a foreign
            archive, of an unknown manifest schema, or without the required signature.
        EdgeallError: the public key cannot be used.
    """
    name = os.fspath(path)
    if is_keras(name):
        raise BundleError(f"{name}: a Keras model, not a .tflite file", hint=FROM_KERAS)
    try:
        with open(name, "rb") as file:
            if public_key is None:
                return _open(file, name)
            content = io.BytesIO(file.read(MAX_FILE_BYTES + 1))  # one read: the verified bytes are the used bytes
            _check_signature(content, public_key, name)
            return _open(content, name)
    except FileNotFoundError as error:
        raise BundleError(f"{name}: no such file", hint="check the path") from error
    except IsADirectoryError as error:
        raise BundleError(
            f"{name}: a folder, not a .tflite file", hint="if it is a run folder, `edgeall quantize` creates the model"
        ) from error
    except OSError as error:
        raise BundleError(f"{name}: can't be read ({error.strerror})") from error


def is_keras(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a Keras model by its suffix, or a folder with a SavedModel."""
    name = os.fspath(path)
    return os.path.splitext(name)[1].lower() in KERAS_SUFFIXES or os.path.isfile(os.path.join(name, "saved_model.pb"))


def _open(file: IO[bytes], name: str) -> Bundle:
    file_bytes = file.seek(0, os.SEEK_END)
    if file_bytes == 0:
        raise BundleError(f"{name}: the file is empty", hint="copy the file again")
    if file_bytes > MAX_FILE_BYTES:
        raise BundleError(f"{name}: {file_bytes:,} bytes, above the limit of {MAX_FILE_BYTES:,} for a model")
    archive, begin = _open_archive(file)
    if archive is None:
        data = _read_model(file, file_bytes, name)
        # Before parsing: a truncated packed model must not pass for a foreign one.
        _refuse_packed(data, name, None)
        return _foreign(data, None, name, file_bytes)
    with archive:
        if MANIFEST in archive.namelist():
            return _packed(file, archive, begin, name, file_bytes)
        if begin <= 0:
            raise BundleError(f"{name}: a zip archive, not a model", hint="unpack it and give the .tflite file")
        data = _read_model(file, begin, name)
        _refuse_packed(data, name, archive)
        return _foreign(data, archive, name, file_bytes)


def _check_signature(file: IO[bytes], public_key: str | os.PathLike[str], name: str) -> None:
    archive, begin = _open_archive(file)
    members = archive.namelist() if archive else []
    if archive is None or signature.MEMBER not in members:
        raise BundleError(f"{name}: not signed", hint="sign it with `edgeall sign`")
    if len(members) > MAX_SIGNED_MEMBERS or len(set(members)) < len(members):
        raise BundleError(f"{name}: its archive has a duplicate name, or more members than `edgeall sign` signs")
    content = {member: _member(archive, member, name) for member in members}
    signed = content.pop(signature.MEMBER)
    file.seek(0)
    digests = {member: hashlib.sha256(data).hexdigest() for member, data in content.items()}
    text = signature.signed_text(hashlib.sha256(file.read(max(begin, 0))).hexdigest(), digests)
    signature.check_signature(signed, text, public_key, name)


def _read_model(file: IO[bytes], size: int, name: str) -> bytes:
    """The first ``size`` bytes; only eight if the file is not a TFLite model, which `read_graph` then refuses."""
    file.seek(0)
    head = file.read(8)
    if head[:4] == b"PK\x03\x04":
        raise BundleError(f"{name}: a damaged zip archive, not a model")
    if head[4:] != b"TFL3":
        return head
    file.seek(0)
    return file.read(size)


def _packed(file: IO[bytes], archive: zipfile.ZipFile, begin: int, name: str, file_bytes: int) -> Bundle:
    manifest = parse_manifest(_member(archive, MANIFEST, name), name)
    file.seek(0)
    flatbuffer = file.read(max(min(manifest.flatbuffer_bytes, begin), 0))
    if hashlib.sha256(flatbuffer).hexdigest() != manifest.flatbuffer_sha256:
        raise BundleError(f"{name}: flatbuffer does not match its digest", hint=_COPY_AGAIN)
    if begin != manifest.flatbuffer_bytes:
        raise BundleError(f"{name}: unexpected bytes between the flatbuffer and its archive", hint=_COPY_AGAIN)
    labels = _lines(_member(archive, LABELS, name), f"{name}: {LABELS}")
    if labels != manifest.labels:
        raise BundleError(f"{name}: {LABELS} and {MANIFEST} have different labels", hint=_COPY_AGAIN)
    return Bundle(
        path=name,
        flatbuffer=flatbuffer,
        graph=read_graph(flatbuffer, name, whole=False),
        manifest=manifest,
        labels=manifest.labels,
        normalization=(manifest.input.mean, manifest.input.std),
        golden=_read_golden(archive, manifest, name),
        model_card=_member(archive, MODEL_CARD, name).decode("utf-8", errors="replace"),
        file_bytes=file_bytes,
        ood_detector=(
            read_ood_detector(manifest.novelty, _member(archive, NOVELTY, name), name) if manifest.novelty else None
        ),
        exemplars=_exemplars(archive, manifest, name),
        is_signed=signature.MEMBER in archive.namelist(),
    )


def _exemplars(archive: zipfile.ZipFile, manifest: Manifest, name: str) -> Exemplars | None:
    if not manifest.exemplars:
        return None
    return read_exemplars(manifest.exemplars, _member(archive, EXEMPLARS, name), len(manifest.labels), name)


def _foreign(data: bytes, archive: zipfile.ZipFile | None, name: str, file_bytes: int) -> Bundle:
    graph = read_graph(data, name)
    labels, normalization = None, None
    if METADATA in graph.metadata:
        metadata = read_metadata(graph.metadata[METADATA], name)
        normalization = _one_normalization(metadata.mean, metadata.std, name)
        inside = archive.namelist() if archive else []
        for label_file in metadata.label_files:
            if archive and label_file in inside:
                labels = _lines(_member(archive, label_file, name), f"{name}: {label_file}")
                break
    return Bundle(name, data, graph, None, labels, normalization, (), None, file_bytes)


def _refuse_packed(data: bytes, name: str, archive: zipfile.ZipFile | None) -> None:
    length = packed_length(data)
    if length is None:
        return
    if len(data) < length:
        raise BundleError(f"{name}: truncated, has {len(data):,} of {length:,} flatbuffer bytes", hint=_COPY_AGAIN)
    if archive is not None:
        raise BundleError(f"{name}: its archive was not written by edgeall, {MANIFEST} is missing", hint=_COPY_AGAIN)
    raise BundleError(f"{name}: truncated or damaged, its archive ({MANIFEST}, labels) is missing", hint=_COPY_AGAIN)


def _open_archive(file: IO[bytes]) -> tuple[zipfile.ZipFile | None, int]:
    """The zip archive at the end of the file, and its start; ``(None, 0)`` if there is no readable one."""
    if _directory_bytes(file) > MAX_DIRECTORY_BYTES:
        return None, 0
    try:
        archive = zipfile.ZipFile(file)
        return archive, min((info.header_offset for info in archive.infolist()), default=archive.start_dir)
    except Exception:  # for a damaged directory zipfile raises BadZipFile, ValueError, struct.error, ...
        return None, 0


def _directory_bytes(file: IO[bytes]) -> int:
    """Size of the archive's directory. `zipfile` needs seven times as much memory for its entries."""
    file.seek(max(file.seek(0, os.SEEK_END) - 65_557, 0))  # the end record with the longest comment
    tail = file.read()
    at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\5\6")
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\6\7":
        return MAX_FILE_BYTES  # a ZIP64 archive
    return int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0


def _member(archive: zipfile.ZipFile, member: str, name: str, limit: int = MAX_MEMBER_BYTES) -> bytes:
    try:
        with archive.open(member) as stream:
            content = stream.read(limit + 1)
    except KeyError as error:
        raise BundleError(f"{name}: {member} is missing from its archive", hint=_COPY_AGAIN) from error
    except Exception as error:  # BadZipFile for a wrong checksum; zlib.error, NotImplementedError, EOFError, ...
        raise BundleError(f"{name}: {member} in its archive is damaged", hint=_COPY_AGAIN) from error
    if len(content) > limit:
        raise BundleError(f"{name}: {member} in its archive is larger than {limit:,} bytes")
    return content


def _read_golden(archive: zipfile.ZipFile, manifest: Manifest, name: str) -> tuple[Golden, ...]:
    read = _golden_mask if manifest.task == "segmentation" else _golden
    try:
        entries = json.loads(_member(archive, GOLDEN, name))["images"]
        if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_GOLDEN:
            raise BundleError(f"{name}: {GOLDEN} must list 1 to {MAX_GOLDEN} images", hint=_COPY_AGAIN)
        golden: list[Golden] = []
        left = MAX_MEMBER_BYTES
        for entry in entries:
            golden.append(read(entry, archive, manifest, name, left))
            left -= len(golden[-1].image_bytes) + len(golden[-1].mask_bytes or b"")
        return tuple(golden)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{name}: {GOLDEN} is not what `edgeall quantize` writes", hint=_COPY_AGAIN) from error


def _golden(entry: dict[str, Any], archive: zipfile.ZipFile, manifest: Manifest, name: str, limit: int) -> Golden:
    units, labels = entry["units"], len(manifest.labels)
    outputs = 1 if manifest.scores == "sigmoid" else labels
    golden = Golden(
        name=_printable(entry["name"]),
        image_bytes=_member(archive, GOLDEN_FOLDER + str(entry["name"]), name, limit),
        probabilities=tuple(float(value) for value in entry["probabilities"]),
        units=None if units is None else tuple(int(value) for value in units),
        pixels_sha256=str(entry["pixels_sha256"]),
    )
    if len(golden.probabilities) != labels or (golden.units is not None and len(golden.units) != outputs):
        raise ValueError("there must be one probability per label")
    if not all(map(math.isfinite, golden.probabilities)) or not all(-128 <= unit <= 255 for unit in golden.units or ()):
        raise ValueError("probabilities must be finite, units must be bytes")
    return golden


def _golden_mask(entry: dict[str, Any], archive: zipfile.ZipFile, manifest: Manifest, name: str, limit: int) -> Golden:
    golden = Golden(
        name=_printable(entry["name"]),
        image_bytes=_member(archive, GOLDEN_FOLDER + str(entry["name"]), name, limit),
        probabilities=(),
        units=None,
        pixels_sha256=str(entry["pixels_sha256"]),
        mask_bytes=_member(archive, GOLDEN_FOLDER + _printable(entry["mask"]), name, limit),
        red_cell=float(entry["red_cell"]),
    )
    if not math.isfinite(golden.red_cell or 0.0):
        raise ValueError("the size of a red cell must be finite")
    return golden


def _printable(name: object) -> str:
    text = str(name)
    if not text.isprintable():
        raise ValueError("the name must be printable: errors show it")
    return text


def _one_normalization(mean: Sequence[float], std: Sequence[float], name: str) -> tuple[Channels, Channels] | None:
    if not mean or not std:
        return None
    if (
        len(mean) > 3
        or len(std) > 3
        or not all(value > 0 for value in std)
        or not all(map(math.isfinite, (*mean, *std)))
    ):
        raise BundleError(f"{name}: its TFLite metadata has an invalid normalization, mean {mean[0]} and std {std[0]}")
    return _channels(mean), _channels(std)


def _channels(values: Sequence[float]) -> Channels:
    """One number where all are equal."""
    return float(values[0]) if len(set(values)) == 1 else tuple(map(float, values))


def _lines(content: bytes, name: str) -> tuple[str, ...]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BundleError(f"{name}: not UTF-8 text", hint="give a text file with one label per line") from error
    return tuple(line.strip() for line in text.rstrip("\r\n").split("\n"))


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read a label file: UTF-8, one label per line. Raises BundleError if it cannot be read."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            return _lines(file.read(MAX_MEMBER_BYTES), name)
    except OSError as error:
        raise BundleError(f"{name}: the label file can't be read ({error.strerror})", hint="check --labels") from error
