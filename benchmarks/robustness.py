"""Accuracy of several models when the microscope changes.

python benchmarks/robustness.py DATA MODEL...

Each MODEL lies beside the split.json it was made with and is measured on that test subset by `edgeall evaluate
--robustness`. The limits are the project's for alpha 1.0 and 0.35. They were set for unknown corruptions and are
applied to our own suite. Written to `robustness.md`.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command

LIMITS = {1.0: (99.0, 98.5, 97.5), 0.35: (98.5, 98.0, 96.5)}
"""Accuracy in %, by alpha: clean, mean of all corruptions, worst."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    found = {
        model: (
            command.answer("inspect", model)["manifest"],
            command.answer("evaluate", model, "--data", arguments.data, "--robustness"),
        )
        for model in arguments.models
    }
    page, met = report(found)
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "robustness.md").write_text(page, encoding="utf-8")
    return 0 if met else 1


def report(found: dict[Path, tuple[dict[str, Any], dict[str, Any]]]) -> tuple[str, bool]:
    """A Markdown page, and whether every limit was met."""
    from edgeall.edge_runtime.tools.device import describe_device

    names = [f"{model.parent.name}/{model.name}" for model in found]
    rows, sureness, met = [], [], True
    for number, name in enumerate(("clean", "mean", "worst")):
        cells = []
        for manifest, metrics in found.values():
            limit = LIMITS[manifest["training"]["alpha"]][number]
            figure = 100 * (metrics["accuracy"] if name == "clean" else metrics["robustness"][name])
            met = met and figure >= limit
            cells.append(f"{figure:.2f} (limit {limit}: {'met' if figure >= limit else 'MISSED'})")
        rows.append(f"| **{name}** | " + " | ".join(cells) + " |")
    first = next(iter(found.values()))[1]["robustness"]
    for kind in first["by_corruption"]:
        cells = [
            " ".join(f"{100 * value:.1f}" for value in metrics["robustness"]["by_corruption"][kind]["by_severity"])
            for _, metrics in found.values()
        ]
        rows.append(f"| {kind} | " + " | ".join(cells) + " |")
    for name, read in (("calibration error", _ece), ("sent to review, %", _reviewed)):
        cells = [read(metrics) for _, metrics in found.values()]
        sureness.append(f"| {name}: clean; mean; worst | " + " | ".join(cells) + " |")
    for kind in first["by_corruption"]:
        cells = [
            " ".join(f"{value:.3f}" for value in metrics["robustness"]["by_corruption"][kind]["ece_by_severity"])
            for _, metrics in found.values()
        ]
        sureness.append(f"| {kind} | " + " | ".join(cells) + " |")
    described = [
        f"- {name}: {manifest['training']['backbone']} {manifest['training']['alpha']:g}, "
        f"{manifest['quantization']['scheme']}, trained with --augment {manifest['training']['augment']}; "
        f"{metrics['images']} test images, {metrics['split_level']}-level split; expected calibration error "
        f"{metrics['ece']:.3f} clean, {metrics['robustness']['ece_mean']:.3f} on average under corruption"
        for name, (manifest, metrics) in zip(names, found.values(), strict=True)
    ]
    lines = [
        "# Accuracy when the microscope changes",
        "",
        f"`python benchmarks/robustness.py DATA {' '.join(names)}`, {datetime.now(timezone.utc):%Y-%m-%d}. Corruption "
        f"suite {first['suite']} ([what it does](../../docs/methods/robustness.md)); accuracy in %, severities 1 to 5.",
        "",
        *described,
        "",
        "| | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
        *rows,
        "",
        "## Calibration error when the microscope changes",
        "",
        "How far a model's probabilities are from how often it is right; severities 1 to 5. Images that it isn't sure "
        "of are sent to review where its file names a threshold.",
        "",
        "| | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
        *sureness,
        "",
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(lines), met


def _ece(metrics: dict[str, Any]) -> str:
    found = metrics["robustness"]
    return f"{metrics['ece']:.3f}; {found['ece_mean']:.3f}; {found['ece_worst']:.3f}"


def _reviewed(metrics: dict[str, Any]) -> str:
    if metrics["review"] is None:
        return "no threshold in the file"
    cells = [
        value for kind in metrics["robustness"]["by_corruption"].values() for value in kind["reviewed_by_severity"]
    ]
    return f"{100 * metrics['review']['reviewed']:.1f}; {100 * sum(cells) / len(cells):.1f}; {100 * max(cells):.1f}"


if __name__ == "__main__":
    sys.exit(main())
