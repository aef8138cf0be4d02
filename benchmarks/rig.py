"""The loop of the rig: frames/s compared with its parts, memory over many frames, the page under load.

python benchmarks/rig.py MODEL [--seconds 20] [--rounds 3] [--frames 2000] [--minutes 60] [--viewers 5] [--out FILE.md]

MODEL is a packed model. Each round measures in turn: gate, preprocess and invoke on frames in memory, in this thread
alone; then the station with a simulated camera of 1280x960 that gives 25 % more frames, while a session is recorded.
The station also registers and counts. Memory is read at
twenty checkpoints over --frames frames, or as many as --minutes allow, of a stage that visits the same places again and
again; its frames are drawn beforehand. The latency of the page is that of an `edgeall rig` process
that classifies, with --viewers of its live view. Exits with 1 when a limit is missed. The limit on memory is meant for
100,000 frames.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.preprocess import preprocess
from edgeall.edge_runtime.tools.device import describe_device, rss_bytes
from edgeall.edge_runtime.vision.frame import Frame
from edgeall.edge_runtime.vision.quality import Gate
from edgeall.rig.capture.reconnecting import ReconnectingCamera
from edgeall.rig.capture.slide import SimulatedCamera, Slide, draw_slide
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import SessionNotes
from edgeall.rig.station import Station

RATE, LATENCY_MS, MEMORY_FRAC = 0.8, 100.0, 0.05
MORE = 1.25
"""Frames drawn per frame that can be classified: there is always a newer one, and few are discarded."""
CHECKPOINTS, WARM_UP = 20, 2
"""Checkpoints of the memory run, and how many are ignored: until then memory of drawing the slide is freed."""


class Visiting(SimulatedCamera):
    """The simulated camera on a round of places; its frames are drawn beforehand, once for all cameras."""

    PLACES = 40

    def __init__(self, slide: Slide) -> None:
        super().__init__(slide, seed=1, rate=None)
        self._drawn = [super(Visiting, self).pixels(36 * place + 10).copy() for place in range(self.PLACES)]

    def pixels(self, number: int) -> Any:
        return self._drawn[number // 5 % self.PLACES]


class Resting(SimulatedCamera):
    """The simulated camera over one good field: every frame passes the gate, so that every frame is judged.

    Its frames are drawn beforehand: a camera's pictures don't take the processor that judges them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._drawn = [super(Resting, self).pixels(number).copy() for number in range(25)]

    def pixels(self, number: int) -> Any:
        return self._drawn[number % 25]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement of frames/s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=2000, help="of the memory run; 0 leaves it out")
    parser.add_argument("--minutes", type=float, default=60.0, help="longest time of the memory run")
    parser.add_argument("--viewers", type=int, default=5, help="of the page; 0 leaves it out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    slide = draw_slide(seed=0)
    rounds = [_round(arguments.model, slide, arguments.seconds) for _ in range(arguments.rounds)]
    latencies = _page(arguments.model, arguments.viewers, arguments.seconds) if arguments.viewers else {}
    memory = _memory(arguments.model, slide, arguments) if arguments.frames else []  # last: it takes longest
    page, met = report(arguments, rounds, memory, latencies)
    print(page)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if met else 1


def _camera(slide: Slide, rate: float | None = None) -> Resting:
    return Resting(slide, seed=1, rate=rate)


def _round(model: Path, slide: Slide, seconds: float) -> dict[str, float]:
    """ms of each part alone, and the station's frames/s; also the part of them that was judged."""
    stages = _alone(model, slide, seconds / 2)
    most = 1000 / sum(stages.values())
    with tempfile.TemporaryDirectory() as folder, Record(folder) as record:
        station = Station(
            ReconnectingCamera(lambda: _camera(slide, MORE * most)), Classifier.open(model, threads=1), record
        )
        station.start()
        try:
            session = station.start_session(SessionNotes(sample="benchmark"))
            _wait_for_frames(station, 20)
            before, begin = station.live(), time.perf_counter()
            time.sleep(seconds)
            after, took = station.live(), time.perf_counter() - begin
            taken = after.camera.frames - before.camera.frames
            dropped = after.camera.dropped_frames - before.camera.dropped_frames
            station.end_session()
        finally:
            station.stop()
        frames = record.summary(session).frames
    rate = (taken - dropped) / took
    judged = frames["judged"] / max(sum(frames.values()), 1)
    return {**stages, "limit": most, "rate": rate, "camera": taken / took, "judged": judged}


def _alone(model: Path, slide: Slide, seconds: float) -> dict[str, float]:
    """Mean ms of the gate, of preprocess and of invoke, one thread and nothing else running."""
    camera, gate, classifier = _camera(slide), Gate(), Classifier.open(model, threads=1)
    now = datetime.now(timezone.utc)
    frames = [Frame(camera.pixels(n), now + timedelta(seconds=n / 30), n) for n in range(25)]
    sums, count, end = np.zeros(3), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        frame = frames[count % len(frames)]
        times = [time.perf_counter()]
        gate.judge(frame)
        times.append(time.perf_counter())
        pixels = preprocess(Image.fromarray(frame.pixels), classifier.input)
        times.append(time.perf_counter())
        classifier.predict(pixels)
        times.append(time.perf_counter())
        sums += np.diff(times)
        count += 1
    return dict(zip(("gate", "preprocess", "invoke"), 1000 * sums / count, strict=True))


def _wait_for_frames(station: Station, count: int) -> None:
    number = 0
    while station.live().camera.frames < count or station.live().picture is None:
        number = station.wait(number, 1.0).number


def _memory(model: Path, slide: Slide, arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """Frames judged or refused so far, and resident bytes, at `CHECKPOINTS`, with a viewer that looks at some."""
    found, frames, most_s = [], arguments.frames, 60 * arguments.minutes
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Record(folder) as record:
        camera = ReconnectingCamera(lambda: Visiting(slide))
        station = Station(camera, Classifier.open(model, threads=1), record)
        station.start()
        try:
            station.start_session(SessionNotes(sample="benchmark"))
            number = seen = 0
            for checkpoint in range(CHECKPOINTS + 1):
                due_s = began + most_s * checkpoint / CHECKPOINTS
                while (seen < frames * checkpoint / CHECKPOINTS and time.monotonic() < due_s) or seen < 20:
                    live = station.wait(number, 1.0)
                    number = live.number
                    seen = live.camera.frames - live.camera.dropped_frames
                    if number % 10 == 0 and live.picture is not None:
                        live.picture.jpeg()
                found.append((seen, _held_bytes()))
                print(f"{seen} frames, {found[-1][1] / 1e6:.1f} MB", file=sys.stderr)
        finally:
            station.stop()
    return found


def _held_bytes() -> int:
    """The least of twenty looks: frames on their way, 4 MB each, come and go in between."""
    looks = []
    for _ in range(20):
        looks.append(rss_bytes() or 0)
        time.sleep(0.02)
    return min(looks)


def _page(model: Path, viewers: int, seconds: float) -> dict[str, list[float]]:
    """ms of each request, by what was asked for, of a rig in a process of its own, a slide being recorded.

    Every viewer does as the page's script: takes each event and fetches the picture that it names. One more person goes
    through the other pages, twice a second.
    """
    with tempfile.TemporaryDirectory() as folder:
        with Record(folder) as record:
            record.start_session(SessionNotes(sample="benchmark"))
        command = [sys.executable, "-c", "from edgeall.cli import main; main()", "rig", str(model)]
        command += ["--camera", "simulated", "--record", folder, "--listen", "127.0.0.1:0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as rig:
            try:
                assert rig.stderr is not None
                said = next(found for line in rig.stderr if (found := re.search(r"http://127.0.0.1:(\d+)/", line)))
                threading.Thread(target=rig.stderr.read, daemon=True).start()
                return _look_on(int(said[1]), viewers, seconds)
            finally:
                rig.send_signal(signal.SIGTERM)


def _look_on(port: int, viewers: int, seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"live picture": [], "/": [], "/slides": [], "/health": []}
    begin = time.monotonic() + 5.0  # the model, the slide and the page's templates are loaded by then
    end = begin + seconds

    def ask(connection: http.client.HTTPConnection, path: str, name: str) -> None:
        started = time.perf_counter()
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: status {response.status}")
        if time.monotonic() > begin:
            times[name].append(1000 * (time.perf_counter() - started))

    def view() -> None:
        stream, pictures = (http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(2))
        stream.request("GET", "/events")
        events = stream.getresponse()
        while time.monotonic() < end:
            line = events.readline()
            if line.startswith(b"data: ") and (number := json.loads(line[6:])["picture"]) is not None:
                ask(pictures, f"/live/{number}.jpg", "live picture")

    def browse() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while time.monotonic() < end:
            for path in ("/", "/slides", "/health"):
                ask(connection, path, path)
                time.sleep(0.5)

    with ThreadPoolExecutor(viewers + 1) as people:
        for done in [people.submit(browse), *(people.submit(view) for _ in range(viewers))]:
            done.result()
    return times


def report(
    arguments: argparse.Namespace,
    rounds: list[dict[str, float]],
    memory: list[tuple[int, int]],
    latencies: dict[str, list[float]],
) -> tuple[str, bool]:
    """A Markdown page, and whether every limit was met."""
    middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    ratio = statistics.median(each["rate"] / each["limit"] for each in rounds)
    checks = [("frames/s, station : parts alone", ratio, ">=", RATE)]
    if memory:
        held = [bytes_held for _, bytes_held in memory[WARM_UP:]]
        base = statistics.median(held)
        drift = max(abs(each - base) for each in held) / base
        name = f"memory, largest departure from its median, frames {memory[WARM_UP][0]:,} to {memory[-1][0]:,}"
        checks.append((name, drift, "<=", MEMORY_FRAC))
    for name, times in latencies.items():
        figure = float(np.percentile(times, 95))
        checks.append(
            (f"{name}, p95 of {len(times)} requests with {arguments.viewers} viewers, ms", figure, "<=", LATENCY_MS)
        )
    met = [figure >= limit if sign == ">=" else figure <= limit for _, figure, sign, limit in checks]
    lines = [
        "# The rig",
        "",
        f"`python benchmarks/rig.py {arguments.model.name} --seconds {arguments.seconds:g} --rounds {arguments.rounds} "
        f"--frames {arguments.frames} --viewers {arguments.viewers}`, {datetime.now(timezone.utc):%Y-%m-%d}. Simulated "
        "camera, 1280x960 (the page's: 30 frames/s), a session being recorded; one thread for the "
        "model. Medians of the rounds; the ratio is the median of their ratios.",
        "",
        f"- Alone, ms a frame: gate {middle['gate']:.2f}, preprocess {middle['preprocess']:.2f}, invoke "
        f"{middle['invoke']:.2f}: {middle['limit']:.1f} frames/s at most.",
        f"- The station: {middle['rate']:.1f} frames/s, of which {100 * middle['judged']:.1f} % passed the gate; the "
        f"camera gave {middle['camera']:.1f}.",
        "",
        "| | measured | limit | met |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {name} | {figure:.3f} | {sign} {limit:g} | {'yes' if ok else 'NO'} |"
            for (name, figure, sign, limit), ok in zip(checks, met, strict=True)
        ),
        "",
    ]
    if memory:
        lines += ["| frames | resident MB |", "| ---: | ---: |"]
        lines += [f"| {seen:,} | {held / 1e6:.1f} |" for seen, held in memory]
        lines.append("")
    lines += [f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None]
    lines.append(f"- load before: {LOAD[0]:.2f}")
    return "\n".join([*lines, ""]), all(met)


LOAD = os.getloadavg()

if __name__ == "__main__":
    sys.exit(main())
