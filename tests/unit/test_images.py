"""Any file as an image: supported formats, decoded pixels, and refused files."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import tracemalloc
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
from edgeall.edge_runtime.images import MAX_PIXELS, USED_BITS, decode_rgb, find_images, open_rgb

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
    """Composited over white, exactly rounded."""
    product = values.astype(int) * alphas + 255 * (255 - alphas.astype(int))
    return (2 * product + 255) // 510


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("its pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


def png_file(width: int, height: int, rows: bytes = b"\0", bits: int = 8, color_type: int = 2) -> bytes:
    """A PNG file with the given header and data; by default almost without pixel data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_file(width: int, height: int, pixels: bytes, bits: tuple[int, ...], photometric: int, *more: Any) -> bytes:
    """A little-endian TIFF file of one strip; ``more`` are (tag, value) pairs of one SHORT each."""
    begin = 8 + len(bits) * 2
    entries = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1), (262, 3, 1, photometric)]
    entries += [(258, 3, len(bits), 8 if len(bits) > 2 else bits[0] | (bits[-1] << 16) * (len(bits) == 2))]
    entries += [(273, 4, 1, begin), (277, 3, 1, len(bits)), (278, 4, 1, height), (279, 4, 1, len(pixels))]
    entries += [(tag, 3, 1, value) for tag, value in more]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<I", begin + len(pixels)) + struct.pack(f"<{len(bits)}H", *bits)
    return head + pixels + struct.pack("<H", len(entries)) + directory + bytes(4)


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
        decode_rgb(png_file(*size), "x")


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


@pytest.mark.parametrize("form", ["GIF", "PPM", "TGA", "ICO", "PDF", "JPEG2000"])
def test_the_content_decides_and_not_the_suffix(tmp_path: Path, no_decoding: None, form: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(PICTURE, form))
    with pytest.raises(ImageError, match="not an image in one of the formats JPEG, PNG"):
        open_rgb(path)


@pytest.mark.parametrize("form", ["WEBP", "TIFF", "PNG"])
def test_several_frames_are_refused_by_name(no_decoding: None, form: str) -> None:
    data = encoded(PICTURE, form, save_all=True, append_images=[PICTURE.rotate(180)])
    with pytest.raises(ImageError, match=r"^film: has several frames or pages$"):
        decode_rgb(data, "film")


