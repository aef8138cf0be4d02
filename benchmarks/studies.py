"""The comparisons of the published studies, run on real data: every backbone with one budget, then B, E and C.

python benchmarks/studies.py DATA --weights FOLDER [--only PART|STEP,...] [--hours 8]

DATA holds all4 and cnmc; FOLDER holds MODEL_no_top.h5 files of the backbones whose ImageNet weights are at hand. Each
step is one `edgeall compare` of the installed program, on contiguous stretches of file numbers with an embargo, or by
subject. Its rows are added to `studies.jsonl` when it ends, and `studies.md` is written anew. The same command resumes:
finished steps are not run again, and `compare` resumes the one that was interrupted. When the finished steps have taken
--hours, no other one begins; the page names those that are left. Run nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command

from edgeall.edge_runtime.tools.device import describe_device
from edgeall.optimize.experiments.pareto import front

Row = dict[str, Any]

SMALL_PX = 96
"""Input size of `backbones`: what two cores can train. Every backbone supports it."""
EPOCHS = 8
"""Epochs of `backbones`: the same number of steps for all."""
LIMIT_BYTES = 700_000
"""Largest file whose accuracy is compared with the studies' figures."""


@dataclass(frozen=True)
class Study:
    """What a study reported.

    Attributes:
        data: folder in DATA of ours.
        figure: accuracy of its networks, percent.
        differs: what we do otherwise, besides the split.
    """

    data: str
    figure: dict[str, float]
    differs: str


STUDIES = {
    "A": Study("all4", {"inception_resnet_v2": 98.50, "nasnet_large": 97.17}, "48 runs of these two were not made"),
    "B": Study("all4", {"basic_cnn": 61.67, "vgg16": 81.25, "resnet50": 18.75}, "128 px; no ImageNet weights at hand"),
    "C": Study("cnmc", {"mobilenet_v2:1.0": 82.75}, "a sample of 128 px; the networks whose weights are at hand"),
    "D": Study(
        "cnmc",
        {"vgg16": 92.7, "efficientnet_b0": 94.1, "resnet50": 95.3, "densenet121": 93.4, "alexnet": 88.6},
        "its split was by image; ours are C's folds by subject, of a sample",
    ),
    "E": Study(
        "all4",
        {"mobilenet_v2:1.0": 95.26, "inception_v3": 93.43, "vgg16": 98.78, "resnet50": 99.24},
        "128 px; ImageNet weights of MobileNetV2 alone",
    ),
}


@dataclass(frozen=True)
class Step:
    """One `edgeall compare` of one model.

    Attributes:
        part: what it belongs to: ``backbones``, or a study's letter.
        model: as in ``--models``.
        pretrained: whether it starts from ImageNet weights; only where they are at hand.
        data: folder in DATA.
        words: options of `edgeall compare`.
    """

    part: str
    model: str
    pretrained: bool
    data: str
    words: tuple[object, ...]

    @property
    def name(self) -> str:
        """Of its folder, and of its rows."""
        return f"{self.part}-{self.model.replace(':', '-')}{'-imagenet' if self.pretrained else ''}"


CHEAPEST_FIRST = (
    *("basic_cnn", "mobilenet_v2:0.35", "mobilenet_v2:1.0", "alexnet", "efficientnet_b0", "densenet121", "resnet50"),
    *("inception_v3", "resnet101v2", "vgg16", "vgg19", "inception_resnet_v2", "nasnet_large"),
)
_BLOCK = ("--split-by", "block")
_SHARED = ("--schemes", "ptq-int8,qat-int8", "--qat-epochs", 2)
_B = (
    *("--protocol", "60-20-20", *_BLOCK, "--optimizer", "adam", "--dense", 128, "--dropout", 0.5),
    *("--epochs-finetune", 10, "--patience", 3, "--augment", "rotation,shift,shear,zoom,flip", "--input-size", 128),
)
_E = (
    *("--protocol", "global-70-15-15", *_BLOCK, "--schedule", "constant", "--warmup", 0, "--lr-finetune", 0.0001),
    *("--batch-size", 64, "--dropout", 0.5, "--patience", 5, "--augment", "rotation,flip,zoom,shift"),
    *("--epochs-finetune", 20, "--input-size", 128),
)
_C = (
    *("--protocol", "subject-3-fold", "--optimizer", "adam", "--schedule", "cosine", "--lr-finetune", 0.01),
    *("--dropout", 0.25, "--epochs-finetune", 35, "--augment", "rotation,flip,crop:0.7", "--input-size", 128),
)


