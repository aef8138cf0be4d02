"""The loop of the rig: frames/s compared with its parts, memory over many frames, the page under load.

python benchmarks/rig.py MODEL [--seconds 20] [--rounds 3] [--core N] [--frames 2000] [--minutes 60] [--shrink 4]
    [--viewers 5] [--out FILE.md]

MODEL is a packed model. Each round measures in turn: gate, preprocess and invoke, or gate, search for cells and their
classification for a model of cells, on frames in memory, in this thread alone; then the station with a simulated camera
of 1280x960 that gives 25 % more frames, while a session is recorded. The station also registers, counts, records and
publishes. --core measures both on one core. The ratio is measured twice: of frames/s, and of processor time per frame,
which other work on the machine disturbs less.

Memory is read at twenty checkpoints over --frames frames, or as many as --minutes allow, of a stage that visits forty
places again and again and rests for thirty frames at each. Its frames are drawn beforehand, --shrink times smaller than
1280x960, and the station asks for each. The cells of each place are searched once, and then repeated.

The latency of the page is that of an `edgeall rig` process that classifies, with --viewers of its live view.
Exits with 1 when a limit is missed. The limits on memory are meant for 100,000 frames.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import command
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.preprocess import preprocess
from edgeall.edge_runtime.tools.device import rss_bytes
from edgeall.edge_runtime.vision import cells
from edgeall.edge_runtime.vision.finder import Found, open_finder
from edgeall.edge_runtime.vision.frame import Frame
from edgeall.edge_runtime.vision.quality import Gate
from edgeall.edge_runtime.vision.scale import Scale
from edgeall.rig.capture.interface import SIZE, NoFrameError
from edgeall.rig.capture.reconnecting import ReconnectingCamera
from edgeall.rig.capture.slide import SimulatedCamera, Slide, draw_slide
from edgeall.rig.judge import unit_of
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import SessionNotes
from edgeall.rig.scales import FRAMES, CellSearch
from edgeall.rig.station import Station

RATE, LATENCY_MS, MEMORY_FRAC = 0.8, 100.0, 0.05
MORE = 1.25
"""Frames drawn per frame that can be classified: there is always a newer one, and few are discarded."""
CHECKPOINTS, WARM_UP = 20, 2
"""Checkpoints of the memory run, and how many are ignored: until then memory of drawing the slide is freed."""

VIEWER_S = 0.05
"""Interval of the viewer of the memory run."""


class Visiting(SimulatedCamera):
    """The simulated camera on a round of places; its frames are drawn beforehand.

    Args:
        slide: see `SimulatedCamera`.
        shrink: its frames are this many times smaller.
        asked: released for each frame that is wanted.
    """

    PLACES, DWELL = 40, 30

    def __init__(self, slide: Slide, shrink: int, asked: threading.Semaphore) -> None:
        super().__init__(slide, seed=1, rate=None)
        self._asked = asked
        width, height = SIZE[0] // shrink, SIZE[1] // shrink
        whole = (Image.fromarray(super(Visiting, self).pixels(36 * place + 10)) for place in range(self.PLACES))
        self._drawn = [np.asarray(each.resize((width, height), Image.Resampling.BOX)) for each in whole]

    def read(self, timeout_s: float) -> Frame:
        """Return the next frame when it is asked for. Raises NoFrameError if it is not."""
        if not self._asked.acquire(timeout=timeout_s):
            raise NoFrameError("no frame was asked for")
        return super().read(timeout_s)

    def pixels(self, number: int) -> Any:
        return self._drawn[number // self.DWELL % self.PLACES]


class Repeating:
    """A finder of cells that searches each frame once, and then gives what it has found there.

    The search takes most of the processor time of a frame, and keeps nothing between frames.
    """

    def __init__(self) -> None:
        self._finder = open_finder()
        self._found: dict[tuple[bytes, Scale | None], Found] = {}

    def find(self, pixels: NDArray[np.uint8], scale: Scale | None = None, /) -> Found:
        """See `edgeall.edge_runtime.vision.finder.Finder`."""
        key = pixels[::16, ::16].tobytes(), scale
        if key not in self._found:
            self._found[key] = self._finder.find(pixels, scale)
        return self._found[key]


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
    parser.add_argument("--rounds", type=int, default=3, help="of frames/s; 0 leaves them out")
    parser.add_argument("--core", type=int, help="measure frames/s on this core alone")
    parser.add_argument("--frames", type=int, default=2000, help="of the memory run; 0 leaves it out")
    parser.add_argument("--minutes", type=float, default=60.0, help="longest time of the memory run")
    parser.add_argument("--shrink", type=int, default=1, help="of the frames of the memory run")
    parser.add_argument("--viewers", type=int, default=5, help="of the page; 0 leaves it out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    slide = draw_slide(seed=0)
    with _on_core(arguments.core):
        rounds = [_round(arguments.model, slide, arguments.seconds) for _ in range(arguments.rounds)]
    latencies = _page(arguments.model, arguments.viewers, arguments.seconds) if arguments.viewers else {}
    memory = _memory(arguments.model, slide, arguments) if arguments.frames else []  # last: it takes longest
    page, met = report(arguments, rounds, memory, latencies)
    print(page)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if met else 1


@contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """This process runs on one core; None: on all. Threads that are started meanwhile as well."""
    cores = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _camera(slide: Slide, rate: float | None = None) -> Resting:
    return Resting(slide, seed=1, rate=rate)


def _round(model: Path, slide: Slide, seconds: float) -> dict[str, float]:
    """ms of each part alone, and the station's frames/s; also the part of them that was judged."""
    stages, alone_ms = _alone(model, slide, seconds / 2)
    most = 1000 / sum(stages.values())
    with tempfile.TemporaryDirectory() as folder, Record(folder) as record:
        station = Station(
            ReconnectingCamera(lambda: _camera(slide, MORE * most)), Classifier.open(model, threads=1), record
        )
        station.start()
        try:
            session = station.start_session(SessionNotes(sample="benchmark"))
            _wait_for_frames(station, 20)
            before, begin, used = station.live(), time.perf_counter(), time.process_time()
            time.sleep(seconds)
            after, took, used = station.live(), time.perf_counter() - begin, time.process_time() - used
            taken = after.camera.frames - before.camera.frames
            dropped = after.camera.dropped_frames - before.camera.dropped_frames
            station.end_session()
        finally:
            station.stop()
        frames = record.summary(session).frames
    rate = (taken - dropped) / took
    judged = frames["judged"] / max(sum(frames.values()), 1)
    own_ms = 1000 * used / max(taken - dropped, 1)
    found = {"limit": most, "rate": rate, "camera": taken / took, "judged": judged}
    return {**stages, **found, "alone_ms": alone_ms, "station_ms": own_ms}


