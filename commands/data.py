"""`edgeall data`: list, audit, draw and download images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import AUGMENTS, CACHE_DIR, EMBARGO, FILE, JSON, SEED, SPLIT_BY, command
from .output import note, note_research_use, note_synthetic, print_result

if TYPE_CHECKING:
    from ..train.data.synth import Layout


@click.group("data")
def data() -> None:
    """See, make and get data."""


@command("ls", data)
@click.argument("path", metavar="DIR|MANIFEST", type=FILE)
@JSON
def data_ls(path: Path, json: bool) -> None:
    """Classes, counts, sizes, subjects, duplicates and unreadable files.

    \b
    Layouts:
      ROOT/<class>/<images>               one folder a class
      fold_*/<all|hem>/UID_<subject>_...  C-NMC 2019 as distributed
      FILE.csv                            columns path,label and optionally subject
    """
    from ..console.progress import Progress
    from ..train.data.listing import data_text, list_data

    facts = list_data(path, Progress())
    print_result(facts, json, lambda: data_text(facts))
    note_synthetic(facts["synthetic"])


@command("synth", data)
@click.option("--out", type=FILE, required=True, help="A new or empty folder.")
@click.option("--images", type=click.IntRange(1), required=True, help="How many in all.")
@click.option("--seed", type=SEED, default=0)
@click.option(
    "--layout", type=click.Choice(["all4", "cnmc"]), default="all4", help="Four-class fields, or single cells."
)
@click.option("--size", type=click.IntRange(1), help="Pixels a side.  [default: 224 for all4, 450 for cnmc]")
@JSON
def data_synth(out: Path, images: int, seed: int, layout: Layout, size: int | None, json: bool) -> None:
    """Draw a labelled set of synthetic smears, with the masks and boxes of their cells."""
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
@click.option("--seed", type=SEED, default=0)
@JSON
def data_audit(path: Path, html: Path | None, seed: int, json: bool) -> None:
    """What would make a network trained on this data seem better than it is: duplicates, shortcuts, imbalance."""
    from ..console.progress import Progress
    from ..edge_runtime.images import refuse_inside
    from ..train.data.audit import audit, audit_text

    if html is not None:
        refuse_inside(path, html, "--html")
    found = audit(path, Progress(), seed)
    print_result(found.facts, json, lambda: audit_text(found.facts))
    if html is not None:
        from ..train.data.audit_report import write_audit

        write_audit(found, html)
        note(f"{html}: written")
    note_synthetic(found.facts["synthetic"])
    note_research_use(json)


@command("leak", data)
@click.argument("path", metavar="DIR|MANIFEST", type=FILE)
@click.option("--model", default="mobilenet_v2", help="Backbone of the features.")
@click.option("--alpha", type=float, help="Its width multiplier.  [default: 1.0 where it has one]")
@click.option("--weights", default="imagenet", help="imagenet or a no_top weights file.")
@click.option("--input-size", type=click.IntRange(1), help="Pixels a side.  [default: the backbone's]")
@click.option("--per-class", default="700/150/150", metavar="TRAIN/VAL/TEST", help="Images of every class.")
@click.option("--augment", type=click.Choice(AUGMENTS[1:]), default="studies", help="How copies are made.")
@SPLIT_BY
@EMBARGO
@click.option("--seeds", type=click.IntRange(2), default=10, help="Times that the dealing is repeated.")
@CACHE_DIR
@JSON
def data_leak(path: Path, json: bool, **settings: Any) -> None:
    """What augmenting before the split leaks into the test side, measured with a probe of a frozen backbone."""
    from ..console.progress import Progress
    from ..optimize.experiments.leak import leak_text, measure_leak

    result = measure_leak(path, **settings, progress=Progress())
    print_result(result, json, lambda: leak_text(result))
    note_synthetic(result["synthetic"])


@command("fetch", data)
@click.argument("name", type=click.Choice(["all4", "cnmc2019"]))
@click.option("--out", type=FILE, help="Where to put it.  [default: kagglehub's cache]")
def data_fetch(name: str, out: Path | None) -> None:
    """Download a public set from Kaggle and check it; print where it lies."""
    from ..train.data.fetch import fetch

    print(fetch(name, out))
