"""A backup as one ZIP file that is sent while it is made, and its restoration.

The copy of the database is of one moment and is verified, with all images, before the first byte. No second copy of the
images is made: they are read from the record, each compared with its digest, and sent uncompressed. A file that was cut
off has no directory at its end and is refused.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...console.progress import QUIET, Progress
from ...edge_runtime.errors import UsageError
from ..language import N_, message
from . import chain
from .backup import Copied, copy_database, named_images
from .chain import RecordError
from .check import check
from .image_store import NO_ROOM, ImageStore, file_digest

_FOLDER = "edgeall-backup-"
_BLOCK = 1 << 20
_MEMBER = re.compile(rf"{re.escape(chain.DATABASE)}|images/([0-9a-f]{{2}})/(\1[0-9a-f]{{62}})\.(jpg|png|tflite)")
_README = (
    "A backup of the record of an edgeall rig.\n"
    "Restore it: edgeall record restore THIS.zip --record NEW-FOLDER\n"
    "Rows: {rows}. Images: {images}. Head of the chain: {head}\n"
)


@dataclass(frozen=True)
class Snapshot:
    """The verified state of a record at one moment: number of rows and of images, digest of the last row."""

    database: Path
    rows: int
    images: int
    head: str


@contextmanager
def snapshot(folder: Path) -> Iterator[Snapshot]:
    """Copy the database of a record, which a rig may write to, and verify the copy and all its images.

    The copy lies in the record's folder until the end of the block: ``/tmp`` may be in memory.

    Raises:
        RecordError: there is no record, it was altered, or an image is missing.
        RecordFullError: there is no room for the copy.
    """
    for old in folder.glob(f"{_FOLDER}*"):  # of a process that was killed
        shutil.rmtree(old, ignore_errors=True)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=folder))
    except OSError as error:
        text = message("{path}: cannot be written ({reason})", path=folder, reason=error.strerror)
        raise RecordError(text, hint="check the disk") from error
    try:
        database = scratch / chain.DATABASE
        copy_database(folder, database)
        (scratch / "images").symlink_to(folder.resolve() / "images")
        found = check(scratch)
        if found.problems:
            altered = N_("{folder}: {problem}; there is no backup of an altered record")
            raise RecordError(
                message(altered, folder=folder, problem=found.problems[0].told()), hint="run `edgeall record verify`"
            )
        yield Snapshot(database, found.rows, found.images, found.head)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def zipped(folder: Path, state: Snapshot) -> Iterator[bytes]:
    """The blocks of the ZIP file of a `snapshot`.

    Raises:
        RecordError: an image was removed or altered meanwhile.
    """
    sink, store = _Sink(), ImageStore(folder)
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as file:  # type: ignore[call-overload]
        file.writestr("README.txt", _README.format(rows=state.rows, images=state.images, head=state.head))
        for digest in named_images(state.database):
            path = store.path(digest)
            if path is None:
                continue  # pruned: `snapshot` has compared with the rows
            if file_digest(path) != digest:
                text = message("{path}: was altered while the backup was made", path=path)
                raise RecordError(text, hint="make another one")
            file.writestr(f"images/{digest[:2]}/{path.name}", path.read_bytes())
            yield from sink.take()
        with (
            open(state.database, "rb") as source,
            file.open(zipfile.ZipInfo(chain.DATABASE), "w", force_zip64=True) as target,
        ):
            while block := source.read(_BLOCK):
                target.write(block)
                yield from sink.take()
    yield from sink.take()


def restore_zip(backup: Path, folder: Path, progress: Progress = QUIET) -> Copied:
    """Make a record from a ZIP file of `zipped`, and verify it.

    Raises:
        RecordError: the file is no backup, was cut off or altered.
        UsageError: ``folder`` is not empty.
        RecordFullError: its disk is full.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--record {folder}: is not empty", hint="choose a new folder")
    made = not folder.exists()
    try:
        with zipfile.ZipFile(backup) as file:
            names = [name for name in file.namelist() if _MEMBER.fullmatch(name)]
            if chain.DATABASE not in names:
                raise RecordError(f"{backup}: is not a backup of a record", hint="choose another file")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with progress.task("extracting", len(names)) as advance:
                for done, name in enumerate(names, 1):  # no other name: nothing outside of the folder is written
                    file.extract(name, folder)
                    advance(done, "")
        found = check(folder, progress=progress)
        if found.problems:
            raise RecordError(f"{backup}: {found.problems[0]}", hint="use another backup")
    except BaseException as error:
        _discard(folder, made)
        if isinstance(error, (zipfile.BadZipFile, EOFError, NotImplementedError)):
            raise RecordError(f"{backup}: is damaged or was cut off ({error})", hint="download it again") from error
        if isinstance(error, OSError):
            if error.errno in NO_ROOM:
                raise chain.full(folder) from error
            raise RecordError(
                f"{error.filename or folder}: {error.strerror or error}", hint="check the disk"
            ) from error
        raise
    chain.sync_folder(folder)
    return Copied(str(folder), found.rows, found.images, found.images, 0, found.head)


def _discard(folder: Path, made: bool) -> None:
    if made:
        shutil.rmtree(folder, ignore_errors=True)
        return
    (folder / chain.DATABASE).unlink(missing_ok=True)
    shutil.rmtree(folder / "images", ignore_errors=True)


class _Sink:
    """A file that can only be written to, whose content is taken out block by block."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._blocks.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def take(self) -> list[bytes]:
        blocks, self._blocks = self._blocks, []
        return blocks
