"""Any file may be given as an image: what is opened, how its pixels come out, and what is refused."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_models import grainy_image, png
from numpy.typing import NDArray
from PIL import Image, ImageFile

from edgeall.edge_runtime.errors import ImageError
from edgeall.edge_runtime.images import MAX_PIXELS, decode_rgb, find_images, open_rgb

PICTURE = grainy_image(1, (12, 7))
PIXELS = np.asarray(PICTURE)
VALUES, ALPHAS = (axis.astype(np.uint8) for axis in np.meshgrid(np.arange(256), np.arange(256)))


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(data: bytes) -> NDArray[np.uint8]:
    image = decode_rgb(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


def over_white(values: NDArray[np.uint8], alphas: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Exactly rounded."""
    product = values.astype(int) * alphas + 255 * (255 - alphas.astype(int))
    return (2 * product + 255) // 510


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("its pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and has next to no pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_every_format_gives_its_pixels(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"x.{form.lower()}"
    path.write_bytes(encoded(PICTURE, form, **({"lossless": True} if form == "WEBP" else {})))
    np.testing.assert_array_equal(np.asarray(open_rgb(path)), PIXELS)
    np.testing.assert_array_equal(decoded(path.read_bytes()), PIXELS)


def test_jpeg_gives_what_pillow_makes_of_it() -> None:
    data = encoded(PICTURE, "JPEG")
    np.testing.assert_array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("size", [(8_000, 8_013), (60_000, 60_000), (1, MAX_PIXELS + 1)])
def test_too_many_pixels_are_refused_from_the_header(no_decoding: None, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"^x: more than 64 megapixels$"):
        decode_rgb(png_header(*size), "x")


def test_a_real_file_of_64_1_megapixels_is_refused(no_decoding: None) -> None:
    data = encoded(Image.new("1", (8_000, 8_013)))
    assert len(data) < 100_000
    with pytest.raises(ImageError, match="more than 64 megapixels"):
        decode_rgb(data, "x")


def test_the_limit_itself_is_allowed() -> None:
    assert MAX_PIXELS == 8_000 * 8_000
    data = encoded(Image.new("1", (8_000, 8_000)), "BMP")
    with pytest.raises(ImageError, match="truncated or damaged"):  # and not: too large
        decode_rgb(data[:1000], "x")


@pytest.mark.parametrize("form", ["GIF", "PPM", "TGA", "ICO"])
def test_the_content_decides_and_not_the_suffix(tmp_path: Path, no_decoding: None, form: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(PICTURE, form))
    with pytest.raises(ImageError, match="not an image in one of the formats JPEG, PNG"):
        open_rgb(path)


@pytest.mark.parametrize("form", ["WEBP", "TIFF", "PNG"])
def test_several_frames_are_refused_by_name(no_decoding: None, form: str) -> None:
    data = encoded(PICTURE, form, save_all=True, append_images=[PICTURE.rotate(180)])
    with pytest.raises(ImageError, match=r"^film: has 2 frames or pages$"):
        decode_rgb(data, "film")


def test_a_phone_s_multi_picture_jpeg_is_its_first_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    preview = PICTURE.resize((4, 4))
    data = encoded(PICTURE, "MPO", save_all=True, append_images=[preview], exif=exif, quality=95)
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        assert image.format == "MPO"
        assert getattr(image, "n_frames", 1) == 2
    alone = decoded(encoded(PICTURE, "JPEG", exif=exif, quality=95))
    assert alone.shape == (12, 7, 3)
    np.testing.assert_array_equal(decoded(data), alone)


UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}
"""What a viewer does with the stored pixels for each EXIF orientation."""


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PICTURE, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    np.testing.assert_array_equal(decoded(data), UPRIGHT[orientation](PIXELS))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_transparency_lies_over_white(form: str) -> None:
    """All values with all alphas."""
    rgba = np.stack([VALUES, VALUES[:, ::-1], VALUES.T, ALPHAS], axis=-1)
    expected = over_white(rgba[..., :3], ALPHAS[..., None])
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(rgba), form)), expected)


def test_transparency_is_what_pillow_s_own_compositing_gives() -> None:
    rgba = Image.fromarray(np.stack([VALUES, VALUES[:, ::-1], VALUES.T, ALPHAS], axis=-1))
    paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    np.testing.assert_array_equal(decoded(png(rgba)), np.asarray(Image.alpha_composite(paper, rgba).convert("RGB")))


