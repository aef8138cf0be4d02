"""``edgeall data ls``: the contents of a data folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from ...console.progress import Progress
from ...console.tables import listed, record, table
from ...edge_runtime.errors import DataError
from .dataset import independent_notes, load_dataset, positive_labels, unit
from .duplicates import Duplicates, groups
from .make_split import make_split
from .samples import Sample
from .scan import Scan, narrow_range, scan
from .subsets import LEFT_OUT, SUBSETS
from .synth import is_synthetic


def list_data(path: Path, progress: Progress) -> dict[str, Any]:
    """Read every image of a data folder or manifest, and summarize them.

    Args:
        path: see `load_dataset`.
        progress: receives notes and the progress bar.

    Returns:
        ``root``, ``layout``, ``unit`` (field or cell), ``images`` (readable ones), ``labels`` (for each its
        ``images`` and, where known, ``subjects``), ``positive_labels``, ``subjects`` (None where unknown),
        ``independent`` (labelled test sets that are kept out of any split: ``folder`` and ``images``),
        ``sizes`` (images by ``WxH``, the commonest first), ``exact_duplicates`` and ``near_duplicates`` (images
        that repeat or resemble an earlier one), ``conflicts`` (groups of duplicates whose labels differ, by path),
        ``dataset_sha256``, ``narrow_range`` (a sentence or None, see `edgeall.train.data.scan.narrow_range`),
        ``problems``
        (``path`` and ``reason`` of what was skipped), ``synthetic`` (see `is_synthetic`), ``split`` (what the default
        split of ``edgeall train`` makes of it, see `default_split`).

    Raises:
        DataError: see `load_dataset` and `scan`.
    """
    listed = load_dataset(path)
    with progress.task("reading images", len(listed.samples)) as advance:
        found = scan(listed, lambda done, _: advance(done, ""))
    facts = describe(found, groups(found))
    for note in (*independent_notes(found.dataset), *facts["split"].get("notes", ())):
        progress.note(note)
    return facts


def describe(found: Scan, duplicates: Duplicates) -> dict[str, Any]:
    """The result of `list_data` for a scan and its duplicates."""
    data = found.dataset
    sizes = Counter(f"{facts.width}x{facts.height}" for facts in found.facts)
    return {
        "root": str(data.root),
        "layout": data.layout,
        "unit": unit(data),
        "images": len(data.samples),
        "labels": {label: _class(label, data.samples) for label in data.labels},
        "positive_labels": list(positive_labels(data.labels)),
        "subjects": _subjects(data.samples),
        "sizes": dict(sizes.most_common()),
        "exact_duplicates": duplicates.exact_count,
        "near_duplicates": duplicates.near_count,
        "conflicts": [[found.facts[index].sample.path for index in group] for group in duplicates.conflicts],
        "dataset_sha256": found.digest,
        "narrow_range": narrow_range(found.facts),
        "problems": [asdict(problem) for problem in data.problems],
        "independent": [
            {"folder": folder, "images": count}
            for folder, count in sorted(
                Counter(PurePosixPath(sample.path).parent.as_posix() for sample in data.independent).items()
            )
        ],
        "synthetic": is_synthetic(data),
        "split": default_split(found, duplicates),
    }


def default_split(found: Scan, duplicates: Duplicates) -> dict[str, Any]:
    """The split that ``edgeall train`` makes without options.

    Returns:
        ``text`` (in words), ``level``, ``embargo``, ``train``, ``validation`` and ``test`` (images), ``left_out``
        (images by reason), ``left_out_paths``, ``across`` (for a data set that comes split: groups of
        duplicates in several subsets, by path), ``notes``. Only ``text`` if no split is possible.
    """
    notes: list[str] = []
    try:
        split = make_split(found, duplicates=duplicates, note=notes.append)
    except DataError as error:
        return {"text": f"not possible: {error.message}"}
    return {
        "text": split.level_text,
        "level": split.level,
        "embargo": split.embargo,
        **{name: len(split.subset(name)) for name in SUBSETS},
        "left_out": split.left_out,
        "left_out_paths": [entry.path for entry in split.entries if entry.side == LEFT_OUT],
        "across": [list(group) for group in split.across],
        "notes": notes,
    }


def _class(label: str, samples: tuple[Sample, ...]) -> dict[str, int | None]:
    own = tuple(sample for sample in samples if sample.label == label)
    return {"images": len(own), "subjects": _subjects(own)}


def _subjects(samples: tuple[Sample, ...]) -> int | None:
    """Number of different subjects; None if any is unknown."""
    subjects = {sample.subject for sample in samples}
    return None if None in subjects else len(subjects)


def data_text(facts: Mapping[str, Any], most: int = 20) -> str:
    """The result of `list_data` as text, with the first ``most`` problems and conflicts."""
    sizes = list(facts["sizes"].items())
    shown = ", ".join(f"{size} ({count:,})" for size, count in sizes[:5])
    counts = {
        "root": facts["root"],
        "layout": f"{facts['layout']}, one image is a {facts['unit']}",
        "images": facts["images"],
        "subjects": "unknown" if facts["subjects"] is None else facts["subjects"],
        "sizes": shown + (f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""),
        "positive classes": facts["positive_labels"] or "none known",
        "exact duplicates": facts["exact_duplicates"],
        "near duplicates": facts["near_duplicates"],
        "skipped": len(facts["problems"]),
        "default split": _default_split(facts["split"]),
    }
    kept_out = [f"{one['folder']} ({one['images']:,})" for one in facts.get("independent", ())]
    if kept_out:
        counts["independent test set"] = ", ".join(kept_out)
    parts = [
        record(counts),
        table(
            ["class", "images", "subjects"],
            [[label, row["images"], row["subjects"]] for label, row in facts["labels"].items()],
        ),
    ]
    if facts["conflicts"]:
        parts.append(listed("duplicates with different labels:", [" = ".join(g) for g in facts["conflicts"]], most))
    if facts.get("narrow_range"):
        parts.append(f"{facts['narrow_range']}\nscale them to 16 bits in the camera software, or save 8-bit images")
    if facts["split"].get("across"):
        parts.append(listed("duplicates in several subsets:", [" = ".join(g) for g in facts["split"]["across"]], most))
    if facts["problems"]:
        parts.append(listed("skipped:", [f"{p['path']}: {p['reason']}" for p in facts["problems"]], most))
    return "\n\n".join(parts)


def _default_split(split: Mapping[str, Any]) -> str:
    if "train" not in split:
        return str(split["text"])
    counts = ", ".join(f"{split[name]:,} {name}" for name in SUBSETS)
    return f"{split['text']} ({counts})"