def steps(at_hand: Sequence[str]) -> list[Step]:
    """All steps in their order. ``at_hand``: models with ImageNet weights."""
    found = []
    for model in CHEAPEST_FIRST:
        for pretrained in (False, True) if model in at_hand else (False,):
            words = ("--protocol", "global-70-15-15", *_BLOCK, "--augment", "light", "--input-size", SMALL_PX)
            found.append(Step("backbones", model, pretrained, "all4", (*words, "--epochs-finetune", EPOCHS)))
    for part, words in (("E", _E), ("B", _B), ("C", _C)):
        for model in STUDIES[part].figure:
            found.append(Step(part, model, model in at_hand, STUDIES[part].data, words))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="folder of MODEL_no_top.h5 files")
    parser.add_argument("--only", help="parts (backbones, B, C, E) or steps, comma-separated")
    parser.add_argument("--hours", type=float, default=8.0, help="of all steps together [default: 8]")
    parser.add_argument("--work", type=Path, default=Path("runs/studies"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    at_hand = [model for model in CHEAPEST_FIRST if (arguments.weights / _weights_name(model)).is_file()]
    wanted = arguments.only.split(",") if arguments.only else ["backbones", *STUDIES]
    kept = arguments.out / "studies.jsonl"
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    planned = steps(at_hand)
    for step in planned:
        if not {step.part, step.name} & set(wanted) or any(row["step"] == step.name for row in rows):
            continue
        if sum(row["seconds"] for row in rows) >= 3600 * arguments.hours:
            break
        for row in _measured(step, arguments):
            rows.append(row)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        (arguments.out / "studies.md").write_text(report(rows, planned), encoding="utf-8")
    print(report(rows, planned))
    return 0


def _weights_name(model: str) -> str:
    """As `edgeall compare --weights FOLDER` looks for it."""
    return f"{model.replace(':', '_')}_no_top.h5"


def _measured(step: Step, arguments: argparse.Namespace) -> list[Row]:
    """The rows of one step: one for each scheme, or one that says why it failed."""
    out, started = arguments.work / step.name, time.perf_counter()
    weights = arguments.weights if step.pretrained else "none"
    done = command.run(
        *("compare", "--data", arguments.data / step.data, "--models", step.model, "--weights", weights),
        *(*step.words, *_SHARED, "--out", out),
    )
    shared = {"step": step.name, "part": step.part, "model": step.model, "pretrained": step.pretrained}
    shared |= {"day": f"{datetime.now(timezone.utc):%Y-%m-%d}", "cpu": describe_device().cpu}
    if not (out / "compare.json").exists():
        return [{**shared, "scheme": None, "failure": f"exit status {done.status}", "seconds": _since(started)}]
    found = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    rows: list[Row] = []
    for measured in found["rows"]:
        model = found["models"][measured["model"]]
        robust = _robustness(out, model["schemes"][measured["scheme"]]["files"], arguments.data / step.data)
        figures = ("accuracy", "accuracy_low", "accuracy_high", "weighted_f1", "sensitivity", "specificity")
        costs = ("file_bytes", "macs", "latency_p50_ms", "test_images", "split_level")
        timed = {"input_px": model["input"]["width"], "training_s": model["training_s"]}
        timed["validation_accuracy"] = model["by_side"]["validation"]["accuracy"]  # of the float network
        rows.append({**shared, "scheme": measured["scheme"], **{key: measured[key] for key in (*figures, *costs)}})
        rows[-1] |= {**timed, **robust, "source_revision": found["source_revision"], "seconds": 0.0}
    for failure in found["failures"]:
        rows.append({**shared, "scheme": failure["scheme"], "failure": failure["error"], "seconds": 0.0})
    rows[0]["seconds"] = _since(started)
    return rows


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)


def _robustness(out: Path, files: Sequence[str], data: Path) -> Row:
    """Mean and worst accuracy under the robustness suite, of a single int8 file; folds are not measured."""
    if len(files) > 1:
        return {"robust_mean": None, "robust_worst": None}
    found = command.answer("evaluate", out / files[0], "--data", data, "--robustness")["robustness"]
    return {"robust_mean": found["mean"], "robust_worst": found["worst"]}


def report(rows: Sequence[Row], planned: Sequence[Step]) -> str:
    """A Markdown page."""
    hours = sum(row["seconds"] for row in rows) / 3600
    measured = [row for row in rows if "failure" not in row]
    days = sorted({f"{row['day']} ({row['cpu']})" for row in rows})
    missing = [step.name for step in planned if all(row["step"] != step.name for row in rows)]
    lines = [
        "# The studies, run",
        "",
        f"`python benchmarks/studies.py DATA --weights FOLDER`, {datetime.now(timezone.utc):%Y-%m-%d}, {hours:.1f} h. "
        f"Trained by `edgeall compare`; int8 files; four-class fields in contiguous stretches with an "
        f"embargo of 37, C-NMC by subject. `backbones`: {EPOCHS} epochs at {SMALL_PX} pixels for every network. "
        f"Measured on {', '.join(days)}."
        + ("" if len(days) == 1 else " Each day had another machine: compare latencies and minutes of one day only."),
        "",
        "| part | network | starts from | px | scheme | accuracy % (95 % interval) | weighted F1 % | sensitivity % | "
        "specificity % | robust mean, worst % | file, MB | MMACs | ms | training, min |",
        "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_line(row) for row in measured),
        "",
        *_best(measured),
        *_beside_studies(measured),
        *(
            f"- {row['step']}{' ' + row['scheme'] if row['scheme'] else ''} failed: {row['failure']}"
            for row in rows
            if "failure" in row
        ),
        *([f"Left out so far: {', '.join(missing)}."] if missing else []),
        "",
        "Research use only, not a diagnosis.",
        "",
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    robust = "" if row["robust_mean"] is None else f"{_pc(row['robust_mean'])}, {_pc(row['robust_worst'])}"
    interval = f"{_pc(row['accuracy'])} ({_pc(row['accuracy_low'])} to {_pc(row['accuracy_high'])})"
    cells = [
        *(row["part"], row["model"], "ImageNet" if row["pretrained"] else "nothing", row["input_px"], row["scheme"]),
        *(interval, *(_pc(row[key]) for key in ("weighted_f1", "sensitivity", "specificity")), robust),
        *(f"{row['file_bytes'] / 1e6:.2f}", f"{row['macs'] / 1e6:,.0f}", f"{row['latency_p50_ms']:.2f}"),
        f"{row['training_s'] / 60:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _pc(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _best(measured: Sequence[Row]) -> list[str]:
    """The Pareto fronts of `backbones`, from nothing and from ImageNet weights together.

    Latencies of several days are of several machines: then multiply-accumulates, the same on each, stand for them.
    """
    rows = [row for row in measured if row["part"] == "backbones"]
    one_day = len({row["day"] for row in rows}) == 1
    lines = []
    for cost, name in (
        ("latency_p50_ms", "millisecond") if one_day else ("macs", "multiply-accumulate"),
        ("file_bytes", "byte"),
    ):
        best = [rows[index] for index in front([(row[cost], row["accuracy"]) for row in rows])]
        named = (
            f"{row['model']}{' ImageNet' if row['pretrained'] else ''} {row['scheme']} ({_pc(row['accuracy'])} %)"
            for row in best
        )
        lines += [f"Pareto front per {name}: {'; '.join(named)}.", ""]
    return lines if rows else []


def _beside_studies(measured: Sequence[Row]) -> list[str]:
    """A row for each study: its best figure, ours of at most `LIMIT_BYTES`, and what differs."""
    lines = [
        f"Ours: of all int8 files of at most {LIMIT_BYTES / 1e6:.2f} MB, those of the float network with the highest "
        "validation accuracy; of several networks where it is equal.",
        "",
        "| study | its best figure % | ours % | what differs |",
        "| --- | ---: | ---: | --- |",
    ]
    for letter, study in STUDIES.items():
        own = [row for row in measured if row["file_bytes"] <= LIMIT_BYTES and _data(row) == study.data]
        highest = max((row["validation_accuracy"] for row in own), default=0.0)
        chosen = [row for row in own if row["validation_accuracy"] == highest]
        named = [f"{_pc(row['accuracy'])} ({row['model']} {row['scheme']}, part {row['part']})" for row in chosen]
        ours = "; ".join(named) or "not measured"
        lines.append(f"| {letter} | {max(study.figure.values()):.2f} | {ours} | harder split; {study.differs} |")
    return [*lines, ""]


def _data(row: Row) -> str:
    return STUDIES[row["part"]].data if row["part"] in STUDIES else "all4"


if __name__ == "__main__":
    sys.exit(main())
