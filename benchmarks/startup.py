"""The cost of `edgeall` compared with the smallest program that does the same: start-up, one image, memory.

python benchmarks/startup.py model.tflite folder/of/images [--repetitions 15] [--out benchmarks/results/startup.md]

Whole processes, in turn within one run; medians. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

BARE = """\
import sys
import numpy as np
from PIL import Image
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1])
interpreter.allocate_tensors()
source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
for path in sys.argv[2:]:
    image = Image.open(path).convert("RGB").resize(tuple(source["shape"][2:0:-1]), Image.BILINEAR)
    interpreter.set_tensor(source["index"], np.asarray(image)[None].astype(source["dtype"]))
    interpreter.invoke()
    print(path, interpreter.get_tensor(result["index"])[0].argmax())
"""
"""Right for models with uint8 input; no checks, no labels, no probabilities."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}


@dataclass(frozen=True)
class Contest:
    """Two commands and by how much the first may exceed the second.

    Attributes:
        name: what is compared.
        unit: ``ms`` of the whole process, or ``MB`` of its peak memory.
        limit: of the ratio of the medians.
    """

    name: str
    ours: list[str]
    bare: list[str]
    unit: str
    limit: float


@dataclass(frozen=True)
class Outcome:
    """Medians of one contest, in its unit."""

    contest: Contest
    ours: float
    bare: float

    @property
    def ratio(self) -> float:
        return self.ours / self.bare

    @property
    def ok(self) -> bool:
        return self.ratio <= self.contest.limit


def contests(model: Path, images: list[Path], folder: Path) -> list[Contest]:
    """The three, with this environment's Python and `edgeall`."""
    python, edgeall = sys.executable, str(Path(sys.executable).parent / "edgeall")
    bare = [python, "-c", BARE, str(model)]
    run = [edgeall, "run", str(model)]
    return [
        Contest("edgeall --help : import click", [edgeall, "--help"], [python, "-c", "import click"], "ms", 3.0),
        Contest("edgeall run, 1 image : bare script", [*run, str(images[0])], [*bare, str(images[0])], "ms", 2.0),
        Contest(
            f"edgeall run, {len(images)} images : bare script",
            [*run, str(folder)],
            [*bare, *map(str, images)],
            "MB",
            1.3,
        ),
    ]


def compete(contest: Contest, repetitions: int) -> Outcome:
    """Each command once to warm the page cache, then in turns."""
    figures: dict[str, list[float]] = {"ours": [], "bare": []}
    for repetition in range(repetitions + 1):
        for who, command in (("ours", contest.ours), ("bare", contest.bare)):
            figure = _measure(command)[contest.unit]
            if repetition:
                figures[who].append(figure)
    return Outcome(contest, statistics.median(figures["ours"]), statistics.median(figures["bare"]))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _measure(command: list[str]) -> dict[str, float]:
    start = time.perf_counter()
    # The warm-up writes byte code; a shell that forbids it has both compile their modules each time.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    # The kernel's own figure for this one child. It begins with what the parent held at the time of exec:
    # this script must stay small until it is done, hence the late import in `report`.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return {"ms": seconds * 1000, "MB": usage.ru_maxrss * 1024 / 1e6}


def report(outcomes: list[Outcome], model: Path, repetitions: int) -> str:
    """A Markdown page: the figures, and the machine they came from."""
    from edgeall.edge_runtime.tools.device import describe_device

    rows = [
        f"| {o.contest.name} | {o.ours:.1f} | {o.bare:.1f} | {o.contest.unit} | {o.ratio:.2f} | {o.contest.limit} | "
        f"{'yes' if o.ok else 'NO'} |"
        for o in outcomes
    ]
    machine = [f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None]
    return "\n".join(
        [
            "# Start-up and memory",
            "",
            f"`python benchmarks/startup.py {model.name} IMAGES --repetitions {repetitions}`, "
            f"{datetime.now(timezone.utc):%Y-%m-%d}. Medians of {repetitions} whole processes each, in turns.",
            "",
            "| what | edgeall | bare | unit | ratio | limit | met |",
            "| --- | ---: | ---: | --- | ---: | ---: | --- |",
            *rows,
            "",
            *machine,
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model with uint8 input")
    parser.add_argument("images", type=Path, help="folder")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--out", type=Path, help="Markdown file")
    arguments = parser.parse_args()
    images = sorted(path for path in arguments.images.rglob("*") if _is_image(path.relative_to(arguments.images)))
    if not images:
        parser.error(f"{arguments.images}: no images")
    outcomes = [compete(c, arguments.repetitions) for c in contests(arguments.model, images, arguments.images)]
    page = report(outcomes, arguments.model, arguments.repetitions)
    print(page)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
