"""Makes the model that `edgeall cells` and the rig find cells with, or measures it with each laboratory left out.

python benchmarks/cell_model.py DATA --weights FILE --out edge_runtime/vision/cells.tflite
python benchmarks/cell_model.py DATA --weights FILE --leave-one-out

DATA holds masks/{all-idb2,cellavision,bccd} and bccd/JPEGImages (MIT, see the model's card); FILE is MobileNetV2 0.35
with ImageNet weights, without its top. Runs `edgeall train --task segmentation` and `edgeall quantize` with their
default settings; the first command trains on all three laboratories (a tenth of the images is kept for the test), the
second three times on two of them and tests on the third. Each of them goes on where it was interrupted.
`benchmarks/cells.py` then measures what the file does.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path
from typing import Any

import command

IMAGES = {"all-idb2": "masks/all-idb2/images", "cellavision": "masks/cellavision/images", "bccd": "bccd/JPEGImages"}
"""Folder of the images of each laboratory."""
RED_CELL_PX = {"all-idb2": 73.0, "cellavision": 68.0, "bccd": 90.0}
"""Diameter of a red cell in pixels, measured by eye on a dozen images each."""
BLASTS_PX = 59.0
"""The same in ALL-IDB2's images of patients, ``*_1``, which another camera took."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/cell-model"))
    parser.add_argument("--out", type=Path, help="copy the packed model here")
    parser.add_argument("--leave-one-out", action="store_true")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    manifest = write_manifest(arguments.data.resolve(), arguments.work / "masks.csv")
    if arguments.leave_one_out:
        count = len(IMAGES)
        for fold in range(1, count + 1):
            run = arguments.work / f"without-{sorted(IMAGES)[fold - 1]}"
            _make(manifest, arguments.weights, run, "--split-by", "laboratory", "--fold", f"{fold}/{count}")
        return 0
    model = _make(manifest, arguments.weights, arguments.work / "run", "--split-by", "image")
    if arguments.out:
        shutil.copyfile(model, arguments.out)
    return 0


def write_manifest(data: Path, to: Path) -> Path:
    """A CSV manifest of all images with masks, in a folder with links to ``data``; returns it."""
    for name in ("masks", "bccd"):
        link = to.parent / name
        link.unlink(missing_ok=True)
        link.symlink_to(data / name)
    data = to.parent
    with to.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "mask", "laboratory", "red_cell_px"])
        for laboratory, folder in IMAGES.items():
            images = {path.stem: path for path in sorted((data / folder).iterdir())}
            for mask in sorted((data / "masks" / laboratory / "masks").iterdir()):
                blast = laboratory == "all-idb2" and mask.stem.endswith("_1")
                red_cell_px = BLASTS_PX if blast else RED_CELL_PX[laboratory]
                paths = [path.relative_to(data).as_posix() for path in (images[mask.stem], mask)]
                table.writerow([*paths, laboratory, red_cell_px])
    return to


def _make(manifest: Path, weights: Path, run: Path, *split: object) -> Path:
    """Train, quantize, print the figures; the packed model."""
    model = run / "model.tflite"
    if not (run / "run.json").exists():
        command.answer(
            *("train", "--task", "segmentation", "--data", manifest, "--alpha", 0.35, "--weights", weights),
            *(*split, "--out", run),
        )
    # Drawn golden images: no image of a data set travels with the package.
    quantized = command.answer("quantize", run, "--golden", "synthetic", "--out", model, "--force")
    _print(run.name, quantized, model)
    return model


def _print(name: str, quantized: dict[str, Any], model: Path) -> None:
    figures = quantized.get("test", quantized)
    print(f"{name}: {model.stat().st_size} bytes, {figures}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
