"""The report of a slide: results with what was not reviewed, pictures by label, people, times, and lines to sign."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from ... import __version__
from ...edge_runtime.images import open_rgb
from ...edge_runtime.vision.scale import RED_CELL_UM
from ...edge_runtime.vision.scale_bar import ScaleBar, scale_bar
from ..language import gettext as _
from ..language import localized, ngettext
from ..record.results import Share, Summary
from ..web.display import label_name, percent, reason, sentence, tally
from .facts import ReportFacts, Shown
from .paper import MARGIN_MM, WIDTH_MM, Paper, isolated

if TYPE_CHECKING:
    from fpdf import FPDF

_TILE_MM, _GAP_MM, _CAPTION_MM = 26.8, 3.4, 9.5


def report_pdf(facts: ReportFacts) -> bytes:
    """The report in the current language, as a PDF file. Raises EdgeallError as `Paper` does."""
    sample = facts.session.notes.sample
    laboratory, _newline, address = facts.laboratory.strip().partition("\n")
    paper = Paper(laboratory or "edgeall", sample)
    paper.pdf.set_title(paper.printable(_("Report on {sample}").format(sample=sample)))
    if address:
        paper.text(address, 9, grey=True)
    paper.pdf.ln(2)
    paper.text(_("Report of a slide"), 10, grey=True)
    paper.text(sample, 18, bold=True)
    paper.pdf.ln(1.5)
    paper.pairs(_slide(facts))
    _results(paper, facts)
    _pictures(paper, facts)
    paper.heading(_("Origin"))
    paper.pairs(_origin(facts))
    _signatures(paper)
    return paper.finish()


def both_times(at: str | datetime | None) -> str:
    """A time in the machine's zone and in UTC: ``2026-11-21 11:00:00 CET (10:00:00 UTC)``; empty for None."""
    if at is None:
        return ""
    moment = at if isinstance(at, datetime) else datetime.fromisoformat(at.replace("Z", "+00:00"))
    local, utc = moment.astimezone(), moment.astimezone(timezone.utc)
    day = "" if local.date() == utc.date() else f"{utc:%Y-%m-%d} "
    return f"{local:%Y-%m-%d %H:%M:%S %Z} ({day}{utc:%H:%M:%S} UTC)"


def _slide(facts: ReportFacts) -> list[tuple[str, str]]:
    session, notes = facts.session, facts.session.notes
    ended = both_times(session.ended) or _("still open")
    if session.clock_was_set_back:
        ended += ". " + _("Before its start, because the clock was set back")
    operators = dict.fromkeys(filter(None, (notes.operator, session.started_by, session.ended_by)))
    amended = [
        f"{isolated(each.before)} → {isolated(each.sample)}: {both_times(each.at)}, {isolated(each.by)}"
        for each in session.amendments
    ]
    scale = _("not known: no scale bar is drawn")
    if facts.scale and not facts.scale.estimated:
        scale = _("{value} µm per pixel, calibrated").format(value=localized(f"{facts.scale.um_per_px:.4f}"))
    elif facts.scale:
        given = localized(f"{facts.scale.um_per_px:.4f}")
        scale = _("{value} µm per pixel, from red cells of {diameter} µm").format(
            value=given, diameter=localized(f"{RED_CELL_UM:g}")
        )
    return [
        (_("Started"), both_times(session.started)),
        (_("Ended"), ended),
        (_("Operators"), ", ".join(map(isolated, operators))),
        (_("Reviewers"), ", ".join(f"{isolated(name)} ({count})" for name, count in facts.reviewers) or _("nobody")),
        (_("Stain"), notes.stain),
        (_("Magnification"), notes.magnification),
        (_("Scale"), scale),
        (_("Sample id corrected"), "\n".join(amended)),
        (_("Notes"), notes.notes),
    ]


