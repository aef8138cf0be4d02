"""Objectives: calibration of the scale, flat field and white balance."""

from __future__ import annotations

import time
from typing import Annotated, Literal
from urllib.parse import urlencode

import numpy as np
from anyio.to_thread import run_sync
from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from numpy.typing import NDArray

from ..language import N_
from ..optics.micrometer import measure_ruling
from ..optics.objectives import MICROMETER, RED_CELLS, Calibration, check_objective
from ..optics.red_cells import measure_red_cells
from ..record.rows import MAX_TEXT
from ..snapshot import StationError, encode_jpeg
from .context import Context, Rig
from .display import ruler

PICTURES = 3
"""Successive pictures that a red-cell calibration uses."""
EMPTY_PICTURES = 5
"""Successive pictures of an empty field: their median has less noise."""
NEXT_S = 3.0
"""Longest wait for one more picture; a folder may have only one."""
_QUALITY = 85
Name = Annotated[str, Form(max_length=MAX_TEXT)]

routes = APIRouter()


@routes.get("/objectives", response_class=HTMLResponse)
def objectives(
    request: Request,
    rig: Rig,
    shown: Annotated[str, Query(max_length=MAX_TEXT)] = "",
    done: Literal["", "scale", "flat", "removed"] = "",
) -> HTMLResponse:
    """What is stored for each objective, and the live picture with the scale bar of one of them."""
    stored = rig.station.objectives
    current = shown or stored.current()
    scales = {each.objective: each for each in stored.scales()}
    empty = {each.objective: each for each in stored.empty_fields()}
    return rig.page.html(
        request,
        "objectives.html",
        scales=scales,
        empty=empty,
        names=sorted(scales.keys() | empty.keys()),
        current=current,
        chosen=scales.get(current),
        bar=ruler(scales[current]) if current in scales else None,
        done=done,
        used=rig.station.settings.flat_field,
    )


@routes.get("/objectives/picture.jpg")
async def picture(rig: Rig) -> Response:
    """The camera's current picture, without correction."""
    found = rig.station.live().picture
    if found is None:
        return RedirectResponse("/static/dark.svg", 303)
    jpeg = await run_sync(encode_jpeg, found.camera_pixels, _QUALITY)
    return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "no-store"})


@routes.post("/objectives/micrometer")
def micrometer(
    request: Request,
    rig: Rig,
    objective: Name,
    division_um: Annotated[float, Form(gt=0, le=1000, allow_inf_nan=False)],
) -> RedirectResponse:
    """Measure the divisions of a stage micrometer in the current picture, and store the scale."""
    check_objective(objective)
    _refuse_while_counting(rig)
    (pixels,) = _pictures(rig, 1)
    ruling = measure_ruling(pixels)
    measured = ruling.to_json() | {"division_um": division_um}
    return _store(request, rig, objective, ruling.um_per_px(division_um), MICROMETER, pixels, measured)


@routes.post("/objectives/red-cells")
def red_cells(request: Request, rig: Rig, objective: Name) -> RedirectResponse:
    """Measure the red cells in the current pictures, and store the scale."""
    check_objective(objective)
    pictures = _pictures(rig, PICTURES)
    um_per_px, measured = measure_red_cells(rig.station.objectives.open_finder(), pictures)
    return _store(request, rig, objective, um_per_px, RED_CELLS, pictures[0], measured)


@routes.post("/objectives/flat-field")
def flat_field(request: Request, rig: Rig, objective: Name) -> RedirectResponse:
    """Store the flat field and white balance from the current pictures of an empty field."""
    check_objective(objective)
    _refuse_while_counting(rig)
    pictures = _pictures(rig, EMPTY_PICTURES)
    rig.station.objectives.store_empty_field(objective.strip(), pictures, rig.page.user(request).name)
    return _back(objective, "flat")


@routes.post("/objectives/remove")
def remove(
    request: Request, rig: Rig, objective: Name, what: Annotated[Literal["scale", "flat field"], Form()]
) -> RedirectResponse:
    """Stop using the scale or the flat field of an objective. The record keeps what was stored."""
    stored, by = rig.station.objectives, rig.page.user(request).name
    (stored.forget_scale if what == "scale" else stored.forget_empty_field)(objective, by)
    return _back(objective, "removed")


def _store(
    request: Request,
    rig: Context,
    objective: str,
    um_per_px: float,
    method: str,
    pixels: NDArray[np.uint8],
    measured: dict[str, object],
) -> RedirectResponse:
    size = pixels.shape[1], pixels.shape[0]
    user = rig.page.user(request).name
    rig.station.objectives.calibrate(
        Calibration(objective.strip(), um_per_px, method, size, by=user, measured=measured)
    )
    return _back(objective, "scale")


def _back(objective: str, done: str) -> RedirectResponse:
    return RedirectResponse(f"/objectives?{urlencode({'shown': objective.strip(), 'done': done})}", 303)


def _refuse_while_counting(rig: Context) -> None:
    """A micrometer or an empty field does not belong to a slide."""
    if rig.station.session_id is not None and not rig.station.settings.paused:
        raise StationError("a slide is being recorded", hint="pause or end it first")


def _pictures(rig: Context, count: int) -> list[NDArray[np.uint8]]:
    """Successive pictures of the camera, uncorrected and of one size; fewer than ``count`` if it gives no more.

    Raises:
        StationError: there is no picture.
    """
    live = rig.station.live()
    if live.picture is None:
        raise StationError("there is no picture", hint=live.camera.detail or N_("wait for the camera"))
    found, until = [live.picture], time.monotonic() + NEXT_S
    while len(found) < count and time.monotonic() < until:
        live = rig.station.wait(live.number, NEXT_S)
        if live.picture is None:
            break
        if live.picture is found[-1]:
            continue  # a snapshot without a new frame
        until = time.monotonic() + NEXT_S
        if live.picture.camera_pixels.shape == found[0].camera_pixels.shape:
            found.append(live.picture)
    return [each.camera_pixels for each in found]
