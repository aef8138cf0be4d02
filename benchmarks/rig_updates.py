"""Kills during updates: of the model on a device, of the model that a rig runs, and of a record's schema.

Used by `rig_load.py`. In each part a process is killed at a random moment, with SIGKILL and with all that it started:

- Deploy: `edgeall.deploy.release.deploy` onto a device that is a folder of this machine: every command runs in its
  `sh`, as ssh would run it. Half of the kills are around the switch of the release. Afterwards the device must serve
  the old or the new release, whole, and the new one if the deploy was acknowledged.
- Switch: a rig's record in which a learned model and the given one take turns, with a slide after each switch.
  Afterwards the rig must find the model of the last switch, every acknowledged row must be there, and every slide must
  name the model that judged it.
- Schema: a record of format 1 is opened by a version with more formats. The last of them is this benchmark's own: two
  columns and two indexes, so that there is something to interrupt. Afterwards the record must have the old format or
  the new one, the same head, and no problem once it is opened again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeall.console.progress import Progress
from edgeall.deploy.environment import Install
from edgeall.deploy.on_device import COMPLETE
from edgeall.deploy.package import environment_name
from edgeall.deploy.release import Deployed, deploy, rollback
from edgeall.deploy.shell import Finished, Line, ask
from edgeall.edge_runtime.adaptation.adapt import AdaptConfig, adapt
from edgeall.rig.capture.seen import SeenImages
from edgeall.rig.judge import Judge
from edgeall.rig.learning.model import ADAPTED, EVENT, GIVEN, ModelSwitch, model_in_use, open_model
from edgeall.rig.open_slide import OpenSlide
from edgeall.rig.record import chain
from edgeall.rig.record.check import check
from edgeall.rig.record.lock import lock_record
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import FrameRow, Limits, SessionNotes
from edgeall.rig.scales import CellSearch
from edgeall.rig.serve import DEMO_MODEL

TESTS = Path(__file__).parent.parent / "tests"
ROWS = 20_000
"""Of the record whose schema is updated."""
NEXT_FORMAT = (
    "ALTER TABLE entries ADD COLUMN taken TEXT GENERATED ALWAYS AS (json_extract(row, '$.taken')) VIRTUAL",
    "ALTER TABLE entries ADD COLUMN field INTEGER GENERATED ALWAYS AS (json_extract(row, '$.field_id')) VIRTUAL",
    "CREATE INDEX entries_taken ON entries (taken)",
    "CREATE INDEX entries_of_field ON entries (session, field)",
)
Row = tuple[str, str, str, bool]
"""What was measured, the figure, the limit, whether it was met."""


def update_kills(count: int, folder: Path) -> list[Row]:
    """``count`` kills of each kind of update, in an empty folder."""
    models = _models(folder / "models", 4)
    chance = random.Random(count)
    return [
        *_deploys(count, folder / "device", models, chance),
        *_switches(count, folder / "switch", models, chance),
        *_schemas(count, folder / "schema", chance),
    ]


def _models(folder: Path, count: int) -> list[Path]:
    """The demo's model, and files of one that another laboratory adapted: its weights differ, and each has a digest."""
    folder.mkdir(parents=True)
    site = runpy.run_path(str(TESTS / "drawn_sites.py"))["draw_site"](folder / "site", (10, 10, 10, 3))
    adapted = adapt(AdaptConfig(DEMO_MODEL, site, folder / "adapted.tflite", by="benchmark")).out
    repack = runpy.run_path(str(TESTS / "fixtures_packed.py"))["repack"]
    return [DEMO_MODEL, *(repack(adapted, folder / f"{n}.tflite", pad=100_000 * n) for n in range(1, count))]


