"""Models that plain notebooks made, imported: sixteen files of four architectures, compared with the notebooks.

python benchmarks/imports.py DATA

DATA is a folder of labelled images; a sample of it is used. Each architecture is made in four forms by
`peers/plain_notebook.py`, with the Keras 2 and the Keras 3 that are installed with edgeall. An import must give the
notebook's probabilities for every image to 1e-5 (or to what the last bits of its weights change, if that is more) and
its accuracy. PTQ and QAT must leave no layer in float; they are
measured for one form of each architecture, because all forms become the same network. Written to `imports.md`; finished
steps are reused (--work).
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command
import numpy as np
from PIL import Image

ARCHITECTURES = ("MobileNetV2", "EfficientNetB0", "ResNet50", "DenseNet121")
FORMS = {
    "keras2-h5": (".h5", "Keras 2 .h5, head on base.output, normalized outside"),
    "keras2-keras": (".keras", "Keras 2 .keras, base nested, normalized outside"),
    "keras3-keras": (".keras", "Keras 3 .keras, base nested, preprocess_input inside"),
    "keras2-savedmodel": ("", "Keras 2 SavedModel, normalizing layers inside"),
}
QUANTIZED = "keras3-keras"
"""The form that is quantized."""
EQUAL = 1e-5
NORMALIZATIONS = {"MobileNetV2": "-1..1", "EfficientNetB0": "0..255", "ResNet50": "caffe", "DenseNet121": "torch"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/imports"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--no-qat", dest="qat", action="store_false", help="leave quantization-aware training out")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    names = sample(arguments)
    rows = []
    for architecture in ARCHITECTURES:
        for form in FORMS:
            kept = arguments.work / f"{architecture}-{form}.json"
            if not kept.exists():
                kept.write_text(json.dumps(measured(architecture, form, arguments, names), indent=1))
            rows.append(json.loads(kept.read_text()))
            print(rows[-1], file=sys.stderr)
    schemes = ("ptq-int8", "qat-int8") if arguments.qat else ("ptq-int8",)
    for scheme in schemes:
        for row in rows:
            if row["form"] == QUANTIZED and row["imported"]:
                row[scheme] = quantized(row, scheme, arguments)
    page, met = report(rows, arguments, len(names))
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "imports.md").write_text(page, encoding="utf-8")
    return 0 if met else 1


def sample(arguments: argparse.Namespace) -> list[str]:
    """Copy some images of each class to the work folder, and store their pixels; returns their paths in order."""
    folder, stored = arguments.work / "data", arguments.work / "images.npz"
    if not stored.exists():
        shutil.rmtree(folder, ignore_errors=True)
        for kind in sorted(child for child in arguments.data.iterdir() if child.is_dir()):
            files = sorted(file for file in kind.iterdir() if file.is_file())
            (folder / kind.name).mkdir(parents=True)
            for file in files[:: max(len(files) // arguments.per_class, 1)][: arguments.per_class]:
                shutil.copy(file, folder / kind.name)
    classes = sorted(child.name for child in folder.iterdir())
    files = [file for kind in classes for file in sorted((folder / kind).iterdir())]
    if not stored.exists():
        size = (arguments.size, arguments.size)
        opened = [Image.open(file).convert("RGB").resize(size, Image.Resampling.BILINEAR) for file in files]
        labels = [classes.index(file.parent.name) for file in files]
        np.savez(stored, pixels=np.stack([np.asarray(image) for image in opened]), labels=labels)
    return [f"{file.parent.name}/{file.name}" for file in files]


def measured(architecture: str, form: str, arguments: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Make a model, import it, compare it with the notebook, and quantize it."""
    work = arguments.work
    file = work / f"{architecture}-{form}{FORMS[form][0]}"
    predictions = file.with_name(file.name + ".predictions.npy")
    if not predictions.exists():
        make(architecture, form, work)
    noise = file.with_name(file.name + ".noise.npy")
    run = work / f"{file.name}-run"
    named: tuple[str, ...] = ()
    data = work / "data"
    done = command.run("import", file, "--data", data, "--out", run, "--split-by", "image", "--force")
    if done.status:
        named = ("--normalization", NORMALIZATIONS[architecture])
        words = ("import", file, "--data", data, "--out", run, "--split-by", "image", *named, "--force")
        done = command.run(*words)
    if done.status:
        return {"architecture": architecture, "form": form, "imported": False}
    own = dict(zip(names, np.load(predictions), strict=True))
    with (run / "predictions.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    labels = done.answer["labels"]
    apart = max(
        abs(float(row[f"p_{label}"]) - own[row["path"]][index]) for row in found for index, label in enumerate(labels)
    )
    test = [row for row in found if row["side"] == "test"]
    notebook = [labels[int(own[row["path"]].argmax())] == row["label"] for row in test]
    return {
        "architecture": architecture,
        "form": form,
        "imported": True,
        "named": bool(named),
        "normalization": done.answer["model"]["imported"]["normalization"],
        "how": done.answer["model"]["imported"]["normalization_from"],
        "seconds": done.seconds,
        "difference": float(apart),
        "noise": float(np.load(noise)) if noise.exists() else None,
        "accuracy": done.answer["metrics"]["test"]["accuracy"],
        "notebook_accuracy": float(np.mean(notebook)),
        "test_images": len(test),
        "parameters": done.answer["model"]["parameters"],
    }


def make(architecture: str, form: str, work: Path) -> None:
    """Make the models of an architecture in this form and in all others of the same version of Keras."""
    script = Path(__file__).parent / "peers" / "plain_notebook.py"
    version = form.partition("-")[0]
    forms = {name: suffix for name, (suffix, _) in FORMS.items() if name.startswith(version)}
    outs = [f"{name}={work / f'{architecture}-{name}{suffix}'}" for name, suffix in forms.items()]
    words = [sys.executable, script, work / "images.npz", architecture, *outs]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def quantized(row: dict[str, Any], scheme: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy and float layers of one scheme, or the exit status if no file was written."""
    name = f"{row['architecture']}-{row['form']}"
    kept = arguments.work / f"{name}-{scheme}.json"
    if not kept.exists():
        run = arguments.work / f"{name}{FORMS[row['form']][0]}-run"
        out = arguments.work / f"{name}-{scheme}.tflite"
        words = ("quantize", run, "--scheme", scheme, "--epochs", 1, "--representative", 64, "--out", out, "--force")
        done = command.run(*words)
        keys = ("accuracy", "agreement", "float_layers", "flatbuffer_bytes")
        found = {"status": done.status} if done.status else {key: done.answer[key] for key in keys}
        kept.write_text(json.dumps(found, indent=1))
    answer: dict[str, Any] = json.loads(kept.read_text())
    return answer


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace, images: int) -> tuple[str, bool]:
    """A Markdown page, and whether every file met the limits."""
    from edgeall.edge_runtime.tools.device import describe_device

    lines = [
        "# Models made by plain notebooks, imported",
        "",
        f"`python benchmarks/imports.py DATA --size {arguments.size}`, source revision "
        f"{command.revision('models', 'train', 'optimize')}, {datetime.now(timezone.utc):%Y-%m-%d}. {images} images; "
        "the base of each model has random weights, so the accuracies mean nothing by themselves: they must equal "
        "those of the notebook.",
        "",
        "| architecture | form | normalization | how it is known | largest difference of a probability | accuracy % | "
        "notebook's % | PTQ int8 % | QAT int8 % | layers in float |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    met = 0
    for row in rows:
        ok = row["imported"] and row["difference"] <= max(EQUAL, row.get("noise") or 0.0)
        ok = ok and row["accuracy"] == row["notebook_accuracy"]
        ok = ok and all(row[scheme].get("float_layers") == [] for scheme in ("ptq-int8", "qat-int8") if scheme in row)
        met += ok
        lines.append(_line(row))
    lines += [
        "",
        f"{met} of {len(rows)} met: probabilities to {EQUAL:g} or to what the last bits of all weights change (in "
        "brackets, where measured), and the notebook's accuracy; no layer in float where a scheme was measured.",
        "",
    ]
    lines += [f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None]
    return "\n".join([*lines, ""]), met == len(rows)


def _line(row: dict[str, Any]) -> str:
    form = FORMS[row["form"]][1]
    if not row["imported"]:
        return f"| {row['architecture']} | {form} | | NOT IMPORTED | | | | | | |"
    schemes = [row[scheme] for scheme in ("ptq-int8", "qat-int8") if scheme in row]
    accuracies = [f"{100 * one['accuracy']:.2f}" if "accuracy" in one else "FAILED" for one in schemes] + ["", ""]
    noise = f" ({row['noise']:.1e})" if row.get("noise") else ""
    in_float = sum(len(one.get("float_layers", ["?"])) for one in schemes) if schemes else ""
    return (
        f"| {row['architecture']} | {form} | {row['normalization']} | {row['how']} | {row['difference']:.1e}{noise} | "
        f"{100 * row['accuracy']:.2f} | {100 * row['notebook_accuracy']:.2f} | {accuracies[0]} | {accuracies[1]} | "
        f"{in_float} |"
    )


if __name__ == "__main__":
    sys.exit(main())
