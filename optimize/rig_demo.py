"""The model that `edgeall rig --demo` runs: trained on the cells of simulated slides, small enough for the package.

``python -m edgeall.optimize.rig_demo OUT`` makes it anew: draws slides, cuts out what the rig's own cell finder finds,
trains, quantizes and packs. The demo's slide is none of those that it learns from.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..console.progress import Progress
from ..edge_runtime.classifier import Classifier
from ..edge_runtime.manifest import Manifest
from ..edge_runtime.preprocess import InputSpec, normalize
from ..edge_runtime.vision.cells import crop, find_cells
from ..models import registry
from ..models.head import add_head
from ..models.keras_compat import keras
from ..models.registry import BuildArgs
from ..rig.capture.slide import KINDS, SimulatedCamera, draw_slide
from ..train.runs import versions
from .packaging.card import model_card
from .packaging.golden import choose_golden
from .packaging.pack import pack
from .quantization.convert import convert, with_second_output
from .quantization.fold import fold_batch_normalization
from .quantization.placement import calibrated

SIZE = 48
"""Pixels a side."""
SPEC = InputSpec(SIZE, SIZE)
SLIDES = 5
"""Of each kind; the last one is for testing."""
CELLS = 80
"""Of each slide."""
FIRST_SEED = 100
"""The demo's slide is drawn with seed 0."""
EPOCHS = 12
REVIEW_BELOW = 0.8
FRAMES_A_PLACE = 36
LARGEST_BLUR_PX = 1.5
"""Of a field that the gate lets pass."""


@dataclass(frozen=True)
class DrawnCell:
    """A cell as the model sees it: uint8 (SIZE, SIZE, 3); the kind that its slide was drawn with; which slide."""

    pixels: NDArray[np.uint8]
    kind: str
    slide: int


def draw_cells(progress: Progress) -> list[DrawnCell]:
    """Cut cells out of simulated slides.

    One cell in sixteen of any slide is a bystander with a lobed nucleus. It keeps the slide's label, and so the model
    learns to be unsure of it.
    """
    cells: list[DrawnCell] = []
    with progress.task("drawing slides", len(KINDS) * SLIDES) as advance:
        for index, (kind, number) in enumerate((kind, number) for kind in KINDS for number in range(SLIDES)):
            camera = SimulatedCamera(draw_slide(FIRST_SEED + index, kind, (2560, 2560)), seed=index, rate=None)
            found, frame = 0, 0
            while found < CELLS:
                frame += FRAMES_A_PLACE
                view = camera.view(frame)
                if view.zone != "smear" or view.moving or view.blur_px > LARGEST_BLUR_PX:
                    continue
                field = Image.fromarray(camera.pixels(frame))
                whole = [cell for cell in find_cells(np.asarray(field)) if not cell.touches_border][: CELLS - found]
                cells += [DrawnCell(crop(field, cell.box, SPEC), kind, number) for cell in whole]
                found += len(whole)
            advance(index + 1, "")
    return cells


def make(out: Path, progress: Progress) -> dict[str, Any]:
    """Draw, train, quantize, pack.

    Not by `edgeall.train.run`: its search for duplicates takes round, centred cells of one stain for one another, which
    is right for photographs and leaves nothing to split here.

    Returns:
        ``model``, the file; ``bytes``; ``accuracy`` on slides that it wasn't trained on; ``images`` of that.
    """
    cells = draw_cells(progress)
    labels = tuple(KINDS)
    truth = np.array([labels.index(cell.kind) for cell in cells])
    unseen = np.array([cell.slide == SLIDES - 1 for cell in cells])
    images = normalize(np.stack([cell.pixels for cell in cells]), SPEC)

    keras.utils.set_random_seed(FIRST_SEED)
    model = add_head(registry.get("basic_cnn").build(BuildArgs(SIZE, SIZE, None, "none")), len(labels), 0.2)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    turned = np.concatenate([images[~unseen], images[~unseen][:, ::-1], images[~unseen][:, :, ::-1]])
    with progress.task("training", EPOCHS) as advance:
        for epoch in range(EPOCHS):
            keras.backend.set_value(model.optimizer.learning_rate, 3e-3 * (1 - epoch / EPOCHS))
            model.fit(turned, np.tile(truth[~unseen], 3), batch_size=32, verbose=0)
            advance(epoch + 1, "")
    quantized = calibrated(fold_batch_normalization(model), SPEC, [images[~unseen][::5]])
    flatbuffer = convert(with_second_output(quantized, explain=True), "ptq-int8", SPEC)

    classifier = Classifier.from_flatbuffer(flatbuffer, labels, SPEC)
    said = np.array([classifier.predict(cell.pixels).argmax() for cell in np.array(cells, object)[unseen]])
    accuracy = float((said == truth[unseen]).mean())
    manifest = Manifest(
        name="rig-demo",
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        unit="cell",
        labels=labels,
        positive_labels=labels[1:],
        input=SPEC,
        quantization={"scheme": "ptq-int8", "versions": versions()},
        training={"backbone": "basic_cnn", "split_level": "subject", "seed": FIRST_SEED, "synthetic": True},
        metrics={"split": "test", "images": int(unseen.sum()), "accuracy": accuracy},
        decision={"review_below": REVIEW_BELOW},
        golden={"source": "simulated slides"},
    )
    golden = choose_golden(classifier, (Image.fromarray(cell.pixels).resize((60, 60)) for cell in cells[::9]))
    file = pack(flatbuffer, manifest, golden, model_card(manifest), out / "demo.tflite")
    return {"model": str(file), "bytes": file.stat().st_size, "accuracy": accuracy, "images": int(unseen.sum())}


if __name__ == "__main__":
    print(json.dumps(make(Path(sys.argv[1]), Progress()), indent=1, default=str))
