"""Which files of a folder or replay were processed before, by name and content."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ListedFile:
    """A file as its folder lists it. Sort by ``(changed_ns, name)`` for the order of writing."""

    changed_ns: int
    name: str
    size: int = 0

    @property
    def stamp(self) -> tuple[int, int]:
        """(modification time in ns, size in bytes)."""
        return self.changed_ns, self.size


@dataclass(frozen=True)
class SeenFile:
    """A file when it was processed: `ListedFile.stamp`; SHA-256 of the file and of its pixels, empty if unknown."""

    stamp: tuple[int, int]
    digest: str = ""
    pixels: str = ""


class SeenImages:
    """Which files were processed: by name and content, independent of the clock. Survives reopening of a source.

    A clock that was set back must not make a new image look old: boards without a battery start with an earlier time.

    Args:
        recorded: the digests of each file name that the record has for the slide that was open at the start of the
            program, see `Record.recorded_files`. None: no slide was open, and every file of a watched folder except
            the newest counts as seen.
        state_file: stores which files lay in a watched folder when a slide was started and therefore do not belong to
            it. None stores nothing.
    """

    def __init__(self, recorded: Mapping[str, Container[str]] | None = None, state_file: Path | None = None) -> None:
        self._recorded, self._state_file = recorded, state_file
        self._initialized = False
        self._folder = ""
        # Includes deleted files: a network share that was offline for a moment brings back the same files.
        self._files: dict[str, SeenFile] = {}
        self._listed: list[ListedFile] = []
        self.before = 0
        """Files of a watched folder that were there before and are left out."""
        self.unknown = 0
        """Of `before`: files for which it is unknown whether they arrived while the slide was open."""

    def begin_folder(self, folder: str, images: Sequence[ListedFile]) -> None:
        """Decide once which of a watched folder's ``images``, in the order of writing, count as seen."""
        if self._initialized:
            return
        self._folder = folder
        if self._recorded is None:
            self._initialized = True
            self._leave_out(images[:-1])
            return
        known = self._load()
        if known is not None:
            self._files.update(known)
            self.before = sum(self.has(image) for image in images)
        elif not images:  # a share that is not mounted yet looks empty
            return
        else:  # the slide was started with another camera, or by an edgeall version without this file
            self._leave_out([image for image in images if printable_name(image.name) not in self._recorded])
            self.unknown = self.before
        self._initialized = True

    def begin_replay(self, source: str) -> None:
        """Count once as seen what was replayed for earlier slides before a restart."""
        if not self._initialized:
            self._initialized, self._folder = True, source
            self._files.update((self._load() if self._recorded is not None else None) or {})

    def _leave_out(self, images: Sequence[ListedFile]) -> None:
        self._files.update({image.name: SeenFile(image.stamp) for image in images})
        self.before = len(images)

    def has(self, image: ListedFile) -> bool:
        """Whether the file was seen and has not been written to since."""
        seen = self._files.get(image.name)
        return seen is not None and seen.stamp == image.stamp

    def has_content(self, name: str, digest: str, pixels: str = "") -> bool:
        """Whether the file was seen with this content or these pixels, or is in the record."""
        seen, text = self._files.get(name), printable_name(name)
        if seen is not None and (digest == seen.digest or (pixels and pixels == seen.pixels)):
            return True
        recorded = self._recorded.get(text, ()) if self._recorded else ()
        return digest in recorded or "" in recorded  # "": a row from before digests were recorded

    def add(self, image: ListedFile, digest: str = "", pixels: str = "") -> None:
        """Mark a file as seen. ``digest`` and ``pixels`` are the SHA-256 of the file and of its pixels, hex."""
        self._files[image.name] = SeenFile(image.stamp, digest, pixels)

    def listed(self, waiting: Iterable[ListedFile]) -> None:
        """Note which files of a watched folder wait to be read."""
        self._listed = list(waiting)

    def begin_slide(self) -> int:
        """Before a slide is started: count what waits as seen, for it does not belong to the slide, and `save`.

        Returns:
            Number of files that waited and are left out.

        Raises:
            OSError: it cannot be stored.
        """
        late = [image for image in self._listed if not self.has(image)]
        self._files.update({image.name: SeenFile(image.stamp) for image in late})
        self.before += len(late)
        self.save()
        return len(late)

    def save(self) -> None:
        """Store what was seen so far. Raises OSError."""
        if self._state_file is None or not self._folder:
            return
        files = self._files.copy()  # the reader thread adds to it
        facts = {"folder": self._folder, "files": [[name, *dataclasses.astuple(s)] for name, s in files.items()]}
        part = self._state_file.with_name(f"{self._state_file.name}.part")
        with open(part, "w", encoding="ascii") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._state_file)

    def _load(self) -> dict[str, SeenFile] | None:
        """What `save` stored for this folder; None if there is nothing."""
        try:
            facts = json.loads(self._state_file.read_bytes()) if self._state_file else {}
            if facts.get("folder") != self._folder:
                return None
            return {
                name: SeenFile((mtime, size), digest, pixels) for name, (mtime, size), digest, pixels in facts["files"]
            }
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return None


def printable_name(name: str) -> str:
    """A file name as valid Unicode: file systems allow names that are not."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
