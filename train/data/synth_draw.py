"""Draws synthetic blood: red cells, platelets, smudge cells, and nucleated cells whose shape depends on the class.

Every object is an outline ``radius(angle)``. It becomes a signed distance in a small patch, which is added to maps of
optical density. ``synth_slide`` adds the colour. Lengths are micrometres outside of patches, pixels inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .synth_shapes import grid, outline, soft, waves
from .synth_slide import Densities, Floats, Pixels, Slide, photograph

FIELD_UM = 42.0  # width of an all4 field; a red cell of 7 um is then 37 px of 224
RED_CELL_UM = 7.0  # mean diameter
CELL_UM = 21.0  # width of a cnmc image, as in the real one: a blast of 10 um takes half of it
_MARGIN_UM = 11.0  # drawn beyond the edge of the field, so that the edge can cut cells


@dataclass(frozen=True)
class Kind:
    """The morphology of one kind of nucleated cell. Pairs are the ends of a uniform distribution.

    Attributes:
        name: of the kind.
        nucleus_um: diameter of the nucleus in micrometres.
        ratio: nucleus diameter / cell diameter.
        coarse: share of the chromatin that is clumped instead of fine. The contrast is the same for all kinds.
        nucleoli: number of pale nucleoli.
        cleft: probability of a deep fold.
        lobes: number of segments (1: one whole nucleus).
        wobble: unevenness of the outline.
    """

    name: str
    nucleus_um: tuple[float, float]
    ratio: tuple[float, float]
    coarse: tuple[float, float]
    nucleoli: tuple[int, int] = (0, 0)
    cleft: float = 0.0
    lobes: tuple[int, int] = (1, 1)
    wobble: float = 0.03


FIELD_KINDS = {
    "Benign": Kind("mature", (5.6, 7.0), (0.54, 0.66), (0.8, 1.0)),
    "Early": Kind("early", (6.8, 8.4), (0.88, 0.97), (0.5, 0.8), cleft=0.03, wobble=0.04),
    "Pre": Kind("pre", (8.6, 10.6), (0.66, 0.78), (0.2, 0.5), nucleoli=(0, 1), cleft=1.0, wobble=0.05),
    "Pro": Kind("pro", (10.4, 12.8), (0.84, 0.94), (0.0, 0.2), nucleoli=(2, 4), cleft=0.05, wobble=0.04),
}
CELL_KINDS = {
    "all": Kind("blast", (7.4, 10.4), (0.84, 0.96), (0.0, 0.4), nucleoli=(0, 3), cleft=0.55, wobble=0.05),
    "hem": Kind("normal", (6.4, 9.2), (0.72, 0.92), (0.5, 1.0), cleft=0.12, wobble=0.03),
}
# Segmented cells occur equally in every class.
SEGMENTED = Kind("segmented", (7.6, 9.2), (0.66, 0.76), (0.5, 1.0), lobes=(2, 4))


@dataclass(frozen=True)
class Cell:
    """One visible nucleated cell: its number in the mask, its kind and its box (left, top, right, bottom)."""

    number: int
    kind: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Picture:
    """An image and its ground truth.

    ``pixels`` is uint8 (size, size, 3). ``mask`` is uint8 (size, size): 0 for background, ``2 * number - 1`` in the
    cytoplasm and ``2 * number`` in the nucleus of the cell with that number.
    """

    pixels: Pixels
    mask: Pixels
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class _Body:
    """A nucleated cell before it is drawn: position (um from the corner of the field) and diameters (um)."""

    kind: Kind
    x: float
    y: float
    nucleus: float
    cell: float


class _Canvas:
    """Density maps and mask of one field with a margin, in pixels. Only used by ``draw_*``."""

    def __init__(self, size: int, margin: int, px_per_um: float, texture: Floats) -> None:
        self.size, self.margin, self.px = size, margin, px_per_um
        side = size + 2 * margin
        self.nucleus, self.cytoplasm, self.red_cell = (np.zeros((side, side), np.float32) for _ in range(3))
        self.mask = np.zeros((side, side), np.uint8)
        self.texture = texture

    def place(self, x_um: float, y_um: float, half: int) -> tuple[tuple[slice, slice], float, float]:
        """The patch around a point, and the sub-pixel offset of the point from the middle pixel of the patch."""
        x, y = x_um * self.px + self.margin, y_um * self.px + self.margin
        ix, iy = round(x), round(y)
        window = (slice(iy - half, iy + half + 1), slice(ix - half, ix + half + 1))
        return window, x - ix, y - iy

    def crop(self, plane: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        inside = slice(self.margin, self.margin + self.size)
        return plane[inside, inside]

    def densities(self) -> Densities:
        n, c, r = (
            np.ascontiguousarray(self.crop(p), np.float32) for p in (self.nucleus, self.cytoplasm, self.red_cell)
        )
        return Densities(n, c, r)


def _scatter(rng: np.random.Generator, diameter: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centres (n, 2) of red cells: in chains that touch and overlap a little, rarely in clumps."""
    low, high = -4.0, FIELD_UM + 4.0
    centres = rng.uniform(low, high, (len(diameter), 2))
    leaning = rng.uniform(0.2, 0.8)
    for i in range(1, len(diameter)):
        for _ in range(4):
            if rng.random() < leaning:
                angle, step = rng.uniform(0, 2 * math.pi), diameter[i] * rng.uniform(0.82, 1.05)
                spot = centres[rng.integers(i)] + step * np.array([math.cos(angle), math.sin(angle)])
            else:
                spot = rng.uniform(low, high, 2)
            centres[i] = np.clip(spot, low, high)
            if np.square(centres[:i] - centres[i]).sum(axis=1).min() > (0.75 * diameter[i]) ** 2:
                break
    return centres


