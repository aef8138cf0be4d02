"""Image corruptions that imitate another microscope, in five severities: the fixed suite for measuring robustness.

The suite follows ImageNet-C (Hendrycks and Dietterich 2019) and MedMNIST-C (Di Salvo et al. 2024); the corruptions were
chosen for brightfield microscopy. The training augmentation (`edgeall.train.microscope`) is a separate implementation
with other formulas, so a network is not tested on the transforms it was trained with. Severity 5 is what a careless
operator or a cheap camera causes; the field is still readable. `docs/methods/robustness.md` shows examples.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter

from ...edge_runtime.results import Result

SUITE = 1
"""Version of the suite. It is raised when earlier figures are no longer comparable."""
SEVERITIES = (1, 2, 3, 4, 5)

Pixels = NDArray[np.float32]
"""float32 ``(h, w, 3)``, RGB in 0..255."""
Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]

GIEMSA = np.array([[0.834, 0.513, 0.196], [0.092, 0.954, 0.283], [0.5, 0.5, 0.707]])
"""Optical densities in red, green and blue. Rows: azure and methylene blue, eosin, the rest. Source: ImageJ's colour
deconvolution vectors for Giemsa (Landini)."""


@dataclass(frozen=True)
class WorstCell(Result):
    """A corruption and its severity."""

    corruption: str
    severity: int


def corrupted(image: Image.Image, kind: str, severity: int, seed: str) -> Image.Image:
    """Apply one corruption to an RGB image.

    Args:
        image: decoded, of any size.
        kind: one of `CORRUPTIONS`.
        severity: one of `SEVERITIES`.
        seed: the same seed gives the same result on every machine. Example: the digest of the image file.
    """
    drawn = hashlib.sha256(f"{SUITE} {kind} {severity} {seed}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(drawn[:8], "little"))
    return _image(CORRUPTIONS[kind](np.asarray(image, np.float32), severity, generator))


def lamp_warm(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """A halogen lamp without a matching white balance."""
    return pixels * np.array([1 + 0.04 * severity, 1.0, 1 - 0.08 * severity], np.float32)


def lamp_cold(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """A white LED with a daylight white balance."""
    return pixels * np.array([1 - 0.07 * severity, 1 - 0.01 * severity, 1 + 0.03 * severity], np.float32)


def underexposed(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Underexposed by up to one stop."""
    return pixels * np.float32(2.0 ** (-0.2 * severity))


