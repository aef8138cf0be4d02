"""`edgeall rig`: opens the parts of the rig, serves the page, and stops everything in order."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from PIL import Image

from ..edge_runtime.classifier import Classifier
from ..edge_runtime.errors import UsageError
from ..edge_runtime.preprocess import numbers_text
from ..edge_runtime.tasks import ForeignFacts
from ..edge_runtime.tools.explain import explains, overlay_renderer
from ..edge_runtime.vision.cells import Box, cut_out
from ..edge_runtime.vision.finder import open_finder
from ..edge_runtime.vision.scale import given_scale
from . import service
from .capture.camera import open_camera
from .capture.reconnecting import ReconnectingCamera
from .capture.seen import SeenImages
from .judge import unit_of
from .learning.lessons import Lessons
from .learning.model import EVENT as MODEL_EVENT
from .learning.model import GIVEN, InUse, Model, model_in_use, open_model
from .optics.objectives import Objectives
from .record.lock import lock_record
from .record.record import Record
from .record.rows import Session, SessionNotes
from .scales import CellSearch
from .service import Watchdog
from .station import Station
from .web.access import Access, form_key, read_users
from .web.address import BACKLOG, Address, Reach, Tls, listening, page_address, parse_address, prepare_tls
from .web.app import create_app
from .web.connections import LimitedProtocol
from .web.page import Page
from .web.phone_app import PhoneApp
from .web.pictures import Explain
from .web.server import RigServer

DEMO_MODEL = Path(__file__).with_name("demo.tflite")
"""A model for the cells of simulated slides; trained by `edgeall.optimize.rig_demo`."""
FORM_KEY = "page.key"
"""In the record's folder: the key of the page's forms, which outlives a restart."""
COMMAND_LINE = "command line"
"""Recorded as the user who starts, continues or ends a slide by an option."""
OPEN_S = 10.0
"""Longest wait for the camera before the slide of ``--slide`` is started."""
FOLDER = "folder.json"
"""In the record's folder: the files that were in a watched folder when the open slide was started."""
SIMULATED = "simulated"
ALIVE_S = 10.0
"""The watchdog counts the judging thread as hanging after this many seconds without a beat."""
STOP_S = 5
"""Time for open requests when the rig stops."""


@dataclass(frozen=True)
class RigOptions:
    """What `edgeall rig` is started with.

    Attributes:
        model: a packed model, or a foreign one.
        camera: see `open_camera`.
        record: folder of the record.
        listen: ``HOST:PORT``. Beyond loopback, ``users`` must name at least one user, and the page is served over TLS.
        users: file made by `edgeall rig-user`.
        slide: sample id of a slide to start at once; an open slide of this sample is continued.
        exit_at_end: end the slide and the rig when a replay has ended.
        cell_model: packed segmentation model that finds the cells for a model of cells; None takes the default one.
        red_cell_px: diameter of a red cell in pixels of the camera; None measures it.
        facts: labels, normalization and input size of a foreign model.
        litertjs: npm package of the app for a phone, see `edgeall.rig.web.phone_app`; None takes it from the cache.
    """

    model: Path
    camera: str
    record: Path
    listen: str
    users: Path | None = None
    slide: str | None = None
    exit_at_end: bool = False
    cell_model: Path | None = None
    red_cell_px: float | None = None
    facts: ForeignFacts = field(default_factory=ForeignFacts)
    litertjs: Path | None = None


