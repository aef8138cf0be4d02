"""`edgeall rig`: everything opened, started, served, and stopped again in order."""

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
from PIL import Image

from ..edge_runtime.classifier import Classifier
from ..edge_runtime.errors import EdgeallError, UsageError
from ..edge_runtime.explain import explains, on_demand
from ..edge_runtime.preprocess import InputSpec
from ..edge_runtime.vision.cells import Box, cut_out
from . import service
from .capture.camera import KeptOpen, SeenImages, open_camera
from .record.lock import sole_rig
from .record.record import Program, Record
from .service import Watchdog
from .station import Live, Station
from .web.access import Access, read_users
from .web.app import create_app
from .web.broadcast import Broadcast
from .web.certificate import certificate, names_of
from .web.guard import local_names
from .web.page import Page
from .web.pictures import Explain

DEMO_MODEL = Path(__file__).with_name("demo.tflite")
"""Of the cells of simulated slides; `edgeall.optimize.rig_demo` makes it."""
CERTIFICATE = "page.pem"
"""In the record's folder."""
FOLDER = "folder.json"
"""In the record's folder: what lay in a watched folder when the open slide was begun."""
SIMULATED = "simulated"
ALIVE_S = 10.0
"""The judging thread may be silent so long before the watchdog is told that something is wrong."""
STOP_S = 5
"""For requests that are under way when the rig is told to stop."""


@dataclass(frozen=True)
class Address:
    """Where the page listens."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Nobody but this machine gets there."""
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
        raise UsageError(f"--listen {text}: not HOST:PORT", hint="such as 127.0.0.1:8000, or 0.0.0.0:8000 for all")
    if int(port) > 65535:
        raise UsageError(f"--listen {text}: there is no port {port}")
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
    """Judge what the camera sees, keep a record and serve the page, until SIGTERM or Ctrl-C.

    Args:
        model: a packed model.
        camera: as `open_camera` takes it.
        record: folder of the record.
        listen: ``HOST:PORT``; beyond loopback ``users`` must name somebody, and the page is served over TLS.
        users: file of `edgeall rig-user`.
        note: shows a line to whoever started it.
        opened: called with the page's address once it can be asked for.

    Raises:
        UsageError: ``listen`` makes no sense, or would let in everybody.
        EdgeallError: model, camera, record or users can't be opened, or the port is taken.
    """
    address = parse_address(listen)
    _check_users(address, users)
    signal.signal(signal.SIGTERM, _terminated)
    classifier = Classifier.open(model)
    manifest = classifier.bundle.manifest if classifier.bundle else None
    flatbuffer = classifier.bundle.flatbuffer if classifier.bundle else b""
    name, digest = manifest.name if manifest else model.name, hashlib.sha256(flatbuffer).hexdigest()
    program = Program(name, digest, classifier.labels, {"camera": camera, "listen": listen})
    if _path_of(camera) is not None:
        open_camera(camera).close()  # a path mistyped is an error now; a camera may come later
    _check_apart(camera, record)
    with Record(record, program=program) as kept, sole_rig(record):
        names = local_names() | {address.host.lower()}
        fingerprint = None
        if not address.loopback:
            fingerprint = certificate(record / CERTIFICATE, names | _own_addresses())
            names |= names_of(record / CERTIFICATE)
        beat = _Beat()
        # An open slide's files go on with those that it doesn't have, also those that came while nobody watched.
        seen = SeenImages(kept.held(), record / FOLDER)
        watched = KeptOpen(lambda: open_camera(camera, seen=seen))
        station = Station(watched, classifier, kept, seen=seen, on_beat=beat)
        watchdog = Watchdog(beat.recent)
        page = Page(
            kept,
            model=name,
            model_sha256=digest,
            labels=classifier.labels,
            unit=station.unit,
            synthetic=camera == SIMULATED,
            explain=_explain(model, classifier.input) if explains(classifier) else None,
        )
        app, broadcast = create_app(station, page, Access(users), names, secure=fingerprint is not None)
        tls = str(record / CERTIFICATE) if fingerprint else None
        config = uvicorn.Config(
            app,
            address.host,
            address.port,
            http="h11",
            ws="none",
            loop="asyncio",
            ssl_certfile=tls,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # whoever asks can't say from where
            server_header=False,
            timeout_graceful_shutdown=STOP_S,
        )
        with _listening(address) as listener:
            port = listener.getsockname()[1]
            shown = f"[{address.host}]" if ":" in address.host else address.host
            place = f"{'https' if tls else 'http'}://{shown}:{port}/"

            def ready() -> None:
                note(f"the page: {place}")
                if fingerprint is not None:
                    note(f"from other computers: https://{socket.gethostname()}:{port}/, or by this one's address")
                    note(f"its certificate's SHA-256, to compare at the browser's warning: {fingerprint}")
                watchdog.start()
                opened(place)

            station.start()
            try:
                _Server(config, broadcast, ready).run(sockets=[listener])
            finally:
                watchdog.stop()
                station.stop()


