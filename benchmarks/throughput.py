"""The same model and images through edgeall and other programs: images/s, cold start, memory, installed size.

python benchmarks/throughput.py MODEL IMAGES [--rounds 5] [--count 1000] [--many 100000] [--out FILE.md]

MODEL is a packed int8 model with uint8 input, IMAGES a folder. Every program is a process in its own environment (made
once, in .cache/venvs). In each round each of them classifies one image and then --count of them; images/s is computed
from the difference, so that start-up does not count. Medians. A program that does not take the model is named with the
reason. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
CACHE = ROOT / ".cache"
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}
BENCH_S = 2.0
SAME_LABEL = 0.98
"""Share of images: a contestant that says less often what edgeall says runs another network, or runs it wrongly."""
ENVIRONMENTS = {
    "mediapipe": ["mediapipe==1.2.2"],
    "onnxruntime": ["onnxruntime", "numpy", "pillow"],
    "opencv": ["opencv-python-headless<5"],
    "tf2onnx": ["tf2onnx", "tensorflow-cpu"],
}
"""Every one of them does what it is needed for with these packages alone."""


@dataclass
class Contestant:
    """One way to classify a folder.

    Attributes:
        name: as the page calls it.
        environment: of `.cache/venvs`.
        command: where FOLDER and LIST stand for the images.
        seconds, cold_s, peak_bytes: of each round: the folder, one image, the folder's.
        labels: what it says of each image, by the file's name.
        plain_p50_ms: what it said of its own invoke, if it does.
        failure: why it takes no part.
    """

    name: str
    environment: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    cold_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    plain_p50_ms: list[float] = field(default_factory=list)
    failure: str = ""

    def rate(self, count: int) -> float:
        """Images/s, starting left out."""
        return (count - 1) / (statistics.median(self.seconds) - statistics.median(self.cold_s))


@dataclass(frozen=True)
class Done:
    """What one process took and said."""

    seconds: float
    peak_bytes: int
    out: str
    err: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=1000, help="images, at least 256: edgeall measures from there on")
    parser.add_argument("--many", type=int, default=100_000, help="images of the memory contest; 0 leaves it out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.count < 256 or len(os.sched_getaffinity(0)) < 2:
        parser.error("edgeall measures how to spread the cores from 256 images and two cores on")
    device = _device_environment()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        # What edgeall finds out about this device is found out in the warm-up round. Byte code is written in it, too,
        # which this shell may forbid.
        environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        folder, one = _folders(arguments.images, arguments.count, work)
        program = "import sys; from edgeall.edge_runtime.bundle import open_bundle as o; print(*o(sys.argv[1]).labels)"
        labels = _ask(device, program, arguments.model).split()
        taking_part = contestants(arguments.model, device, labels)
        stages: list[dict[str, float]] = []
        for number in range(arguments.rounds + 1):
            for contestant in taking_part:
                _take_part(contestant, folder, one, labels, environment, warm_up=number == 0)
            if number:
                stages.append(_bench(device, arguments.model, folder, environment))
            print(f"round {number} of {arguments.rounds}", file=sys.stderr)
        peaks = _many(device, arguments.model, folder, arguments.many, work, environment) if arguments.many else None
        (layout,) = json.loads((work / "cache" / "edgeall" / "layouts.json").read_text()).values()
    used = {contestant.environment for contestant in taking_part if not contestant.failure}
    sizes = {name: _installed_bytes(CACHE / "venvs" / name) for name in used}
    page, met = report(arguments, taking_part, stages, peaks, sizes, layout)
    print(page)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if met else 1


def contestants(model: Path, device: Path, labels: list[str]) -> list[Contestant]:
    """edgeall first, then the plain script with one thread and with all, then MediaPipe, then the others."""
    plain, cores = str(PEERS / "plain_interpreter.py"), str(len(os.sched_getaffinity(0)))
    taking_part = [
        Contestant("edgeall run", "edgeall", [str(device.parent / "edgeall"), "run", str(model), "FOLDER", "--csv"]),
        Contestant("plain script, 1 thread", "edgeall", [str(device), plain, str(model), "1", "LIST"]),
        Contestant(f"plain script, {cores} threads", "edgeall", [str(device), plain, str(model), cores, "LIST"]),
    ]
    peers: list[tuple[str, str, str, list[str]]] = [
        ("MediaPipe Tasks ImageClassifier", "mediapipe", "mediapipe_tasks.py", [str(model), ",".join(labels)]),
        ("ONNX Runtime, int8", "onnxruntime", "onnx_runtime.py", ["ONNX"]),
        ("OpenCV DNN, int8", "opencv", "opencv_dnn.py", ["ONNX"]),
    ]
    for name, environment, script, given in peers:
        contestant = Contestant(name, environment, [])
        try:
            python = _environment(environment, ENVIRONMENTS[environment])
            given = [str(_onnx(model, device)) if word == "ONNX" else word for word in given]
            contestant.command = [str(python), str(PEERS / script), *given, "LIST"]
        except RuntimeError as error:
            contestant.failure = str(error)
        taking_part.append(contestant)
    return taking_part


def _take_part(
    contestant: Contestant, folder: Path, one: Path, labels: list[str], environment: dict[str, str], warm_up: bool
) -> None:
    """One round; the first warms the page cache and shows whether the contestant can do it at all."""
    if contestant.failure:
        return
    try:
        cold, whole = (_run(_filled(contestant.command, images), environment) for images in (one, folder))
        said = _said(whole.out, labels)
    except (RuntimeError, ValueError) as error:
        contestant.failure = str(error)
        return
    if warm_up:
        contestant.labels = said
        return
    contestant.cold_s.append(cold.seconds)
    contestant.seconds.append(whole.seconds)
    contestant.peak_bytes.append(whole.peak_bytes)
    if "plain_interpreter.py" in contestant.command[1]:
        contestant.plain_p50_ms.append(float(whole.err.splitlines()[-1]))


def _filled(command: list[str], images: Path) -> list[str]:
    places = {"FOLDER": str(images), "LIST": f"{images}.txt"}
    return [places.get(word, word) for word in command]


def _said(out: str, labels: list[str]) -> dict[str, str]:
    """The label of each image by its file's name: edgeall's CSV says it, a peer its index."""
    lines = out.splitlines()
    if lines and lines[0].startswith("image,label,"):
        return {Path(line.split(",")[0]).name: line.split(",")[1] for line in lines[1:]}
    pairs = [line.split("\t") for line in lines if "\t" in line]
    return {Path(path).name: labels[int(index)] for path, index in pairs}


def _bench(device: Path, model: Path, folder: Path, environment: dict[str, str]) -> dict[str, float]:
    """p50 of the stages in ms, one thread."""
    words = ["bench", model, "--images", folder, "--seconds", BENCH_S, "--repetitions", 1, "--no-sweep", "--json"]
    done = _run([str(device.parent / "edgeall"), *map(str, words)], environment)
    return {name: times["p50_ms"] for name, times in json.loads(done.out)["stages"].items()}


def _many(
    device: Path, model: Path, folder: Path, count: int, work: Path, environment: dict[str, str]
) -> tuple[int, int]:
    """Peak bytes of `edgeall run` on the folder, and on one that holds its images over and over."""
    images = sorted(folder.iterdir())
    many = work / "many"
    many.mkdir()
    for index in range(count):
        os.link(images[index % len(images)], many / f"{index:07}{images[0].suffix}")
    peaks = []
    for images_of in (folder, many):
        command = [str(device.parent / "edgeall"), "run", str(model), str(images_of), "--csv"]
        peaks.append(_run(command, environment, keep=False).peak_bytes)
    return peaks[0], peaks[1]


def _run(command: list[str], environment: dict[str, str], keep: bool = True) -> Done:
    """Raises RuntimeError with the last line it wrote to stderr where it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=out if keep else subprocess.DEVNULL, stderr=err, env=environment)
        # The kernel's own figure for this one child. It begins with what the parent held at the time of exec: this
        # script must stay small until it is done, hence the late imports.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said, complained = out.read(), err.read()
    if process.returncode:
        lines = [line for line in complained.splitlines() if line.strip()]
        raise RuntimeError(f"status {process.returncode}: {lines[-1] if lines else 'no reason given'}")
    return Done(seconds, usage.ru_maxrss * 1024, said, complained)