def _red_cells(canvas: _Canvas, rng: np.random.Generator, slide: Slide) -> None:
    """Draw discs with pale centres. Where they overlap, they absorb twice."""
    area = (FIELD_UM + 8.0) ** 2
    cover = slide.red_cells * rng.uniform(0.85, 1.15)
    count = int(cover * area / (math.pi * 3.5**2))
    diameter = 7.1 * slide.zoom * rng.normal(1.0, 0.05, count)
    radius = (diameter / 2 * canvas.px).astype(np.float32)
    centres = _scatter(rng, diameter)
    half = int(radius.max() * 1.3) + 2
    where = [canvas.place(x, y, half) for x, y in centres]
    x, y = grid(half, [w[1] for w in where], [w[2] for w in where])
    rho, deviation = outline(x, y, waves(rng, rng.uniform(0.02, 0.05), 3, (count,)))
    reach = radius[:, None, None]
    cover_map = soft(reach * (1 + deviation) - rho, 1.4)
    pale = (slide.pallor * rng.uniform(0.5, 1.2, count)).astype(np.float32)[:, None, None]
    hollow = np.clip(1 - (rho / (reach * np.float32(0.66))) ** 2, 0, 1)
    strength = rng.normal(0.62, 0.06, count).astype(np.float32)[:, None, None]
    density = strength * cover_map * (1 - np.clip(pale, 0, 0.95) * hollow)
    for (window, _, _), patch in zip(where, density, strict=True):
        canvas.red_cell[window] += patch


