"""Makes the model of `edgeall rig --demo`, which is trained on cells of simulated slides and is part of the package.

``python -m edgeall.optimize.rig_demo OUT`` makes it anew: it draws slides, crops the cells that the rig's cell finder
finds, trains, quantizes and packs. The slide of the demo is not a training slide.
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
from ..edge_runtime.tools.golden_images import choose_golden
from ..edge_runtime.vision.cells import crop
from ..edge_runtime.vision.finder import open_finder
from ..models import registry
from ..models.head import add_head
from ..models.keras_compat import keras
from ..models.registry import BuildArgs
from ..rig.capture.slide import KINDS, SimulatedCamera, draw_slide
from ..train.runs import versions
from .packaging.card import model_card
from .packaging.pack import pack
from .quantization.convert import convert, with_second_output
from .quantization.fold import fold_batch_normalization
from .quantization.placement import ptq

SIZE = 48
"""Input width and height in pixels."""
SPEC = InputSpec(SIZE, SIZE)
SLIDES = 5
"""Slides of each kind; the last one is for testing."""
CELLS = 80
"""Cells of each slide."""
FIRST_SEED = 100
"""The demo's slide is drawn with seed 0."""
EPOCHS = 12
REVIEW_BELOW = 0.8
FRAMES_PER_PLACE = 36
LARGEST_BLUR_PX = 1.5
"""Largest blur of a field that the quality gate accepts."""


@dataclass(frozen=True)
class DrawnCell:
    """A cell: input pixels, uint8 ``(SIZE, SIZE, 3)``; kind of its slide; index of the slide."""

    pixels: NDArray[np.uint8]
    kind: str
    slide: int


def draw_cells(progress: Progress) -> list[DrawnCell]:
    """Crop cells from simulated slides.

    One cell in sixteen of every slide is a bystander with a lobed nucleus. It has the slide's label, so the model
    learns to be uncertain about it.
    """
    cells: list[DrawnCell] = []
    finder = open_finder()
    with progress.task("drawing slides", len(KINDS) * SLIDES) as advance:
        for index, (kind, number) in enumerate((kind, number) for kind in KINDS for number in range(SLIDES)):
            camera = SimulatedCamera(draw_slide(FIRST_SEED + index, kind, (2560, 2560)), seed=index, rate=None)
            found, frame = 0, 0
            while found < CELLS:
                frame += FRAMES_PER_PLACE
                view = camera.view(frame)
                if view.zone != "smear" or view.moving or view.blur_px > LARGEST_BLUR_PX:
                    continue
                field = Image.fromarray(camera.pixels(frame))
                all_cells = finder.find(np.asarray(field)).cells
                whole = [cell for cell in all_cells if not cell.touches_border][: CELLS - found]
                cells += [DrawnCell(crop(field, cell.box, SPEC), kind, number) for cell in whole]
                found += len(whole)
            advance(index + 1, "")
    return cells


def make(out: Path, progress: Progress) -> dict[str, Any]:
    """Draw, train, quantize and pack.

    `edgeall.train.run` is not used, because its search for duplicates takes round, centred cells of one stain for
    duplicates. That is right for photographs, but leaves nothing to split here.

    Returns:
        ``model``: path of the file; ``bytes``: its size; ``accuracy`` on the test slides; ``images``: number of their
        cells.
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
    quantized = ptq(fold_batch_normalization(model), SPEC, [images[~unseen][::5]])
    flatbuffer = convert(with_second_output(quantized, explain=True), "ptq-int8", SPEC)

    classifier = Classifier.from_flatbuffer(flatbuffer, labels, SPEC)
    predicted = np.array([classifier.predict(cell.pixels).argmax() for cell in np.array(cells, object)[unseen]])
    accuracy = float((predicted == truth[unseen]).mean())
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