def _folders(images: Path, count: int, work: Path) -> tuple[Path, Path]:
    """A folder of ``count`` images taken evenly, one of a single image, and a list of each beside it."""
    found = sorted(p for p in images.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise SystemExit(f"{images}: no images")
    if len({path.suffix.lower() for path in found}) > 1:
        raise SystemExit(f"{images}: images of several formats; give a folder of one")
    made = []
    for name, wanted in (("images", count), ("one", 1)):
        folder = work / name
        folder.mkdir()
        for index in range(wanted):
            shutil.copy(found[index * len(found) // wanted], folder / f"{index:06}{found[0].suffix.lower()}")
        (work / f"{name}.txt").write_text("\n".join(map(str, sorted(folder.iterdir()))))
        made.append(folder)
    return made[0], made[1]


def _device_environment() -> Path:
    """Python of the device install of this checkout, from its wheel."""
    folder = CACHE / "venvs" / "edgeall"
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        left = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "tests")
        shutil.copytree(ROOT, source, ignore=left)
        _quietly([sys.executable, "-m", "build", "--wheel", "--outdir", name, str(source)])
        (wheel,) = Path(name).glob("*.whl")
        if not (folder / "bin" / "edgeall").exists():
            _quietly([sys.executable, "-m", "venv", "--clear", str(folder)])
            _quietly([*_pip(folder), str(wheel)])
        _quietly([*_pip(folder), "--no-deps", "--force-reinstall", str(wheel)])
    return folder / "bin" / "python"


def _environment(name: str, requirements: list[str]) -> Path:
    """Python of an environment of its own, made when it isn't there. Raises RuntimeError where it can't be made."""
    folder = CACHE / "venvs" / name
    stamp, wanted = folder / "requirements.txt", "\n".join([sys.executable, *requirements])
    if not stamp.exists() or stamp.read_text() != wanted:
        _quietly([sys.executable, "-m", "venv", "--clear", str(folder)])
        _quietly([*_pip(folder), *requirements])
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def _pip(folder: Path) -> list[str]:
    python = str(folder / "bin" / "python")
    return [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]


def _quietly(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        raise RuntimeError(f"{Path(command[0]).name} {' '.join(command[1:4])}: {lines[-1]}")


def _ask(python: Path, program: str, *words: object) -> str:
    return subprocess.run(
        [str(python), "-c", program, *map(str, words)], capture_output=True, text=True, check=True
    ).stdout.strip()


def _onnx(model: Path, device: Path) -> Path:
    """The model as ONNX, weights and scales as they are. Raises RuntimeError where tf2onnx can't."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()[:16]
    bare, out = CACHE / "onnx" / f"{digest}.tflite", CACHE / "onnx" / f"{digest}.onnx"
    if not out.exists():
        python = _environment("tf2onnx", ENVIRONMENTS["tf2onnx"])
        bare.parent.mkdir(parents=True, exist_ok=True)
        program = (
            "import sys; from pathlib import Path; from edgeall.edge_runtime.bundle import open_bundle as o;"
            "Path(sys.argv[2]).write_bytes(o(sys.argv[1]).flatbuffer)"
        )
        _ask(device, program, model, bare)
        _quietly([str(python), "-m", "tf2onnx.convert", "--tflite", str(bare), "--output", str(out), "--opset", "17"])
    return out


def _installed_bytes(folder: Path) -> int:
    """Bytes that `pip install --no-compile` installed, without pip and setuptools."""
    own = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth")
    (site,) = folder.glob("lib/python3*/site-packages")
    tops = [top for top in site.iterdir() if not top.name.startswith(own)]
    files = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*"))]
    counted = [file for file in files if file.is_file() and not file.is_symlink() and file.suffix != ".pyc"]
    return sum(file.stat().st_size for file in counted)


def report(
    arguments: argparse.Namespace,
    taking_part: list[Contestant],
    stages: list[dict[str, float]],
    peaks: tuple[int, int] | None,
    sizes: dict[str, int],
    layout: dict[str, int],
) -> tuple[str, bool]:
    """A Markdown page, and whether every limit was met."""
    from edgeall.edge_runtime.tools.device import describe_device

    ours, plain, threaded, mediapipe = taking_part[:4]
    count, cores = arguments.count, len(os.sched_getaffinity(0))
    stage = {name: statistics.median(each[name] for each in stages) for name in stages[0]}
    most = cores * 1000 / (stage["decode"] + stage["preprocess"] + stage["invoke"])
    loop = statistics.median(plain.plain_p50_ms)
    tensorflow = any((CACHE / "venvs" / "edgeall").glob("lib/python3*/site-packages/tensorflow*"))
    checks: list[tuple[str, float, str, float]] = []
    if not mediapipe.failure:
        checks.append(("images/s, edgeall : MediaPipe", ours.rate(count) / mediapipe.rate(count), ">=", 2.5))
    checks += [
        ("images/s, edgeall : plain script with all threads", ours.rate(count) / threaded.rate(count), ">=", 1.2),
        (f"images/s, edgeall : {cores} cores / one image on one thread", ours.rate(count) / most, ">=", 0.9),
        (
            "cold start to first prediction, edgeall : plain script",
            statistics.median(ours.cold_s) / statistics.median(plain.cold_s),
            "<=",
            1.5,
        ),
        ("device install, MB", sizes["edgeall"] / 1e6, "<=", 160),
        ("TensorFlow packages in it", float(tensorflow), "<=", 0),
        ("p50 of invoke, bench : plain loop", stage["invoke"] / loop, "<=", 1.05),
        ("p50 of invoke, plain loop : bench", loop / stage["invoke"], "<=", 1.05),
    ]
    if peaks is not None:
        checks.append((f"peak memory, {arguments.many:,} images : {count:,}", peaks[1] / peaks[0], "<=", 1.2))
    met = [figure >= limit if sign == ">=" else figure <= limit for _, figure, sign, limit in checks]
    same = {contestant.name: _agreement(contestant, ours) for contestant in taking_part if not contestant.failure}
    memory = "" if peaks is None else f" Peak with {arguments.many:,} images: {peaks[1] / 1e6:.1f} MB."
    page = [
        "# Throughput, beside peers",
        "",
        f"`python benchmarks/throughput.py {arguments.model.name} IMAGES --rounds {arguments.rounds} --count {count} "
        f"--many {arguments.many}`, {datetime.now(timezone.utc):%Y-%m-%d}. Medians of {arguments.rounds} rounds, in "
        "turns, whole processes; images/s without the start. edgeall chose "
        f"{layout['interpreters']} interpreters of {layout['threads']} threads.{memory}",
        "",
        "| | images/s | first image, s | peak MB | installed MB | same label as edgeall |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(_row(contestant, count, sizes, same) for contestant in taking_part if not contestant.failure),
        "",
        *(
            f"- {contestant.name}: takes no part. {contestant.failure}"
            for contestant in taking_part
            if contestant.failure
        ),
        *(f"- {name}: not the same network, or run wrongly" for name, share in same.items() if share < SAME_LABEL),
        f"- One image on one thread, p50 of `edgeall bench`: decode {stage['decode']:.2f}, preprocess "
        f"{stage['preprocess']:.2f}, invoke {stage['invoke']:.2f} ms; invoke in the plain script {loop:.2f} ms.",
        "- Installed sizes are without byte code (`pip install --no-compile`). The plain script and edgeall share an "
        "environment.",
        "",
        "| | measured | limit | met |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {name} | {figure:.2f} | {sign} {limit:g} | {'yes' if ok else 'NO'} |"
            for (name, figure, sign, limit), ok in zip(checks, met, strict=True)
        ),
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(page), all(met) and all(share >= SAME_LABEL for share in same.values()) and not mediapipe.failure


def _agreement(contestant: Contestant, ours: Contestant) -> float:
    """Share of the images that get the same label."""
    return sum(contestant.labels.get(image) == label for image, label in ours.labels.items()) / len(ours.labels)


def _row(contestant: Contestant, count: int, sizes: dict[str, int], same: dict[str, float]) -> str:
    cold, peak = statistics.median(contestant.cold_s), statistics.median(contestant.peak_bytes)
    return (
        f"| {contestant.name} | {contestant.rate(count):.1f} | {cold:.3f} | {peak / 1e6:.1f} "
        f"| {sizes[contestant.environment] / 1e6:.0f} | {100 * same[contestant.name]:.1f} % |"
    )


if __name__ == "__main__":
    sys.exit(main())
