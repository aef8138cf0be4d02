"""`edgeall rig`: opens the parts of the rig, serves the page, and stops everything in order."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from PIL import Image

from ..edge_runtime.classifier import Classifier
from ..edge_runtime.errors import EdgeallError, UsageError
from ..edge_runtime.preprocess import InputSpec
from ..edge_runtime.tools.explain import explains, overlay_renderer
from ..edge_runtime.vision.cells import Box, cut_out
from . import service
from .capture.camera import open_camera
from .capture.reconnecting import ReconnectingCamera
from .capture.seen import SeenImages
from .record.lock import lock_record
from .record.record import Record
from .record.rows import Program
from .service import Watchdog
from .snapshot import Live
from .station import Station
from .web.access import Access, read_users
from .web.app import create_app
from .web.broadcast import Broadcast
from .web.certificate import certificate, names_of
from .web.guard import local_names
from .web.page import Page
from .web.pictures import Explain

DEMO_MODEL = Path(__file__).with_name("demo.tflite")
"""A model for the cells of simulated slides; trained by `edgeall.optimize.rig_demo`."""
CERTIFICATE = "page.pem"
"""In the record's folder."""
FOLDER = "folder.json"
"""In the record's folder: the files that were in a watched folder when the open slide was started."""
SIMULATED = "simulated"
ALIVE_S = 10.0
"""The watchdog counts the judging thread as hanging after this many seconds without a beat."""
STOP_S = 5
"""Time for open requests when the rig stops."""


@dataclass(frozen=True)
class Address:
    """The address where the page listens."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Only this machine can connect to it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """``HOST:PORT``, an IPv6 address in brackets. Raises UsageError for anything else."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host) or not (port.isascii() and port.isdigit()):
        raise UsageError(
            f"--listen {text}: not HOST:PORT", hint="for example 127.0.0.1:8000, or 0.0.0.0:8000 for all addresses"
        )
    if int(port) > 65535:
        raise UsageError(f"--listen {text}: the port must be at most 65535")
    return Address(bare, int(port))


def serve(
    model: Path,
    camera: str,
    record: Path,
    listen: str,
    users: Path | None,
    *,
    note: Callable[[str], None],
    opened: Callable[[str], None] = lambda address: None,
) -> None:
    """Judge what the camera sees, record it and serve the page, until SIGTERM or Ctrl-C.

    Args:
        model: a packed model.
        camera: see `open_camera`.
        record: folder of the record.
        listen: ``HOST:PORT``. Beyond loopback, ``users`` must name at least one user, and the page is served over TLS.
        users: file made by `edgeall rig-user`.
        note: shows a line to the operator.
        opened: called with the page's address once the server accepts connections.

    Raises:
        UsageError: ``listen`` is invalid, or would give access without a user.
        EdgeallError: model, camera, record or users cannot be opened, or the port is in use.
    """
    address = parse_address(listen)
    _check_users(address, users)
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    classifier = Classifier.open(model)
    program = _program(model, classifier, {"camera": camera, "listen": listen})
    if _path_of(camera) is not None:
        open_camera(camera).close()  # a mistyped path fails now; a device may be connected later
    _check_apart(camera, record)
    with Record(record, program=program) as opened_record, lock_record(record):
        tls = _prepare_tls(address, record)
        heartbeat = _Heartbeat()
        # Files that an open slide does not have yet are judged, also those that arrived while the rig was off.
        seen = SeenImages(opened_record.recorded_files(), record / FOLDER)
        watched = ReconnectingCamera(lambda: open_camera(camera, seen=seen))
        station = Station(watched, classifier, opened_record, seen=seen, on_beat=heartbeat)
        explain = _explain(model, classifier.input) if explains(classifier) else None
        page = Page(opened_record, program, station.unit, synthetic=camera == SIMULATED, explain=explain)
        app, broadcast = create_app(station, page, Access(users), tls.names, secure=tls.fingerprint is not None)
        with _listening(address) as listener:
            place = _page_address(address, listener, tls)
            watchdog = Watchdog(heartbeat.recent)

            def ready() -> None:
                note(f"the page: {place}")
                for line in tls.notes(listener.getsockname()[1]):
                    note(line)
                watchdog.start()
                opened(place)

            station.start()
            try:
                _Server(_server_config(app, address, tls), broadcast, ready).run(sockets=[listener])
            finally:
                watchdog.stop()
                station.stop()