def serve(
    options: RigOptions, *, note: Callable[[str], None], opened: Callable[[str], None] = lambda address: None
) -> None:
    """Judge what the camera sees, record it and serve the page, until SIGTERM or Ctrl-C.

    Args:
        options: of the command line.
        note: shows a line to the operator.
        opened: called with the page's address once the server accepts connections.

    Raises:
        UsageError: ``listen`` is invalid, or would give access without a user; another slide than ``slide`` is open.
        EdgeallError: model, camera, record or users cannot be opened, or the port is in use.
    """
    address, camera, record = parse_address(options.listen), options.camera, options.record
    _check_options(address, options)
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    given = open_model(options.model, {"camera": camera, "listen": options.listen}, options.facts)
    phone = PhoneApp(options.litertjs, options.cell_model)
    with lock_record(record), Record(record, program=given.program) as opened_record:
        in_use = _model_in_use(opened_record, given, note)
        classifier = in_use.model.classifier
        tls = prepare_tls(address, record)
        heartbeat = _Heartbeat()
        # Files that an open slide does not have yet are judged, also those that arrived while the rig was off.
        seen = SeenImages(opened_record.recorded_files(), record / FOLDER)
        watched = ReconnectingCamera(lambda: open_camera(camera, seen=seen))
        search = _search(options, classifier, opened_record)
        station = Station(watched, classifier, opened_record, search=search, seen=seen, on_beat=heartbeat)
        _check_slide(options.slide, opened_record)
        page, lessons = _page(opened_record, in_use, station, synthetic=camera == SIMULATED)
        access = Access(options.users, key=form_key(record / FORM_KEY))
        reach = Reach(address.host, tls.fingerprint) if tls.fingerprint else None
        app, broadcast = create_app(
            station, page, access, tls.names, lessons=lessons, secure=bool(reach), reach=reach, phone=phone
        )
        with listening(address) as listener:
            place = page_address(address, listener, tls)
            watchdog = Watchdog(heartbeat.recent)

            def ready() -> None:
                note(f"the page: {place}")
                for line in tls.notes(listener.getsockname()[1]):
                    note(line)
                watchdog.start()
                opened(place)

            def done() -> bool:
                return options.exit_at_end and station.replay_is_done

            station.start()
            try:
                if options.slide is not None:
                    _begin_slide(options.slide, station, opened_record)
                RigServer(_server_config(app, address, tls), broadcast, listener, ready, done).run(sockets=[listener])
                if done() and station.session_id is not None:
                    note(_ended(opened_record.session(station.end_session(COMMAND_LINE))))
            finally:
                watchdog.stop()
                station.stop()


def _check_options(address: Address, options: RigOptions) -> None:
    """Raise UsageError if the page would be open to everybody, or if the camera is wrong or never ends."""
    _check_users(address, options.users)
    _check_camera(options.camera, options.record)
    if options.exit_at_end and not options.camera.startswith("replay:"):
        raise UsageError("--exit-at-end requires --camera replay:PATH", hint="other cameras do not end")


def _search(options: RigOptions, classifier: Classifier, record: Record) -> CellSearch:
    """How cells are found. A wrong model of cells fails now; a classifier of fields needs none before it is asked."""
    finder = open_finder(options.cell_model) if unit_of(classifier) == "cell" or options.cell_model else None
    given = given_scale(options.red_cell_px) if options.red_cell_px else None
    return CellSearch(record, finder, given, Objectives(record, lambda: open_finder(options.cell_model)))


def _check_slide(sample: str | None, record: Record) -> None:
    """Raise UsageError if another slide than ``--slide`` is open."""
    for session in record.open_sessions()[:1]:
        if sample is not None and session.notes.sample != sample:
            raise UsageError(
                f"--slide {sample}: the slide {session.notes.sample} is open in this record",
                hint="end it on the page, or start the rig without --slide",
            )


def _begin_slide(sample: str, station: Station, record: Record) -> None:
    """Start the slide ``--slide``, or continue it if it is open."""
    if station.live().asked_session_id is not None:
        station.continue_session(COMMAND_LINE)
    elif station.session_id is None:
        until = time.monotonic() + OPEN_S
        while not station.live().camera.works and time.monotonic() < until:  # files from before belong to no slide
            station.wait(station.live().number, 0.1)
        station.start_session(SessionNotes(sample), COMMAND_LINE)


def _ended(session: Session) -> str:
    return f"{session.notes.sample}: ended with {session.frames} frames; {session.skipped} files were skipped"


def _server_config(app: FastAPI, address: Address, tls: Tls) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        address.host,
        address.port,
        http=LimitedProtocol,
        backlog=BACKLOG,
        ws="none",
        loop="asyncio",
        ssl_certfile=str(tls.certificate) if tls.certificate else None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # a client must not choose the address that failed log-ins are counted by
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
    )


def install(options: RigOptions) -> list[str]:
    """Install the same `edgeall rig` as a systemd service. Returns the commands that start and watch it.

    ``slide`` and ``exit_at_end`` are for scripts, not for a service, and are refused.

    Raises:
        UsageError: ``listen`` would give access without a user, ``camera`` is invalid, or the service cannot write to
            ``record``.
        EdgeallError: as `edgeall.rig.service.install`.
    """
    model, camera, record = options.model, options.camera, options.record
    listen, users = options.listen, options.users
    if options.slide is not None or options.exit_at_end:
        raise UsageError("--install-service takes neither --slide nor --exit-at-end", hint="start slides on the page")
    _check_users(parse_address(listen), users)
    if not Path(os.path.abspath(record)).is_relative_to(service.STATE):
        raise UsageError(
            f"--record {record}: the service may only write below {service.STATE}",
            hint=f"use --record {service.STATE}/record",
        )
    _check_camera(camera, record)
    files = [model]
    watched = _path_of(camera)
    if watched is not None:
        camera = ("replay:" if camera.startswith("replay:") else "") + str(watched.absolute())
        files.append(watched.absolute())
    arguments = ["rig", str(model.absolute()), "--camera", camera, "--record", str(record.absolute())]
    arguments += ["--listen", listen]
    if options.cell_model is not None:
        arguments += ["--cell-model", str(options.cell_model.absolute())]
        files.append(options.cell_model)
    if options.red_cell_px is not None:
        arguments += ["--red-cell-px", f"{options.red_cell_px:g}"]
    if options.litertjs is not None:
        arguments += ["--litertjs", str(options.litertjs.absolute())]
        files.append(options.litertjs)
    told = _facts(options.facts)
    arguments += told
    files += [Path(file) for option, file in zip(told[::2], told[1::2], strict=True) if option == "--labels"]
    if users is not None:
        arguments += ["--users", str(users.absolute())]
        if not users.absolute().is_relative_to(service.STATE):  # files below it belong to the service
            files.append(users)
    return service.install(arguments, files)