def _results(paper: Paper, facts: ReportFacts) -> None:
    summary = facts.summary
    paper.heading(_("Results"))
    if (open_ones := summary.unreviewed) is not None:
        paper.notice(not_reviewed(facts))
    if summary.counts:
        paper.text(sentence(tally(summary.counts, "cell" if summary.cells else "field")), 10.5, bold=True)
    shares, name = (summary.cells, _("Cells")) if summary.cells else (summary.labels, _("Fields"))
    if open_ones is None or not shares:
        paper.text(_("Nothing was counted."))
        return
    if not summary.counts:
        name = _("Frames")
        paper.notice(
            _("An older version recorded this slide: shares are over frames, and the intervals are too narrow.")
        )
    _table(paper, name, shares)
    if facts.by_laboratory:
        paper.pdf.ln(2)
        paper.text(_("By the laboratory's labels"), 10, bold=True)
        _table(paper, name, facts.by_laboratory)
    paper.pdf.ln(1.5)
    notes = [_("Wilson intervals over different cells or fields; labels after review.")]
    aside = summary.counts.set_aside if summary.counts else {}
    if aside:
        listed = ", ".join(f"{count} {label_name(label)}" for label, count in aside.items())
        notes.append(_("Set aside by a reviewer: {list}.").format(list=listed))
    if summary.counts and summary.counts.patches > 1:
        notes.append(_("Where two patches of the map show the same place, its cells count twice."))
    paper.text(" ".join(notes), 8.5, grey=True)
    paper.pdf.ln(1)
    paper.pairs(_checks(facts))


def _table(paper: Paper, name: str, shares: Sequence[Share]) -> None:
    """Counts and shares by label; ``name`` is that of what is counted."""
    widths = [48.0, 24.0, 26.0, 46.0, 34.0]
    paper.row([_("Label"), name, _("Share"), _("95 % interval"), _("By the model")], widths, bold=True)
    for share in shares:
        paper.row(_share(share), widths)


def not_reviewed(facts: ReportFacts) -> str:
    """What stands above every percentage: ``74 of 111 not reviewed``."""
    missing, total = facts.summary.unreviewed or (0, 0)
    if not missing:
        return _("All {total} were reviewed by a person.").format(total=total)
    return _("{count} of {total} not reviewed").format(count=missing, total=total)


def _share(share: Share) -> list[str]:
    interval = _("{low} to {high}").format(low=percent(share.low), high=percent(share.high))
    return [share.label, str(share.count), percent(share.fraction), interval, str(share.by_model)]


def _checks(facts: ReportFacts) -> list[tuple[str, str]]:
    """Audit, readers, and what was left out."""
    summary, found = facts.summary, [*_audit(facts.summary), *_readers(facts.summary)]
    refused = summary.frames["refused"]
    reasons = ", ".join(f"{count} {reason(name)}" for name, count in summary.reasons.items())
    frames = _("{judged} judged, {refused} refused").format(judged=summary.frames["judged"], refused=refused)
    found.append((_("Frames"), frames + (f" ({reasons})" if reasons else "")))
    if facts.session.skipped:
        skipped = facts.session.skipped
        text = ngettext("{count} file could not be used", "{count} files could not be used", skipped)
        found.append((_("Skipped files"), text.format(count=skipped)))
    return found


def _audit(summary: Summary) -> list[tuple[str, str]]:
    audit = summary.audit
    if audit is None or not audit.confident:
        return []
    if audit.rate is None:
        return [(_("Audit"), _("not reviewed yet: the error rate of confident verdicts is unknown"))]
    text = _("{errors} of {reviewed} reviewed verdicts of the random sample were wrong: {rate} ({low} to {high})")
    rate, low, high = map(percent, (audit.rate, audit.low, audit.high))
    return [(_("Audit"), text.format(errors=audit.errors, reviewed=audit.reviewed, rate=rate, low=low, high=high))]


def _readers(summary: Summary) -> list[tuple[str, str]]:
    found, agreement = [], summary.agreement
    if agreement is not None:
        kappa = _("not defined") if agreement.kappa is None else localized(f"{agreement.kappa:.2f}")
        first, second = map(isolated, agreement.readers)
        text = _("{first} and {second} agree on {agreed} of {common}; Cohen's kappa: {kappa}")
        values = {"agreed": agreement.agreed, "common": agreement.common, "kappa": kappa}
        found.append((_("Two readers"), text.format(first=first, second=second, **values)))
    if summary.disagreements:
        found.append((_("Disagreements"), _("{count}, not adjudicated").format(count=summary.disagreements)))
    return found


