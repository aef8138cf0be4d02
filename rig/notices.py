"""What the station tells the operator besides the verdict: problems, and notes on files and replays."""

from __future__ import annotations

from .capture.reconnecting import CameraState
from .capture.seen import SeenImages


def notes(camera: CameraState, seen: SeenImages, waits: bool, asks: bool) -> tuple[str, ...]:
    """Notes that are no problem.

    Args:
        camera: its state.
        seen: of the camera, if it reads files.
        waits: the camera is a replay that waits for the start of a slide.
        asks: the operator has to say whether a slide from before a restart is continued.
    """
    found = []
    if asks:
        found.append("nothing is recorded until you choose: continue the slide from before the restart, or end it")
    elif waits:
        found.append(f"{camera.name} waits for the start of a slide")
    elif camera.state == "ended":
        found.append(camera.detail)
    if seen.unknown:
        found.append(
            f"{seen.unknown} images in the folder are left out: it is unknown whether they were there before"
            " the slide was started; to have them judged, copy them in under other names"
        )
    if camera.skipped:
        files = "1 file" if camera.skipped == 1 else f"{camera.skipped} files"
        found.append(
            f"{files} could not be used and {'was' if camera.skipped == 1 else 'were'} skipped; the last one: "
            f"{camera.fault.removeprefix('skipped: ')}"
        )
    return tuple(found)


def problems(camera: CameraState, space: str, *others: str) -> tuple[str, ...]:
    """Messages about what does not work; empty if everything does.

    Args:
        camera: its state.
        space: one of `edgeall.rig.record.rows.SPACES`.
        others: of judging and recording; empty texts are left out.
    """
    found = list(others)
    if not camera.works:
        found.append(camera.detail)
    if space == "full":
        found.append("the disk is full: nothing is judged or recorded")
    elif space == "no images":
        found.append("the disk is nearly full: images are not saved")
    return tuple(problem for problem in found if problem)
