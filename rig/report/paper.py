"""Pages of a PDF with a Unicode font, text in both writing directions, a header and a footer on every page."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from ...edge_runtime.errors import EdgeallError
from ..language import gettext as _
from ..language import message
from ..web.guard import USE

if TYPE_CHECKING:
    from fpdf import FPDF

FONTS = Path(__file__).with_name("fonts")
FONT = "DejaVu"
MARGIN_MM, WIDTH_MM = 16.0, 178.0
"""Of an A4 page: its margins, and the width between them."""
_MOST_FITTING = 200
"""Longest text that may fit into a line, characters."""
_ISOLATE, _END = "\u2068", "\u2069"
_HIDDEN = re.compile("[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2067\ufeff]")
"""Characters without a picture of their own, among them those that change the writing direction."""


def isolated(name: str) -> str:
    """A name within a sentence: its writing direction does not change that of the rest. Source: Unicode Annex 9."""
    return f"{_ISOLATE}{re.sub(f'[{_ISOLATE}{_END}]', '', _HIDDEN.sub('', name)).strip()}{_END}"


class Paper:
    """A4 pages.

    Args:
        top: first line of the header of every page: the laboratory.
        about: first part of the footer: the slide.

    Raises:
        EdgeallError: a package of the extra ``rig`` is missing.
    """

    def __init__(self, top: str, about: str) -> None:
        self._top, self._about = top, about
        self.pdf = self._new()
        fonts = [self.pdf.fonts[f"{FONT.lower()}{style}"] for style in ("", "B")]
        self._known = frozenset.intersection(*(frozenset(getattr(font, "cmap", ())) for font in fonts))
        self.pdf.add_page()

    def text(self, text: str, size: float = 9.5, bold: bool = False, grey: bool = False, width: float = 0) -> None:
        """A paragraph of ``size`` points; of ``width`` millimetres, or to the right margin."""
        self._style(size, bold, grey)
        self.pdf.multi_cell(width, size * 0.5, self.printable(text), align="L", new_x="LMARGIN", new_y="NEXT")
        self._style()

    def heading(self, text: str) -> None:
        """The heading of a section, which stays with the lines that follow."""
        if self.pdf.will_page_break(26):
            self.pdf.add_page()
        self.pdf.ln(3.5)
        self.text(text, 12, bold=True)
        self.pdf.ln(0.8)

    def pairs(self, pairs: list[tuple[str, str]]) -> None:
        """Names and values in two columns. Empty values are left out."""
        for name, value in pairs:
            if not value:
                continue
            lines = self._lines(value, WIDTH_MM - 42)
            if self.pdf.will_page_break(min(lines, 8) * 4.7):
                self.pdf.add_page()
            y = self.pdf.get_y()
            self._style(grey=True)
            self.pdf.multi_cell(41, 4.7, self.printable(name), align="L", new_x="LMARGIN", new_y="NEXT")
            below, page = self.pdf.get_y(), self.pdf.page
            self.pdf.set_xy(MARGIN_MM + 42, y)
            self._style()
            self.pdf.multi_cell(0, 4.7, self.printable(value), align="L", new_x="LMARGIN", new_y="NEXT")
            if self.pdf.page == page:
                self.pdf.set_y(max(below, self.pdf.get_y()))

    def notice(self, text: str) -> None:
        """A sentence in a frame."""
        self._style(10.5, bold=True)
        self.pdf.set_fill_color(255, 240, 217)
        self.pdf.multi_cell(0, 7, self.printable(text), border=1, align="L", fill=True, new_x="LMARGIN", new_y="NEXT")
        self.pdf.ln(1.5)
        self._style()

    def row(self, values: list[str], widths: list[float], bold: bool = False) -> None:
        """A row of a table with a line below it; the first column is left-aligned, the others right-aligned."""
        if self.pdf.will_page_break(7):
            self.pdf.add_page()
        self._style(9, bold)
        for index, (value, width) in enumerate(zip(values, widths, strict=True)):
            self.pdf.cell(width, 6.2, self.fitting(value, width), border="B", align="R" if index else "L")
        self.pdf.ln()
        self._style()

    def fitting(self, text: str, width: float) -> str:
        """The text, printable and cut to ``width`` millimetres in the current font."""
        text = self.printable(text).replace("\n", " ")
        if len(text) <= _MOST_FITTING and self.pdf.get_string_width(text) <= width - 2:
            return text
        fits, over = 0, min(len(text), _MOST_FITTING) + 1
        while over - fits > 1:
            middle = (fits + over) // 2
            if self.pdf.get_string_width(f"{text[:middle]}…") <= width - 2:
                fits = middle
            else:
                over = middle
        return f"{text[:fits]}…"

    def printable(self, text: str) -> str:
        """The text without hidden characters; one that the font does not have as its code, ``[U+4E2D]``."""
        known = self._known
        plain = _HIDDEN.sub("", unicodedata.normalize("NFC", text).replace("\t", " "))
        return "".join(
            each
            if each in f"\n{_ISOLATE}{_END}" or ord(each) in known
            else ""
            if ord(each) < 32
            else f"[U+{ord(each):04X}]"
            for each in plain
        )

    def finish(self) -> bytes:
        """The file."""
        return bytes(self.pdf.output())

    def _style(self, size: float = 9.5, bold: bool = False, grey: bool = False) -> None:
        self.pdf.set_font(FONT, "B" if bold else "", size)
        self.pdf.set_text_color(80 if grey else 0)

    def _lines(self, text: str, width: float) -> int:
        self._style()
        lines = self.pdf.multi_cell(width, 4.7, self.printable(text), dry_run=True, output="LINES")
        return len(lines) if isinstance(lines, list) else 1

    def _new(self) -> FPDF:
        try:
            import uharfbuzz  # noqa: F401 by fpdf2, for scripts that join letters or run from right to left
            from fpdf import FPDF
        except ImportError as error:
            text = message("a report needs {library}", library=error.name)
            raise EdgeallError(text, hint='install it with pip install "edgeall[rig]"') from error
        paper = self

        class Pages(FPDF):
            def header(self) -> None:
                paper.header(self)

            def footer(self) -> None:
                paper.footer(self)

        pdf = Pages(format="A4")
        pdf.add_font(FONT, "", FONTS / "DejaVuSans.ttf")
        pdf.add_font(FONT, "B", FONTS / "DejaVuSans-Bold.ttf")
        pdf.set_text_shaping(True)
        pdf.set_margins(MARGIN_MM, 12, MARGIN_MM)
        pdf.set_auto_page_break(True, 22)
        pdf.set_creator("edgeall")
        return pdf

    def header(self, pdf: FPDF) -> None:
        """On every page: the laboratory and the research-use statement."""
        pdf.set_text_color(0)
        pdf.set_font(FONT, "B", 9)
        pdf.cell(WIDTH_MM / 2, 6, self.fitting(self._top, WIDTH_MM / 2))
        self._use(pdf, "R")
        pdf.ln(9)

    def footer(self, pdf: FPDF) -> None:
        """On every page: the slide, the research-use statement, the number of the page."""
        pdf.set_y(-17)
        pdf.set_text_color(60)
        pdf.set_font(FONT, "", 8)
        pdf.cell(WIDTH_MM * 0.42, 6, self.fitting(self._about, WIDTH_MM * 0.42), border="T")
        pdf.cell(WIDTH_MM * 0.40, 6, self.printable(_(USE)), border="T")
        number = _("Page {number} of {total}").format(number=pdf.page_no(), total="{nb}")
        pdf.cell(0, 6, number, border="T", align="R")

    def _use(self, pdf: FPDF, align: str) -> None:
        pdf.set_font(FONT, "B", 9)
        pdf.set_draw_color(0)
        text = self.printable(_(USE))
        width = pdf.get_string_width(text) + 6
        pdf.set_x(MARGIN_MM + WIDTH_MM - width)
        pdf.cell(width, 6, text[:1].upper() + text[1:], border=1, align="C")