@contextmanager
def _child(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A child of this file with a process group of its own; killed whole at the end of the block."""
    command = [sys.executable, __file__, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # not waited for yet: the group still exists


def _say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


# Deploy


class Here:
    """A device that is a folder of this machine, as a `Shell`. ``tells``: prints when it activates a release."""

    def __init__(self, home: Path, tells: bool = False) -> None:
        self.name, self._tells = "device", tells
        self._environment = {"HOME": str(home), "PATH": f"{home / 'bin'}:/usr/bin:/bin"}

    def run(self, command: str, stdin: Iterable[bytes] = (), on_stderr: Line | None = None) -> Finished:
        """Run a command in ``sh``."""
        if self._tells and " publish " in command:
            _say("publishing")
        pipe = subprocess.PIPE
        with subprocess.Popen(
            ["/bin/sh", "-c", command], stdin=pipe, stdout=pipe, stderr=pipe, env=self._environment
        ) as process:
            out, err = process.communicate(b"".join(stdin))
        return Finished(process.returncode, out.decode(), err.decode())


def _make_device(home: Path) -> Path:
    """A device with a Python and an environment of edgeall, as an install leaves one. Returns the wheel."""
    (home / "bin").mkdir(parents=True)
    wheel = home / "edgeall-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"only its name and digest are looked at: its environment is there")
    environment = home / ".edgeall" / "env" / environment_name(wheel)
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    for program, content in (
        (home / "bin" / "python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'),
        (
            environment / "bin" / "edgeall",
            f"#!{environment}/bin/python\nimport sys\nfrom edgeall.cli import main\n\nsys.exit(main())\n",
        ),
    ):
        program.write_text(content)
        program.chmod(0o755)
    (environment / COMPLETE).write_text("")
    return wheel


def _deploy(home: Path, wheel: Path, model: Path, tells: bool = False) -> Deployed:
    return deploy(Here(home, tells), model, Progress(quiet=True), Install(wheel))


def _deploys(count: int, home: Path, models: list[Path], chance: random.Random) -> list[Row]:
    wheel = _make_device(home)
    _deploy(home, wheel, models[0])
    whole_s, publish_s = _times_of_deploy(home, wheel, models[1])
    broken = acknowledged = switched = 0
    active = digest(models[1])
    for number in range(count):
        model = models[(number + 2) % len(models)]
        with _child("deploy", home, wheel, model) as process:
            assert process.stdout is not None
            if number % 2:  # around the switch
                process.stdout.readline()
                time.sleep(chance.uniform(0, 1.3 * publish_s))
            else:
                time.sleep(chance.uniform(0.1, 1.1 * whole_s))
            os.killpg(process.pid, signal.SIGKILL)
            said = "deployed" in process.stdout.read()
        acknowledged += said
        problem, serves = _device_problem(home, {digest(model)} if said else {active, digest(model)})
        switched += serves == digest(model) != active
        active = serves
        broken += bool(problem)
        print(f"deploy {number + 1}: acknowledged {said}, {problem or 'whole'}", file=sys.stderr)
    last = _deploy(home, wheel, models[2])
    back = rollback(Here(home), "python3")
    works = last.current.sha256 == digest(models[2]) and back.current.sha256 != last.current.sha256
    name = (
        f"devices that serve no whole release, or not the acknowledged one, after {count} kills of a deploy "
        f"({switched} of them after the switch, {acknowledged} acknowledged)"
    )
    return [
        (name, str(broken), "0", broken == 0),
        ("a last deploy and its rollback are verified on the device", "yes" if works else "no", "yes", works),
    ]


def _times_of_deploy(home: Path, wheel: Path, model: Path) -> tuple[float, float]:
    """Seconds of a whole deploy, and of its last step, which activates the release."""
    began = time.monotonic()
    with _child("deploy", home, wheel, model) as process:
        assert process.stdout is not None
        process.stdout.readline()
        publishing = time.monotonic()
        process.stdout.readline()
        return time.monotonic() - began, time.monotonic() - publishing


def _device_problem(home: Path, allowed: set[str]) -> tuple[str, str]:
    """What is wrong with the active release, or with the one for a rollback; and the digest of the active model."""
    current = home / ".edgeall" / "current"
    try:
        serves = digest(current / "model.tflite")
        about = json.loads((current / "release.json").read_text())
        previous = ask(Here(home), "python3", "status")["previous"]
        for folder, found in ((current, about), (home / ".edgeall" / "releases" / previous["release"], previous)):
            if digest(folder / "model.tflite") != found["sha256"] or not (folder / "env" / COMPLETE).exists():
                return f"{folder}: not whole", serves
    except (OSError, ValueError, TypeError, KeyError) as error:
        return repr(error), ""
    return ("" if serves in allowed else f"serves {serves}"), serves


def digest(file: Path) -> str:
    """Hex SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


# Switch


def switch_for_ever(folder: Path, learned: list[Path]) -> None:
    """Judge slides with the given and with learned models in turn; prints each acknowledged row."""
    given = open_model(DEMO_MODEL, {})
    with lock_record(folder), Record(folder, program=given.program, limits=Limits(0, 0)) as record:
        in_use = model_in_use(record, given)
        if in_use.is_adapted:
            record.use_program(in_use.model.program)
        _say("opened", in_use.fault or "-")
        slide = OpenSlide(record, SeenImages(), lambda: 0)
        switch = ModelSwitch(Judge(in_use.model.classifier, CellSearch(record), None, record), slide, record)
        if slide.session_id is not None:
            slide.end("benchmark", lambda: None)
        is_given, number = not in_use.is_adapted, 0
        while True:
            session = slide.start(SessionNotes(f"slide {number}"), "benchmark")
            row = FrameRow(datetime.now(timezone.utc), number, "judged", label="Pre", probability=0.9)
            frame = record.add_frame(session, row, os.urandom(20_000))
            _say("slide", session, record.model_sha256, frame, record.frame(frame).image)
            slide.end("benchmark", lambda: None)
            model = open_model(learned[number % len(learned)], {}) if is_given else given
            use = ADAPTED if is_given else GIVEN
            detail = {"use": use, "model_sha256": model.program.model_sha256, "given_sha256": given.file_sha256}
            switch.use(model, {**detail, "by": "benchmark"}, model.path.read_bytes() if is_given else None)
            is_given, number = not is_given, number + 1
            _say("switched", use, model.file_sha256)


def _switches(count: int, folder: Path, models: list[Path], chance: random.Random) -> list[Row]:
    lost = wrong = acknowledged = 0
    given = open_model(DEMO_MODEL, {})
    for number in range(count):
        with _child("switch", folder, *models[1:]) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(chance.randrange(0, 12))]
            time.sleep(chance.uniform(0, 0.05) if said else chance.uniform(0.5, 3.0))
            os.killpg(process.pid, signal.SIGKILL)
            said += process.stdout.readlines()
        facts = [line.split() for line in said if line.endswith("\n")]
        acknowledged += sum(words[0] in ("slide", "switched") for words in facts)
        wrong += any(words[0] == "opened" and words[1] != "-" for words in facts)
        with Record(folder, limits=Limits(0, 0)) as record:
            lost += sum(not _is_there(record, words) for words in facts)
            switches = record.events(3, kind=EVENT)
            found = model_in_use(record, given)
            expected = GIVEN if not switches else switches[0].detail["use"]
            right = not found.fault and found.is_adapted == (expected == ADAPTED)
            right &= not found.is_adapted or found.model.file_sha256 == switches[0].image
            last = [words for words in facts if words[0] == "switched"][-1:]
            right &= all(words[1:] in [_named(each, given.file_sha256) for each in switches[:2]] for words in last)
            wrong += not right
        print(f"switch {number + 1}: {acknowledged} acknowledged, {lost} lost, {wrong} wrong", file=sys.stderr)
    misnamed, slides = _misnamed(folder, given.program.model_sha256)
    problems = check(folder).problems
    name = f"acknowledged slides, frames and switches lost, of {acknowledged}, after {count} kills of a switching rig"
    return [
        (name, str(lost), "0", lost == 0),
        ("starts after them with another model than that of the last switch", str(wrong), "0", wrong == 0),
        (f"slides, of {slides}, that name another model than that in use", str(misnamed), "0", misnamed == 0),
        ("problems of the record of switches", str(len(problems)), "0", not problems),
    ]


