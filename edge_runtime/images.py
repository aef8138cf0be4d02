"""Opens image files from any source (allowed formats, pixel limit, one error per problem) and lists folders."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from .errors import ImageError, UsageError
from .files import is_empty
from .messages import N_, Message, message

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
"""Formats that Pillow may open. Its JPEG reader also opens a phone's multi-picture JPEG, with the format MPO."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 64_000_000
"""Above any microscope camera in use; small enough to decode to RGB on a board with 1 GB of memory."""
MAX_SCANS = 100
"""Limit for a progressive JPEG, which usually has ten. A scan of 95 bytes can rewrite all 64 megapixels."""

# Pillow warns above 89 megapixels, far above `MAX_PIXELS`. The filter is global: `catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

UNLISTABLE = "can't be listed"
"""Start of the reason of `walk` for an unreadable folder."""
OUTPUT_MARK = ".edgeall-output"
"""A file that marks the folders written by edgeall."""
SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot"}  # NAS
    | {"$recycle.bin", "system volume information", "recycler", "found.000", "lost+found", "lost.dir"}  # disks
    | {"__macosx", "network trash folder", "temporary items", "__pycache__"}
)
_OUTPUT = "written by edgeall: no data"
_FOLDER = "a folder"
_OUTPUTS = {"settings.json": {"edgeall_run", "edgeall_search"}, "run.json": {"edgeall_version"}}
"""Files, and keys in them, that mark the outputs of older versions."""

