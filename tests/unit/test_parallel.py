"""Several parallel interpreters give the same results as one, in order, in bounded memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fixtures_models import LABELS, grainy_image, png
from numpy.typing import NDArray
from venvs import HANG_S

from edgeall.edge_runtime import parallel
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError, ImageError
from edgeall.edge_runtime.parallel import Layout, Pool
from edgeall.edge_runtime.pipeline import classify, expand
from edgeall.edge_runtime.tools import layout as layout_module
from edgeall.edge_runtime.tools.layout import choose_layout, possible_layouts

LAYOUTS = [Layout(1, 1), Layout(2, 1), Layout(1, 2), Layout(3, 2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of different sizes, so that they finish out of order; two files are no images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(24):
        size = (900, 700) if index % 5 == 0 else (60, 50)
        (folder / f"{index:02}.png").write_bytes(png(grainy_image(index, size)))
    (folder / "03.png").write_bytes(b"")
    (folder / "10.png").write_bytes((folder / "11.png").read_bytes()[:200])
    return folder


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_same_as_one_after_the_other(tiny_bundle: Path, folder: Path, layout: Layout) -> None:
    alone = list(classify(Classifier.open(tiny_bundle, threads=1), [folder, folder]))
    together = list(classify(Classifier.open(tiny_bundle, threads=1), [folder, folder], lambda first: layout))
    assert together == alone
    assert [Path(p.image).name for p in together[:24]] == [f"{index:02}.png" for index in range(24)]
    assert [index for index, p in enumerate(together) if p.error is not None] == [3, 10, 27, 34]
    assert {p.label for p in together if p.error is None} <= set(LABELS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_same_units(tiny_bundle: Path, layout: Layout) -> None:
    """Equal probabilities of a uint8 output mean equal units."""
    classifier = Classifier.open(tiny_bundle, threads=1)
    pixels = [load(index, classifier) for index in range(50)]
    wanted = [classifier.dequantize(classifier.predict_units(each)) for each in pixels]
    assert len({each.tobytes() for each in wanted}) > 10, "a model that always says the same proves nothing"
    with Pool(classifier, layout) as pool:
        found = list(pool.map(lambda index: pixels[index], range(50)))
    assert [index for index, _ in found] == list(range(50))
    assert all(np.array_equal(outcome.probabilities, wanted[index]) for index, outcome in found)


def load(seed: int, classifier: Classifier) -> NDArray[np.uint8]:
    size = (classifier.input.width, classifier.input.height)
    return np.asarray(grainy_image(seed, size))


def test_few_are_under_way_at_a_time(tiny_bundle: Path) -> None:
    taken = loaded = 0

    def supply() -> Iterator[int]:
        nonlocal taken
        while taken < 100_000:
            taken += 1
            yield taken

    def slowly(_: int) -> NDArray[np.uint8]:
        nonlocal loaded
        loaded += 1
        time.sleep(0.001)
        return pixels

    classifier = Classifier.open(tiny_bundle, threads=1)
    pixels = load(1, classifier)
    with Pool(classifier, Layout(2, 1)) as pool:
        outcomes = pool.map(slowly, supply())
        for given in range(1, 31):
            next(outcomes)
            assert taken - given <= 6
        outcomes.close()
    assert loaded < 50, "what was not begun is not begun after the end"


def test_every_interpreter_is_used_by_one_thread_at_a_time(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: dict[int, int] = {}
    most = 0
    lock, together = threading.Lock(), threading.Barrier(3)
    predict = Classifier.predict

    def watched(self: Classifier, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal most
        with lock:
            inside[id(self)] = inside.get(id(self), 0) + 1
            assert inside[id(self)] == 1
            most = max(most, sum(inside.values()))
        together.wait(HANG_S)  # for the two others, each in its own thread
        result = predict(self, pixels)
        with lock:
            inside[id(self)] -= 1
        return result

    monkeypatch.setattr(Classifier, "predict", watched)
    classifier = Classifier.open(tiny_bundle, threads=1)
    pixels = load(1, classifier)
    with Pool(classifier, Layout(3, 1)) as pool:
        assert len(list(pool.map(lambda _: pixels, range(60)))) == 60
    assert (len(inside), most) == (3, 3)


def test_what_breaks_the_interpreter_is_raised(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise BundleError("the interpreter refuses")

    classifier = Classifier.open(tiny_bundle, threads=1)
    monkeypatch.setattr(Classifier, "predict", broken)
    with Pool(classifier, Layout(2, 1)) as pool, pytest.raises(BundleError, match="refuses"):
        list(pool.map(lambda seed: load(seed, classifier), range(5)))


def test_images_that_go_and_come_while_running(tiny_bundle: Path, folder: Path) -> None:
    """`classify` reads the first images at once to choose a layout; the folder has more than these."""
    for index in range(parallel.WORTH_MEASURING):
        os.link(folder / "01.png", folder / f"a{index:03}.png")
    (folder / "later").mkdir()
    predictions = classify(Classifier.open(tiny_bundle, threads=1), [folder], lambda first: Layout(1, 1))
    next(predictions)
    gone = folder / f"a{parallel.WORTH_MEASURING - 1:03}.png"
    gone.unlink()
    (folder / "later" / "new.png").write_bytes(png(grainy_image(5)))
    rest = {Path(p.image).name: p for p in predictions}
    assert "no such file" in str(rest[gone.name].error)
    assert rest["new.png"].error is None
    assert sum(p.error is not None for p in rest.values()) == 3, "this one, and the two that are no images"


def test_an_unreadable_folder_is_named(tiny_bundle: Path, folder: Path) -> None:
    shut = folder / "05 shut"
    shut.mkdir()
    (shut / "x.png").write_bytes(png(grainy_image(1)))
    shut.chmod(0)
    parents = [folder, *folder.parents]
    modes = {path: path.stat().st_mode for path in parents if path.stat().st_uid == os.getuid()}
    classifier = Classifier.open(tiny_bundle, threads=1)
    root = os.geteuid() == 0  # root may list everything: change to the user nobody
    try:
        for path in modes if root else ():
            path.chmod(0o755)
        if root:
            os.seteuid(65534)
        listed = list(expand([folder]))
        predictions = list(classify(classifier, [folder], lambda first: Layout(2, 1)))
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)
        shut.chmod(0o700)
    assert [p.image for p in predictions] == listed
    (named,) = [p for p in predictions if p.image == str(shut)]
    assert "05 shut: can't be read (Permission denied)" in str(named.error)
    assert len(predictions) == 25
    assert sum(p.error is None for p in predictions) == 22


def test_ctrl_c_stops_at_once(tiny_bundle: Path, folder: Path) -> None:
    arguments = f"['run', {str(tiny_bundle)!r}, '--workers', '2', *[{str(folder / '01.png')!r}] * 20_000]"
    # A shell may start this process with SIGINT ignored, which Python keeps.
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"from edgeall.cli import main; sys.exit(main({arguments}))"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert err.decode().strip().splitlines()[-1] == "interrupted"
    assert b"Traceback" not in err
    assert out.count(b"\n") < 2_000, "what was in the pipe, and what was under way"


def test_ways_to_spread_cores() -> None:
    assert possible_layouts(1) == (Layout(1, 1),)
    assert possible_layouts(2) == (Layout(2, 1), Layout(1, 2))
    assert possible_layouts(4) == (Layout(4, 1), Layout(2, 2), Layout(1, 4))
    assert possible_layouts(6) == (Layout(6, 1), Layout(3, 2), Layout(2, 3))
    assert possible_layouts(5) == (Layout(5, 1),)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "cores", lambda: 2)
    monkeypatch.setattr(layout_module, "_ROUND_S", 0.01)


def measured(monkeypatch: pytest.MonkeyPatch, rates: dict[Layout, float]) -> list[Layout]:
    asked: list[Layout] = []

    def measure(_: object, layout: Layout, images: object) -> float:
        asked.append(layout)
        return rates[layout]

    monkeypatch.setattr(layout_module, "_measure", measure)
    return asked


@pytest.mark.usefixtures("two_cores")
def test_what_is_asked_for_is_done(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, {})
    classifier = Classifier.open(tiny_bundle, threads=1)
    many = ["x.png"] * parallel.WORTH_MEASURING

    def chosen(**wanted: int) -> Layout:
        return choose_layout(classifier, many, note=print, **wanted)

    assert chosen(interpreters=3, threads=2) == Layout(3, 2)
    assert chosen(threads=1) == Layout(2, 1)
    assert chosen(threads=2) == Layout(1, 2)
    assert chosen(threads=8) == Layout(1, 8)
    assert chosen(interpreters=1) == Layout(1, 2)
    assert chosen(interpreters=5) == Layout(5, 1)
    assert asked == []


@pytest.mark.usefixtures("two_cores")
def test_the_fastest_is_measured_once(
    tiny_bundle: Path, pack_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(monkeypatch, {Layout(2, 1): 10.0, Layout(1, 2): 20.0})
    classifier, memory, notes = Classifier.open(tiny_bundle, threads=1), tmp_path / "new" / "layouts.json", []
    few, many = ["x.png"] * (parallel.WORTH_MEASURING - 1), ["x.png"] * parallel.WORTH_MEASURING
    assert choose_layout(classifier, few, note=notes.append, memory=memory) == Layout(2, 1)
    assert choose_layout(classifier, few[:1], note=notes.append, memory=memory) == Layout(1, 1), "one image needs one"
    assert (asked, notes) == ([], [])
    assert choose_layout(classifier, many, note=notes.append, memory=memory) == Layout(1, 2)
    assert asked == [*possible_layouts(2), *possible_layouts(2)], "in turns"
    assert "2 x 1: 10, 1 x 2: 20; 1 x 2 is remembered" in notes[0]
    for images in (few, many):
        assert choose_layout(classifier, images, note=notes.append, memory=memory) == Layout(1, 2)
    assert (len(asked), len(notes)) == (4, 1)

    other = Classifier.open(pack_tiny("float32", tmp_path / "float.tflite"), threads=1)
    choose_layout(other, many, note=notes.append, memory=memory)
    assert len(asked) == 8, "another model is another matter"
    assert len(json.loads(memory.read_text())) == 2

    for damage in ("", "[]", "{", json.dumps({key: {"threads": "x"} for key in json.loads(memory.read_text())})):
        memory.write_text(damage)
        asked.clear()
        assert choose_layout(classifier, many, note=notes.append, memory=memory) == Layout(1, 2)
        assert len(asked) == 4
        assert choose_layout(classifier, many, note=notes.append, memory=memory) == Layout(1, 2)
        assert len(asked) == 4


@pytest.mark.usefixtures("two_cores")
def test_a_device_that_can_keep_nothing_works(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(monkeypatch, {Layout(2, 1): 10.0, Layout(1, 2): 20.0})
    (tmp_path / "file").touch()
    many = ["x.png"] * parallel.WORTH_MEASURING
    classifier = Classifier.open(tiny_bundle, threads=1)
    for _ in range(2):
        assert choose_layout(classifier, many, note=lambda _: None, memory=tmp_path / "file" / "l.json") == Layout(1, 2)
    assert len(asked) == 8


@pytest.mark.usefixtures("two_cores")
def test_a_small_advantage_is_none(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, {Layout(2, 1): 10.0, Layout(1, 2): 10.9})
    classifier = Classifier.open(tiny_bundle, threads=1)
    many = ["x.png"] * parallel.WORTH_MEASURING
    assert choose_layout(classifier, many, note=lambda _: None, memory=tmp_path / "l.json") == Layout(2, 1)


@pytest.mark.usefixtures("two_cores")
def test_interpreters_have_to_fit_into_memory(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(monkeypatch, {})
    classifier = Classifier.open(tiny_bundle, threads=1)
    assert classifier.bundle is not None
    monkeypatch.setattr(layout_module, "memory_bytes", lambda: 12 * len(classifier.bundle.flatbuffer))
    many = ["x.png"] * parallel.WORTH_MEASURING
    assert choose_layout(classifier, many, note=print, memory=tmp_path / "l.json") == Layout(1, 2)
    assert asked == []


@pytest.mark.usefixtures("two_cores")
def test_measuring_for_real(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    classifier, memory = Classifier.open(tiny_bundle, threads=1), tmp_path / "layouts.json"
    images = list(expand([folder])) * 11
    notes: list[str] = []
    assert choose_layout(classifier, images, note=notes.append, memory=memory) in possible_layouts(2)
    assert "images/s" in notes[0]
    memory.unlink()
    unreadable = [str(tmp_path / "none.png")] * parallel.WORTH_MEASURING
    assert choose_layout(classifier, unreadable, note=notes.append, memory=memory) == Layout(2, 1)
    assert not memory.exists(), "what was measured on nothing isn't remembered"
    assert len(notes) == 1


def test_listing_keeps_names_alone(tmp_path: Path) -> None:
    """In a child process: a peak never decreases. One `Path` per image would take more than twice as much."""
    (tmp_path / "x.png").touch()
    for index in range(10_000):
        os.link(tmp_path / "x.png", tmp_path / f"image{index}.png")
    program = (
        "import sys\n"
        "from edgeall.edge_runtime.tools.device import peak_rss_bytes\n"
        "from edgeall.edge_runtime.pipeline import expand\n"
        "before = peak_rss_bytes()\n"
        "assert sum(1 for _ in expand([sys.argv[1]])) == 10_001\n"
        "print(peak_rss_bytes() - before)\n"
    )
    grown = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 10_001 * 200


def test_an_image_error_is_an_outcome(tiny_bundle: Path) -> None:
    def refuse(_: object) -> NDArray[np.uint8]:
        raise ImageError("no image")

    with Pool(Classifier.open(tiny_bundle, threads=1), Layout(1, 1)) as pool:
        ((item, outcome),) = pool.map(refuse, ["a"])
    assert item == "a"
    assert isinstance(outcome, ImageError)
