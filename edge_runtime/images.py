"""Opens an image file that may be anything: allow-listed formats, a pixel limit, one clear error each."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from edgeall.edge_runtime.errors import ImageError

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
"""What Pillow may open. Its JPEG reader also opens a phone's multi-picture JPEG, and then calls the format MPO."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 64_000_000
"""Above any microscope camera in use, below what would exhaust a 1 GB board once decoded to RGB."""
MAX_SCANS = 100
"""Of a progressive JPEG, which has ten or so; each takes 95 bytes and goes over all 64 megapixels again."""

# Pillow warns above 89 megapixels; ours is the lower limit. Once for the process: `catch_warnings` around each image
# would not be safe between threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
_MODES = _SIXTEEN_BIT | {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_LARGE_READ_BYTES = 1_000_000
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Decode ``path`` as 8-bit RGB, upright.

    EXIF orientation is applied; grey, palette and CMYK are converted; transparency is laid over white,
    the colour of an empty brightfield; 16-bit and 12-bit samples are scaled to 8. Of a multi-picture JPEG, as
    phones write them, the first picture counts: the others are previews or depth maps of it.

    Args:
        path: an image file in one of `FORMATS`.

    Returns:
        A fully decoded image of mode ``RGB``.

    Raises:
        ImageError: missing, empty, truncated, not an image, a format outside the list, several frames, more
            than `MAX_PIXELS` pixels, or 32-bit or LAB ones. All but the truncation is seen before one is decoded.
    """
    name = os.fspath(path)
    try:
        if os.path.getsize(name) == 0:
            raise ImageError(f"{name}: the file is empty", hint="copy the image again or remove the file")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else f"can't be read ({error.strerror})"
        raise ImageError(f"{name}: {reason}", hint="check the path") from error
    return _open(name, name)


def decode_rgb(data: bytes, name: str) -> Image.Image:
    """`open_rgb` for an image file that is already in memory; ``name`` is how an error calls it."""
    return _open(io.BytesIO(data), name)


def find_images(root: Path) -> Iterator[Path]:
    """All files below ``root`` whose suffix is an image's, sorted, hidden ones left out.

    Each folder is listed when its turn comes, and what is kept of it is one text: 2 MB for 100,000 images. A folder
    that can't be listed is given itself: whoever opens it will say so.
    """
    open_folders = [_entries(root)]
    while open_folders:
        path, is_folder = next(open_folders[-1], (None, False))
        if path is None:
            open_folders.pop()
        elif is_folder:
            open_folders.append(_entries(path))
        else:
            yield path


def _entries(folder: Path) -> Iterator[tuple[Path, bool]]:
    """The folders (True) and images in ``folder``, sorted; itself as if it were an image where it can't be listed."""
    names, folders = [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                    names.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                    names.append(entry.name)
    except OSError:
        yield folder, False
        return
    names.sort()
    listing = "/".join(names)
    names.clear()
    for match in re.finditer("[^/]+", listing):
        yield folder / match[0], match[0] in folders


class _File(io.BufferedReader):
    """Reads no more than there is: Pillow asks for what a damaged PNG claims, gigabytes, and Python allocates them."""

    def __init__(self, name: str) -> None:
        super().__init__(io.FileIO(name))

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGE_READ_BYTES:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


def _open(source: str | io.BytesIO, name: str) -> Image.Image:
    try:
        with _File(source) if isinstance(source, str) else source as file, Image.open(file, formats=FORMATS) as image:
            return _decode(image, name)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image in one of the formats {', '.join(FORMATS)}",
            hint="convert it to PNG or JPEG, or remove the file",
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except (PermissionError, IsADirectoryError) as error:
        raise ImageError(f"{name}: can't be read ({error.strerror})", hint="check its owner and mode") from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it", hint="use a smaller image") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(
            f"{name}: truncated or damaged ({_first_line(error)})", hint="copy the image again or remove the file"
        ) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name)
    # Not `n_frames`: to count a TIFF file's pages Pillow goes through them all, in a time that grows with their square.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageError(f"{name}: has several frames or pages", hint="save the one to be classified as PNG")
    if image.mode not in _MODES:  # I and F: 32 bits; LAB
        raise ImageError(f"{name}: {image.mode}-mode pixels have no agreed range as RGB", hint="save it as 8-bit PNG")
    if image.info.get("progressive") and _scans(image) > MAX_SCANS:
        raise ImageError(f"{name}: a progressive JPEG of more than {MAX_SCANS} scans", hint="save it as PNG")
    tags = getattr(image, "tag_v2", {})
    bits, zero_is_white = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_PHOTOMETRIC) == 0
    image.load()
    # Every copy of a frame of `MAX_PIXELS` is a quarter of a GB: none is made that can be done without.
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _SIXTEEN_BIT:
        # As 32-bit integers, because Pillow scales little-endian 16-bit pixels only.
        wide = image if image.mode == "I;16" else image.convert("I")
        step = (2**bits - 1) / 255  # some cameras' TIFF files say that they have 12
        if zero_is_white:  # Pillow turns 8-bit pixels round, but not these
            return wide.point(lambda value: value / -step + 255).convert("RGB")
        return wide.point(lambda value: value / step).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scans(image: Image.Image) -> int:
    """The begins of scans in a JPEG file; previews inside it count too."""
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
    paper.paste(image, mask=image)  # the alpha band of the mask counts
    return paper


def _too_large(name: str) -> ImageError:
    return ImageError(f"{name}: more than {MAX_PIXELS // 1_000_000} megapixels", hint="crop or downscale it first")


def _first_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