def _facts(facts: ForeignFacts) -> list[str]:
    """The options that tell `edgeall rig` about a foreign model."""
    labels = None if facts.labels_file is None else os.path.abspath(facts.labels_file)
    mean, std = (None if value is None else numbers_text(value) for value in (facts.mean, facts.std))
    given = {"--labels": labels, "--mean": mean, "--std": std, "--input-size": facts.input_size}
    return [word for option, value in given.items() if value is not None for word in (option, str(value))]


def show(address: str) -> None:
    """Open the page in the desktop's browser, if there is a desktop."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _path_of(camera: str) -> Path | None:
    """The folder or video that ``camera`` names; None for a device."""
    if camera in (SIMULATED, "picamera2") or camera.isdigit() or camera.startswith("/dev/"):
        return None
    return Path(camera.removeprefix("replay:"))


def _check_camera(camera: str, record: Path) -> None:
    """Raise UsageError if the folder or video is missing, or if the rig would judge the images that it saves."""
    source = _path_of(camera)
    if source is None:  # a device may be connected later
        return
    folder, own = source.resolve(), record.resolve()
    replayed = camera.startswith("replay:") and own.is_relative_to(folder)  # with all its subfolders
    if replayed or folder.is_relative_to(own):
        raise UsageError(
            f"--record {record} and --camera {camera}: the rig would judge the images that it saves itself",
            hint="choose a record folder outside the folder of images",
        )
    open_camera(camera).close()


def _model_in_use(record: Record, given: Model, note: Callable[[str], None]) -> InUse:
    """The model to judge with. If it is not the one that the record names, the record says so from now on."""
    found = model_in_use(record, given)
    if found.is_adapted:
        record.use_program(found.model.program)
        note(f"judging with the model that the rig learned ({found.model.program.model_sha256[:12]}); see /learn")
    if found.fault:
        note(found.fault)
        detail = {"use": GIVEN, "by": COMMAND_LINE, "model_sha256": given.program.model_sha256, "why": found.fault}
        record.add_event(MODEL_EVENT, detail | {"given_sha256": given.file_sha256})
    return found


def _page(record: Record, in_use: InUse, station: Station, *, synthetic: bool) -> tuple[Page, Lessons]:
    """The pages' data, and the learning, whose switches the pages follow."""
    model = in_use.model
    page = Page(record, model.program, station.unit, synthetic=synthetic, explain=_explain(model))
    return page, Lessons(record, in_use, station.models, lambda other: page.use(other.program, _explain(other)))


def _explain(model: Model) -> Explain | None:
    """What draws the maps of a model; None for one without class-activation maps."""
    if not explains(model.classifier):
        return None
    render, spec = overlay_renderer(model.path), model.classifier.input

    def explain(field: Image.Image, box: Box | None) -> bytes:
        return render(field if box is None else cut_out(field, box, spec.width / spec.height))

    return explain


class _Heartbeat:
    """The time of the judging thread's last beat."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self) -> None:
        self._last = time.monotonic()

    def recent(self) -> bool:
        """Whether the last beat was within `ALIVE_S` seconds."""
        return time.monotonic() - self._last < ALIVE_S


def _check_users(address: Address, users: Path | None) -> None:
    if users is None:
        if not address.loopback:
            raise UsageError(
                f"--listen {address.host}: requires --users, otherwise the whole network has access",
                hint="create a user with `edgeall rig-user add NAME --users FILE`, then add --users FILE",
            )
        return
    if not read_users(users):
        raise UsageError(f"{users}: has no users", hint=f"edgeall rig-user add NAME --users {users}")


def _exit_on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    """End the program in order at SIGTERM. uvicorn raises the signal again after it has shut down."""
    raise SystemExit(0)