def _named(event: Any, given_sha256: str) -> list[str]:
    return [event.detail["use"], event.image or given_sha256]


def _is_there(record: Record, words: list[str]) -> bool:
    if words[0] != "slide":
        return True
    session, model, frame, image = words[1:]
    found = record.frame(int(frame))
    kept = str(found.image) == image and record.image_path(image) is not None
    return kept and record.session(int(session)).model_sha256 == model


def _misnamed(folder: Path, given: str) -> tuple[int, int]:
    """Slides whose model is not that of the last switch before them, and how many slides there are."""
    used, wrong, slides = given, 0, 0
    with Record(folder, limits=Limits(0, 0)) as record, chain.reading(folder) as database:
        for kind, text in database.execute("SELECT kind, row FROM entries ORDER BY number"):
            row = json.loads(text)
            if kind == "event" and row["event"] == EVENT:
                used = row["detail"]["model_sha256"]
            elif kind == "session":
                slides += 1
                wrong += record.session(row["number"]).model_sha256 != used
    return wrong, slides


# Schema


def migrate(folder: Path) -> None:
    """Open a record with a version that knows one format more."""
    chain.MIGRATIONS = (*chain.MIGRATIONS, NEXT_FORMAT)
    _say("migrating")
    with Record(folder, limits=Limits(0, 0)):
        _say("migrated")