@dataclass(frozen=True)
class _Tls:
    """How the page is served: accepted host names, and the certificate with its fingerprint; None without TLS."""

    names: frozenset[str]
    certificate: Path | None = None
    fingerprint: str | None = None

    def notes(self, port: int) -> list[str]:
        """Lines for the operator about access from other computers."""
        if self.fingerprint is None:
            return []
        return [
            f"from other computers: https://{socket.gethostname()}:{port}/, or by this computer's IP address",
            f"SHA-256 of its certificate, to compare with the browser's warning: {self.fingerprint}",
        ]


def _prepare_tls(address: Address, record: Path) -> _Tls:
    names = local_names() | {address.host.lower()}
    if address.loopback:
        return _Tls(names)
    path = record / CERTIFICATE
    fingerprint = certificate(path, names | _own_addresses())
    return _Tls(names | names_of(path), path, fingerprint)


def _program(model: Path, classifier: Classifier, settings: dict[str, str]) -> Program:
    manifest = classifier.bundle.manifest if classifier.bundle else None
    flatbuffer = classifier.bundle.flatbuffer if classifier.bundle else b""
    name = manifest.name if manifest else model.name
    return Program(name, hashlib.sha256(flatbuffer).hexdigest(), classifier.labels, settings)


def _page_address(address: Address, listener: socket.socket, tls: _Tls) -> str:
    shown = f"[{address.host}]" if ":" in address.host else address.host
    return f"{'https' if tls.certificate else 'http'}://{shown}:{listener.getsockname()[1]}/"


def _server_config(app: FastAPI, address: Address, tls: _Tls) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        address.host,
        address.port,
        http="h11",
        ws="none",
        loop="asyncio",
        ssl_certfile=str(tls.certificate) if tls.certificate else None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # a client must not choose the address that failed log-ins are counted by
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
    )


def install(model: Path, camera: str, record: Path, listen: str, users: Path | None) -> list[str]:
    """Install the same `edgeall rig` as a systemd service. Returns the commands that start and watch it.

    Raises:
        UsageError: ``listen`` would give access without a user, ``camera`` is invalid, or the service cannot write to
            ``record``.
        EdgeallError: as `edgeall.rig.service.install`.
    """
    _check_users(parse_address(listen), users)
    if not Path(os.path.abspath(record)).is_relative_to(service.STATE):
        raise UsageError(
            f"--record {record}: the service may only write below {service.STATE}",
            hint=f"use --record {service.STATE}/record",
        )
    _check_apart(camera, record)
    files = [model]
    watched = _path_of(camera)
    if watched is not None:
        open_camera(camera).close()
        camera = ("replay:" if camera.startswith("replay:") else "") + str(watched.absolute())
        files.append(watched.absolute())
    arguments = ["rig", str(model.absolute()), "--camera", camera, "--record", str(record.absolute())]
    arguments += ["--listen", listen]
    if users is not None:
        arguments += ["--users", str(users.absolute())]
        if not users.absolute().is_relative_to(service.STATE):  # files below it belong to the service
            files.append(users)
    return service.install(arguments, files)


def show(address: str) -> None:
    """Open the page in the desktop's browser, if there is a desktop."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _path_of(camera: str) -> Path | None:
    """The folder or video that ``camera`` names; None for a device."""
    if camera in (SIMULATED, "picamera2") or camera.isdigit() or camera.startswith("/dev/"):
        return None
    return Path(camera.removeprefix("replay:"))


def _check_apart(camera: str, record: Path) -> None:
    """Raises UsageError if the rig would read the images that it saves as new ones."""
    source = _path_of(camera)
    if source is None:
        return
    folder, own = source.resolve(), record.resolve()
    replayed = camera.startswith("replay:") and own.is_relative_to(folder)  # with all its subfolders
    if replayed or folder.is_relative_to(own):
        raise UsageError(
            f"--record {record} and --camera {camera}: the rig would judge the images that it saves itself",
            hint="choose a record folder outside the folder of images",
        )


def _explain(model: Path, spec: InputSpec) -> Explain:
    render = overlay_renderer(model)

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


class _Server(uvicorn.Server):
    """A server that ends the viewers' streams before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, broadcast: Broadcast[Live], ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._broadcast, self._ready = broadcast, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._broadcast.close()
        super().handle_exit(sig, frame)


def _listening(address: Address) -> socket.socket:
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address.host, address.port), family=family, backlog=128)
    except OSError as error:
        raise EdgeallError(
            f"--listen {address.host}:{address.port}: {error.strerror}", hint="choose another port or address"
        ) from error


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


def _own_addresses() -> set[str]:
    """The IP addresses that this machine's host name resolves to."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return set()
    return {str(entry[4][0]).partition("%")[0] for entry in found}


def _exit_on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    """End the program in order at SIGTERM. uvicorn raises the signal again after it has shut down."""
    raise SystemExit(0)
