"""An image gives the same model input on every machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_models import grainy_image, png
from PIL import Image

from edgeall.edge_runtime.errors import BundleError, ImageError
from edgeall.edge_runtime.preprocess import InputSpec, load_input, normalize, preprocess

BILINEAR = Image.Resampling.BILINEAR


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((100, 60), (20, 0, 80, 60)),  # landscape: left and right are cropped
        ((60, 100), (0, 20, 60, 80)),
        ((80, 80), (0, 0, 80, 80)),
        ((16, 10), (3, 0, 13, 10)),  # enlarged
    ],
)
def test_center_crop_is_crop_then_resize(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    image = grainy_image(1, size)
    expected = np.asarray(image.crop(box).resize((24, 24), BILINEAR))
    np.testing.assert_array_equal(preprocess(image, InputSpec(24, 24, fit="center-crop")), expected)


def test_center_crop_keeps_the_input_s_aspect() -> None:
    image = grainy_image(2, (90, 90))
    expected = np.asarray(image.crop((0, 15, 90, 75)).resize((48, 32), BILINEAR))
    np.testing.assert_array_equal(preprocess(image, InputSpec(32, 48, fit="center-crop")), expected)


@pytest.mark.parametrize(
    ("size", "spec", "box"),
    [
        ((51, 40), InputSpec(20, 20, fit="center-crop"), (5, 0, 45, 40)),  # an odd remainder
        ((50, 41), InputSpec(32, 48, fit="center-crop"), (0, 4, 50, 37)),  # 33.3 rows
        ((1, 500), InputSpec(20, 200, fit="center-crop"), (0, 249, 1, 250)),  # a tenth of a row
    ],
)
def test_center_crop_cuts_whole_pixels(size: tuple[int, int], spec: InputSpec, box: tuple[int, int, int, int]) -> None:
    image = grainy_image(3, size)
    expected = np.asarray(image.crop(box).resize((spec.width, spec.height), BILINEAR))
    np.testing.assert_array_equal(preprocess(image, spec), expected)


def test_what_center_crop_cuts_off_has_no_say() -> None:
    pixels = np.asarray(grainy_image(3, (100, 60))).copy()
    spec = InputSpec(24, 24, fit="center-crop")
    inside = preprocess(Image.fromarray(pixels), spec)
    pixels[:, :20] = 255 - pixels[:, :20]
    pixels[:, 80:] = 0
    np.testing.assert_array_equal(preprocess(Image.fromarray(pixels), spec), inside)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (10, 10)])
def test_stretch_is_resize(size: tuple[int, int]) -> None:
    image = grainy_image(4, size)
    pixels = preprocess(image, InputSpec(32, 48))
    expected = image.resize((48, image.height), BILINEAR).resize((48, 32), BILINEAR)
    np.testing.assert_array_equal(pixels, np.asarray(expected))
    assert pixels.shape == (32, 48, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("fit", ["stretch", "center-crop"])
def test_an_image_of_the_input_s_size_stays_as_it_is(fit: str) -> None:
    image = grainy_image(5, (48, 32))
    np.testing.assert_array_equal(preprocess(image, InputSpec(32, 48, fit=fit)), np.asarray(image))


def test_load_input_is_both_steps(tmp_path: Path) -> None:
    image = grainy_image(6)
    (tmp_path / "x.png").write_bytes(png(image))
    np.testing.assert_array_equal(load_input(tmp_path / "x.png", InputSpec(8, 9)), preprocess(image, InputSpec(8, 9)))
    with pytest.raises(ImageError, match="no such file"):
        load_input(tmp_path / "absent.png", InputSpec(8, 9))


@pytest.mark.parametrize(
    "change",
    [
        *({key: value} for key in ("height", "width") for value in (0, -1, 4097)),
        *({"std": value} for value in (0.0, -1.0, 1e-7, 1e7, math.nan, math.inf)),
        *({"mean": value} for value in (1e7, -1e7, math.nan, math.inf, -math.inf)),
    ],
)
def test_an_input_that_makes_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="is invalid"):
        InputSpec(**({"height": 8, "width": 8} | change))


@pytest.mark.parametrize("change", [{"color": "HSV"}, {"resize": "bicubic"}, {"fit": "pad"}])
def test_an_input_of_a_later_version(change: dict[str, str]) -> None:
    with pytest.raises(BundleError, match="unknown to this version") as caught:
        InputSpec(8, 8, **change)  # type: ignore[arg-type]
    assert "update" in caught.value.hint


def test_normalize() -> None:
    pixels = np.array([[[0, 127, 255]]], np.uint8)
    values = normalize(pixels, InputSpec(1, 1))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.float32([[[-1, -0.5 / 127.5, 1]]]))
    np.testing.assert_array_equal(normalize(pixels, InputSpec(1, 1, mean=0.0, std=1.0)), pixels)
    np.testing.assert_allclose(normalize(pixels, InputSpec(1, 1, mean=55.0, std=100.0))[0, 0], [-0.55, 0.72, 2.0])