def test_grey_with_transparency() -> None:
    expected = np.repeat(over_white(VALUES, ALPHAS)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(decoded(png(Image.fromarray(np.stack([VALUES, ALPHAS], axis=-1)))), expected)


def test_a_palette_with_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    data = encoded(image, transparency=bytes([255, 0, 128]))
    half = over_white(np.array([70, 80, 90], np.uint8), np.array([128], np.uint8))
    np.testing.assert_array_equal(decoded(data), [[[10, 20, 30], [255, 255, 255], half]])
    np.testing.assert_array_equal(decoded(png(image))[0, 1], [40, 50, 60])


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (10, 20, 30)), ("L", 10)])
def test_one_colour_that_stands_for_transparency(mode: str, colour: Any) -> None:
    image = Image.new(mode, (2, 1), colour)
    image.putpixel((1, 0), (11, 20, 30) if mode == "RGB" else 11)
    pixels = decoded(encoded(image, transparency=colour))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == ([11, 20, 30] if mode == "RGB" else [11, 11, 11])


@pytest.mark.parametrize(("form", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_sixteen_bit_grey_is_scaled(form: str, dtype: str) -> None:
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decoded(encoded(Image.fromarray(grey.astype(dtype)), form))
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (0, 255)
    np.testing.assert_array_equal(pixels, np.repeat((grey // 257)[..., None], 3, axis=-1))


def test_eight_bit_grey_and_black_and_white() -> None:
    grey = np.asarray(PICTURE.convert("L"))
    np.testing.assert_array_equal(decoded(png(PICTURE.convert("L"))), np.repeat(grey[..., None], 3, axis=-1))
    np.testing.assert_array_equal(np.unique(decoded(png(PICTURE.convert("1")))), [0, 255])


def test_cmyk() -> None:
    inks = {(0, 0, 0, 0): 255, (255, 255, 255, 0): 0, (0, 0, 0, 255): 0, (0, 0, 0, 155): 100}
    for ink, value in inks.items():
        for form in ("TIFF", "JPEG"):
            pixels = decoded(encoded(Image.new("CMYK", (16, 16), ink), form))
            np.testing.assert_allclose(pixels.astype(int), value, atol=3)
    cyan = decoded(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "TIFF"))
    assert cyan[0, 0].tolist() == [0, 255, 255]


def test_pixels_without_an_agreed_range() -> None:
    for image in (Image.new("F", (2, 2)), Image.new("I", (2, 2))):
        with pytest.raises(ImageError, match="no agreed range"):
            decode_rgb(encoded(image, "TIFF"), "x")


def test_missing_empty_folder_text(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        open_rgb(tmp_path / "absent.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="the file is empty"):
        open_rgb(tmp_path / "empty.png")
    with pytest.raises(ImageError) as caught:
        open_rgb(tmp_path)
    assert caught.value.message.startswith(str(tmp_path))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match="not an image"):
        open_rgb(tmp_path / "text.png")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_truncated_anywhere(tmp_path: Path, form: str) -> None:
    """Half an image is never given as a whole one."""
    data = encoded(grainy_image(2, (64, 48)), form)
    path = tmp_path / "x"
    for tenths in range(1, 10):
        path.write_bytes(data[: len(data) * tenths // 10])
        with pytest.raises(ImageError, match=r"truncated or damaged|not an image") as caught:
            open_rgb(path)
        assert caught.value.hint
        assert "\n" not in caught.value.message


def test_find_images(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a/1.jpeg", "a/.3.png", ".thumbs/4.png", "a/notes.txt", "c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)] == ["a/1.jpeg", "b/2.PNG", "c.webp"]


@pytest.mark.parametrize(("mode", "frames"), [("RGB", 1), ("RGBA", 2)])
def test_a_large_image_takes_no_more_copies_than_it_must(tmp_path: Path, mode: str, frames: int) -> None:
    """In a process of its own: a peak never goes down. Pillow has four bytes a pixel in both modes."""
    width, height = 4_000, 3_000
    path = tmp_path / "x.png"
    Image.new(mode, (width, height), (90, 80, 70, 60)[: len(mode)]).save(path)
    program = (
        "import sys\n"
        "from edgeall.edge_runtime.device import peak_rss_bytes\n"
        "from edgeall.edge_runtime.images import open_rgb\n"
        "before = peak_rss_bytes()\n"
        "open_rgb(sys.argv[1])\n"
        "print(peak_rss_bytes() - before)\n"
    )
    grown = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True).stdout
    frame = width * height * 4
    assert (frames - 0.2) * frame < int(grown) < (frames + 0.7) * frame
