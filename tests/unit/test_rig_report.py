"""The report of a slide as PDF, its fields as OME-TIFF, and images without loss."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from fixtures_models import grainy_image
from recorded_slide import LABORATORY, RED_CELL_PX, SAMPLE, SIZE, TAKEN, record_slide

from edgeall.cli import main
from edgeall.edge_runtime.manifest import RESEARCH_USE
from edgeall.edge_runtime.vision.scale import RED_CELL_UM
from edgeall.rig.record.check import check
from edgeall.rig.record.export import export_session
from edgeall.rig.record.ome import export_fields
from edgeall.rig.record.record import Record
from edgeall.rig.record.wilson import wilson_interval
from edgeall.rig.report.facts import ReportFacts, report_facts
from edgeall.rig.report.paper import Paper, isolated
from edgeall.rig.report.pdf import both_times, not_reviewed, report_pdf
from edgeall.rig.web.display import percent

pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


@pytest.fixture
def slide(tmp_path: Path) -> Iterator[tuple[Record, int]]:
    record, session = record_slide(tmp_path / "record")
    yield record, session
    record.close()


@pytest.fixture
def facts(slide: tuple[Record, int]) -> ReportFacts:
    return report_facts(*slide)


def pages(pdf: bytes) -> list[str]:
    """The text of each page, without the characters that isolate names."""
    texts = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages]
    return [" ".join(re.sub("[\u2068\u2069]", "", text).split()) for text in texts]


def test_a_report_states_what_it_must(facts: ReportFacts) -> None:
    found = pages(report_pdf(facts))
    text = " ".join(found)
    for number, page in enumerate(found, 1):
        assert page.count(RESEARCH_USE[1:]) == 2, "header and footer"
        assert f"Page {number} of {len(found)}" in page
    low, high = wilson_interval(5, 7)
    stated = [
        *LABORATORY.splitlines(),
        *("S-17", "Wright", "olga (3), dana (1)", "Ольга, olga", "Cell 1 · reviewed"),
        f"Benign 5 {percent(5 / 7)} {percent(low)} to {percent(high)} 5",
        *("Set aside by a reviewer: 1 artefact", "1 refused (1 Out of focus)", "Signature", "Examined by"),
        *("µm per pixel", "5 µm", facts.head, "ab" * 32, "UTC)"),
    ]
    assert [each for each in stated if each not in text] == []


def test_the_laboratorys_own_labels_have_a_table_as_on_the_page(slide: tuple[Record, int]) -> None:
    assert "laboratory's labels" not in " ".join(pages(report_pdf(report_facts(*slide))))
    slide[0].add_event("settings", {"names": {"Pre": "blast", "Benign": "other", "Pro": "blast"}})
    text = " ".join(pages(report_pdf(report_facts(*slide))))
    found = text[text.index("By the laboratory's labels") :]
    low, high = wilson_interval(5, 7)
    assert f"other 5 {percent(5 / 7)} {percent(low)} to {percent(high)} 5 blast 2" in found


def test_what_was_not_reviewed_comes_before_any_percentage(facts: ReportFacts) -> None:
    first = pages(report_pdf(facts))[0]
    assert not_reviewed(facts) == "5 of 7 not reviewed"
    assert first.index("5 of 7 not reviewed") < first.index("%")
    counts = facts.summary.counts
    assert counts is not None
    done = replace(facts, summary=replace(facts.summary, counts=replace(counts, unreviewed=0)))
    assert not_reviewed(done) == "All 7 were reviewed by a person."


def test_boxes_and_scale_of_the_pictures(facts: ReportFacts) -> None:
    shown = [each for pictures in facts.shown.values() for each in pictures]
    assert {each.found.id for each in shown} == {1, 2, 4, 5, 6, 7, 8}  # not the artefact
    for each in shown:
        assert each.box is not None and each.across_um is not None
        left, top, right, bottom = each.box
        assert right - left == pytest.approx(bottom - top) == pytest.approx(80 / 104)
        assert left == (0 if each.found.index == 0 else pytest.approx(12 / 104)), "shifted at the frame's edge"
        assert each.across_um == pytest.approx(104 * RED_CELL_UM / RED_CELL_PX)
        assert each.estimated


def test_without_a_scale_no_bar_is_drawn(slide: tuple[Record, int]) -> None:
    record, session = slide
    session = record.reopen_session(session) or session
    record.add_event("scale", {"objective": "100x oil", "red_cell_px": None})
    facts = report_facts(record, session)
    text = " ".join(pages(report_pdf(facts)))
    assert facts.scale is None and "not known" in text and "5 µm" not in text


def test_any_name_can_be_printed() -> None:
    paper = Paper("lab \u202e", "slide")
    assert paper.printable("a\u202eb\x00c\td 中\n😀") == "abc d [U+4E2D]\n[U+1F600]"
    assert paper.printable(isolated("\u2068דנה\u2069")) == "\u2068דנה\u2069"
    for text in (SAMPLE, "عينة ٣", "\ud7ff", "x" * 3000, "", "\u0301", "{nb}", "**bold** %s %(x)s"):
        paper.text(text)
        paper.pairs([(text, text)])
        paper.row([text, text], [40, 40])
    assert len(pages(paper.finish())) > 1


def test_times_are_local_and_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert both_times("2026-11-21T20:00:00+00:00") == "2026-11-22 05:00:00 JST (2026-11-21 20:00:00 UTC)"
        assert both_times(datetime(2026, 11, 21, 1, tzinfo=timezone.utc)) == "2026-11-21 10:00:00 JST (01:00:00 UTC)"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert both_times(None) == ""


def test_a_slide_without_cells_has_a_report(tmp_path: Path) -> None:
    from edgeall.rig.record.rows import FrameRow, Limits, SessionNotes

    with Record(tmp_path / "record", limits=Limits(0, 0)) as record:
        session = record.start_session(SessionNotes("empty"))
        assert "Nothing was counted" in pages(report_pdf(report_facts(record, session)))[0]
        record.add_frame(session, FrameRow(TAKEN, 1, "judged", label="Pre", probability=0.9))
        first = pages(report_pdf(report_facts(record, session)))[0]
        assert "1 of 1 not reviewed" in first and "older version" in first


def test_the_command_writes_it(slide: tuple[Record, int], tmp_path: Path) -> None:
    record, session = slide
    out = tmp_path / "r.pdf"
    arguments = ["record", "report", str(record.folder), "--session", str(session), "--out", str(out)]
    assert main(arguments) == 0
    assert "Report of a slide" in pages(out.read_bytes())[0]
    assert main(arguments) == 2, "an existing file is never overwritten"


def test_fields_are_exported_as_ome_tiff(tmp_path: Path) -> None:
    record, session = record_slide(tmp_path / "record", lossless=True)
    out = tmp_path / "out"
    with record:
        assert export_session(record, session, out, ome_tiff=True)["fields"] == 2
    with tifffile.TiffFile(out / "fields" / "field-2.ome.tif") as file:
        assert file.is_ome and file.series[0].axes == "YXS"
        assert np.array_equal(file.asarray(), np.asarray(grainy_image(2, SIZE)))
        root = ET.fromstring(file.ome_metadata)
    (pixels,) = root.iter(f"{OME}Pixels")
    scale = RED_CELL_UM / RED_CELL_PX
    assert (pixels.get("SizeX"), pixels.get("SizeY"), pixels.get("Type")) == (str(SIZE[0]), str(SIZE[1]), "uint8")
    assert float(pixels.get("PhysicalSizeX", 0)) == float(pixels.get("PhysicalSizeY", 0)) == pytest.approx(scale)
    assert pixels.get("PhysicalSizeXUnit") == "µm"
    (plane,) = root.iter(f"{OME}Plane")
    assert float(plane.get("PositionX", 0)) == pytest.approx(500 * scale) and plane.get("PositionXUnit") == "µm"
    text = ET.tostring(root, encoding="unicode")
    assert RESEARCH_USE in text and SAMPLE in text


def test_an_unknown_scale_is_not_invented(tmp_path: Path) -> None:
    record, session = record_slide(tmp_path / "record")
    with record:
        record.reopen_session(session)
        record.add_event("scale", {"objective": "100x oil", "red_cell_px": None})
        (tmp_path / "fields").mkdir()
        assert export_fields(record, session, tmp_path / "fields") == 2
    with tifffile.TiffFile(tmp_path / "fields" / "field-1.ome.tif") as file:
        assert "PhysicalSize" not in (file.ome_metadata or "")


def test_images_without_loss_are_kept_verified_and_exported(tmp_path: Path) -> None:
    record, session = record_slide(tmp_path / "record", lossless=True)
    with record:
        digest = next(frame.image for frame in record.frames(session) if frame.image)
        path = record.image_path(digest)
        assert path is not None and path.suffix == ".png"
        assert check(record.folder).problems == []
        export_session(record, session, tmp_path / "out")
        assert (tmp_path / "out" / "images" / f"{digest}.png").read_bytes() == path.read_bytes()
        assert record.prune_images(datetime(2100, 1, 1, tzinfo=timezone.utc)).images > 2
        assert record.image_path(digest) is None
