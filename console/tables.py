"""Plain aligned text for people: tables, facts, percentages. It can be piped and searched, and costs no import."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence


def as_text(value: object) -> object:
    """For a CSV file: a text that begins like a formula gets an apostrophe, so that no spreadsheet computes it.

    Source: OWASP, CSV injection.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned columns under a rule: the first, a name, on the left, the others, figures, on the right."""
    heads = [plain(name) for name in columns]
    texts = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])

    return "\n".join([line(heads), "  ".join("─" * width for width in widths), *map(line, texts)])


def record(facts: Mapping[str, object]) -> str:
    """One ``name  value`` line each."""
    texts = {plain(name): cell(value) for name, value in facts.items()}
    width = max(map(len, texts), default=0)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in texts.items())


def percent(fraction: float | None) -> str | None:
    """``99.22 %``."""
    return None if fraction is None else f"{fraction * 100:.2f} %"


def four(value: float | None) -> str:
    """With four decimals; a dash for None."""
    return "-" if value is None else f"{value:.4f}"


def listed(title: str, lines: Sequence[str], most: int) -> str:
    rest = [f"  and {len(lines) - most} more (--json has all)"] if len(lines) > most else []
    return "\n".join([title, *(f"  {plain(line)}" for line in lines[:most]), *rest])


def cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{plain(str(key))} {cell(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else plain(str(value))


def plain(text: str) -> str:
    """One line, whatever a file's name holds: line breaks, terminal escapes and undecodable bytes are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def csv_line(values: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(values)  # which quotes a line break in a name only if its own lines end in one
    return buffer.getvalue().removesuffix("\r\n")
