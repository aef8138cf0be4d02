"""Fixtures for the rig: a station on a simulated slide with the model of the demo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fixtures_models import grainy_image
from venvs import HANG_S

if TYPE_CHECKING:
    from fastapi import FastAPI

    from edgeall.edge_runtime.classifier import Classifier
    from edgeall.rig.capture.interface import Camera
    from edgeall.rig.capture.slide import Slide
    from edgeall.rig.learning.lessons import Lessons
    from edgeall.rig.record.record import Record
    from edgeall.rig.snapshot import Live
    from edgeall.rig.station import Station
    from edgeall.rig.web.access import Access
    from edgeall.rig.web.broadcast import Broadcast
    from edgeall.rig.web.pictures import Explain

PASSWORDS = {"olga": "operates the rig", "viktor": "looks at the rig"}
ROLES = {"olga": "operate", "viktor": "view"}
TAKEN = datetime(2026, 11, 21, 10, tzinfo=timezone.utc)


@dataclass
class Rig:
    """A rig without a server: its parts, and ways to fill its record."""

    record: Record
    station: Station
    access: Access
    app: FastAPI
    broadcast: Broadcast[Live]
    lessons: Lessons

    def session(self, sample: str = "S-1") -> int:
        """Start a slide."""
        from edgeall.rig.record.rows import SessionNotes

        return self.station.start_session(SessionNotes(sample, "olga", "Wright", "100x oil"))

    def frame(self, session: int, seed: int = 0, **facts: Any) -> int:
        """Record a frame with an image; by default it is judged as Pre."""
        from io import BytesIO

        from edgeall.rig.record.rows import FrameRow

        image = BytesIO()
        grainy_image(seed, (640, 480)).save(image, "JPEG")
        labels = {"label": "Pre", "probability": 0.9, "probabilities": {"Benign": 0.1, "Pre": 0.9}}
        row = FrameRow(taken=TAKEN, number=seed, **({"status": "judged", **labels} | facts))
        return self.record.add_frame(session, row, image.getvalue())


@pytest.fixture(scope="session")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Olga may operate, Viktor may view."""
    from edgeall.rig.web.access import add_user

    path = tmp_path_factory.mktemp("users") / "users.json"
    with quick_hashes():
        for name, password in PASSWORDS.items():
            add_user(path, name, ROLES[name], password)
    return path


@contextmanager
def quick_hashes() -> Iterator[None]:
    """Argon2 with little memory and time."""
    from argon2 import PasswordHasher

    from edgeall.rig.web import access

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "PasswordHasher", lambda: PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        yield


@cache
def demo_classifier() -> Classifier:
    """The demo's model; one station at a time runs it."""
    from edgeall.edge_runtime.classifier import Classifier
    from edgeall.rig.serve import DEMO_MODEL

    return Classifier.open(DEMO_MODEL, threads=1)


@cache
def demo_slide() -> Slide:
    """The slide of the demo, which takes two seconds to draw."""
    from edgeall.rig.capture.slide import draw_slide

    return draw_slide(seed=0)


def build_rig(
    folder: Path,
    users: Path | None = None,
    secure: bool = False,
    *,
    model_sha256: str = "0" * 64,
    unit: str = "field",
    explain: Explain | None = None,
    camera: Callable[[], Camera] | None = None,
) -> Rig:
    """A rig over the simulated slide, not started. Without ``users`` everyone has access. Close its record."""
    from edgeall.rig.capture.reconnecting import ReconnectingCamera
    from edgeall.rig.capture.slide import SimulatedCamera
    from edgeall.rig.learning.lessons import Lessons
    from edgeall.rig.learning.model import InUse, Model
    from edgeall.rig.record.image_store import file_digest
    from edgeall.rig.record.record import Record
    from edgeall.rig.record.rows import Program
    from edgeall.rig.serve import DEMO_MODEL
    from edgeall.rig.station import Station
    from edgeall.rig.web.access import Access
    from edgeall.rig.web.app import create_app
    from edgeall.rig.web.guard import local_names
    from edgeall.rig.web.page import Page

    classifier = demo_classifier()
    program = Program("demo", "0" * 64, classifier.labels)
    record = Record(folder, program=program)
    station = Station(ReconnectingCamera(camera or (lambda: SimulatedCamera(demo_slide()))), classifier, record)
    page = Page(record, replace(program, model_sha256=model_sha256), unit, synthetic=True, explain=explain)
    with quick_hashes():
        access = Access(users)
    given = Model(DEMO_MODEL, file_digest(DEMO_MODEL), classifier, program)
    lessons = Lessons(record, InUse(given, given), station.models, lambda model: page.use(model.program, None))
    app, broadcast = create_app(station, page, access, local_names(), lessons=lessons, secure=secure)
    return Rig(record, station, access, app, broadcast, lessons)


CALM = """
import sys
from edgeall.cli import main
from edgeall.rig.capture.slide import SimulatedCamera

read = SimulatedCamera.read

def one_of_seven(camera, timeout_s):
    camera._rate = 30 / 7
    frame = read(camera, timeout_s)
    camera._number += 6
    return frame

SimulatedCamera.read = one_of_seven
sys.exit(main(sys.argv[1:]))
"""
"""The program with one frame of seven. The slide moves as always; the cores have time for the page and other tests."""


class Served:
    """`edgeall rig` in a process of its own, over a simulated slide. See `CALM`."""

    def __init__(self, folder: Path, *options: object, listen: str = "127.0.0.1:0") -> None:
        self.folder = folder
        command = [sys.executable, "-c", CALM]
        arguments = ["rig", "--demo", "--record", folder / "record", "--listen", listen, *options]
        environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)], stderr=subprocess.PIPE, text=True, cwd=folder, env=environment
        )
        assert self.process.stderr is not None
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("the page: "):
                self.address = line.removeprefix("the page: ").strip().rstrip("/")
                return
        raise AssertionError("".join(self.said))

    def stop(self) -> int:
        """SIGTERM, as systemd does it; gives the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(HANG_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """`build_rig` with a temporary folder; closed at the end."""
    made: list[Rig] = []

    def make(users: Path | None = None, **settings: Any) -> Rig:
        made.append(build_rig(tmp_path / f"record-{len(made)}", users, **settings))
        return made[-1]

    yield make
    for rig in made:
        rig.record.close()