_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
_MODES = _SIXTEEN_BIT | {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_LARGE_READ_BYTES = 1_000_000
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _FORMAT = 258, 259, 262, 277, 284, 339  # TIFF tags
USED_BITS = "edgeall_used_bits"
"""Key in ``info`` of an opened image, see `open_rgb`."""


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Decode ``path`` as 8-bit RGB, upright.

    Applies the EXIF orientation, converts grey, palette and CMYK, composites transparency over white (an empty
    brightfield), and scales 16-bit and 12-bit samples to 8 bits. Takes the first picture of a multi-picture JPEG; the
    others are previews or depth maps.

    Args:
        path: an image file in one of `FORMATS`.

    Returns:
        A fully decoded image of mode ``RGB``. If the file has 16-bit samples that use at most 10, 12 or 14 bits, which
        makes the image nearly black, ``info[USED_BITS]`` is that number. The samples are scaled as usual: one image
        does not show whether the camera has fewer bits or the field is dark.

    Raises:
        ImageError: missing, empty, truncated, not an image, another format, several frames, more than `MAX_PIXELS`
            pixels, or 32-bit or LAB pixels. All except truncation are detected before decoding.
    """
    name = os.fspath(path)
    try:
        if os.path.getsize(name) == 0:
            raise ImageError(
                message("{file}: the file is empty", file=name), hint="copy the image again or remove the file"
            )
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        text = message("{file}: no such file", file=name) if missing else _unreadable(name, error)
        raise ImageError(text, hint="check the path") from error
    return _open(name, name)


def decode_rgb(data: bytes, name: str) -> Image.Image:
    """`open_rgb` for an image file in memory; ``name`` is for errors."""
    return _open(io.BytesIO(data), name)


def find_images(root: Path, skipped: Callable[[Path, str], None] | None = None) -> Iterator[Path]:
    """All images below ``root`` by suffix, sorted; see `walk` for what is searched.

    Includes folders that cannot be listed: opening them raises the error.

    Args:
        root: a folder.
        skipped: called with everything else found, and the reason.
    """
    for path, reason in walk(root):
        if reason.startswith(UNLISTABLE) or (not reason and path.suffix.lower() in SUFFIXES):
            yield path
        elif skipped is not None:
            skipped(path, reason or not_an_image(path))


def not_an_image(path: Path) -> str:
    """The reason for skipping a file."""
    return f"not an image suffix ({path.suffix or 'none'})"


def walk(root: Path, links: bool = True) -> Iterator[tuple[Path, str]]:
    """All files below ``root``, sorted, each with an empty text; and what is skipped, with the reason.

    Silently skips hidden files and folders, and `SYSTEM_FOLDERS`. Skips folders written by edgeall (`is_output`): they
    hold plots, crops and overlays, not data.

    Lists each folder when it is reached, and keeps its names as one text: 2 MB for 100,000 images.

    Args:
        root: a folder.
        links: follow links to folders directly in ``root``. Deeper links are never followed: they can loop.
    """
    open_folders = [_entries(root, follow=links)]
    while open_folders:
        path, reason = next(open_folders[-1], (None, ""))
        if path is None:
            open_folders.pop()
        elif reason == _FOLDER:
            open_folders.append(_entries(path, follow=False))
        else:
            yield path, reason


def is_system(name: str) -> bool:
    """Whether a file or folder with this name is hidden or belongs to the system."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def is_output(folder: Path) -> bool:
    """Whether edgeall wrote a folder: it has `OUTPUT_MARK`, or the settings of an older version."""
    if os.path.exists(folder / OUTPUT_MARK):  # False without permission, where Path.exists raises
        return True
    for name, keys in _OUTPUTS.items():
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if keys & set(json.loads((folder / name).read_bytes())):
                return True
    return False


def mark_output(folder: Path) -> None:
    """Mark an empty folder as an output of edgeall, which is never read as data. Leaves other folders unchanged."""
    if is_empty(folder):
        (folder / OUTPUT_MARK).write_text("Written by edgeall, which doesn't look for images here.\n", encoding="utf-8")


def refuse_inside(data: Path, out: Path, option: str = "--out") -> None:
    """Raise UsageError if the output of a command is inside the data folder that it reads.

    Args:
        data: a folder; ignored if it is an image or a manifest.
        out: the output.
        option: the option of the output, for the error.
    """
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise UsageError(
            f"{option} {out}: is inside the data folder {data}, where it would be read as data",
            hint="choose a folder outside the data folder",
        )


def _entries(folder: Path, follow: bool) -> Iterator[tuple[Path, str]]:
    """The entries of a folder, sorted: files with an empty reason, folders with `_FOLDER`, others with the reason."""
    names, reasons = [], {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_system(entry.name):
                    continue
                names.append(entry.name)
                reason = _kind(entry, follow)
                if reason:
                    reasons[entry.name] = reason
    except OSError as error:
        yield folder, f"{UNLISTABLE} ({error.strerror})"
        return
    names.sort()
    listing = "/".join(names)
    names.clear()
    for match in re.finditer("[^/]+", listing):
        path, reason = folder / match[0], reasons.get(match[0], "")
        yield path, _OUTPUT if reason == _FOLDER and is_output(path) else reason


def _kind(entry: os.DirEntry[str], follow: bool) -> str:
    if entry.is_dir(follow_symlinks=follow):
        return _FOLDER
    if entry.is_file():
        return ""
    if not entry.is_symlink():
        return "neither a file nor a folder"
    return "a link to a folder: not followed" if entry.is_dir() else "a link that leads nowhere"


class _File(io.BufferedReader):
    """Limits reads to the file size. For a damaged PNG, Pillow requests gigabytes, which Python would allocate."""

    def __init__(self, name: str) -> None:
        super().__init__(io.FileIO(name))

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGE_READ_BYTES:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


def _open(source: str | io.BytesIO, name: str) -> Image.Image:
    try:
        with _File(source) if isinstance(source, str) else source as file, _identified(file, name) as image:
            return _decode(image, name)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            message("{file}: not an image in one of the formats {formats}", file=name, formats=", ".join(FORMATS)),
            hint="convert it to PNG or JPEG, or remove the file",
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except (PermissionError, IsADirectoryError) as error:
        raise ImageError(_unreadable(name, error), hint="check its owner and mode") from error
    except OSError as error:
        if error.errno is not None:  # of the system, e.g. too many open files; Pillow's own errors have no errno
            raise ImageError(_unreadable(name, error), hint="check the disk, try again") from error
        raise _damaged(name, error) from error
    except MemoryError as error:
        raise ImageError(
            message("{file}: not enough memory to decode it", file=name), hint="use a smaller image"
        ) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise _damaged(name, error) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name)
    # Not `n_frames`: for a TIFF file Pillow needs quadratic time in the number of pages.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageError(
            message("{file}: has several frames or pages", file=name), hint="save the one to be classified as PNG"
        )
    if image.mode not in _MODES:  # I and F: 32 bits; LAB
        text = message("{file}: {mode}-mode pixels have no agreed range as RGB", file=name, mode=image.mode)
        raise ImageError(text, hint="save it as 8-bit PNG")
    if image.info.get("progressive") and _scans(image) > MAX_SCANS:
        text = message("{file}: a progressive JPEG of more than {count} scans", file=name, count=MAX_SCANS)
        raise ImageError(text, hint="save it as PNG")
    tags = getattr(image, "tag_v2", {})
    sixteen = image.mode in _SIXTEEN_BIT or ";16" in str(getattr(image, "tile", ""))
    wider = max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8 and len(image.getbands()) > 1
    if wider and tags.get(_PLANES) == 2 and tags.get(_COMPRESSION, 1) == 1:  # Pillow misreads these samples
        text = message(
            "{file}: {mode} samples of {bits} bits in separate planes can't be read",
            file=name,
            mode=image.mode,
            bits=max(tags[_BITS_PER_SAMPLE]),
        )
        raise ImageError(text, hint="save it as PNG, or as TIFF with interleaved channels")
    bits, zero_is_white = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_PHOTOMETRIC) == 0
    image.load()
    used = _used_bits(image) if sixteen and bits == 16 else None
    if used is not None:
        image.info[USED_BITS] = used
    # Avoid copies: each takes a quarter of a GB for `MAX_PIXELS`.
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _SIXTEEN_BIT:
        # As 32-bit integers, because Pillow only scales little-endian 16-bit pixels.
        wide = image if image.mode == "I;16" else image.convert("I")
        step = (2**bits - 1) / 255  # 12 in the TIFF files of some cameras
        if zero_is_white:  # Pillow inverts 8-bit pixels, but not these
            return wide.point(lambda value: value / -step + 255).convert("RGB")
        return wide.point(lambda value: value / step).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _used_bits(image: Image.Image) -> int | None:
    """10, 12 or 14 if the samples of a 16-bit image fit into that many bits, as microscope cameras write them."""
    grey = image.mode in _SIXTEEN_BIT
    extremes: Any = (image if image.mode == "I;16" or not grey else image.convert("I")).getextrema()
    largest = extremes[1] if len(image.getbands()) == 1 else max(high for _, high in extremes[:3])
    for bits in (10, 12, 14):
        if largest < 1 << (bits if grey else bits - 8):  # for colour Pillow keeps only the upper byte
            return bits
    return None


