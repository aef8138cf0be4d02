"""`edgeall cells`: finds and measures cells in images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..edge_runtime.errors import UsageError
from .options import CELL_MODEL, FILE, JSON, RED_CELL_PX, UM_PER_PX, command
from .output import Skipped, note, note_research_use, print_result


@command("cells")
@click.argument("paths", metavar="IMAGE|DIR...", nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="A new folder. The same command resumes an interrupted one.")
@click.option("--masks", is_flag=True, help="Write a mask for each image: 0 background, 128 cytoplasm, 255 nucleus.")
@click.option("--crops", is_flag=True, help="Write a crop of each whole cell; keep the folders of the images.")
@click.option("--central", is_flag=True, help="Crop the central cell of each image; keep the folders of the images.")
@click.option(
    "--model",
    type=FILE,
    help="Crop to the input size of this packed model.  [default: square crops of the original size]",
)
@CELL_MODEL
@RED_CELL_PX
@UM_PER_PX
@JSON
@click.pass_context
def cells(
    ctx: click.Context, /, paths: tuple[str, ...], out: Path, model: Path | None, json: bool, **settings: Any
) -> None:
    """Find and measure the nucleated cells of smear fields. Writes a table, and overlays with boxes.

    The scale is measured in each image, unless --red-cell-px or --um-per-px gives it.
    """
    from ..console.progress import Progress
    from ..edge_runtime.bundle import open_bundle
    from ..edge_runtime.vision.cells_files import Wanted, cells_of_files, cells_text
    from ..edge_runtime.vision.scale import wanted_scale

    manifest = None if model is None else open_bundle(model).manifest
    if model is not None and manifest is None:
        raise UsageError(f"{model}: has no manifest, so its input size is unknown", hint="give a packed model")
    wanted = Wanted(
        cell_model=settings["cell_model"],
        scale=wanted_scale(settings["um_per_px"], settings["red_cell_px"]),
        masks=settings["masks"],
        crops=settings["crops"] or settings["central"] or model is not None,
        central=settings["central"],
        spec=None if manifest is None else manifest.input,
    )
    skipped = Skipped()
    result = cells_of_files(paths, out, wanted, skipped, Progress())
    print_result(result, json, lambda: cells_text(result))
    skipped.note()
    for image in result["images"]:
        for warning in image.get("warnings", ()):
            note(f"warning: {image['image']}: {warning}")
    written = ("cells.csv", "overlays/", *(["masks/"] if wanted.masks else []), *(["crops/"] if wanted.crops else []))
    note(f"{out}: {', '.join(written)}")
    note_research_use(json)
    ctx.exit(0 if any("error" not in image for image in result["images"]) else 1)
