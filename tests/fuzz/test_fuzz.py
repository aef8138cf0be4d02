"""Damaged files by the thousand: no crash, no hang, no unbounded memory. `make fuzz` tries 10,000 of each kind."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_models import LABELS, grainy_image
from PIL import Image
from venvs import HANG_S

from edgeall.edge_runtime import probe
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.errors import BundleError
from edgeall.edge_runtime.images import open_rgb

WORKER = Path(__file__).with_name("worker.py")
SEED = 2026
FEW, MANY, RUNS = 300, 10_000, 200

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are set through /proc and rlimit")


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def image_corpus() -> dict[str, bytes]:
    """Small files of every format, pixel mode and way of compression that Pillow writes."""
    picture = grainy_image(5, (24, 18))
    modes = {mode: picture.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "F")}
    modes["I;16"] = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    film = {"save_all": True, "append_images": [picture.rotate(180)]}
    files = {f"{mode}.png": encoded(modes[mode], "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")}
    files |= {f"{mode}.bmp": encoded(modes[mode], "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")}
    files |= {f"{mode}.tif": encoded(image, "TIFF") for mode, image in modes.items()}
    for compression in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        files[f"RGB-{compression}.tif"] = encoded(picture, "TIFF", compression=compression)
    for compression in ("tiff_ccitt", "group3", "group4"):
        files[f"1-{compression}.tif"] = encoded(modes["1"], "TIFF", compression=compression)
    files |= {f"{mode}.jpg": encoded(modes[mode], "JPEG") for mode in ("L", "RGB", "CMYK", "YCbCr")}
    return files | {
        "trns.png": encoded(modes["P"], "PNG", transparency=bytes([0, 128, 255])),
        "film.png": encoded(picture, "PNG", **film),
        "exif.png": encoded(picture, "PNG", exif=exif),
        "icc.png": encoded(picture, "PNG", icc_profile=bytes(300)),
        "big.tif": encoded(picture, "TIFF", big_tiff=True),
        "pages.tif": encoded(picture, "TIFF", **film),
        "exif.tif": encoded(picture, "TIFF", exif=exif),
        "exif.jpg": encoded(picture, "JPEG", exif=exif),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True, restart_marker_blocks=1),
        "phone.jpg": encoded(picture, "MPO", save_all=True, append_images=[picture.resize((8, 6))], exif=exif),
        "lossy.webp": encoded(picture, "WEBP"),
        "lossless.webp": encoded(modes["RGBA"], "WEBP", lossless=True, exif=exif),
        "film.webp": encoded(picture, "WEBP", **film),
    }


@pytest.fixture(scope="module")
def corpora(
    tmp_path_factory: pytest.TempPathFactory, pack_tiny: Callable[..., Path], tiny_flatbuffers: dict[str, bytes]
) -> dict[str, Path]:
    """A folder of whole files for each kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("images", "models")}
    for name, content in image_corpus().items():
        (folders["images"] / name).write_bytes(content)
    packed = pack_tiny("uint8", folders["models"] / "packed-uint8.tflite")
    pack_tiny("float32", folders["models"] / "packed-float32.tflite", decision={"review_below": 0.5})
    for kind in ("int8", "dynamic"):
        (folders["models"] / f"foreign-{kind}.tflite").write_bytes(tiny_flatbuffers[kind])
    with_metadata = io.BytesIO()
    with_metadata.write(open_bundle(packed).flatbuffer.replace(b"edgeall", b"somelse"))
    with zipfile.ZipFile(with_metadata, "w") as archive:
        archive.writestr("labels.txt", "\n".join(LABELS))
    (folders["models"] / "foreign-metadata.tflite").write_bytes(with_metadata.getvalue())
    return folders


def fuzz(kind: str, corpus: Path, count: int, tmp_path: Path, repository: Path) -> tuple[Counter[str], list[str], int]:
    """Try ``count`` inputs, in a new process after each one that ends it.

    Returns:
        How often each outcome was, what went wrong where, and the peak of the memory in bytes.
    """
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    current, begin, peak = tmp_path / "current", 0, 0
    while begin < count:
        numbers = [str(SEED), str(begin), str(count)]
        command = [sys.executable, str(WORKER), kind, str(corpus), *numbers, str(current)]
        child = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S + 10 * (count - begin))
        assert child.returncode <= 0, child.stderr  # the worker itself is wrong
        lines = child.stdout.splitlines()
        if child.returncode == 0:
            peak = int(lines.pop())
        for index, line in enumerate(lines, begin):
            outcomes[line if line in ("opened", "refused") else "wrong"] += 1
            if line not in ("opened", "refused"):
                problems.append(f"{kind} {index}: {line}")
        begin += len(lines)
        if child.returncode != 0:
            problems.append(f"{kind} {begin}: the process ended by {signal.Signals(-child.returncode).name}")
            kept = repository / "build" / "fuzz" / f"{kind}-{SEED}-{begin}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(current, kept)
            outcomes["wrong"] += 1
            begin += 1
    return outcomes, problems, peak