def _debris(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Draw platelets (2 to 3 um, granular) and occasionally a smudge cell: the same in every class."""
    for _ in range(rng.poisson(2.5)):
        _stain(canvas, rng, um=rng.uniform(0.8, 1.6), wobble=0.16, edge=1.6, nucleus=0.45, cytoplasm=0.4)
    for _ in range(rng.poisson(0.25)):
        _stain(canvas, rng, um=rng.uniform(4.0, 6.5), wobble=0.14, edge=6.0, nucleus=0.22, cytoplasm=0.3)


def _stain(
    canvas: _Canvas,
    rng: np.random.Generator,
    *,
    um: float,
    wobble: float,
    edge: float,
    nucleus: float,
    cytoplasm: float,
) -> None:
    """Draw a blot with radius ``um`` that absorbs both dyes."""
    half = int(um * canvas.px * 1.4) + 3
    window, fx, fy = canvas.place(rng.uniform(0, FIELD_UM), rng.uniform(0, FIELD_UM), half)
    x, y = grid(half, fx, fy)
    rho, deviation = outline(x, y, waves(rng, wobble))
    cover = soft(um * canvas.px * (1 + deviation) - rho, edge * canvas.px / 3.9)
    grain = 1 + np.float32(0.25) * _chromatin(canvas, rng, half, 0.5)
    canvas.nucleus[window] += nucleus * cover * grain
    canvas.cytoplasm[window] += cytoplasm * cover


def _chromatin(canvas: _Canvas, rng: np.random.Generator, half: int, coarse: float) -> Floats:
    """A random patch of the texture tiles, rotated and mirrored, with a standard deviation of about 1."""
    side = 2 * half + 1
    top, left = rng.integers(0, canvas.texture.shape[1] - side, 2)
    fine, clumped = np.rot90(canvas.texture[:, top : top + side, left : left + side], int(rng.integers(4)), (1, 2))
    patch = np.float32(math.sqrt(1 - coarse)) * fine + np.float32(math.sqrt(coarse)) * clumped
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    return np.asarray(patch, np.float32)


def _nucleus_distance(x: Floats, y: Floats, radius: float, kind: Kind, rng: np.random.Generator) -> Floats:
    """Signed distance to the edge of a nucleus: whole, folded or segmented."""
    lobes = int(rng.integers(kind.lobes[0], kind.lobes[1] + 1))
    if lobes > 1:
        start, distance = rng.uniform(0, 2 * math.pi), np.full_like(x, -1e3)
        for i in range(lobes):
            angle = start + i * 4.2 / lobes + rng.normal(0, 0.15)
            lobe_x, lobe_y = (0.58 * radius * f(angle) for f in (math.cos, math.sin))
            rho, deviation = outline(x - np.float32(lobe_x), y - np.float32(lobe_y), waves(rng, 0.06))
            distance = np.maximum(distance, 0.52 * radius * (1 + deviation) - rho)
        return distance
    rho, deviation = outline(x, y, waves(rng, kind.wobble))
    distance = radius * (1 + deviation) - rho
    if rng.random() < kind.cleft:
        angle = rng.uniform(0, 2 * math.pi)
        along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
        across = y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
        depth, width = radius * rng.uniform(0.75, 1.15), radius * rng.uniform(0.20, 0.34)
        # A narrow ellipse from the edge inwards. Its implicit function, scaled to pixels, approximates the distance.
        ellipse = np.sqrt(((along - radius * 1.05) / depth) ** 2 + (across / width) ** 2)
        distance = np.minimum(distance, (ellipse - 1) * width)
    return distance


def _nucleoli(x: Floats, y: Floats, radius: float, kind: Kind, rng: np.random.Generator) -> Floats:
    """Factor of the chromatin density due to nucleoli, 0.4..1."""
    left = np.ones_like(x)
    for _ in range(int(rng.integers(kind.nucleoli[0], kind.nucleoli[1] + 1))):
        angle, far = rng.uniform(0, 2 * math.pi), radius * rng.uniform(0.1, 0.6)
        dx, dy = x - np.float32(far * math.cos(angle)), y - np.float32(far * math.sin(angle))
        spot = soft(radius * rng.uniform(0.15, 0.25) - np.sqrt(dx * dx + dy * dy), 0.09 * radius)
        left *= 1 - np.float32(rng.uniform(0.45, 0.7)) * spot
    return left


def _nucleated(canvas: _Canvas, rng: np.random.Generator, body: _Body, number: int, cytoplasm: float) -> None:
    """Draw one cell over the existing content and add it to the mask."""
    cell, nucleus = body.cell / 2 * canvas.px, body.nucleus / 2 * canvas.px
    half = int(cell * 1.25) + 2
    window, fx, fy = canvas.place(body.x, body.y, half)
    x, y = grid(half, fx, fy)
    rho, deviation = outline(x, y, waves(rng, 0.035))
    membrane = cell * (1 + deviation) - rho
    angle, off = rng.uniform(0, 2 * math.pi), (cell - nucleus) * rng.uniform(0.0, 0.75)
    nx, ny = x - np.float32(off * math.cos(angle)), y - np.float32(off * math.sin(angle))
    inner = np.minimum(_nucleus_distance(nx, ny, nucleus, body.kind, rng), membrane - 0.4)

    whole, core = soft(membrane, max(0.25 * canvas.px, 1.2)), soft(inner, max(0.35 * canvas.px, 1.4))
    grain = _chromatin(canvas, rng, half, rng.uniform(*body.kind.coarse))
    chromatin = np.clip(1 + np.float32(rng.uniform(0.12, 0.30)) * grain, 0.3, 1.8)
    chromatin = chromatin * _nucleoli(nx, ny, nucleus, body.kind, rng) * np.float32(rng.normal(0.92, 0.06))
    rim = np.float32(0.75) + np.float32(0.5) * np.clip(rho / cell, 0, 1) ** 3  # cytoplasm is darker at its edge
    rim *= 1 + np.float32(0.12) * _chromatin(canvas, rng, half, 0.5)
    clear = 1 - whole
    canvas.red_cell[window] *= clear
    canvas.nucleus[window] = canvas.nucleus[window] * clear + core * chromatin
    canvas.cytoplasm[window] = canvas.cytoplasm[window] * clear + cytoplasm * rim * (whole - whole * core)
    labels = canvas.mask[window]
    labels[whole > 0.5] = 2 * number - 1
    labels[core > 0.5] = 2 * number


def _populate(rng: np.random.Generator, kind: Kind, zoom: float) -> list[_Body]:
    """Choose the nucleated cells of a field. The covered area is about the same in every class: large cells are few."""
    goal = rng.uniform(0.20, 0.36) * FIELD_UM**2
    crowding = rng.uniform(0.0, 0.8)
    bodies: list[_Body] = []
    area, tries = 0.0, 0
    while area < goal and tries < 200 and len(bodies) < 120:  # the mask has room for 127
        tries += 1
        chosen = SEGMENTED if bodies and rng.random() < 0.06 else kind
        nucleus = rng.uniform(*chosen.nucleus_um) * zoom
        cell = nucleus / rng.uniform(*chosen.ratio)
        x, y = rng.uniform(0.0, FIELD_UM, 2)
        if bodies and rng.random() < crowding:
            beside, angle = bodies[int(rng.integers(len(bodies)))], rng.uniform(0, 2 * math.pi)
            step = (beside.cell + cell) / 2 * rng.uniform(0.95, 1.1)
            x, y = beside.x + step * math.cos(angle), beside.y + step * math.sin(angle)
        if not bodies:
            x, y = rng.uniform(0.25 * FIELD_UM, 0.75 * FIELD_UM, 2)  # at least one cell is completely visible
        inside = 0.0 <= x <= FIELD_UM and 0.0 <= y <= FIELD_UM
        if inside and all(math.hypot(b.x - x, b.y - y) > 0.46 * (b.cell + cell) for b in bodies):
            bodies.append(_Body(chosen, x, y, nucleus, cell))
            area += math.pi / 4 * (nucleus**2 + cell**2) / 2
    return bodies


def _cells(mask: Pixels, bodies: list[_Body]) -> tuple[Cell, ...]:
    """The cells that are visible in the mask, with their boxes."""
    cells = []
    for number, body in enumerate(bodies, start=1):
        seen = (mask == 2 * number) | (mask == 2 * number - 1)
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        if rows.size:
            box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
            cells.append(Cell(number, body.kind.name, box))
    return tuple(cells)


def draw_field(kind: Kind, slide: Slide, size: int, texture: Floats, rng: np.random.Generator) -> Picture:
    """A smear field of ``size`` pixels with nucleated cells of one kind, segmented cells, red cells and platelets."""
    px = size / FIELD_UM
    canvas = _Canvas(size, int(_MARGIN_UM * px) + 2, px, texture)
    _red_cells(canvas, rng, slide)
    _debris(canvas, rng)
    bodies = _populate(rng, kind, slide.zoom)
    cytoplasm = rng.uniform(0.28, 0.65)
    for number, body in enumerate(bodies, start=1):
        _nucleated(canvas, rng, body, number, cytoplasm)
    mask = np.ascontiguousarray(canvas.crop(canvas.mask), np.uint8)
    return Picture(photograph(canvas.densities(), slide, rng), mask, _cells(mask, bodies))


def draw_cell(kind: Kind, slide: Slide, size: int, texture: Floats, rng: np.random.Generator) -> Picture:
    """One segmented cell on black, ``size`` pixels."""
    px = size / CELL_UM
    canvas = _Canvas(size, 2, px, texture)
    nucleus = rng.uniform(*kind.nucleus_um) * slide.zoom
    middle = CELL_UM / 2 + rng.normal(0.0, 0.15, 2)
    body = _Body(kind, middle[0], middle[1], nucleus, nucleus / rng.uniform(*kind.ratio))
    _nucleated(canvas, rng, body, 1, rng.uniform(0.5, 0.95))
    mask = np.ascontiguousarray(canvas.crop(canvas.mask), np.uint8)
    pixels = photograph(canvas.densities(), slide, rng)
    pixels[mask == 0] = 0
    return Picture(pixels, mask, _cells(mask, [body]))