def _alone(model: Path, slide: Slide, seconds: float) -> tuple[dict[str, float], float]:
    """Mean ms of each part, one thread and nothing else running; and ms of processor time of all of them."""
    camera, gate, classifier = _camera(slide), Gate(), Classifier.open(model, threads=1)
    now = datetime.now(timezone.utc)
    frames = [Frame(camera.pixels(n), now + timedelta(seconds=n / 30), n) for n in range(25)]
    with tempfile.TemporaryDirectory() as folder, Record(folder) as record:
        names, parts = _parts(classifier, CellSearch(record))
        for frame in frames[: FRAMES + 1]:  # opens the finder, and learns the scale, as the station has by then
            parts(frame.pixels, [])
        sums, count, end, used = np.zeros(len(names) + 1), 0, time.perf_counter() + seconds, time.process_time()
        while time.perf_counter() < end:
            frame = frames[count % len(frames)]
            times = [time.perf_counter()]
            gate.judge(frame)
            times.append(time.perf_counter())
            parts(frame.pixels, times)
            sums += np.diff(times)
            count += 1
        used = time.process_time() - used
    return dict(zip(("gate", *names), 1000 * sums / count, strict=True)), 1000 * used / count


Part = Callable[[NDArray[np.uint8], list[float]], None]


def _parts(classifier: Classifier, search: CellSearch) -> tuple[tuple[str, str], Part]:
    """Names of what follows the gate; and what does it to a frame's pixels, and appends the time after each."""

    def judge_field(pixels: NDArray[np.uint8], times: list[float]) -> None:
        small = preprocess(Image.fromarray(pixels), classifier.input)
        times.append(time.perf_counter())
        classifier.predict(small)
        times.append(time.perf_counter())

    def judge_cells(pixels: NDArray[np.uint8], times: list[float]) -> None:
        found = search.find(pixels)
        times.append(time.perf_counter())
        image = Image.fromarray(pixels)
        for cell in found.cells:
            if not cell.touches_border:
                classifier.predict(cells.crop(image, cell.box, classifier.input))
        times.append(time.perf_counter())

    if unit_of(classifier) == "cell":
        return ("cells", "invoke"), judge_cells
    return ("preprocess", "invoke"), judge_field