def check(
    kind: str,
    corpora: dict[str, Path],
    count: int,
    tmp_path: Path,
    repository: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    corpus = sorted(corpora[kind].iterdir())
    begin = time.monotonic()
    outcomes, problems, peak = fuzz(kind, corpora[kind], count, tmp_path, repository)
    with capfd.disabled():  # to the terminal, from a worker of pytest-xdist too
        print(
            f"\nfuzz {kind}: {sum(outcomes.values()):,} inputs from {len(corpus)} files, seed {SEED}: "
            f"{outcomes['opened']:,} opened, {outcomes['refused']:,} refused, {outcomes['wrong']} wrong; "
            f"{time.monotonic() - begin:.0f} s, peak {peak / 1e6:.0f} MB\n  {', '.join(path.name for path in corpus)}",
            file=sys.stderr,
        )
    assert problems == []
    assert sum(outcomes.values()) == count
    assert min(outcomes["opened"], outcomes["refused"]) >= count // 50  # neither noise nor whole files alone


@pytest.mark.parametrize("kind", ["images", "models"])
def test_some_damaged_files(
    kind: str, corpora: dict[str, Path], tmp_path: Path, repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check(kind, corpora, FEW, tmp_path, repository, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "models"])
def test_ten_thousand_damaged_files(
    kind: str, corpora: dict[str, Path], tmp_path: Path, repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check(kind, corpora, MANY, tmp_path, repository, capfd)


@pytest.mark.slow
def test_damaged_models_that_reach_the_interpreter(
    corpora: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What `open_bundle` lets through of foreign models: whatever the interpreter does, it does it elsewhere."""
    sys.path.insert(0, str(WORKER.parent))
    from worker import damaged

    monkeypatch.setattr(probe, "SECONDS", 30.0)
    whole = [path.read_bytes() for path in sorted(corpora["models"].glob("foreign-*"))]
    outcomes: Counter[str] = Counter()
    index = 0
    while sum(outcomes.values()) < RUNS:
        random = np.random.default_rng([SEED, index])
        content = damaged(whole[index % len(whole)], random, whole)
        index += 1
        (corpora["images"].parent / "m.tflite").write_bytes(content)
        try:
            bundle = open_bundle(corpora["images"].parent / "m.tflite")
        except BundleError:
            continue
        if bundle.flatbuffer in whole:
            continue
        try:
            probe.try_out(bundle.flatbuffer, "m")
            outcomes["ran"] += 1
        except BundleError as error:
            kinds = {"crashes on it": "crashed", "took more": "hung", "refuses": "refused"}
            outcomes[next((kind for text, kind in kinds.items() if text in error.message), "could not be run")] += 1
    with capfd.disabled():
        told = ", ".join(f"{count} {kind}" for kind, count in outcomes.most_common())
        print(
            f"\nfuzz interpreter: {RUNS} damaged foreign models, each in a process of its own: {told}", file=sys.stderr
        )
    assert outcomes["ran"] > 0


def test_the_worker_tells_what_goes_wrong(corpora: dict[str, Path], tmp_path: Path) -> None:
    """A harness that sees nothing proves nothing."""
    script = (
        f"import sys; sys.path.insert(0, {str(WORKER.parent)!r}); import worker, os, signal\n"
        "def broken(path):\n"
        "    number = broken.count = broken.count + 1\n"
        "    if number == 1: raise KeyError('x')\n"
        "    if number == 2: bytearray(3_000_000_000)\n"
        "    if number == 3: worker.CPU_SECONDS = 0.2\n"
        "    if number == 4:\n"
        "        while True: pass\n"
        "broken.count = 0\n"
        "worker.KINDS['images'] = (worker.next_image, broken)\n"
        "worker.main(*sys.argv[1:])\n"
    )
    arguments = ["images", str(corpora["images"]), "1", "0", "9", str(tmp_path / "current")]
    child = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=HANG_S)
    assert [line.partition(":")[0] for line in child.stdout.splitlines()] == ["KeyError", "MemoryError", "opened"]
    assert child.returncode == -signal.SIGPROF


def test_whole_files_are_what_they_should_be(corpora: dict[str, Path]) -> None:
    refused = []
    for path in sorted(corpora["images"].iterdir()):
        try:
            open_rgb(path)
        except Exception:
            refused.append(path.name)
    assert refused == ["F.tif", "LAB.tif", "film.png", "film.webp", "pages.tif"]
    for path in corpora["models"].iterdir():
        assert (open_bundle(path).manifest is not None) == path.name.startswith("packed")
