"""`edgeall cells` goes on where an interrupted command stopped, on all cores, and shows how far it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drawn_cells import DrawnSegmenter, draw
from PIL import Image

from edgeall import cli
from edgeall.console import progress
from edgeall.edge_runtime.vision import cells_files
from edgeall.edge_runtime.vision import finder as finding
from edgeall.edge_runtime.vision.finder import CellFinder
from edgeall.edge_runtime.vision.journal import NAME

IMAGES = 6


@pytest.fixture
def smears(tmp_path: Path) -> Path:
    (tmp_path / "smears").mkdir()
    for number in range(IMAGES):
        image = Image.fromarray(draw([((120 + 40 * number, 120), 0.8), ((420, 300), 0.7)]))
        image.save(tmp_path / "smears" / f"{number}.png")
    return tmp_path / "smears"


@pytest.fixture
def cells(smears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """``cells(folder, *options)``: exit status, JSON and stderr of `edgeall cells`."""

    def run(folder: str, *options: str) -> tuple[int, Any, str]:
        status = cli.main(["cells", str(smears), "--out", str(tmp_path / folder), "--masks", "--json", *options])
        out, err = capsys.readouterr()
        return status, json.loads(out) if status == 0 else None, err

    return run


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were searched; with the word ``stop`` at its front, Ctrl-C is pressed at the fourth."""
    opened: list[str] = []
    own = cells_files.open_rgb

    def open_rgb(path: str) -> Image.Image:
        if opened[:1] == ["stop"] and len(opened) >= 4:
            raise KeyboardInterrupt
        opened.append(Path(path).name)
        return own(path)

    monkeypatch.setattr(cells_files, "open_rgb", open_rgb)
    monkeypatch.setattr(cells_files, "open_finder", lambda model=None, threads=None: CellFinder(DrawnSegmenter()))
    return opened


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("cores", [1, 3])
def test_an_interrupted_command_is_resumed(
    cells: Callable[..., Any],
    looked_at: list[str],
    tmp_path: Path,
    cores: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finding, "cores", lambda: cores)
    _, whole, _ = cells("whole", "--crops")
    looked_at[:] = ["stop"]
    status, _, err = cells("out", "--crops")
    assert status == 130 and "interrupted" in err
    assert not (tmp_path / "out" / "cells.csv").exists()
    looked_at.clear()
    status, found, err = cells("out", "--crops")
    assert status == 0 and f"of {IMAGES} images are done, going on with the others" in err
    assert 0 < len(looked_at) < IMAGES
    assert found == {**whole, "out": str(tmp_path / "out")}
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not (tmp_path / "out" / NAME).exists()


def test_what_a_power_cut_damaged_is_done_again(
    cells: Callable[..., Any], looked_at: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "cores", lambda: 1)
    out = tmp_path / "out"
    _, whole, _ = cells("whole")
    looked_at[:] = ["stop"]
    assert cells("out")[0] == 130
    with (out / NAME).open("a") as journal:
        journal.write('{"image": "cut he')
    (out / "overlays" / "0002-1.png").write_bytes(bytes(500))
    looked_at.clear()
    status, found, _ = cells("out")
    assert status == 0 and looked_at == ["1.png", "3.png", "4.png", "5.png"]
    assert found["images"] == whole["images"] and files(out) == files(tmp_path / "whole")


def test_other_options_or_images_do_not_go_on(
    cells: Callable[..., Any], looked_at: list[str], smears: Path, tmp_path: Path
) -> None:
    looked_at[:] = ["stop"]
    assert cells("out")[0] == 130
    looked_at.clear()
    before = files(tmp_path / "out")
    for options in (("--crops",), ("--red-cell-px", "50")):
        status, _, err = cells("out", *options)
        assert status == 2 and "holds an unfinished `edgeall cells` of other images or with other options" in err
    (smears / "6.png").write_bytes((smears / "0.png").read_bytes())
    assert cells("out")[0] == 2
    assert files(tmp_path / "out") == before and looked_at == []
    (smears / "6.png").unlink()
    assert cells("out")[0] == 0
    assert cells("out")[0] == 2  # complete: not an empty folder


@pytest.mark.usefixtures("looked_at")
def test_long_work_shows_how_far_it_is(cells: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    _, _, err = cells("out")
    assert f"finding cells: {IMAGES}/{IMAGES}" in err
