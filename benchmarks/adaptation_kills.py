"""Kills during adaptation: of `edgeall adapt`, of a rig that learns from reviews, of a rig that switches its model.

python benchmarks/adaptation_kills.py [--kills 200] [--out FILE.md]

A third of the kills each, with SIGKILL, at random moments:

- Adapt: the command on drawn cells, half of the time over an output that is there. Half of the kills are in its last
  step, which writes and verifies the file. Afterwards the output must be absent, or the file before, or the new one, as
  verified on a device; the new one if the command had ended. The parent and the images must be unchanged. A last run
  must succeed and leave no file but its output.
- Learn and switch: an `edgeall rig` process is driven over its page. After each kill the record must verify, continue
  its older head, and name the model that was acknowledged. The next rig on it must start with this model: its slide
  names it, and the cells of a field that it judges have the answers of this model and of no other that was learned. It
  must also have removed what the interrupted learning left.

Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import command
from PIL import Image, PngImagePlugin
from rig_updates import TESTS, Row, digest

from edgeall import cli
from edgeall.edge_runtime.adaptation import write as writing
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.pipeline import prediction
from edgeall.edge_runtime.tools.golden import check_golden
from edgeall.edge_runtime.vision.cells import crop
from edgeall.rig.capture.slide import draw_slide
from edgeall.rig.learning.lessons import FOLDER, IDLE, LEARNING, OFFERED
from edgeall.rig.learning.model import ADAPTED, GIVEN, last_switch, model_in_use, open_model
from edgeall.rig.record.check import check
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import Limits
from edgeall.rig.serve import DEMO_MODEL

CELLS = (10, 10, 10, 3)
"""Drawn cells of each class, of the site."""
FIELD = (1280, 960)
"""Pixels of the field that each rig judges."""
HANG_S = 120.0
SAME = 1e-5
"""Difference of two probabilities of one model: the record rounds nothing, JSON keeps them."""


class Moment:
    """Random moments around the end of something whose duration changes with the load of the machine.

    Args:
        chance: draws them.
        seconds: duration of what is to be killed.
    """

    def __init__(self, chance: random.Random, seconds: float) -> None:
        self._chance, self._longest_s = chance, 1.3 * seconds

    def wait(self) -> None:
        """Sleep until the next moment."""
        time.sleep(self._chance.uniform(0, self._longest_s))

    def seen(self, has_ended: bool) -> None:
        """Whether it had ended: a third of the kills shall come too late."""
        self._longest_s *= 0.8 if has_ended else 1.12


def kills(count: int, folder: Path) -> list[Row]:
    """``count`` kills in an empty folder, a third of them of each kind."""
    chance = random.Random(count)
    adapts = count // 3
    return [*adapt_kills(adapts, folder / "adapt", chance), *rig_kills(count - adapts, folder / "rig", chance)]


# Adapt


def adapt_child(model: str, site: str, out: str, by: str) -> None:
    """`edgeall adapt` that says when it begins to write, and when it has ended."""
    write = writing.atomic_write

    def told(path: Path) -> Any:
        os.write(1, b"writing\n")
        return write(path)

    writing.atomic_write = told  # type: ignore[assignment]
    if cli.main(["adapt", model, "--data", site, "--out", out, "--by", by, "--force"]) == 0:
        os.write(1, b"adapted\n")


@contextmanager
def _adapting(*words: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, __file__, "adapt", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def adapt_kills(count: int, folder: Path, chance: random.Random) -> list[Row]:
    """Kills of `edgeall adapt`."""
    model, site, out = _site(folder)
    files = {path: digest(path) for path in (model, *site.rglob("*.png"))}
    whole, write = (Moment(chance, seconds) for seconds in _times(model, site, out))
    older = out.read_bytes()
    states = {"absent": 0, "before": 0, "new": 0}
    bad = changed = most = ended = 0
    before: str | None = "timed"
    for number in range(count):
        if number % 4 < 2:
            out.unlink(missing_ok=True)
            before = None
        elif before is None:
            out.write_bytes(older)
            before = "timed"
        by = f"kill {number}"
        with _adapting(model, site, out, by) as process:
            assert process.stdout is not None
            moment, said = (write, process.stdout.readline()) if number % 2 else (whole, "")
            moment.wait()
            process.kill()
            said += process.stdout.read()
        has_ended = "adapted\n" in said
        moment.seen(has_ended)
        ended += has_ended
        found, problem = _adapted_by(out, model)
        allowed = {by} if has_ended else {by, before}
        bad += bool(problem) or found not in allowed
        states["absent" if found is None else "new" if found == by else "before"] += 1
        before = found
        changed += {path: digest(path) for path in (model, *site.rglob("*.png"))} != files
        most = max(most, len(set(out.parent.iterdir()) - {out}))
        print(f"adapt {number + 1}: {states}, {problem or 'whole'}, {most} other files", file=sys.stderr)
    with _adapting(model, site, out, "last") as process:
        assert process.stdout is not None
        said = process.stdout.read()
    works = "adapted\n" in said and _adapted_by(out, model) == ("last", "") and list(out.parent.iterdir()) == [out]
    name = (
        f"outputs neither absent nor whole, or not the acknowledged one, after {count} kills of `edgeall adapt` "
        f"({states['absent']} absent, {states['before']} the file before, {states['new']} new, {ended} acknowledged)"
    )
    return [
        (name, str(bad), "0", bad == 0),
        ("kills after which the parent or an image of the site differs", str(changed), "0", changed == 0),
        ("most files beside the output after a kill: a lock and an unfinished file", str(most), "<= 2", most <= 2),
        ("a last adaptation is verified and alone in its folder", "yes" if works else "no", "yes", works),
    ]


def _site(folder: Path) -> tuple[Path, Path, Path]:
    """A parent, drawn cells of another laboratory, and the path of the output."""
    from drawn_sites import draw_site

    site = draw_site(folder / "site", CELLS)
    model, out = folder / "parent.tflite", folder / "out" / "adapted.tflite"
    model.write_bytes(DEMO_MODEL.read_bytes())
    out.parent.mkdir()
    return model, site, out


def _times(model: Path, site: Path, out: Path) -> tuple[float, float]:
    """Seconds of a whole adaptation, and of its last step."""
    began = time.monotonic()
    with _adapting(model, site, out, "timed") as process:
        assert process.stdout is not None
        process.stdout.readline()
        writing = time.monotonic()
        process.stdout.readline()
        return time.monotonic() - began, time.monotonic() - writing


def _adapted_by(out: Path, parent: Path) -> tuple[str | None, str]:
    """Who adapted the file, which is opened as on a device; None without one. And what is wrong with it."""
    if not out.exists():
        return None, ""
    try:
        bundle = open_bundle(out)
        wrong = [one.describe() for one in check_golden(Classifier.from_bundle(bundle, threads=1)) if not one.ok]
        assert bundle.manifest is not None
        entry = bundle.manifest.lineage[-1]
    except Exception as error:
        return "?", repr(error)
    if entry["parent_sha256"] != digest(parent):
        return entry["by"], "another parent"
    return entry["by"], str(wrong[0]) if wrong else ""


# The rig


class Rig:
    """An `edgeall rig` process on a watched folder, as its page's reader drives it."""

    def __init__(self, record: Path, camera: Path) -> None:
        words = ["rig", DEMO_MODEL, "--camera", camera, "--record", record, "--listen", "127.0.0.1:0"]
        program = [sys.executable, "-m", "edgeall", *map(str, words)]
        self.process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)  # does nothing once it has ended
        assert self.process.stderr is not None
        self.said = ""
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"the page: http://127.0.0.1:(\d+)/", line):
                self.port = int(found[1])
                break
        else:
            raise SystemExit(f"the rig did not start:\n{self.said}")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self._headers = {"accept": "text/html"}
        page, cookie = self._ask("GET", "/")
        found = re.search(r'name="csrf" content="([^"]+)"', page)
        assert found is not None, page
        self._headers |= {"cookie": cookie, "x-csrf-token": found[1]}

    def _ask(self, method: str, path: str, body: str = "") -> tuple[str, str]:
        headers = self._headers | ({"content-type": "application/x-www-form-urlencoded"} if method == "POST" else {})
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        if answer.status not in (200, 303):
            raise SystemExit(f"{method} {path}: {answer.status}\n{text}")
        return text, (answer.getheader("set-cookie") or "").partition(";")[0]

    def post(self, path: str, **form: object) -> None:
        """Send a form. Raises OSError or HTTPException if the rig ends meanwhile."""
        self._ask("POST", path, urlencode(form, doseq=True))

    def phase(self) -> str:
        """Of the learning."""
        return str(json.loads(self._ask("GET", "/learn/state")[0])["phase"])

    def learned(self, slides: list[int]) -> None:
        """Learn, and wait for the offer."""
        self.post("/learn", slide=slides)
        while (phase := self.phase()) == LEARNING:
            time.sleep(0.02)
        if phase != OFFERED:
            raise SystemExit(f"no model is offered: {phase}")

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()