def overexposed(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Overexposed by up to half a stop; the background is saturated."""
    return pixels * np.float32(2.0 ** (0.1 * severity))


def tone_curve(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """A steeper or flatter contrast curve."""
    exponent = 1.09 ** (severity * generator.choice([-1, 1]))
    return 255 * (pixels / 255) ** np.float32(exponent)


def stain_pale(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Pale stain: the optical density is reduced by up to half."""
    return 255 * (pixels / 255) ** np.float32(1 - 0.1 * severity)


def stain_balance(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """More azure and less eosin, or the reverse, as with another pH of the buffer."""
    lean = 0.08 * severity * generator.choice([-1, 1])
    vectors = GIEMSA / np.linalg.norm(GIEMSA, axis=1, keepdims=True)
    amounts = -np.log((pixels + 1) / 256) @ np.linalg.inv(vectors)
    return 256 * np.exp(-(amounts * [1 + lean, 1 - lean, 1]) @ vectors).astype(np.float32) - 1


def defocus(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Defocus: a disc of confusion with a radius of up to 2.5 pixels in a field of 224."""
    radius = (0.5 + 0.4 * severity) * max(pixels.shape[:2]) / 224
    reach = int(np.ceil(radius))
    fine = (np.arange(-reach * 8 - 3.5, reach * 8 + 4) / 8) ** 2  # eight samples per pixel give a smooth edge
    disc = (fine[:, None] + fine <= radius**2).reshape(2 * reach + 1, 8, 2 * reach + 1, 8).mean(axis=(1, 3))
    return convolve(pixels, (disc / disc.sum())[:, :, None], mode="reflect")


def motion(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Motion blur: the stage moves by up to 6 pixels in a field of 224 during the exposure."""
    length = (1 + severity) * max(pixels.shape[:2]) / 224
    angle = generator.uniform(0, np.pi)
    reach = int(np.ceil(length / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for step in np.linspace(-length / 2, length / 2, 16 * reach):
        down, across = reach + step * np.sin(angle), reach + step * np.cos(angle)
        top, left = int(down), int(across)
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            share = (1 - abs(down - row)) * (1 - abs(across - column))
            if share > 0:
                kernel[row, column] += share
    return convolve(pixels, (kernel / kernel.sum())[:, :, None], mode="reflect")


def uneven_light(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Uneven illumination: up to 55 % darker at one edge than at the other, with a vignette."""
    height, width = pixels.shape[:2]
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = generator.uniform(0, 2 * np.pi)
    tilt = 1 - 0.055 * severity * (1 + (down * np.sin(angle) + across * np.cos(angle)) / np.sqrt(2))
    rim = 1 - 0.04 * severity * (down**2 + across**2)
    return pixels * (tilt * rim)[:, :, None].astype(np.float32)


def magnification(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Another objective or camera adapter: up to 25 % larger or smaller."""
    scale = (1 + 0.05 * severity) ** generator.choice([-1, 1])
    return _warped(pixels, scale, 0.0)


def rotation(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Rotation by up to 90 degrees. A slide has no orientation."""
    return _warped(pixels, 1.0, np.radians(18 * severity) * generator.choice([-1, 1]))


def photon_noise(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Photon noise of a short exposure: 2,000 down to 125 photons at white."""
    white = 4000 / 2.0**severity
    light = np.clip(pixels, 0, 255) / np.float32(255)
    return 255 * (light + np.sqrt(light / np.float32(white)) * generator.standard_normal(pixels.shape, np.float32))


def read_noise(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Read noise of a small sensor at high gain: a standard deviation of up to 17.5 of 255."""
    return pixels + np.float32(3.5 * severity) * generator.standard_normal(pixels.shape, np.float32)


def colour_loss(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Saturation reduced by up to 75 %."""
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    return grey[:, :, None] + np.float32(1 - 0.15 * severity) * (pixels - grey[:, :, None])


def low_resolution(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Up to two and a half times fewer pixels per side, then enlarged."""
    image = _image(pixels)
    small = [max(1, round(side / (1 + 0.3 * severity))) for side in image.size]
    shrunk = image.resize((small[0], small[1]), Image.Resampling.BOX)
    return np.asarray(shrunk.resize(image.size, Image.Resampling.BICUBIC), np.float32)


def jpeg(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """JPEG compression as by a phone or a messenger: quality 80 down to 15."""
    file = io.BytesIO()
    _image(pixels).save(file, "JPEG", quality=(80, 60, 40, 25, 15)[severity - 1])
    return np.asarray(Image.open(file), np.float32)


def sharpened(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Sharpening by the camera."""
    return pixels + np.float32(0.4 * severity) * (pixels - gaussian_filter(pixels, (1.2, 1.2, 0)))


def mixture(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Three of the others, drawn for each image, each one severity lower: closest to a real change of the rig."""
    for kind in generator.choice([kind for kind in CORRUPTIONS if kind != "mixture"], 3, replace=False):
        pixels = np.clip(CORRUPTIONS[kind](pixels, max(1, severity - 1), generator), 0, 255)
    return pixels


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        *(lamp_warm, lamp_cold, underexposed, overexposed, tone_curve, stain_pale, stain_balance),
        *(defocus, motion, sharpened, uneven_light, magnification, rotation),
        *(photon_noise, read_noise, colour_loss, low_resolution, jpeg, mixture),
    )
}


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _warped(pixels: Pixels, scale: float, angle: float) -> Pixels:
    """Scaled by ``scale`` and rotated by ``angle`` (radians) about the centre. The outside is mirrored."""
    height, width = pixels.shape[:2]
    edge = min(height, width) // 2  # enough for a square rotated by 45 degrees, or scaled to three quarters
    wide = _image(np.pad(pixels, ((edge, edge), (edge, edge), (0, 0)), mode="symmetric"))
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    x, y = width / 2 + edge, height / 2 + edge
    matrix = (cos, -sin, x - cos * width / 2 + sin * height / 2, sin, cos, y - sin * width / 2 - cos * height / 2)
    turned = wide.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(turned, np.float32)
