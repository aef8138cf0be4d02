"""Makes the model that `edgeall cells` and the rig find cells with, or measures it with each laboratory left out.

python benchmarks/cell_model.py DATA --weights FILE --out edge_runtime/vision/cells.tflite
python benchmarks/cell_model.py DATA --weights FILE --leave-one-out

DATA holds masks/{all-idb2,cellavision,bccd} and bccd/JPEGImages (MIT, see the model's card); FILE is MobileNetV2 0.35
with ImageNet weights, without its top. Runs `edgeall data synth`, `edgeall train --task segmentation` and
`edgeall quantize` with their default settings. Synthetic fields are a fourth laboratory for training. The first command
trains on all laboratories but the images that `cell_model_split.json` keeps for the test; the second three times
without one of the three and tests on that. Each of them goes on where it was interrupted. `benchmarks/cells.py` then
measures what the file does.
"""

from __future__ import annotations

import argparse
import csv
import json
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
SYNTHETIC = 160
"""Number of synthetic fields."""
KEPT = 20
"""Of the synthetic fields, one in so many is for the test, and one for validation."""
SPLIT = Path(__file__).with_name("cell_model_split.json")
"""The images, as ``<laboratory>/<name>``, for validation and for the test; the others are for training."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/cell-model"))
    parser.add_argument("--out", type=Path, help="copy the packed model here")
    parser.add_argument("--leave-one-out", action="store_true")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    synthetic = _draw(arguments.work)
    manifest = write_manifest(arguments.data.resolve(), synthetic, arguments.work, split=not arguments.leave_one_out)
    if arguments.leave_one_out:
        for fold, name in enumerate(sorted(IMAGES), 1):  # the synthetic ones, last by name, are never the test
            run = arguments.work / f"without-{name}"
            fold_of = f"{fold}/{len(IMAGES) + 1}"
            _make(manifest, arguments.weights, run, "--split-by", "laboratory", "--fold", fold_of)
        return 0
    model = _make(manifest, arguments.weights, arguments.work / "run")
    if arguments.out:
        shutil.copyfile(model, arguments.out)
    return 0


def _draw(work: Path) -> list[dict[str, str]]:
    """The rows of the manifest of the synthetic fields, which are drawn unless they are there."""
    folder = work / "synthetic"
    if not (folder / "masks.csv").exists():
        command.answer("data", "synth", "--layout", "all4", "--images", SYNTHETIC, "--out", folder)
    with (folder / "masks.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["path"], row["mask"] = (f"{folder.name}/{row[name]}" for name in ("path", "mask"))
        row["subset"] = {0: "test", 1: "validation"}.get(number % KEPT, "train")
    return rows


def write_manifest(data: Path, synthetic: list[dict[str, str]], work: Path, split: bool) -> Path:
    """A CSV manifest of all images with masks, in a folder with links to ``data``; returns it.

    Args:
        data: see the module.
        synthetic: rows of the synthetic fields.
        work: the folder.
        split: whether the manifest says which images are for the test.
    """
    for name in ("masks", "bccd"):
        link = work / name
        link.unlink(missing_ok=True)
        link.symlink_to(data / name)
    kept = {name: subset for subset, names in json.loads(SPLIT.read_text()).items() for name in names}
    to = work / ("masks.csv" if split else "masks-whole.csv")
    columns = ["path", "mask", "laboratory", "red_cell_px", *(["subset"] if split else [])]
    with to.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        for laboratory, folder in IMAGES.items():
            images = {path.stem: path for path in sorted((work / folder).iterdir())}
            for mask in sorted((work / "masks" / laboratory / "masks").iterdir()):
                blast = laboratory == "all-idb2" and mask.stem.endswith("_1")
                table.writerow(
                    {
                        "path": images[mask.stem].relative_to(work).as_posix(),
                        "mask": mask.relative_to(work).as_posix(),
                        "laboratory": laboratory,
                        "red_cell_px": BLASTS_PX if blast else RED_CELL_PX[laboratory],
                        "subset": kept.get(f"{laboratory}/{mask.stem}", "train"),
                    }
                )
        table.writerows(synthetic)
    return to


def _make(manifest: Path, weights: Path, run: Path, *settings: object) -> Path:
    """Train, quantize, print the figures; the packed model."""
    model = run / "model.tflite"
    if not (run / "run.json").exists():
        command.answer(
            *("train", "--task", "segmentation", "--data", manifest, "--alpha", 0.35, "--weights", weights),
            *(*settings, "--out", run),
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