@dataclass
class _Seen:
    """What was found so far.

    Attributes:
        models: the classifiers by the digest of their flatbuffer: the given one, and those that were learned.
        head: of the record after the last kill.
        use: `GIVEN` or `ADAPTED`: the model that the record names.
        acknowledged, lost, unheard: switches.
        altered: kills after which the record has a problem.
        wrong: starts with another model than that of the last switch.
        misjudged, judged: slides.
        left: starts that left files of an interrupted learning.
        learning: kills while the rig learned; of the others the model was offered.
    """

    models: dict[str, Classifier] = field(default_factory=dict)
    head: str = ""
    use: str = GIVEN
    acknowledged: int = 0
    lost: int = 0
    unheard: int = 0
    altered: int = 0
    wrong: int = 0
    misjudged: int = 0
    judged: int = 0
    left: int = 0
    learning: int = 0


def rig_kills(count: int, folder: Path, chance: random.Random) -> list[Row]:
    """Kills of a rig that learns, and of one that switches its model."""
    record, camera = folder / "record", folder / "camera"
    camera.mkdir(parents=True)
    slides = _reviewed(record)
    given = open_model(DEMO_MODEL, {})
    seen = _Seen({given.program.model_sha256: given.classifier}, check(record).head)
    learn, switch = (Moment(chance, seconds) for seconds in _times_of_rig(record, camera, slides))
    seen.head = check(record).head
    for number in range(count):
        rig = _start(record, camera, number, seen)
        if number % 2:
            _kill_switching(rig, record, slides[: 1 + number // 2 % 2], switch, seen)
        else:
            rig.post("/learn", slide=slides)
            learn.wait()
            phase = rig.phase()
            rig.kill()
            learn.seen(phase != LEARNING)
            seen.learning += phase == LEARNING
            _check_record(record, {seen.use}, seen)
        print(f"rig {number + 1}: {seen.use}, {vars(seen) | {'models': len(seen.models)}}", file=sys.stderr)
    _start(record, camera, count, seen).kill()
    problems = check(record, seen.head).problems
    return _rows(count, seen, len(problems))


def _rows(count: int, seen: _Seen, problems: int) -> list[Row]:
    learning, starts = (count + 1) // 2, count + 1
    done = f"{seen.acknowledged} acknowledged, {seen.unheard} recorded and not acknowledged"
    name = f"acknowledged switches lost, after {count - learning} kills of a switching rig ({done})"
    return [
        (name, str(seen.lost), "0", seen.lost == 0),
        (
            f"records with a problem or without their older head, after these and {learning} kills of a learning rig "
            f"({seen.learning} while it learned, the others when the model was offered)",
            str(seen.altered + problems),
            "0",
            seen.altered + problems == 0,
        ),
        (f"starts, of {starts}, with another model than the record's", str(seen.wrong), "0", seen.wrong == 0),
        (
            f"slides, of {seen.judged}, whose cells have not the answers of this model alone, of {len(seen.models)}",
            str(seen.misjudged),
            "0",
            seen.misjudged == 0,
        ),
        ("starts that left files of an interrupted learning", str(seen.left), "0", seen.left == 0),
    ]


def _reviewed(record: Path) -> list[int]:
    """Two slides with reviews, in a new record."""
    from reviewed_slide import reviewed_slide

    with Record(record, limits=Limits(0, 0)) as opened:
        return [
            reviewed_slide(opened, [0, 1, 2] * 8 + [3] * 2, sample=f"reviewed {seed}", seed=seed) for seed in (1, 2)
        ]


def _times_of_rig(record: Path, camera: Path, slides: list[int]) -> tuple[float, float]:
    """Seconds of learning and of a switch."""
    rig = Rig(record, camera)
    began = time.monotonic()
    rig.learned(slides)
    learned = time.monotonic()
    rig.post("/learn/use")
    used = time.monotonic()
    rig.post("/learn/back")
    rig.process.send_signal(signal.SIGTERM)
    rig.process.wait()
    return learned - began, used - learned


def _start(record: Path, camera: Path, number: int, seen: _Seen) -> Rig:
    """A rig that judges a slide of one field with the model that the record names; what differs is counted."""
    with Record(record, create=False, limits=Limits(0, 0)) as opened:
        switch = last_switch(opened)
    expected = next(iter(seen.models)) if switch is None or seen.use == GIVEN else switch.detail["model_sha256"]
    rig = Rig(record, camera)
    told = f"the model that the rig learned ({expected[:12]})"
    seen.wrong += (told in rig.said) != (seen.use == ADAPTED) or "cannot be used" in rig.said
    seen.left += (record / FOLDER).exists() or rig.phase() != IDLE or any((record / "incoming").iterdir())
    rig.post("/slides", sample=f"after {number}")
    _save_field(camera / f"{number}.png", number)
    with Record(record, create=False, limits=Limits(0, 0)) as opened:
        until = time.monotonic() + HANG_S
        (session,) = (each for each in opened.sessions() if each.ended is None)
        while not (frames := opened.frames(session.id)):
            if time.monotonic() > until:
                raise SystemExit("the rig judged no frame")
            time.sleep(0.02)
        rig.post("/slides/end", session=session.id)
    answers = [cell["probabilities"] for cell in frames[0].row.cells]
    boxes = [tuple(cell["box"]) for cell in frames[0].row.cells]
    same = [name for name, model in seen.models.items() if _answers(model, camera / f"{number}.png", boxes, answers)]
    seen.judged += 1
    seen.misjudged += not answers or same != [expected]
    seen.wrong += session.model_sha256 != expected
    return rig


def _save_field(path: Path, number: int) -> None:
    """The same pixels each time, in a file of another digest."""
    field = Image.fromarray(_drawn())
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", str(number))
    part = path.with_name(f".{path.name}")
    field.save(part, "PNG", pnginfo=text)
    part.rename(path)


@cache
def _drawn() -> Any:
    width, height = FIELD
    return draw_slide(seed=0, size=(1400, 1000)).pixels[:height, :width]


def _answers(model: Classifier, field: Path, boxes: list[Any], answers: list[dict[str, float]]) -> bool:
    """Whether these are the model's answers to the cells of a field."""
    with Image.open(field) as image:
        image = image.convert("RGB")
    found = [prediction(model, "cell", model.infer(crop(image, box, model.input))).probabilities for box in boxes]
    return all(
        abs(one[label] - other[label]) < SAME
        for one, other in zip(found, answers, strict=True)
        for label in model.labels
    )


def _kill_switching(rig: Rig, record: Path, slides: list[int], moment: Moment, seen: _Seen) -> None:
    """Kill a rig that switches: to a learned model, or back to the given one."""
    wanted = GIVEN if seen.use == ADAPTED else ADAPTED
    if wanted == ADAPTED:
        rig.learned(slides)
    heard: list[bool] = []

    def switch() -> None:
        try:
            rig.post("/learn/use" if wanted == ADAPTED else "/learn/back")
            heard.append(True)
        except (OSError, HTTPException):
            pass

    thread = threading.Thread(target=switch)
    thread.start()
    moment.wait()
    rig.kill()
    thread.join()
    moment.seen(bool(heard))
    seen.acknowledged += bool(heard)
    before = seen.use
    _check_record(record, {wanted} if heard else {wanted, seen.use}, seen)
    seen.unheard += not heard and seen.use != before


def _check_record(record: Path, allowed: set[str], seen: _Seen) -> None:
    """Look at the record after a kill."""
    found = check(record, seen.head)
    seen.altered += bool(found.problems)
    seen.head = found.head
    given = open_model(DEMO_MODEL, {})
    with Record(record, create=False, limits=Limits(0, 0)) as opened:
        switch, in_use = last_switch(opened), model_in_use(opened, given)
    use = GIVEN if switch is None else str(switch.detail["use"])
    seen.lost += use not in allowed
    seen.wrong += bool(in_use.fault) or in_use.is_adapted != (use == ADAPTED)
    seen.use = use
    if in_use.is_adapted:
        seen.models[in_use.model.program.model_sha256] = in_use.model.classifier


def report(count: int, rows: list[Row], seconds: float) -> str:
    """A Markdown page."""
    lines = [
        "# Kills during adaptation",
        "",
        f"`python benchmarks/adaptation_kills.py --kills {count}`, {datetime.now(timezone.utc):%Y-%m-%d},"
        f" {seconds / 60:.0f} minutes.",
        "",
        "| | measured | limit | met |",
        "| --- | ---: | ---: | --- |",
        *(f"| {name} | {figure} | {limit} | {'yes' if met else 'NO'} |" for name, figure, limit, met in rows),
        "",
        *command.machine_lines(),
    ]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        rows = kills(arguments.kills, Path(name))
    page = report(arguments.kills, rows, time.monotonic() - began)
    print(page)
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if all(met for *_, met in rows) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["adapt"]:
        adapt_child(*sys.argv[2:])
    else:
        sys.path.append(str(TESTS))  # drawn cells, and slides of them
        sys.exit(main())