def test_a_hundred_thousand_pages_are_not_counted(no_decoding: None) -> None:
    """Counting them with Pillow would take minutes: its time is quadratic."""
    data = bytearray(encoded(Image.new("L", (4, 4)), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    page = bytes(data[first : first + 2 + 12 * entries])
    begin, count = len(data), 100_000
    struct.pack_into("<I", data, first + len(page), begin)
    nexts = [begin + (len(page) + 4) * index for index in range(1, count)] + [0]
    data += b"".join(page + struct.pack("<I", place) for place in nexts)
    start = time.process_time()
    with pytest.raises(ImageError, match="several frames or pages"):
        decode_rgb(bytes(data), "x")
    assert time.process_time() - start < 60, "of the processor, which the count would keep for minutes"


def test_a_jpeg_of_a_thousand_scans_is_refused(no_decoding: None) -> None:
    """A scan of 95 bytes makes libjpeg process all pixels again: a small file of 64 megapixels would take minutes."""
    data = encoded(Image.new("L", (4_000, 4_000), 90), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="progressive JPEG of more than 100 scans"):
        decode_rgb(data[:-2] + scan * 1_000 + data[-2:], "x")


def test_progressive_jpegs_give_their_pixels() -> None:
    image = grainy_image(4, (64, 48))
    plain, progressive = (decoded(encoded(image, "JPEG", progressive=kind)) for kind in (False, True))
    np.testing.assert_array_equal(progressive, plain)


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
    """All combinations of value and alpha."""
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


WIDE = np.random.default_rng(0).integers(0, 65536, (5, 7, 4), np.uint16)


@pytest.mark.parametrize(("channels", "color_type"), [(3, 2), (4, 6), (2, 4)])
def test_sixteen_bit_colour_in_png(channels: int, color_type: int) -> None:
    """Within one of the exact value: Pillow uses only the upper byte."""
    samples = WIDE[..., :channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    exact = samples / 257
    if channels != 3:
        exact = exact[..., :-1] * exact[..., -1:] / 255 + 255 - exact[..., -1:]
    pixels = decoded(png_file(7, 5, rows, bits=16, color_type=color_type))
    np.testing.assert_allclose(pixels, np.broadcast_to(exact, pixels.shape), atol=1.5)


def test_sixteen_bit_colour_in_tiff() -> None:
    data = tiff_file(7, 5, WIDE[..., :3].astype("<u2").tobytes(), (16, 16, 16), 2)
    np.testing.assert_allclose(decoded(data), WIDE[..., :3] / 257, atol=1)


def test_twelve_bit_grey_is_scaled_by_its_own_range() -> None:
    """From a camera with white at 4095; scaled as 16 bits it would be nearly black."""
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    first, second = values.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    pixels = decoded(tiff_file(64, 64, packed.tobytes(), (12,), 1))
    np.testing.assert_allclose(pixels[..., 0], values * (255 / 4095), atol=1)
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (0, 255)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("largest", "used"), [(1023, 10), (1024, 12), (4095, 12), (16_383, 14), (16_384, None)])
def test_samples_that_use_few_of_their_bits_are_reported(channels: int, largest: int, used: int | None) -> None:
    values = np.random.default_rng(1).integers(0, largest, (5, 7, channels), np.uint16)
    values[2, 3] = largest
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    if channels == 3 and largest == 1024:
        used = 12  # for colour Pillow keeps only the upper byte: 4
    for data in (
        png_file(7, 5, rows, bits=16, color_type=0 if channels == 1 else 2),
        tiff_file(7, 5, values.astype("<u2").tobytes(), (16,) * channels, 1 if channels == 1 else 2),
    ):
        assert decode_rgb(data, "x").info.get(USED_BITS) == used
    narrow = tiff_file(7, 5, (values // 257).astype(np.uint8).tobytes(), (8,) * channels, 1 if channels == 1 else 2)
    assert USED_BITS not in decode_rgb(narrow, "x").info


@pytest.mark.parametrize(
    ("bits", "more", "said"),
    [
        ((16, 16, 16), [(284, 2)], "RGB samples of 16 bits in separate planes"),  # Pillow shows noise
        ((32, 32, 32), [(339, 3)], "a TIFF file of 3 float samples of 32 bits"),
        ((32,), [(339, 3)], "F-mode pixels"),
        ((16,), [(339, 2)], "I-mode pixels"),
    ],
)
def test_layouts_without_an_agreed_reading_are_named(bits: tuple[int, ...], more: Any, said: str) -> None:
    data = tiff_file(7, 5, bytes(7 * 5 * sum(bits) // 8), bits, 2 if len(bits) == 3 else 1, *more)
    with pytest.raises(ImageError, match=f"^x: {said}") as error:
        decode_rgb(data, "x")
    assert error.value.hint


def test_a_system_error_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(encoded(PICTURE))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ImageError, match=r"can't be read \(Too many open files\)$"):
        open_rgb(tmp_path / "x.png")


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_whose_zero_is_white(bits: int) -> None:
    """Photometric interpretation 0 of TIFF."""
    values = np.linspace(0, 2**bits - 1, 35).astype(f"<u{bits // 8}")
    pixels = decoded(tiff_file(7, 5, values.tobytes(), (bits,), 0))
    np.testing.assert_allclose(pixels[..., 0].reshape(-1), 255 - values / (2**bits - 1) * 255, atol=1)


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


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_without_an_agreed_range(no_decoding: None, mode: str) -> None:
    with pytest.raises(ImageError, match=f"^x: {mode}-mode pixels have no agreed range as RGB$"):
        decode_rgb(encoded(Image.new(mode, (2, 2)), "TIFF"), "x")


def test_grey_that_is_multiplied_by_its_transparency(no_decoding: None) -> None:
    with pytest.raises(ImageError, match="La-mode pixels"):
        decode_rgb(tiff_file(7, 5, bytes(70), (8, 8), 1, (338, 1)), "x")


def test_colour_that_is_multiplied_by_its_transparency() -> None:
    """TIFF's associated alpha: the stored colours are premultiplied."""
    rgba = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    stored = np.concatenate([(rgba[..., :3] * (rgba[..., 3:] / 255)).round(), rgba[..., 3:]], axis=-1).astype(np.uint8)
    pixels = decoded(tiff_file(7, 5, stored.tobytes(), (8, 8, 8, 8), 2, (338, 1)))
    np.testing.assert_allclose(pixels, stored[..., :3] + (255.0 - rgba[..., 3:]), atol=2)


@pytest.mark.parametrize(
    "data",
    [
        tiff_file(100, 100, bytes(100), (8,), 1),
        encoded(PICTURE, "BMP")[:22] + struct.pack("<i", 7_000) + encoded(PICTURE, "BMP")[26:],
        encoded(PICTURE, "BMP")[:10] + struct.pack("<I", 10_000) + encoded(PICTURE, "BMP")[14:],
    ],
    ids=["tiff of one row", "bmp of more rows", "bmp of pixels behind its end"],
)
def test_files_that_claim_more_than_they_hold(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^x: truncated or damaged"):
        decode_rgb(data, "x")


def test_what_pillow_fills_up() -> None:
    """A documented limit: missing rows in a complete PNG or JPEG stream become black or grey."""
    short = png_file(100, 100, (b"\0" + b"\xff" * 300) * 50)
    assert decoded(short)[:, 0, 0].tolist() == [255] * 50 + [0] * 50
    data = encoded(grainy_image(3, (64, 48)), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    taller = decoded(data[:place] + struct.pack(">HH", 96, 64) + data[place + 4 :])
    assert taller.shape == (96, 64, 3)
    assert np.ptp(taller[72:]) <= 1


def test_no_more_is_read_than_there_is(tmp_path: Path) -> None:
    """A PNG chunk that claims 4 GB, which Pillow would allocate."""
    data = bytearray(encoded(PICTURE))
    place = data.index(b"IDAT") - 4
    struct.pack_into(">I", data, place, 2**32 - 2**16)
    path = tmp_path / "x.png"
    path.write_bytes(data)
    tracemalloc.start()
    np.testing.assert_array_equal(np.asarray(open_rgb(path)), PIXELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_is_damaged_says_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PICTURE, "JPEG", exif=exif)
    place = data.index(b"Exif\0\0")
    plain = np.asarray(Image.open(io.BytesIO(encoded(PICTURE, "JPEG"))))
    for spoilt in (b"\xff" * 8, b"II*\0\xff\xff\xff\xff"):
        try:
            pixels = decoded(data[: place + 6] + spoilt + data[place + 14 :])
        except ImageError as error:
            assert "truncated or damaged" in error.message
        else:
            np.testing.assert_array_equal(pixels, plain)


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
    """A partial image is never returned."""
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
    """In a child process: a peak never decreases. Pillow uses four bytes per pixel in both modes."""
    width, height = 4_000, 3_000
    path = tmp_path / "x.png"
    Image.new(mode, (width, height), (90, 80, 70, 60)[: len(mode)]).save(path)
    program = (
        "import sys\n"
        "from edgeall.edge_runtime.tools.device import peak_rss_bytes\n"
        "from edgeall.edge_runtime.images import open_rgb\n"
        "before = peak_rss_bytes()\n"
        "open_rgb(sys.argv[1])\n"
        "print(peak_rss_bytes() - before)\n"
    )
    grown = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True).stdout
    frame = width * height * 4
    assert (frames - 0.2) * frame < int(grown) < (frames + 0.7) * frame
