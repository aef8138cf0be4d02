"""The result of an adaptation as text."""

from __future__ import annotations

from ...console.tables import record, table
from .adapt import Adapted
from .learn import Labelled
from .verdict import Figures


def adapted_text(result: Adapted) -> str:
    """Tables of the figures before and after."""
    learned, site = result.learned, result.site
    facts: dict[str, object] = {"images": f"{len(site)}, {site.repeated} repeated" if site.repeated else len(site)}
    if learned.unfamiliar is not None:
        before, after = (f"{100 * share:.1f} %" for share in learned.unfamiliar)
        facts["out of distribution"] = f"{before} of the site's images before, {after} after"
    if learned.labelled is not None:
        facts |= _facts(learned.labelled)
    if learned.decisions.decision:
        facts["sent to review"] = f"{100 * learned.decisions.decision.reviewed:.1f} % of the site's images"
    changed = [f"{one.name}: {one.before} to {one.after}" for one in result.golden if one.before != one.after]
    if result.written:
        facts["golden images of home"] = "; ".join(changed) or "no label changed"
    facts["written"] = f"{result.out}{', signed' if result.signed else ''}" if result.written else "no"
    tables = [] if learned.labelled is None else [_figures(learned.labelled)]
    return "\n\n".join([*tables, record(facts)])


def _facts(labelled: Labelled) -> dict[str, object]:
    counts = ", ".join(f"{label} {count}" for label, count in labelled.per_class.items())
    return {
        "by class": counts,
        "gain at the site": labelled.gained.describe(),
        "regularization": f"{labelled.strength:g}, chosen and judged by {labelled.folds} parts left out in turn",
        "rounding": f"{labelled.rounded} images get another label because the layer is rounded to integers",
    }


def _figures(labelled: Labelled) -> str:
    columns = [("site, before", labelled.before), ("site, after", labelled.after)]
    if labelled.home is not None:
        columns += zip(("home, before", "home, after"), labelled.home, strict=True)
    rows: list[list[object]] = [["images", *(found.images for _, found in columns)]]
    rows += [["balanced accuracy", *(_percent(found.balanced_accuracy) for _, found in columns)]]
    rows += [["  95 % interval", *(_interval(found.balanced_accuracy_ci95) for _, found in columns)]]
    rows += [["accuracy", *(_percent(found.accuracy) for _, found in columns)]]
    rows += [["  95 % interval", *(_interval(found.accuracy_ci95) for _, found in columns)]]
    rows += [[f"recall of {label}", *(_recall(found, label) for _, found in columns)] for label in labelled.per_class]
    return table(["", *(name for name, _ in columns)], rows)


def _recall(found: Figures, label: str) -> str:
    value = found.recall[label]
    return "" if value is None else _percent(value)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
