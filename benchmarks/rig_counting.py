"""Does the rig count each cell once? A stage that stands still, moves and comes back, with the real search for cells.

python benchmarks/rig_counting.py MODEL [--speeds 30 150 600] [--seeds 0 1] [--out FILE.md]

MODEL is a packed model of cells. For each seed a field of 2592x1944 pixels is drawn. A window of
1280x960 rests at nine places that cover it, moves in between at each of the speeds (pixels a frame), comes back to the
first place, and stands there for a minute. A station judges and records every frame. Focus and lamp drift, and every
frame has noise. Recorded different cells are compared with those that the same search finds in the whole field at once,
and with those that were drawn. Limits: `AWAY` from both; no cell more in the minute. Exits with 1 when one is missed.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command
import numpy as np
from PIL import Image

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.vision import DEFAULT_MODEL
from edgeall.edge_runtime.vision.finder import open_finder
from edgeall.edge_runtime.vision.scale import RED_CELL_UM, given_scale
from edgeall.rig.capture.reconnecting import ReconnectingCamera
from edgeall.rig.capture.slide import PX_PER_UM, Slide, draw_slide
from edgeall.rig.record.image_store import file_digest
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Limits, SessionNotes
from edgeall.rig.scales import CellSearch
from edgeall.rig.snapshot import Settings
from edgeall.rig.station import Station

AWAY = 0.10
FIELD, VIEW = (2592, 1944), (1280, 960)
SHRINK = 3
"""The slide is drawn for a 100x objective, and reduced: a red cell is 73 pixels wide, as with a 40x one."""
DRAWN, LEFT = (4800 * SHRINK, FIELD[1] * SHRINK), 1080 * SHRINK
"""Size of the slide that the field is cut from, and where: its monolayer begins at a fifth of the width."""
BLUR = 0.001
"""Largest defocus, as a fraction of the width: 0.13 micrometres, within what the quality gate lets pass."""
REST, MINUTE = 4, 60
"""Frames at each place, and of the minute at the end, in which the camera gives one frame a second."""
STAGE = runpy.run_path(str(Path(__file__).parent.parent / "tests" / "stage.py"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--speeds", type=int, nargs="+", default=[30, 150, 600], help="pixels a frame")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the fields")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[tuple[str, str, bool]] = []
    for seed in arguments.seeds:
        field = draw_field(seed)
        whole = found_at_once(field)
        for speed in arguments.speeds:
            row, met = count(arguments.model, field, speed, whole)
            rows.append((f"| {seed} | {speed} | {row}", f"{seed} {speed}", met))
            print(rows[-1][0], file=sys.stderr)
    page = report(arguments, [row for row, *_ in rows])
    print(page)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if all(met for *_, met in rows) else 1


def draw_field(seed: int) -> Slide:
    """A part of the monolayer, with the boxes of the cells that are whole in it."""
    slide, (width, height) = draw_slide(seed, size=DRAWN), (SHRINK * edge for edge in FIELD)
    pixels = np.asarray(Image.fromarray(slide.pixels[:, LEFT : LEFT + width]).reduce(SHRINK))
    boxes = (cell.box for cell in slide.cells(LEFT, 0, width, height) if cell.whole)
    return Slide(pixels, tuple((a // SHRINK, b // SHRINK, -(-c // SHRINK), -(-d // SHRINK)) for a, b, c, d in boxes))


def found_at_once(field: Slide) -> int:
    """Cells of the whole field that touch no border."""
    found = open_finder().find(field.pixels, given_scale(RED_CELL_UM * PX_PER_UM / SHRINK))
    return sum(not cell.touches_border for cell in found.cells)


def places() -> list[tuple[int, int]]:
    """Where the window rests: three rows of three, there and back; then the first place again."""
    across, down = ([0, (whole - part) // 2, whole - part] for whole, part in zip(FIELD, VIEW, strict=True))
    rows = [[(x, y) for x in (across if n % 2 == 0 else across[::-1])] for n, y in enumerate(down)]
    return [*rows[0], *rows[1], *rows[2], rows[0][0]]


def count(model: Path, field: Slide, speed: int, whole: int) -> tuple[str, bool]:
    """Counts of a tour and of the minute after it, as a row of the table, and whether the limits are met."""
    path = STAGE["tour"](places(), speed, REST)
    tour = STAGE["Stage"](field, path, VIEW, blur=BLUR)
    still = STAGE["Stage"](field, STAGE["stand"](path[-1], MINUTE), VIEW, seed=1, period_s=1.0, blur=BLUR)
    with tempfile.TemporaryDirectory() as folder, Record(folder, limits=Limits(0, 0)) as record:
        session = record_stage(model, record, tour, None)
        moved, judged = record.summary(session).counts, judged_frames(record, session)
        record_stage(model, record, still, session)
        stood = record.summary(session).counts
    drawn = len({box for number in judged for box in places_of_cells(tour, number)})
    away = [moved.cells / each - 1 for each in (whole, drawn)]
    met = max(map(abs, away)) <= AWAY and stood.cells == moved.cells
    figures = f"{len(path)}, {len(judged)} | {whole} | {drawn} | {moved.cells} | {100 * away[0]:+.1f} %"
    rest = f"{100 * away[1]:+.1f} % | {moved.fields} | {moved.patches} | {stood.cells - moved.cells:+d}"
    return f"{figures} | {rest} | {'yes' if met else 'NO'} |", met


def places_of_cells(stage: Any, number: int) -> list[tuple[int, ...]]:
    """The boxes, in the field, of the cells that are whole in a frame."""
    x, y = stage.path[number]
    return [(a + x, b + y, c + x, d + y) for a, b, c, d in stage.boxes(number)]


def judged_frames(record: Record, session: int) -> list[int]:
    """The numbers of the frames that passed the gate."""
    return [frame.row.number for frame in record.frames(session, limit=100_000) if frame.row.status == "judged"]


def record_stage(model: Path, record: Record, stage: Any, session: int | None) -> int:
    """Judge and record all frames of a stage; the slide stays open, and the next stage continues it."""
    before = record.session(session).frames if session else 0
    camera = ReconnectingCamera(lambda: STAGE["StageCamera"](stage), stall_s=600.0)
    station = Station(camera, Classifier.open(model, threads=1), record, search=CellSearch(record, open_finder()))
    station.change_settings(Settings(save="on capture"))
    station.start()
    try:
        session = session or station.start_session(SessionNotes("benchmark"))
        while record.session(session).frames < before + len(stage.path):
            station.wait(station.live().number, 1.0)
    finally:
        station.stop()
    return session


def report(arguments: argparse.Namespace, rows: list[str]) -> str:
    """A Markdown page."""
    words = f"--speeds {' '.join(map(str, arguments.speeds))} --seeds {' '.join(map(str, arguments.seeds))}"
    lines = [
        "# The count of the rig",
        "",
        f"`python benchmarks/rig_counting.py {arguments.model.name} {words}`, {datetime.now(timezone.utc):%Y-%m-%d}. "
        f"Cells are searched by `{DEFAULT_MODEL.name}`, SHA-256 {file_digest(DEFAULT_MODEL)[:12]}. A "
        f"window of {VIEW[0]}x{VIEW[1]} on drawn fields of {FIELD[0]}x{FIELD[1]}, {PX_PER_UM / SHRINK:.1f} pixels per "
        "micrometre: it rests at nine places, moves, comes back, and stands still for a minute.",
        "",
        "- at once: cells that the same search finds in the whole field",
        "- drawn: drawn cells that were whole in some frame that passed the gate",
        f"- limits: {100 * AWAY:.0f} % from both, and no cell more in the minute",
        "",
        "| field | px a frame | frames, judged | at once | drawn | counted | to at once | to drawn | fields | patches "
        "| a minute more | met |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        *rows,
        "",
        *command.machine_lines(),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