def _wait_for_frames(station: Station, count: int) -> None:
    number = 0
    while station.live().camera.frames < count or station.live().picture is None:
        number = station.wait(number, 1.0).number


def _memory(model: Path, slide: Slide, arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """Frames judged or refused so far, and resident bytes, at `CHECKPOINTS`, with a viewer that looks at some."""
    found, frames, most_s = [], arguments.frames, 60 * arguments.minutes
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Record(folder) as record:
        asked = threading.Semaphore(1)  # the next frame is there when one was judged
        camera = ReconnectingCamera(lambda: Visiting(slide, arguments.shrink, asked))
        classifier, search = Classifier.open(model, threads=1), CellSearch(record, Repeating())
        station = Station(camera, classifier, record, search=search, on_beat=asked.release)
        station.start()
        try:
            station.start_session(SessionNotes(sample="benchmark"))
            seen = 0
            for checkpoint in range(CHECKPOINTS + 1):
                due_s = began + most_s * checkpoint / CHECKPOINTS
                while (seen < frames * checkpoint / CHECKPOINTS and time.monotonic() < due_s) or seen < 20:
                    time.sleep(VIEWER_S)
                    live = station.live()
                    seen = live.camera.frames - live.camera.dropped_frames
                    if live.picture is not None:
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
    checks: list[tuple[str, float, str, float]] = []
    lines: list[str] = []
    if rounds:
        middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        ratio = statistics.median(each["rate"] / each["limit"] for each in rounds)
        own = statistics.median(each["alone_ms"] / each["station_ms"] for each in rounds)
        checks.append(("frames/s, station : parts alone", ratio, ">=", RATE))
        checks.append(("processor time of a frame, parts alone : station", own, ">=", RATE))
        lines += _rate_lines(middle, arguments.core)
    if memory:
        held = [bytes_held for _, bytes_held in memory[WARM_UP:]]
        base = statistics.median(held)
        drift = max(abs(each - base) for each in held) / base
        name = f"memory, largest departure from its median, frames {memory[WARM_UP][0]:,} to {memory[-1][0]:,}"
        checks.append((name, drift, "<=", MEMORY_FRAC))
        (first, early), (last, late) = memory[WARM_UP], memory[-1]
        checks.append((f"memory, frame {last:,} : frame {first:,}", late / early, "<=", 1 + MEMORY_FRAC))
        lines.append(f"- Memory: frames of {SIZE[0] // arguments.shrink}x{SIZE[1] // arguments.shrink}.")
    for name, times in latencies.items():
        figure = float(np.percentile(times, 95)) if times else math.inf  # starved: no request ended in time
        checks.append(
            (f"{name}, p95 of {len(times)} requests with {arguments.viewers} viewers, ms", figure, "<=", LATENCY_MS)
        )
    met = [figure >= limit if sign == ">=" else figure <= limit for _, figure, sign, limit in checks]
    lines = [
        "# The rig",
        "",
        f"`python benchmarks/rig.py {arguments.model.name} {' '.join(sys.argv[2:])}`, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}. Simulated camera, 1280x960 (the page's: 30 frames/s), a session being "
        "recorded; one thread for the model. Medians of the rounds; the ratio is the median of their ratios.",
        "",
        *lines,
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
    return "\n".join([*lines, *command.machine_lines(), ""]), all(met)


def _rate_lines(middle: dict[str, float], core: int | None) -> list[str]:
    stages = ", ".join(f"{name} {middle[name]:.2f}" for name in list(middle)[: list(middle).index("limit")])
    return [
        f"- Alone, ms a frame: {stages}: {middle['limit']:.1f} frames/s at most.",
        f"- The station: {middle['rate']:.1f} frames/s, of which {100 * middle['judged']:.1f} % passed the gate; the "
        f"camera gave {middle['camera']:.1f}. Processor time, ms a frame: the parts alone {middle['alone_ms']:.2f}, "
        f"the station {middle['station_ms']:.2f}.",
        *([f"- Frames/s on core {core} alone."] if core is not None else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
