"""Opens an image file that may be anything: allow-listed formats, a pixel limit, one clear error each."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from edgeall.edge_runtime.errors import ImageError

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
"""What Pillow may open. Its JPEG reader also opens a phone's multi-picture JPEG, and then calls the format MPO."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 64_000_000
"""Above any microscope camera in use, below what would exhaust a 1 GB board once decoded to RGB."""

# Pillow warns above 89 megapixels; ours is the lower limit. Once for the process: `catch_warnings` around each image
# would not be safe between threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Decode ``path`` as 8-bit RGB, upright.

    EXIF orientation is applied; grey, palette and CMYK are converted; transparency is laid over white,
    the colour of an empty brightfield; 16-bit grey is scaled to 8. Of a multi-picture JPEG, as phones write
    them, the first picture counts: the others are previews or depth maps of it.

    Args:
        path: an image file in one of `FORMATS`.

    Returns:
        A fully decoded image of mode ``RGB``.

    Raises:
        ImageError: missing, empty, truncated, not an image, a format outside the list, several frames,
            or more than `MAX_PIXELS` pixels. All but the truncation is seen before a pixel is decoded.
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
    """All files below ``root`` whose suffix is an image's, sorted, hidden ones left out."""
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path.relative_to(root)):
            yield path


def _open(source: str | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(source, formats=FORMATS) as image:
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
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ImageError(f"{name}: has {frames} frames or pages", hint="save the one to be classified as PNG")
    image.load()
    # Every copy of a frame of `MAX_PIXELS` is a quarter of a GB: none is made that can be done without.
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _SIXTEEN_BIT:
        # As 32-bit integers, because Pillow scales little-endian 16-bit pixels only.
        wide = image if image.mode == "I;16" else image.convert("I")
        return wide.point(lambda value: value / 257.0).convert("RGB")
    if image.mode in {"I", "F"}:
        raise ImageError(f"{name}: {image.mode}-mode pixels have no agreed range", hint="save it as 8-bit PNG")
    if "A" in image.getbands() or "transparency" in image.info:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode not in {"RGBA", "LA"}:
        image = image.convert("RGBA")
    paper = Image.new("RGB", image.size, (255, 255, 255))
    paper.paste(image, mask=image)  # the alpha band of the mask counts
    return paper


def _too_large(name: str) -> ImageError:
    return ImageError(f"{name}: more than {MAX_PIXELS // 1_000_000} megapixels", hint="crop or downscale it first")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _first_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
