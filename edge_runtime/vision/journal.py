"""What `edgeall cells` has done, so that an interrupted command goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import UsageError
from ..files import is_empty
from ..images import mark_output
from . import DEFAULT_MODEL

if TYPE_CHECKING:
    from .cells_files import Wanted

NAME = ".edgeall-cells.jsonl"
"""In the output folder, removed when the command ends. Its first line says what was asked. Each other line is the
result of one image, whose files are written by then."""


class Journal:
    """The results of one command, image by image. A context manager: creates the folder, or reads an unfinished one.

    Attributes:
        done: the results of an interrupted command by image, without those whose files are missing or cut: a power
            failure may lose the last ones.

    Args:
        out: the folder.
        images: all images, in order.
        wanted: what is asked.

    Raises:
        UsageError: the folder holds something else, or the results of other images or options.
    """

    def __init__(self, out: Path, images: Sequence[str], wanted: Wanted) -> None:
        self.done: dict[str, dict[str, Any]] = {}
        self._out, self._path = out, out / NAME
        self._asked = {"images_sha256": _digest(images), "wanted": repr(wanted), "cell_model_sha256": _model(wanted)}

    def __enter__(self) -> Journal:
        if self._path.is_file():
            self.done = self._read()
        elif self._out.exists() and (not self._out.is_dir() or not is_empty(self._out)):
            raise UsageError(f"{self._out}: is not an empty folder", hint="choose a new folder")
        self._out.mkdir(parents=True, exist_ok=True)
        mark_output(self._out)
        # Written anew without what is done again: its last line may be cut.
        lines = [self._asked, *self.done.values()]
        begun = self._path.with_name(f"{NAME}.new")
        with begun.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())  # else a power failure may leave an empty journal
        begun.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if error is None:
            self._path.unlink()

    def add(self, result: dict[str, Any]) -> None:
        """Append the result of an image whose files are written."""
        self._file.write(f"{json.dumps(result)}\n")
        self._file.flush()

    def _read(self) -> dict[str, dict[str, Any]]:
        found = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # cut by a power failure
                break
        if not found or found[0] != self._asked:
            raise UsageError(
                f"{self._out}: holds an unfinished `edgeall cells` of other images or with other options",
                hint="give the command that was interrupted, or choose a new folder",
            )
        return {result["image"]: result for result in found[1:] if "error" not in result and self._whole(result)}

    def _whole(self, result: dict[str, Any]) -> bool:
        files = [result["overlay"], result["mask"], *(row["crop"] for row in result["cells"])]
        return all(_is_image(self._out / file) for file in files if file is not None)


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError):  # what Pillow raises for a damaged PNG
        return False
    return True


def _digest(images: Sequence[str]) -> str:
    """Of the images' paths, sizes and times."""
    found = hashlib.sha256()
    for image in images:
        try:
            stat = os.stat(image)
            facts = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            facts = "missing"
        found.update(f"{facts} {image}\0".encode(errors="surrogateescape"))
    return found.hexdigest()


def _model(wanted: Wanted) -> str:
    return hashlib.sha256((wanted.cell_model or DEFAULT_MODEL).read_bytes()).hexdigest()
