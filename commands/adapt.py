"""`edgeall adapt`: a packed model learns from another laboratory's images, on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import FILE, JSON, REQUIRE_SIGNATURE, command
from .output import Skipped, note, note_research_use, print_result


@command("adapt")
@click.argument("model", type=FILE)
@click.option(
    "--data",
    type=FILE,
    required=True,
    metavar="SITE",
    help="Images of the other laboratory: one folder per class, or with --unlabelled any folder.",
)
@click.option("--unlabelled", is_flag=True, help="Learn from the images alone: only the OOD detector moves.")
@click.option("--out", type=FILE, required=True, help="Adapted model to write.")
@click.option("--by", metavar="NAME", help="Who adapts it, for the lineage in the file.  [default: user@machine]")
@click.option("--key", type=FILE, help="Private Ed25519 key in PEM format, to sign the adapted model.")
@REQUIRE_SIGNATURE
@click.option("--force", is_flag=True, help="Overwrite an existing file, which may be the model itself.")
@JSON
def adapt(model: Path, json: bool, require_signature: Path | None, **settings: Any) -> None:
    """Adapt a packed classifier to another laboratory, from a few of its images. Needs no TensorFlow.

    Refits the last layer, calibration, review threshold and OOD detector. Exit status 3, and no file, if the site gains
    no more than by chance. A class with fewer than 5 labelled images keeps its part of the last layer.
    """
    from ..console.progress import Progress
    from ..edge_runtime.adaptation.adapt import AdaptConfig, require_better
    from ..edge_runtime.adaptation.adapt import adapt as adapt_model
    from ..edge_runtime.adaptation.text import adapted_text

    skipped = Skipped()
    config = AdaptConfig(model, public_key=require_signature, **settings)
    result = adapt_model(config, skipped, Progress())
    print_result(result.to_json(), json, lambda: adapted_text(result))
    skipped.note()
    for problem in result.site.problems:
        note(f"skipped {problem}")
    for warning in result.warnings:
        note(f"warning: {warning}")
    note_research_use(json)
    require_better(result)
    note(f"{result.out}: written")
