"""`edgeall rig` on an emulated Raspberry Pi: a slide is classified and recorded, also across a power failure."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fixtures_pi
import httpx2
import pytest
from fixtures_pi import PATH, Pi, fresh_home, make_root
from PIL import Image

from edgeall.deploy import package
from edgeall.edge_runtime.manifest import RESEARCH_USE
from edgeall.rig.capture.slide import SimulatedCamera, draw_slide
from edgeall.rig.serve import DEMO_MODEL

pytestmark = pytest.mark.device

HOME = "/home/rig"
PROGRAM = "import sys; from edgeall.cli import main; sys.exit(main())"
PATIENCE_S = 300
"""Everything takes tens of times as long under emulation."""
PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)))


@pytest.fixture(scope="session")
def pi() -> Iterator[Pi]:
    """A Pi 4 with a 64-bit system, and edgeall with the rig extra in the user's home."""
    root = make_root("arm64")
    with fresh_home(root, "rig") as home:
        fixtures_pi.install_beside(home / "site", f"{package.wheel()}[rig]", [], PLATFORMS, dependencies=True)
        (home / "frames").mkdir()
        yield Pi(root, "cortex-a72", {"HOME": HOME, "PATH": PATH, "PYTHONPATH": f"{HOME}/site", "TMPDIR": HOME})


@pytest.fixture(scope="session")
def fields(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Frames of the simulated slide as image files: drawing them on the Pi would take minutes."""
    folder = tmp_path_factory.mktemp("fields")
    camera = SimulatedCamera(draw_slide(seed=0), seed=1, rate=None)
    for number in range(6):
        Image.fromarray(camera.pixels(number)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@contextmanager
def rig_on(pi: Pi) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """`edgeall rig` on a watched folder, and a client of its page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model = f"{HOME}/site/edgeall/rig/{DEMO_MODEL.name}"
    words = ("rig", model, "--camera", f"{HOME}/frames", "--record", f"{HOME}/slides", "--listen", f"127.0.0.1:{port}")
    settings = [f"{key}={value}" for key, value in {**pi.environment, "QEMU_CPU": pi.cpu}.items()]
    command = ["chroot", str(pi.root), "/usr/bin/env", "-i", *settings, "python3", "-c", PROGRAM, *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("the page: "):
            break
    else:
        raise AssertionError("".join(said))
    drain = threading.Thread(target=process.stderr.read)  # a full pipe would stop it
    drain.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as page:
            found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.get("/").text)
            assert found is not None
            page.headers["x-csrf-token"] = found[1]
            yield process, page
    finally:
        process.kill()
        process.wait()
        drain.join()
        process.stderr.close()


def put(pi: Pi, image: Path) -> None:
    """Like a camera program: writes under another name until the file is complete."""
    folder = pi.root / "home" / "rig" / "frames"
    part = folder / f".{image.name}"
    part.write_bytes(image.read_bytes())
    part.rename(folder / image.name)


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it didn't come to that"
        time.sleep(1)


def rows(page: httpx2.Client) -> list[str]:
    """Rows of the only slide's table, without the header."""
    slide = re.search(r'href="(/slides/[0-9]+)"', page.get("/slides").text)
    assert slide is not None
    answer = page.get(f"{slide[1]}/frames.csv")
    assert answer.status_code == 200, answer.text
    return answer.text.splitlines()[1:]


def test_a_slide_is_judged_and_survives_a_power_cut(pi: Pi, fields: list[Path]) -> None:
    with rig_on(pi) as (process, page):
        assert RESEARCH_USE in page.get("/").text.lower()
        assert page.post("/slides", data={"sample": "S-1"}).status_code == 303
        for count, image in enumerate(fields[:3], 1):
            put(pi, image)
            wait_for(lambda count=count: len(rows(page)) == count)  # type: ignore[misc]
        before = rows(page)
        assert any(",judged," in row for row in before), before
        process.send_signal(signal.SIGKILL)
        process.wait()
    put(pi, fields[3])
    with rig_on(pi) as (process, page):
        wait_for(lambda: len(rows(page)) == 4)  # the slide goes on, with what came meanwhile
        put(pi, fields[4])
        wait_for(lambda: len(rows(page)) == 5)
        assert rows(page)[:3] == before
        assert all(image.name in row for row, image in zip(rows(page), fields[:5], strict=True))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    checked = pi.json("python3", "-c", PROGRAM, "record", "verify", f"{HOME}/slides", "--json")
    assert checked["problems"] == []
