"""`edgeall run`, `bench` and `inspect` on a real small model, `data synth` and `data ls` on real small data."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures_models import LABELS, grainy_image

from edgeall import cli
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.pipeline import classify_one

RESEARCH_USE = "research use only, not a diagnosis"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, and a file that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in (1, 2, 3):
        grainy_image(seed).save(folder / f"{seed}, of three.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return folder


def edgeall(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    status = cli.main([str(argument) for argument in arguments])
    return (status, *capfd.readouterr())


def test_run_json_is_one_object_a_line(tiny_bundle: Path, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = edgeall(capfd, "run", tiny_bundle, images, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [Path(line["image"]).name for line in lines] == [
        "1, of three.png",
        "2, of three.png",
        "3, of three.png",
        "broken.png",
    ]
    for line in lines[:3]:
        assert line == classify_one(Classifier.open(tiny_bundle), line["image"]).as_json()
        assert list(line) == ["image", "label", "probability", "probabilities", "review", "reason", "novelty"]
        assert tuple(line["probabilities"]) == LABELS
    assert list(lines[3]) == ["image", "error"]
    assert "1 of 4 images could not be classified" in err
    assert RESEARCH_USE not in out + err


def test_run_csv_says_the_same(tiny_bundle: Path, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = edgeall(capfd, "run", tiny_bundle, images, "--csv")[1]
    rows = list(csv.DictReader(io.StringIO(out)))
    expected = [json.loads(line) for line in edgeall(capfd, "run", tiny_bundle, images, "--json")[1].splitlines()]
    assert [row["image"] for row in rows] == [line["image"] for line in expected]
    for row, line in zip(rows[:3], expected[:3], strict=True):
        assert row["label"] == line["label"]
        assert float(row["probability"]) == line["probability"]
        assert {label: float(row[f"p_{label}"]) for label in LABELS} == line["probabilities"]
        assert (row["review"], row["error"]) == ("no", "")
    assert (rows[3]["label"], rows[3]["error"]) == ("", expected[3]["error"])


def test_run_takes_its_form_from_the_nearest_source(
    tiny_bundle: Path,
    images: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("run", tiny_bundle, images / "1, of three.png")
    config = tmp_path / "c.toml"
    config.write_text("[run]\ncsv = true\n")
    assert edgeall(capfd, *command, "--config", config)[1].startswith("image,label,")
    monkeypatch.setenv("EDGEALL_RUN_JSON", "1")
    assert edgeall(capfd, *command)[1].startswith('{"image"')
    assert edgeall(capfd, *command, "--config", config)[1].startswith('{"image"')
    assert edgeall(capfd, *command, "--csv")[1].startswith("image,label,")


def test_run_table_for_people(tiny_bundle: Path, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = edgeall(capfd, "run", tiny_bundle, images)
    lines = out.splitlines()
    assert (status, len(lines)) == (0, 4)
    assert all(line.split()[0] in LABELS and "of three.png" in line for line in lines[:3])
    assert lines[3].startswith("error")
    assert err.rstrip().endswith(RESEARCH_USE)


def test_run_marks_what_needs_review(
    pack_tiny: Callable[..., Path], images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = pack_tiny("uint8", tmp_path / "strict.tflite", decision={"review_below": 1.0})
    out = edgeall(capfd, "run", model, images / "1, of three.png")[1]
    assert " review: uncertain " in out
    (row,) = csv.DictReader(io.StringIO(edgeall(capfd, "run", model, images / "1, of three.png", "--csv")[1]))
    assert row["review"] == "yes"


@pytest.mark.parametrize("name", ["none.png", "empty"])
def test_run_refuses_what_is_not_there(
    tiny_bundle: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    status, out, err = edgeall(capfd, "run", tiny_bundle, tmp_path / name)
    assert (status, out) == (1, "")
    assert str(tmp_path / name) in err


def test_run_fails_when_no_image_could_be_classified(
    tiny_bundle: Path, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = edgeall(capfd, "run", tiny_bundle, images / "broken.png", "--json")
    assert (status, len(out.splitlines())) == (1, 1)


def test_run_says_the_same_however_it_is_spread(
    tiny_bundle: Path, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = edgeall(capfd, "run", tiny_bundle, images, "--json", "--workers", 1, "--threads", 1)
    assert len(alone[1].splitlines()) == 4
    for options in ([], ["--workers", 3], ["--threads", 2], ["--workers", 2, "--threads", 2]):
        assert edgeall(capfd, "run", tiny_bundle, images, "--json", *options)[:2] == alone[:2]


def test_run_survives_a_file_name_that_is_not_text(
    tiny_bundle: Path, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    strange = os.path.join(os.fsencode(images), b"\xff\n.png")
    os.rename(images / "1, of three.png", strange)
    for form, lines in (([], 4), (["--json"], 4), (["--csv"], 6)):  # CSV: a header, and a quoted line break
        status, out, _ = edgeall(capfd, "run", tiny_bundle, images, *form)
        assert (status, len(out.splitlines())) == (0, lines), form


def test_run_into_a_closed_pipe_is_quiet(tiny_bundle: Path, images: Path) -> None:
    image = str(images / "1, of three.png")
    script = (
        f"import sys; from edgeall.cli import main; sys.exit(main(['run', {str(tiny_bundle)!r}, *[{image!r}] * 3000]))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
    assert "Traceback" not in err
    assert "Broken pipe" not in err


def test_bench_measures_the_golden_images(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = edgeall(capfd, "bench", tiny_bundle, "--seconds", 0.1, "--json")
    result = json.loads(out)
    assert status == 0
    assert set(result["stages"]) == {"decode", "preprocess", "invoke", "end_to_end"}
    status, out, err = edgeall(capfd, "bench", tiny_bundle, "--seconds", 0.1)
    assert status == 0
    assert "end_to_end" in out
    assert "3 repetitions, spread of the p50" in out
    assert "interpreters x threads" in out
    assert err.rstrip().endswith(RESEARCH_USE)


def test_bench_writes_a_page(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "bench.html"
    quick = ("--seconds", 0.01, "--min-queries", 5, "--repetitions", 1, "--no-sweep")
    status, out, err = edgeall(capfd, "bench", tiny_bundle, *quick, "--profile", "--html", page, "--json")
    result = json.loads(out)
    assert status == 0
    assert (result["queries"] >= 5, result["thread_sweep"], result["spread_percent"]) == (True, None, None)
    assert "research use only" in page.read_text(encoding="utf-8")
    assert result["profile"]["operators"][0]["operator"] in page.read_text(encoding="utf-8")
    assert str(page) in err


def test_inspect_shows_and_checks(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = edgeall(capfd, "inspect", tiny_bundle, "--json")
    assert (status, json.loads(out)["golden_ok"]) == (0, True)
    status, out, err = edgeall(capfd, "inspect", tiny_bundle)
    assert status == 0
    assert "2 as packed" in out
    assert err.rstrip().endswith(RESEARCH_USE)


def test_inspect_fails_when_a_golden_image_comes_out_otherwise(
    tiny_bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeall.edge_runtime.tools import golden

    def transposed(image: object, spec: object) -> object:
        return preprocess(image, spec)[:, ::-1].copy()

    preprocess = golden.preprocess
    monkeypatch.setattr(golden, "preprocess", transposed)
    status, out, _ = edgeall(capfd, "inspect", tiny_bundle)
    assert status == 1
    assert "NOT as packed" in out
    assert "PREPROCESSING DIFFERS" in out


def test_inspect_names_a_damaged_file(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = bytearray(tiny_bundle.read_bytes())
    damaged[2000] ^= 1
    (tmp_path / "m.tflite").write_bytes(damaged)
    status, out, err = edgeall(capfd, "inspect", tmp_path / "m.tflite")
    assert (status, out) == (1, "")
    assert "digest" in err


def test_data_synth_then_ls(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "synthetic"
    status, out, err = edgeall(capfd, "data", "synth", "--out", folder, "--images", 16, "--size", 64)
    assert status == 0
    assert "SYNTHETIC" in err
    (folder / "Pre" / "notes.png").write_text("not an image")
    status, out, _ = edgeall(capfd, "data", "ls", folder, "--json")
    facts = json.loads(out)
    assert status == 0
    assert {label: row["images"] for label, row in facts["labels"].items()} == dict.fromkeys(LABELS, 4)
    assert facts["positive_labels"] == ["Early", "Pre", "Pro"]
    assert facts["sizes"] == {"64x64": 16}
    assert [problem["path"] for problem in facts["problems"]] == ["Pre/notes.png"]
    status, out, _ = edgeall(capfd, "data", "ls", folder)
    assert status == 0
    assert "Pre/notes.png: " in out


def test_synthetic_images_are_called_so_wherever_they_were_copied(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edgeall(capfd, "data", "synth", "--out", tmp_path / "drawn", "--images", 16, "--size", 64)
    for label in LABELS[:2]:
        (tmp_path / "taken" / label).mkdir(parents=True)
        (image, *_) = (tmp_path / "drawn" / label).glob("*.png")
        shutil.copy(image, tmp_path / "taken" / label)
    for folder in ("drawn", "drawn/manifest.csv", "taken"):
        status, out, err = edgeall(capfd, "data", "ls", tmp_path / folder, "--json")
        assert (status, json.loads(out)["synthetic"]) == (0, True)
        assert "SYNTHETIC images" in err
    for file in (tmp_path / "taken").rglob("*.png"):
        grainy_image(len(str(file))).save(file)
    status, out, err = edgeall(capfd, "data", "ls", tmp_path / "taken", "--json")
    assert (status, json.loads(out)["synthetic"]) == (0, False)
    assert "SYNTHETIC" not in err


def test_data_ls_without_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = edgeall(capfd, "data", "ls", tmp_path / "none")
    assert (status, out) == (1, "")
    assert str(tmp_path / "none") in err
