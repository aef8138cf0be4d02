"""The findings of `edgeall data audit` on the real four-class set, and on drawn sets with and without a shortcut.

python benchmarks/audit.py DATA

The classes of the drawn set differ only in their cells: the audit must not report a shortcut there. In its copy every
image has a border of three pixels whose green depends on the class: the audit must report the border, and not the
background. On the real set it must find duplicates and the colour shortcut, in under 3 minutes. Written to `audit.md`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command
import numpy as np
from PIL import Image

MAX_MINUTES = 3.0
"""For 3,000 images on 2 cores (the issue's limit); the real set at hand has 2,606."""
DRAWN = 640
BORDER, TINT = 3, 20
BUSY = 1.5
"""Load average over the last minute from which on the page says that something else was running; the audit's own
threads make less of it, two, for a part of its time."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        clean, planted = Path(folder, "without"), Path(folder, "planted")
        command.answer("data", "synth", "--out", clean, "--images", DRAWN, "--seed", 1)
        tint(clean, planted)
        sets = {"four-class set": arguments.data, "drawn, no shortcut": clean, "drawn, tinted border": planted}
        found = {name: command.run("data", "audit", path) for name, path in sets.items()}
    failed = [name for name, done in found.items() if done.status]
    if failed:
        raise SystemExit(f"edgeall data audit failed on: {', '.join(failed)}")
    page, met = report(found, before)
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "audit.md").write_text(page, encoding="utf-8")
    return 0 if met else 1


def tint(source: Path, target: Path) -> None:
    """A copy whose images have a border that is the greener the later the class."""
    shutil.copytree(source, target)
    classes = sorted(path.name for path in target.iterdir() if path.is_dir() and not path.name.startswith("."))
    for number, name in enumerate(classes):
        for path in (target / name).glob("*.png"):
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
            for strip in (pixels[:BORDER], pixels[-BORDER:], pixels[:, :BORDER], pixels[:, -BORDER:]):
                strip[..., 1] = np.clip(strip[..., 1].astype(int) // 2 + TINT * number, 0, 255)
            Image.fromarray(pixels).save(path)


def report(found: dict[str, command.Done], load: float) -> tuple[str, bool]:
    """A Markdown page, and whether every limit was met."""
    from edgeall.edge_runtime.tools.device import describe_device

    real = found["four-class set"].answer
    minutes = found["four-class set"].seconds / 60
    named = {name: shortcuts(done.answer) for name, done in found.items()}
    checks = {
        f"four-class set: duplicates found ({real['exact_duplicates']} exact, {real['near_duplicates']} near)": (
            real["exact_duplicates"] + real["near_duplicates"] > 0
        ),
        f"four-class set: a colour shortcut named ({_list(named['four-class set'])})": any(
            name in ("background", "colour") for name in named["four-class set"]
        ),
        f"four-class set: under {MAX_MINUTES:g} minutes ({minutes:.2f})": minutes < MAX_MINUTES,
        f"drawn without a shortcut: none named ({_list(named['drawn, no shortcut'])})": not named["drawn, no shortcut"],
        f"drawn with a tinted border: the border named ({_list(named['drawn, tinted border'])})": (
            "border" in named["drawn, tinted border"]
        ),
    }
    probes = list(real["probes"])
    busy = (
        f" **Something else was running**: load average {load:.1f} when it began; seconds are contended, processor "
        "time less so."
    )
    lines = [
        "# What the audit finds",
        "",
        f"`python benchmarks/audit.py DATA`, {datetime.now(timezone.utc):%Y-%m-%d}. Balanced accuracy in % of small "
        "classifiers that don't see the cells' shape (but for *shape*, the yardstick), 5-fold, with its 95 % interval; "
        f"**bold** where the audit names a shortcut. Chance is {100 * real['chance']:.0f} %. The drawn sets have "
        f"{DRAWN} SYNTHETIC images; in the last one every border, {BORDER} pixels wide, is tinted by class."
        + (busy if load > BUSY else ""),
        "",
        "| | " + " | ".join(found) + " |",
        "| --- |" + " ---: |" * len(found),
        "| images | " + " | ".join(f"{done.answer['images']:,}" for done in found.values()) + " |",
        "| kept together | " + " | ".join(done.answer["kept_together"] for done in found.values()) + " |",
        *(
            f"| {name} | " + " | ".join(_cell(done.answer, name, named[title]) for title, done in found.items()) + " |"
            for name in probes
        ),
        "| exact duplicates | " + " | ".join(str(done.answer["exact_duplicates"]) for done in found.values()) + " |",
        "| near duplicates | " + " | ".join(str(done.answer["near_duplicates"]) for done in found.values()) + " |",
        "| seconds, the whole command | " + " | ".join(f"{done.seconds:.0f}" for done in found.values()) + " |",
        "| seconds of processor time | " + " | ".join(f"{done.cpu_seconds:.0f}" for done in found.values()) + " |",
        "| peak memory, MB | " + " | ".join(f"{done.peak_bytes / 1e6:.0f}" for done in found.values()) + " |",
        "",
        *(f"- {'met' if met else '**MISSED**'}: {text}" for text, met in checks.items()),
        "",
        *_findings(found),
        *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
        "",
    ]
    return "\n".join(lines), all(checks.values())


def shortcuts(facts: dict[str, Any]) -> list[str]:
    """The probes that the findings name."""
    said = [finding["text"] for finding in facts["findings"] if finding["about"] == "shortcut"]
    return [name for name, row in facts["probes"].items() if any(row["looks_at"] in text for text in said)]


def _cell(facts: dict[str, Any], name: str, named: list[str]) -> str:
    row = facts["probes"][name]
    text = f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    return f"**{text}**" if name in named else text


def _findings(found: dict[str, command.Done]) -> list[str]:
    lines = []
    for title, done in found.items():
        lines += [f"Findings, {title}:", ""]
        lines += [f"- {finding['level']}: {finding['text']}" for finding in done.answer["findings"]] or ["- none"]
        lines.append("")
    return lines


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"


if __name__ == "__main__":
    sys.exit(main())