def _scans(image: Image.Image) -> int:
    """Number of scans in a JPEG file, including those of embedded previews."""
    file: IO[bytes] = image.fp  # type: ignore[attr-defined]
    at = file.tell()
    file.seek(0)
    count = file.read().count(b"\xff\xda")
    file.seek(at)
    return count


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode not in {"RGBA", "LA"}:
        image = image.convert("RGBA")
    paper = Image.new("RGB", image.size, (255, 255, 255))
    paper.paste(image, mask=image)  # uses the alpha band of the mask
    return paper


def _identified(file: IO[bytes], name: str) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        layout = _tiff_layout(file)
        if not layout:
            raise
        text = message("{file}: a TIFF file of {layout}, which can't be read", file=name, layout=layout)
        raise ImageError(text, hint="save it as PNG") from error


def _tiff_layout(file: IO[bytes]) -> str:
    """The samples of a TIFF file in words; empty for any other file, or without such tags."""
    try:
        file.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        bits, kind = directory[_BITS_PER_SAMPLE], directory.get(_FORMAT, (1,))[0]
        kind_text = message({2: N_("signed"), 3: N_("float")}.get(kind, N_("integer")))
        count = directory.get(_SAMPLES, len(bits))
        return message("{count} {kind} samples of {bits} bits", count=count, kind=kind_text, bits=bits[0])
    except Exception:  # Pillow's decoders raise many types
        return ""


def _damaged(name: str, error: Exception) -> ImageError:
    text = message("{file}: truncated or damaged ({reason})", file=name, reason=_first_line(error))
    return ImageError(text, hint="copy the image again or remove the file")


def _unreadable(name: str, error: OSError) -> Message:
    return message("{file}: can't be read ({reason})", file=name, reason=error.strerror)


def _too_large(name: str) -> ImageError:
    text = message("{file}: more than {count} megapixels", file=name, count=MAX_PIXELS // 1_000_000)
    return ImageError(text, hint="crop or downscale it first")


def _first_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
