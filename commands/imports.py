"""`edgeall import` and `edgeall pack`: models that were trained elsewhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from ..optimize.foreign.config import PackConfig
from ..train.imports.config import ImportSettings
from .options import (
    CACHE_DIR,
    FILE,
    JSON,
    NEW_SPLIT,
    POSITIVE,
    SEED,
    command,
    option,
)
from .output import note, note_research_use, note_synthetic, print_result

_import = partial(option, ImportSettings)


@command("import")
@click.argument("model", metavar="MODEL", type=FILE)
@_import("data", "Labelled images: a folder with one folder per class, or a CSV manifest.")
@_import("out", "Run folder to create.")
@_import("labels", "Label of each output, one per line, in order.  [default: the classes of the data, sorted]")
@_import("normalization", "Normalization that the model was trained with.  [default: measured, if the data tell]")
@_import("mean", "Normalization (pixel - mean) / std: one number, or three for red, green and blue.", metavar="M")
@_import("std", "Standard deviation of that normalization, see --mean.", metavar="S")
@_import("normalized_inside", "The model takes pixels in 0..255.")
@_import("input_size", "Input size in pixels, for a model without a fixed one.", type=click.IntRange(1))
@_import("augment", "Augmentation for what trains the network further.")
@NEW_SPLIT
@_import("split", "Use the split of this split.json or run folder.")
@POSITIVE
@_import("seed", "Seed of every random draw.", type=SEED)
@CACHE_DIR
@_import("force", "Overwrite a complete run, or a run with other settings.")
@JSON
def import_(model: Path, json: bool, **settings: Any) -> None:
    """Make a run of a Keras model that was trained elsewhere: .keras, .h5 or a SavedModel of Keras 2 or 3.

    No code in the file is run.
    """
    from ..console.progress import Progress
    from ..train.imports.importing import import_model
    from ..train.imports.summary import import_text

    run = import_model(ImportSettings(model=model, **settings), Progress())
    print_result(run, json, lambda: import_text(run))
    note(f"{settings['out']}: report.html, model.keras, predictions.csv, run.json")
    note_synthetic(run.data.synthetic)
    note_research_use(json)


_pack = partial(option, PackConfig)


@command("pack")
@click.argument("model", metavar="MODEL", type=FILE)
@_pack("data", "Labelled images: a folder with one folder per class, or a CSV manifest.")
@_pack("out", "Packed model to write.")
@_pack("labels", "Label of each output, one per line, in order.  [default: those in the file, or of the data, sorted]")
@_pack("normalization", "Normalization that the model was trained with.  [default: from the file, or measured]")
@_pack("mean", "Normalization (pixel - mean) / std: one number, or three for red, green and blue.", metavar="M")
@_pack("std", "Standard deviation of that normalization, see --mean.", metavar="S")
@_pack("normalized_inside", "The model takes pixels in 0..255.")
@_pack("input_size", "Input size in pixels, for a model without a fixed one.", type=click.IntRange(1))
@_pack("scheme", "Conversion of a SavedModel; ptq-int8 also quantizes a float .tflite.")
@_pack("max_drop", "Allowed drop of test accuracy in percentage points by ptq-int8.", type=click.FloatRange(0))
@_pack("auto_float", "Where --max-drop is not met, leave as few layers as it takes in float, the worst first.")
@NEW_SPLIT
@_pack("split", "Use the split of this split.json or run folder.")
@POSITIVE
@_pack("target_sensitivity", "Review threshold for this minimum sensitivity; see quantize.")
@_pack("review_budget", "Largest share of images sent to review; 0: none.  [default: 0.05]")
@_pack("seed", "Seed of every random draw.", type=SEED)
@CACHE_DIR
@_pack("force", "Overwrite an existing file.")
@JSON
def pack(model: Path, json: bool, **settings: Any) -> None:
    """Measure a bare .tflite (or SavedModel) on labelled images, and pack it into one verified file."""
    from ..console.progress import Progress
    from ..optimize.foreign.packing import pack_foreign
    from ..optimize.foreign.result import pack_text

    result = pack_foreign(PackConfig(model=model, **settings), Progress())
    print_result(result, json, lambda: pack_text(result))
    note_synthetic(result.synthetic)
    note_research_use(json)
