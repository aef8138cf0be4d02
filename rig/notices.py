"""What the station tells the operator besides the verdict: problems, and notes on files and replays."""

from __future__ import annotations

from .capture.interface import SKIPPED
from .capture.reconnecting import CameraState
from .capture.seen import SeenImages
from .language import Message, message, plural


def notes(camera: CameraState, seen: SeenImages, waits: bool, asks: bool) -> tuple[str, ...]:
    """Notes that are no problem.

    Args:
        camera: its state.
        seen: of the camera, if it reads files.
        waits: the camera is a replay that waits for the start of a slide.
        asks: the operator has to say whether a slide from before a restart is continued.
    """
    found: list[str] = []
    if asks:
        found.append(
            message("nothing is recorded until you choose: continue the slide from before the restart, or end it")
        )
    elif waits:
        found.append(message("{camera} waits for the start of a slide", camera=camera.name))
    elif camera.state == "ended":
        found.append(camera.detail)
    if seen.unknown:
        found.append(
            plural(
                "{count} image in the folder is left out: it is unknown whether it was there before"
                " the slide was started; to have it judged, copy it in under another name",
                "{count} images in the folder are left out: it is unknown whether they were there before"
                " the slide was started; to have them judged, copy them in under other names",
                seen.unknown,
            )
        )
    if camera.skipped:
        found.append(
            plural(
                "{count} file could not be used and was skipped; the last one: {reason}",
                "{count} files could not be used and were skipped; the last one: {reason}",
                camera.skipped,
                reason=_skipped(camera.fault),
            )
        )
    return tuple(found)


def _skipped(fault: str) -> object:
    """The reason in the message of a skipped file; a later fault of the camera as it is."""
    return fault.values["reason"] if isinstance(fault, Message) and fault.template == SKIPPED else fault


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
        found.append(message("the disk is full: nothing is judged or recorded"))
    elif space == "no images":
        found.append(message("the disk is nearly full: images are not saved"))
    return tuple(problem for problem in found if problem)
