"""Writes ``report.html``, the report of one run in a single file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...edge_runtime.errors import DataError, ImageError
from ...edge_runtime.images import open_rgb
from ...edge_runtime.tools.atomic import write_text
from ..data.split import Split, load_split
from ..data.subsets import SUBSETS
from ..evaluation.metrics import Metrics
from ..run_info import RunInfo
from . import plots
from .augmented import FILE as AUGMENTED
from .page import jpeg_file_uri, jpeg_uri, png_uri, template

ERRORS_SHOWN = 12
THUMBNAIL = 224
ABSENT = "\N{EN DASH}"


def write_report(run_dir: Path, run: RunInfo) -> Path:
    """Draw the plots of a run and write its report. The same folder and ``run`` give the same report.

    Args:
        run_dir: holds ``history.csv``, ``predictions.csv`` and ``split.json``, and may hold ``plots/augmented.jpg``
            of `edgeall.train.reports.augmented`; receives ``plots/{curves,confusion,roc,errors}.png`` and
            ``report.html``.
        run: its ``run.json``. Images below ``run.data.root`` are shown if they still exist.

    Returns:
        The path of ``report.html``, without scripts or external resources.

    Raises:
        DataError: one of the three files is missing or damaged.
    """
    history = _read_table(run_dir / "history.csv")
    predictions = [row for row in _read_table(run_dir / "predictions.csv") if row["side"] == "test"]
    test = run.classified["test"]
    data = Path(run.data.root)
    errors = _worst_errors(predictions, data.parent if data.is_file() else data)  # a file is a manifest
    curves = _roc_curves(predictions, test)

    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    plots.plot_curves(history, folder / "curves.png")
    plots.plot_confusion(test.labels, test.confusion, folder / "confusion.png")
    plots.plot_roc(curves, folder / "roc.png")
    plots.plot_errors(errors, folder / "errors.png")

    split = load_split(run_dir / "split.json")
    page = template(
        "edgeall.train.reports", "report.html", percent=_percent, fixed=_fixed, value=_value, timing=_timing
    ).render(
        run=run,
        test=test,
        percent=_percent,
        fixed=_fixed,
        title=_title(run),
        level=split.level_text,
        level_means=_level_means(split),
        right=sum(test.confusion[i][i] for i in range(len(test.labels))),
        lower_bound=_lower_bound_without_errors(test),
        subsets=SUBSETS,
        class_counts=_class_counts(run),
        counts=_positive_counts(test),
        errors=[{**error, "source": error["thumbnail"] and jpeg_uri(error["thumbnail"])} for error in errors],
        augmented=jpeg_file_uri(folder / AUGMENTED) if (folder / AUGMENTED).exists() else None,
        images={
            "curves": (png_uri(folder / "curves.png"), _describe_curves(history)),
            "confusion": (png_uri(folder / "confusion.png"), _describe_confusion(test)),
            "roc": (png_uri(folder / "roc.png"), _describe_roc(curves)),
        },
    )
    report = run_dir / "report.html"
    # A file name may be invalid Unicode; the report must not fail for it.
    write_text(report, page, errors="replace")
    return report


def _level_means(split: Split) -> str:
    """The consequences of the split for the figures."""
    rest = {entry.subject for entry in split.entries if entry.side != "test"} - {None}
    both = {entry.subject for entry in split.subset("test")} & rest
    unknown = sum(entry.subject is None for entry in split.entries)
    parts = []
    if split.level == "block":
        parts.append(_blocks_mean(split))
    if split.level == "given":
        parts.append("The data set comes split.")
        if split.across:
            images = sum(map(len, split.across))
            first = ", ".join(split.across[0][:2])
            parts.append(
                f"{len(split.across):,} groups of duplicates, {images:,} images, lie in several subsets "
                f"(the first: {first}); split.json lists all of them."
            )
    if both:
        they = "subjects of the test subset are" if len(both) > 1 else "subject of the test subset is"
        why = "as given in the data set" if split.level == "given" else "because the split is by image"
        parts.append(f"{len(both)} {they} also in training or validation, {why}.")
    if unknown:
        some = "" if unknown == len(split.entries) else f" for {unknown} of {len(split.entries)}"
        parts.append(f"The patient of an image is not known{some}, so one patient may be in several subsets.")
    if both or unknown:
        parts.append("The model may have seen the patients of the test subset; expect less on images of unseen ones.")
    else:
        parts.append("No subject has images in two subsets: the test images come from unseen subjects.")
    return " ".join(parts)


def _blocks_mean(split: Split) -> str:
    if split.embargo is None:
        return "Neighbouring file numbers, a proxy for slides, are kept in one subset."
    text = (
        "Every subset has contiguous ranges of the file numbers, a proxy for slides, more than "
        f"{split.embargo} numbers away from any other subset."
    )
    left_out = split.left_out
    if "embargo" in left_out:
        text += f" {left_out['embargo']:,} images closer to a border are left out."
    repeats = sum(left_out.get(reason, 0) for reason in ("duplicate", "subject"))
    if repeats:
        text += f" {repeats:,} images that repeat the content or the subject of another subset are left out."
    return text


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file, the run is not complete", hint="run the same `edgeall train` again")
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def _worst_errors(predictions: Sequence[Mapping[str, str]], root: Path) -> list[dict[str, Any]]:
    """The wrong predictions with the highest probability, highest first."""
    wrong: list[dict[str, Any]] = [
        {
            "path": row["path"],
            "label": row["label"],
            "predicted": row["predicted"],
            "probability": float(row[f"p_{row['predicted']}"]),
            "label_probability": float(row[f"p_{row['label']}"]),
        }
        for row in predictions
        if row["label"] != row["predicted"]
    ]
    wrong.sort(key=lambda error: (-error["probability"], error["path"]))
    return [{**error, "thumbnail": _thumbnail(root / error["path"])} for error in wrong[:ERRORS_SHOWN]]


def _thumbnail(path: Path) -> Image.Image | None:
    try:
        image = open_rgb(path)
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _roc_curves(predictions: Sequence[Mapping[str, str]], test: Metrics) -> list[plots.RocCurve]:
    """One class against the rest for each class, then the positive classes together if there are several."""
    labels, positive = test.labels, test.positive_labels
    true = np.array([row["label"] for row in predictions])
    scores = {label: np.array([float(row[f"p_{label}"]) for row in predictions]) for label in labels}
    curves = [plots.RocCurve(label, true == label, scores[label], test.per_class[label].auroc) for label in labels]
    if len(positive) > 1:
        summed = np.sum([scores[label] for label in positive], axis=0)
        name = f"any of {', '.join(positive)}"
        curves.append(plots.RocCurve(name, np.isin(true, positive), summed, test.auroc_positive))
    return curves


def _positive_counts(test: Metrics) -> dict[str, int]:
    """Positive and negative images, and how many of each were predicted as such."""
    is_positive = np.isin(test.labels, test.positive_labels)
    counts = np.array(test.confusion)
    positive, negative = counts[is_positive], counts[~is_positive]
    return {
        "positive": int(positive.sum()),
        "positive_found": int(positive[:, is_positive].sum()),
        "negative": int(negative.sum()),
        "negative_found": int(negative[:, ~is_positive].sum()),
    }


def _class_counts(run: RunInfo) -> list[tuple[str, list[int]]]:
    """Images of each class in each of `SUBSETS` and in total, then a row of sums named ``all``."""
    counts = np.array([[run.classified[name].per_class[label].support for name in SUBSETS] for label in run.labels])
    table = np.vstack([counts, counts.sum(axis=0)])
    table = np.hstack([table, table.sum(axis=1, keepdims=True)])
    return list(zip([*run.labels, "all"], table.tolist(), strict=True))


def _lower_bound_without_errors(test: Metrics) -> float | None:
    """The exact one-sided 95 % bound of Clopper and Pearson, for a test subset without errors.

    None if there are errors, or if subjects were resampled: their images are not independent.
    """
    if test.accuracy < 1 or test.ci_unit != "image":
        return None
    return float(0.05 ** (1 / test.images))


def _title(run: RunInfo) -> str:
    alpha = f" {run.model.alpha}" if run.model.alpha is not None else ""
    return f"{run.model.name}{alpha} on {Path(run.data.root).name}"


def _describe_curves(history: Sequence[Mapping[str, str]]) -> str:
    if not history:
        return "No epoch was trained."
    ends = "".join(f" Stage {before} ends after epoch {n}." for n, before, _ in plots.stage_boundaries(history))
    last = history[-1]
    return (
        f"Loss and accuracy over {len(history)} epochs.{ends} At the end: training loss {float(last['loss']):.4f}, "
        f"accuracy {float(last['accuracy']):.4f}; validation loss {float(last['val_loss']):.4f}, "
        f"accuracy {float(last['val_accuracy']):.4f}."
    )


def _describe_confusion(test: Metrics) -> str:
    rows = zip(test.labels, test.confusion, strict=True)
    parts = [
        f"{label} as " + ", ".join(f"{other} {n}" for other, n in zip(test.labels, row, strict=True) if n)
        for label, row in rows
        if any(row)
    ]
    return f"Confusion matrix, true class as predicted class: {'; '.join(parts)}."


def _describe_roc(curves: Sequence[plots.RocCurve]) -> str:
    areas = "; ".join(f"{c.name} {'none' if c.area is None else format(c.area, '.4f')}" for c in curves)
    return f"ROC curves. Area under the curve: {areas}."


def _percent(share: float | None, digits: int = 1) -> str:
    return ABSENT if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _fixed(number: float | None, digits: int = 4) -> str:
    return ABSENT if number is None else f"{number:.{digits}f}"


def _value(value: Any) -> str:
    """A setting or version as text."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _timing(name: str, value: float | None) -> tuple[str, str]:
    """A row of ``run.timing`` as name and text. The suffix of the key is its unit."""
    if name.endswith("_images_per_s"):
        return f"{name.removesuffix('_images_per_s')} speed", ABSENT if value is None else f"{value:.1f} images/s"
    return name.removesuffix("_s"), ABSENT if value is None else _duration(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds:.1f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
