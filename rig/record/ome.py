"""Export of a slide's fields as OME-TIFF: pixels without further loss, their size, and the place on the slide's map.

Source: OME data model and OME-TIFF specification, schema 2016-06.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...edge_runtime.errors import EdgeallError, ImageError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.manifest import RESEARCH_USE
from .count import image_of_field
from .found import Found
from .record import Record
from .rows import Session
from .slide_scale import slide_scale


def export_fields(record: Record, session_id: int, folder: Path) -> int:
    """Write ``field-N.ome.tif`` for each counted field whose image was saved; returns their number.

    Args:
        record: the record.
        session_id: the slide.
        folder: exists.

    Raises:
        RecordError: no such session.
        EdgeallError: tifffile is not installed.
    """
    session, written = record.session(session_id), 0
    known = slide_scale(record, session)
    scale = known.um_per_px if known else None
    for field in record.found(session_id).fields.values():
        digest = image_of_field(record, session_id, field.id) if field.counts else None
        path = record.image_path(digest) if digest else None
        if path is not None:
            written += _write(path, folder / f"field-{field.id}.ome.tif", _metadata(session, field, scale))
    return written


def _metadata(session: Session, field: Found, scale: float | None) -> dict[str, Any]:
    stain, magnification = (text or "not given" for text in (session.notes.stain, session.notes.magnification))
    facts: dict[str, Any] = {
        "axes": "YXS",
        "Name": f"{session.notes.sample}, field {field.id}",
        "Description": (
            f"{RESEARCH_USE}. Slide {session.id}, patch {field.patch} at {field.x}, {field.y} px;"
            f" stain: {stain}; magnification: {magnification}; edgeall {session.software}"
        ),
        "AcquisitionDate": session.started[:19],
    }
    if scale is not None:
        size = {"PhysicalSizeX": scale, "PhysicalSizeY": scale}
        units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
        place = {"PositionX": [field.x * scale], "PositionY": [field.y * scale]}
        facts |= size | units | {"Plane": place | {"PositionXUnit": ["µm"], "PositionYUnit": ["µm"]}}
    return facts


def _write(source: Path, target: Path, metadata: dict[str, Any]) -> int:
    try:
        import tifffile
    except ImportError as error:
        raise EdgeallError("OME-TIFF needs tifffile", hint='install it with pip install "edgeall[rig]"') from error
    try:
        with open_rgb(source) as image:
            pixels = np.asarray(image)
    except ImageError:  # damaged: reported by `edgeall record verify`
        return 0
    tifffile.imwrite(target, pixels, ome=True, photometric="rgb", compression="zlib", metadata=metadata)
    return 1
