"""Problems that the audit must find, and data without problems."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeall.console.progress import Progress
from edgeall.edge_runtime.errors import DataError
from edgeall.train.data import probes
from edgeall.train.data.audit import Audit, Finding, audit, audit_text
from edgeall.train.data.audit_report import SWATCHES, write_audit
from edgeall.train.data.probes import background_of, score
from edgeall.train.data.synth import synthesize

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module", autouse=True)
def small_forests() -> Iterator[None]:
    """Fewer trees are enough for few images, in a quarter of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "TREES", 40)
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fields whose class only depends on the cells."""
    folder = tmp_path_factory.mktemp("drawn") / "fields"
    synthesize(folder, 160, seed=4, size=96)
    return folder


@pytest.fixture(scope="module")
def clean(drawn: Path) -> Audit:
    return audit(drawn, QUIET)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.suffix in (".png", ".jpg") and "mask" not in path.parts)


def _classes(folder: Path) -> list[str]:
    return sorted({path.parent.name for path in _images(folder)})


def _about(found: Audit, about: str) -> list[Finding]:
    return [finding for finding in found.report.findings if finding.about == about]


def test_it_reports_nothing_for_clean_data(clean: Audit) -> None:
    assert clean.report.probes["shape"].accuracy > 0.6, "there is something to be learnt"
    assert _about(clean, "shortcut") == []
    assert [finding.level for finding in clean.report.findings if finding.level == "problem"] == []


def test_a_tint_of_the_border_by_class_is_named(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "tinted")
    for path in _images(tmp_path / "tinted"):
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
        tint = 20 * _classes(drawn).index(path.parent.name)
        for strip in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
            strip[..., 1] = np.clip(strip[..., 1].astype(int) // 2 + tint, 0, 255)
        Image.fromarray(pixels).save(path)
    found = audit(tmp_path / "tinted", QUIET)
    named = [finding.text for finding in _about(found, "shortcut")]
    assert any("outermost pixels" in text for text in named)
    assert not any("background" in text for text in named)
    assert "PROBLEM" in audit_text(found.report)


def test_scale_bars_that_differ_by_class_are_named(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "marked")
    for path in _images(tmp_path / "marked"):
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
        pixels[86:88, 90 - 4 * _classes(drawn).index(path.parent.name) : 92] = 0
        Image.fromarray(pixels).save(path)
    named = [finding.text for finding in _about(audit(tmp_path / "marked", QUIET), "shortcut")]
    assert any("marks in the four corners" in text for text in named)


def test_a_class_that_was_stored_by_another_program_is_named(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "mixed")
    for path in _images(tmp_path / "mixed"):
        with Image.open(path) as image:
            quality = 60 if path.parent.name == _classes(drawn)[0] else 90
            image.convert("RGB").save(path.with_suffix(".tmp"), "JPEG", quality=quality)
        path.unlink()
        path.with_suffix(".tmp").rename(path.with_suffix(".jpg"))
    named = [finding.text for finding in _about(audit(tmp_path / "mixed", QUIET), "shortcut")]
    assert any("compression tables" in text for text in named)


def test_faults_of_files_and_labels_are_named(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "faulty")
    first, *_, last = _classes(drawn)
    images = _images(tmp_path / "faulty")
    of_first = [path for path in images if path.parent.name == first]
    of_last = [path for path in images if path.parent.name == last]
    for path in of_last[12:]:
        path.unlink()
    shutil.copy(of_first[0], of_last[0].with_name(f"copy{of_first[0].suffix}"))
    (of_first[0].parent / "broken.png").write_bytes(b"nothing")
    found = audit(tmp_path / "faulty", QUIET)
    assert found.report.findings[0].level == "problem", "the gravest first"
    assert any(
        "different labels" in finding.text and of_first[0].name in finding.text
        for finding in _about(found, "duplicates")
    )
    assert "broken.png" in _about(found, "unreadable")[0].text
    assert last in _about(found, "imbalance")[0].text
    write_audit(found, tmp_path / "page.html")
    assert "The same image, different labels" in (tmp_path / "page.html").read_text()


def test_subjects_are_kept_together_and_counted(tmp_path: Path) -> None:
    synthesize(tmp_path / "cells", 120, seed=2, layout="cnmc", size=96)
    found = audit(tmp_path / "cells", QUIET)
    assert found.report.kept_together == "subject"
    assert found.report.listing.subjects is not None
    assert not any("isn't known" in finding.text for finding in _about(found, "subjects"))


def test_too_few_images_are_not_probed_and_one_class_is_refused(drawn: Path, tmp_path: Path) -> None:
    for name in _classes(drawn)[:2]:
        for path in [path for path in _images(drawn) if path.parent.name == name][:4]:
            (tmp_path / "few" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "few" / name)
    found = audit(tmp_path / "few", QUIET)
    assert found.report.probes == {}
    assert "Too few" in _about(found, "probes")[0].text
    write_audit(found, tmp_path / "page.html")
    shutil.rmtree(tmp_path / "few" / _classes(drawn)[0])
    with pytest.raises(DataError, match="only one class"):
        audit(tmp_path / "few", QUIET)


def test_a_probe_that_knows_the_subject_learns_nothing_of_the_class() -> None:
    generator = np.random.default_rng(0)
    subjects = np.repeat(np.arange(40), 6)
    classes = subjects % 2
    features = generator.normal(size=(40, 5))[subjects]
    assert score(features, classes, np.arange(240)).accuracy > 0.95, "with the subject on both sides"
    together = score(features, classes, subjects)
    assert together.accuracy < 0.75
    assert together.low < 0.5 < together.high


def test_intervals_come_from_groups_not_from_images() -> None:
    generator = np.random.default_rng(0)
    subjects = np.repeat(np.arange(20), 12)
    classes = subjects % 2
    features = (classes + generator.normal(size=20)[subjects])[:, np.newaxis]
    by_subject, by_image = score(features, classes, subjects), score(features, classes, np.arange(240))
    assert by_subject.high - by_subject.low > 2 * (by_image.high - by_image.low)


def test_background_is_the_brightest_fifth_or_the_black_around_a_cell() -> None:
    field = np.full((50, 50, 3), 120, np.uint8)
    field[:, :10] = 230
    assert background_of(field)[:, :10].all() and not background_of(field)[:, 10:].any()
    cell = np.zeros((50, 50, 3), np.uint8)
    cell[15:35, 15:35] = 140
    assert not background_of(cell)[15:35, 15:35].any() and background_of(cell)[:15].all()


def test_the_page_shows_everything_and_loads_nothing(clean: Audit, tmp_path: Path) -> None:
    write_audit(clean, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "not a diagnosis" in page
    assert all(label in page for label in clean.report.listing.labels)
    assert all(probe.looks_at in html.unescape(page) for probe in clean.report.probes.values())
    assert page.count('class="swatch"') == 4 * SWATCHES
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "<script" not in page


@pytest.mark.slow
def test_the_shortcut_of_the_four_class_set_is_found(test_data: Path) -> None:
    found = audit(test_data / "all4", QUIET)
    named = " ".join(finding.text for finding in _about(found, "shortcut"))
    assert "colour of the background" in named and "nine colour statistics" in named
    assert found.report.listing.exact_duplicates > 0
    assert "width and height" not in named