def install(model: Path, camera: str, record: Path, listen: str, users: Path | None) -> list[str]:
    """Have systemd run the same `edgeall rig`; returns the commands that start and watch it.

    Raises:
        UsageError: ``listen`` would let in everybody, ``camera`` is none, or ``record`` is where a service can't write.
        EdgeallError: as `edgeall.rig.service.install`.
    """
    _check_users(parse_address(listen), users)
    if not Path(os.path.abspath(record)).is_relative_to(service.STATE):
        raise UsageError(
            f"--record {record}: the service may write to {service.STATE} alone",
            hint=f"--record {service.STATE}/record",
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
        if not users.absolute().is_relative_to(service.STATE):  # what lies there becomes the service's own
            files.append(users)
    return service.install(arguments, files)


def show(address: str) -> None:
    """Open the page in this desktop's browser; where there is no desktop, nothing happens."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _path_of(camera: str) -> Path | None:
    """The folder or video that it names; None for a device."""
    if camera in (SIMULATED, "picamera2") or camera.isdigit() or camera.startswith("/dev/"):
        return None
    return Path(camera.removeprefix("replay:"))


def _check_apart(camera: str, record: Path) -> None:
    """Raises UsageError where the rig would take the images that it records for new ones."""
    source = _path_of(camera)
    if source is None:
        return
    folder, own = source.resolve(), record.resolve()
    replayed = camera.startswith("replay:") and own.is_relative_to(folder)  # with all its subfolders
    if replayed or folder.is_relative_to(own):
        raise UsageError(
            f"--record {record} and --camera {camera}: the rig would judge the images that it keeps itself",
            hint="keep the record beside the images, not among them",
        )


def _explain(model: Path, spec: InputSpec) -> Explain:
    drawn = on_demand(model)

    def explained(field: Image.Image, box: Box | None) -> bytes:
        return drawn(field if box is None else cut_out(field, box, spec.width / spec.height))

    return explained


class _Beat:
    """When the judging thread last gave a sign of life."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self) -> None:
        self._last = time.monotonic()

    def recent(self) -> bool:
        """Within `ALIVE_S`."""
        return time.monotonic() - self._last < ALIVE_S


class _Server(uvicorn.Server):
    """Ends the viewers' streams before it waits for connections to close."""

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
                f"--listen {address.host}: would let in everybody on the network",
                hint="make a user with `edgeall rig-user add NAME --users FILE`, and give --users FILE",
            )
        return
    if not read_users(users):
        raise UsageError(f"{users}: names nobody", hint=f"edgeall rig-user add NAME --users {users}")


def _own_addresses() -> set[str]:
    """This machine's, as far as its name leads to them."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return set()
    return {str(entry[4][0]).partition("%")[0] for entry in found}


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM ends the program in order, whatever it is doing: uvicorn hands the signal on when it is done."""
    raise SystemExit(0)