def _schemas(count: int, folder: Path, chance: random.Random) -> list[Row]:
    old = folder / "old"
    with Record(old, limits=Limits(0, 0)) as record:
        session = record.start_session(SessionNotes("before"))
    with closing(chain.open_writer(old)) as database, chain.appending(database, old / chain.DATABASE):
        for number in range(ROWS):
            row = {"session": session, "taken": chain.now(), "status": "judged", "field_id": number // 60}
            chain.append(database, "frame", row | {"camera_frame": number, "cells": [], "image": None})
    head = check(old).head
    with closing(sqlite3.connect(old / chain.DATABASE)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA user_version = 1")
    whole_s = _time_of_migration(old, folder / "timed")
    formats, bad = {1: 0, len(chain.MIGRATIONS) + 1: 0}, 0
    known, chain.MIGRATIONS = chain.MIGRATIONS, (*chain.MIGRATIONS, NEXT_FORMAT)
    try:
        for number in range(count):
            copy = folder / str(number)
            shutil.copytree(old, copy)
            with _child("schema", copy) as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(chance.uniform(0, 1.3 * whole_s))
                os.killpg(process.pid, signal.SIGKILL)
                said = "migrated" in process.stdout.read()
            problem = _schema_problem(copy, head, said, formats)
            bad += bool(problem)
            print(f"schema {number + 1}: acknowledged {said}, {formats}, {problem or 'intact'}", file=sys.stderr)
            shutil.rmtree(copy)
    finally:
        chain.MIGRATIONS = known
    name = (
        f"records of {ROWS:,} frames not intact after {count} kills of the update of their schema "
        f"({formats[1]} left in the old format, the others in the new one)"
    )
    return [(name, str(bad), "0", bad == 0)]


def _time_of_migration(old: Path, copy: Path) -> float:
    shutil.copytree(old, copy)
    with _child("schema", copy) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        process.stdout.readline()
        return time.monotonic() - began


def _schema_problem(folder: Path, head: str, acknowledged: bool, formats: dict[int, int]) -> str:
    with closing(sqlite3.connect(folder / chain.DATABASE)) as database:
        version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version not in formats or (acknowledged and version == 1):
        return f"format {version}"
    formats[version] += 1
    with Record(folder, limits=Limits(0, 0)) as record:
        if sum(record.summary(record.open_sessions()[0].id).frames.values()) != ROWS:
            return "frames are lost"
    found = check(folder, head)
    return str(found.problems[0]) if found.problems else "" if found.head == head else "another head"


CHILDREN: dict[str, Callable[[list[Path]], object]] = {
    "deploy": lambda paths: _say("deployed", _deploy(*paths, tells=True).current.sha256),
    "switch": lambda paths: switch_for_ever(paths[0], paths[1:]),
    "schema": lambda paths: migrate(*paths),
}

if __name__ == "__main__":
    CHILDREN[sys.argv[1]]([Path(word) for word in sys.argv[2:]])
