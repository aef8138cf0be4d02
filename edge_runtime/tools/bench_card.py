"""The result of `edgeall bench` as text and as one self-contained HTML page. A device has no template engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ...console.tables import percent, record, table
from ..manifest import RESEARCH_USE
from .atomic import write_text
from .bench_result import BenchResult

Rows = Sequence[Sequence[object]]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
.warning { background: #fff3cd; padding: .5rem 1rem } .notice { color: #666 } svg text { font: 12px system-ui }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } tr { border-color: #444 }
.warning { background: #4d3f00 } svg text { fill: #ddd } }
"""
_LINE_PX, _NAME_PX, _BAR_PX = 22, 260, 460


def bench_text(result: BenchResult) -> str:
    """What ``edgeall bench`` prints."""
    parts = [single_stream_text(result)]
    if result.spread_percent is not None:
        parts.append(f"{len(result.repetitions)} repetitions, spread of the p50 {result.spread_percent:.1f} %")
    parts += [table(heads, rows) for _, heads, rows in _sections(result)]
    return "\n\n".join(parts)


def write_card(result: BenchResult, out: Path) -> None:
    """Write the page. Raises OSError if ``out`` cannot be written."""
    write_text(out, card(result), errors="replace")  # file names need not be valid Unicode


def card(result: BenchResult) -> str:
    """One HTML page without external resources."""
    accuracy = percent(result.accuracy)
    steady = result.steady_rss_bytes
    facts: Rows = [
        ["model", f"{result.model}, SHA-256 {result.model_sha256[:16]}"],
        ["images", f"{result.images:,} timed, SHA-256 of all {result.images_sha256[:16]}"],
        ["load", f"{result.load_ms:.1f} ms"],
        ["first image", f"{result.first_ms:.1f} ms"],
        ["single stream", f"{result.images_per_s:.1f} images/s, {result.threads} threads"],
        ["peak memory", f"{result.peak_rss_bytes / 1e6:.1f} MB"],
        ["steady memory", "unknown" if steady is None else f"{steady / 1e6:.1f} MB"],
        ["accuracy", f"{accuracy} on {result.accuracy_images:,} images" if accuracy else "unknown"],
    ]
    stages = result.stages
    pictured = [
        (f"{name} {percentile}", ms)
        for name, times in stages.items()
        for percentile, ms in (("p50", times.p50_ms), ("p99", times.p99_ms))
    ]
    parts = [
        f"<h1>{escape(result.model)}</h1>",
        *(f'<p class="warning">{escape(warning)}</p>' for warning in result.warnings),
        _html_table(["what", "measured"], facts),
        "<h2>Single stream, ms</h2>",
        _bars(pictured),
    ]
    for title, heads, rows in _sections(result):
        parts += [f"<h2>{escape(title)}</h2>", _html_table(heads, rows)]
    if result.profile:
        slowest = [(row.operator, row.ms) for row in result.profile.operators]
        in_order = [(row.operator, row.ms) for row in result.profile.nodes]
        parts += ["<h3>Slowest first, ms</h3>", _bars(slowest), "<h3>In execution order, ms</h3>", _bars(in_order)]
    before, after = (vars(state) for state in (result.conditions.before, result.conditions.after))
    known = [[name, before[name], after[name]] for name in before if before[name] is not None]
    device: Rows = [[name, value] for name, value in vars(result.device).items() if value is not None]
    parts += [
        "<h2>Device</h2>",
        _html_table(["what", ""], device),
        _html_table(["condition", "before", "after"], known),
        f'<p class="notice">{escape(RESEARCH_USE)}</p>',
    ]
    head = f'<meta charset="utf-8"><title>{escape(result.model)}: edgeall bench</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _sections(result: BenchResult) -> Iterable[tuple[str, list[str], Rows]]:
    """Title, heads and rows of the measurements beyond the single stream."""
    if result.thread_sweep:
        rows = [
            [row.threads, f"{row.invoke_p50_ms:.2f}", f"{row.end_to_end_p50_ms:.2f}", f"{row.images_per_s:.1f}"]
            for row in result.thread_sweep
        ]
        yield "Single stream by number of threads", ["threads", "invoke p50 ms", "image p50 ms", "images/s"], rows
    if result.offline:
        rows = [[f"{row.interpreters} x {row.threads}", f"{row.images_per_s:.1f}"] for row in result.offline]
        yield "Offline (all images at hand)", ["interpreters x threads", "images/s"], rows
    if result.profile:
        rows = [[row.operator, row.calls, f"{row.ms:.3f}", f"{row.percent:.1f} %"] for row in result.profile.operators]
        yield "Operators", ["operator", "calls", "ms", "share"], rows


def _html_table(heads: Sequence[str], rows: Rows) -> str:
    def line(tag: str, cells: Iterable[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line("th", heads), *(line("td", row) for row in rows), "</table>"])


def _bars(values: Sequence[tuple[str, float]]) -> str:
    """An SVG of horizontal bars, with names on the left and values on the right."""
    most = max((value for _, value in values), default=0.0) or 1.0
    lines = []
    for index, (name, value) in enumerate(values):
        top, width = index * _LINE_PX, value / most * _BAR_PX
        middle = top + _LINE_PX * 0.7
        lines += [
            f'<text x="{_NAME_PX - 8}" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_NAME_PX}" y="{top + 3}" width="{width:.1f}" height="{_LINE_PX - 6}" fill="#3b7dd8"/>',
            f'<text x="{_NAME_PX + width + 6:.1f}" y="{middle:.0f}">{value:.3f}</text>',
        ]
    box = f'viewBox="0 0 {_NAME_PX + _BAR_PX + 80} {len(values) * _LINE_PX}"'
    return f'<svg {box} role="img" xmlns="http://www.w3.org/2000/svg">{"".join(lines)}</svg>'


def single_stream_text(result: BenchResult) -> str:
    """The single stream, the memory and the accuracy as text."""
    facts = {
        "device": ", ".join(text for text in (result.device.cpu, result.device.os, result.device.runtime) if text),
        "threads": str(result.threads),
        "load": f"{result.load_ms:.1f} ms",
        "first image": f"{result.first_ms:.1f} ms",
        "throughput": f"{result.images_per_s:.1f} images/s",
        "peak memory": f"{result.peak_rss_bytes / 1e6:.1f} MB",
        "accuracy": "unknown (no labelled images)"
        if result.accuracy is None
        else f"{percent(result.accuracy)} on the {result.accuracy_images:,} given images (may include training images)",
    }
    stages = [
        [name, f"{times.p50_ms:.2f}", f"{times.p90_ms:.2f}", f"{times.p99_ms:.2f}"]
        for name, times in result.stages.items()
    ]
    return f"{record(facts)}\n\n{table(['stage', 'p50 ms', 'p90 ms', 'p99 ms'], stages)}"