def _pictures(paper: Paper, facts: ReportFacts) -> None:
    if not any(facts.shown.values()):
        return
    paper.heading(_("Pictures"))
    paper.text(_("By label; what asks for a review and the least confident verdicts first."), 8.5, grey=True)
    totals = {share.label: share.count for share in (*facts.summary.cells, *facts.summary.labels)}
    for label, shown in facts.shown.items():
        if not shown:
            continue
        if paper.pdf.will_page_break(_TILE_MM + _CAPTION_MM + 8):
            paper.pdf.add_page()
        paper.pdf.ln(1)
        count = _("{shown} of {total}").format(shown=len(shown), total=totals.get(label, len(shown)))
        paper.text(f"{label_name(label)} · {count}", 10, bold=True)
        columns = int((WIDTH_MM + _GAP_MM) // (_TILE_MM + _GAP_MM))
        for start in range(0, len(shown), columns):
            if paper.pdf.will_page_break(_TILE_MM + _CAPTION_MM):
                paper.pdf.add_page()
            y = paper.pdf.get_y() + 0.8
            for column, each in enumerate(shown[start : start + columns]):
                _tile(paper, each, MARGIN_MM + column * (_TILE_MM + _GAP_MM), y)
            paper.pdf.set_y(y + _TILE_MM + _CAPTION_MM)


def _tile(paper: Paper, each: Shown, x: float, y: float) -> None:
    """A picture with its box, its scale bar and a caption."""
    pdf = paper.pdf
    with open_rgb(each.path) as image:
        width, height = image.size
        drawn = _TILE_MM, _TILE_MM * height / width
        pdf.image(image, x, y, *drawn)
    if each.box is not None:
        left, top, right, bottom = each.box
        for color, line in ((255, 0.7), (0, 0.3)):
            pdf.set_draw_color(color)
            pdf.set_line_width(line)
            pdf.rect(x + left * drawn[0], y + top * drawn[1], (right - left) * drawn[0], (bottom - top) * drawn[1])
    if each.across_um:
        bar = scale_bar(each.across_um / drawn[0], drawn[0], estimated=each.estimated, share=0.5)
        _draw_bar(pdf, x, y + drawn[1], bar)
    pdf.set_draw_color(0)
    pdf.set_line_width(0.2)
    found, kind = each.found, _("Cell") if each.found.kind == "cell" else _("Field")
    state = _("reviewed") if each.reviewed else percent(found.probability, 0)
    pdf.set_font("DejaVu", "", 7)
    for line, text in enumerate(
        (f"{kind} {found.id} · {state}", "" if each.reviewed or not found.review_reason else _("asks for a review"))
    ):
        pdf.set_xy(x, y + drawn[1] + 0.4 + 3.2 * line)
        pdf.cell(_TILE_MM, 3.2, paper.fitting(text, _TILE_MM + 3))


def _draw_bar(pdf: FPDF, x: float, bottom: float, bar: ScaleBar) -> None:
    """Draw a scale bar, whose "pixels" are millimetres of the page, at the lower left of a picture."""
    left, base = x + 1.6, bottom - 1.6
    pdf.set_fill_color(255)
    pdf.rect(left - 0.8, base - 4.0, max(bar.px, 9.5) + 1.6, 4.8, style="F")
    pdf.set_fill_color(0)
    pdf.rect(left, base - 0.7, bar.px, 0.7, style="F")
    pdf.set_font("DejaVu", "", 6)
    pdf.set_xy(left - 0.5, base - 3.7)
    pdf.cell(10, 2.6, bar.text)


def _origin(facts: ReportFacts) -> list[tuple[str, str]]:
    session = facts.session
    return [
        (_("Report made"), both_times(facts.made)),
        (_("Model"), session.model or ""),
        (_("SHA-256 of the network"), session.model_sha256 or ""),
        (
            _("Software"),
            f"edgeall {session.software}" + ("" if session.software == __version__ else f" / {__version__}"),
        ),
        (_("Head of the record"), facts.head),
        (_("Slide"), str(session.id)),
    ]


def _signatures(paper: Paper) -> None:
    """Lines for two people to sign on."""
    pdf = paper.pdf
    if pdf.will_page_break(46):
        pdf.add_page()
    paper.heading(_("Signatures"))
    columns = ((_("Name"), 70.0), (_("Date"), 34.0), (_("Signature"), 66.0))
    for role in (_("Examined by"), _("Approved by")):
        paper.text(role, 8.5, grey=True)
        pdf.ln(8)
        x, y = MARGIN_MM, pdf.get_y()
        for name, width in columns:
            pdf.line(x, y, x + width, y)
            pdf.set_xy(x, y + 0.5)
            pdf.set_font("DejaVu", "", 7.5)
            pdf.cell(width, 4, paper.printable(name))
            x += width + 4
        pdf.set_y(y + 6)
