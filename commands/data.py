"""`edgeall data`: list, audit, draw and download images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..train.config import AUGMENTS
from .options import CACHE_DIR, EMBARGO, FILE, JSON, SEED, SPLIT_BY, command
from .output import note, note_research_use, note_synthetic, print_result

if TYPE_CHECKING:
    from ..train.data.synth import Layout


@click.group("data")
def data() -> None:
    """List, audit, draw and download images."""


@command("ls", data)
@click.argument("path", metavar="DIR|MANIFEST", type=FILE)
@JSON
def data_ls(path: Path, json: bool) -> None:
    """List classes, counts, sizes, subjects, duplicates and unreadable files.

    \b
    Layouts:
      ROOT/<class>/<images>               one folder per class
      fold_*/<all|hem>/UID_<subject>_...  C-NMC 2019 as distributed
      FILE.csv                            columns path,label and optionally subject and side
    """
    from ..console.progress import Progress
    from ..train.data.listing import data_text, list_data

    found = list_data(path, Progress())
    print_result(found, json, lambda: data_text(found))
    note_synthetic(found.synthetic)


@command("synth", data)
@click.option("--out", type=FILE, required=True, help="New or empty folder.")
@click.option("--images", type=click.IntRange(1), required=True, help="Number of images.")
@click.option("--seed", type=SEED, default=0, help="Seed of every random draw.")
@click.option(
    "--layout", type=click.Choice(["all4", "cnmc"]), default="all4", help="all4: four-class fields; cnmc: single cells."
)
@click.option("--size", type=click.IntRange(1), help="Image size in pixels.  [default: 224 for all4, 450 for cnmc]")
@JSON
def data_synth(out: Path, images: int, seed: int, layout: Layout, size: int | None, json: bool) -> None:
    """Draw a labelled set of synthetic smears, with masks and boxes of the cells.

    all4 also has a masks.csv, for train --task segmentation.
    """
    from ..console.progress import Progress
    from ..console.tables import record
    from ..train.data.synth import synthesize

    with Progress().task("drawing", images) as advance:
        summary = synthesize(out, images, seed, layout, size, on_progress=lambda done, _: advance(done, ""))
    print_result(summary, json, lambda: record(summary))
    note_synthetic(True)


@command("audit", data)
@click.argument("path", metavar="DIR|MANIFEST", type=FILE)
@click.option("--html", type=FILE, help="Write a self-contained page with examples.")
@click.option("--seed", type=SEED, default=0, help="Seed of every random draw.")
@JSON
def data_audit(path: Path, html: Path | None, seed: int, json: bool) -> None:
    """Find what would make results on this data look too good: duplicates, shortcuts, imbalance."""
    from ..console.progress import Progress
    from ..edge_runtime.images import refuse_inside
    from ..train.data.audit import audit, audit_text

    if html is not None:
        refuse_inside(path, html, "--html")
    found = audit(path, Progress(), seed)
    print_result(found.report, json, lambda: audit_text(found.report))
    if html is not None:
        from ..train.data.audit_report import write_audit

        write_audit(found, html)
        note(f"{html}: written")
    note_synthetic(found.report.listing.synthetic)
    note_research_use(json)


@command("leak", data)
@click.argument("path", metavar="DIR|MANIFEST", type=FILE)
@click.option("--model", default="mobilenet_v2", help="Backbone of the probe.")
@click.option("--alpha", type=float, help="Width multiplier of the backbone.  [default: 1.0 if it has one]")
@click.option("--weights", default="imagenet", help="imagenet, or a file of no_top weights.")
@click.option("--input-size", type=click.IntRange(1), help="Input size in pixels.  [default: the backbone's]")
@click.option("--per-class", default="700/150/150", metavar="TRAIN/VAL/TEST", help="Images per class in each subset.")
@click.option("--augment", type=click.Choice(AUGMENTS[1:]), default="studies", help="Augmentation of the copies.")
@SPLIT_BY
@EMBARGO
@click.option("--seeds", type=click.IntRange(2), default=10, help="Number of repetitions.")
@CACHE_DIR
@JSON
def data_leak(path: Path, json: bool, **settings: Any) -> None:
    """Measure the leak into the test subset when images are augmented before the split."""
    from ..console.progress import Progress
    from ..optimize.experiments.leak import LeakConfig, leak_text, measure_leak

    result = measure_leak(LeakConfig(path, **settings), Progress())
    print_result(result, json, lambda: leak_text(result))
    note_synthetic(result.synthetic)


@command("fetch", data)
@click.argument("name", type=click.Choice(["all4", "cnmc2019"]))
@click.option("--out", type=FILE, help="Output folder.  [default: kagglehub's cache]")
def data_fetch(name: str, out: Path | None) -> None:
    """Download a public set from Kaggle, check it, and print its folder."""
    from ..train.data.fetch import fetch

    print(fetch(name, out))
