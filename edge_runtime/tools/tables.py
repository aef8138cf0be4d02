"""What commands print for people, as plain aligned text: it pipes, greps and costs no import."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeall.edge_runtime.pipeline import Prediction


MAX_LABEL_COLUMNS = 24
"""ImageNet has a label of 112 characters."""
_REVIEW = len("review: unfamiliar")


def as_text(value: object) -> object:
    """For a CSV file: what begins like a formula a spreadsheet computes, whoever typed it, unless after an apostrophe.

    Source: OWASP, CSV injection.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned columns under a rule: the first, a name, on the left, the others, figures, on the right."""
    heads = [_plain(name) for name in columns]
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])

    return "\n".join([line(heads), "  ".join("─" * width for width in widths), *map(line, texts)])


def record(facts: Mapping[str, object]) -> str:
    """One ``name  value`` line each."""
    texts = {_plain(name): _cell(value) for name, value in facts.items()}
    width = max(map(len, texts), default=0)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in texts.items())


def percent(fraction: float | None) -> str | None:
    """``99.22 %``."""
    return None if fraction is None else f"{fraction * 100:.2f} %"


def prediction_lines(predictions: Iterable[Prediction], labels: Sequence[str], form: str) -> Iterator[str]:
    """One line for each prediction, as it comes.

    Args:
        predictions: see `edgeall.edge_runtime.pipeline.classify`.
        labels: the model's.
        form: ``table``, ``json`` (an object a line) or ``csv`` (with a header).
    """
    if form == "json":
        for prediction in predictions:
            yield json.dumps(prediction.as_json())
    elif form == "csv":
        names = ["image", "label", "probability", "review", "reason", "novelty", "error"]
        yield _csv_line([*names, *(f"p_{label}" for label in labels)])
        for p in predictions:
            values = [p.probabilities.get(label, "") for label in labels]
            if p.error is not None:
                yield _csv_line([p.image, "", "", "", "", "", p.error, *values])
            else:
                said = ["yes" if p.review else "no", p.reason or "", "" if p.novelty is None else p.novelty, ""]
                yield _csv_line([p.image, p.label, p.probability, *said, *values])
    else:
        width = min(max((len(_plain(label)) for label in labels), default=0), MAX_LABEL_COLUMNS)
        for p in predictions:
            if p.error is not None:
                yield f"{'error'.ljust(width)}  {'':8}  {'':{_REVIEW}}  {_plain(p.error)}"
            else:
                review = (f"review: {p.reason}" if p.review else "").ljust(_REVIEW)
                yield f"{_plain(p.label).ljust(width)}  {p.probability * 100:6.2f} %  {review}  {_plain(p.image)}"


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """The figures of `edgeall.train.metrics.compute_metrics`."""
    facts = {
        "images": f"{metrics['images']:,} ({metrics['split']}, {_split(metrics['split_level'])})",
        "accuracy": f"{percent(metrics['accuracy'])} (95 % interval {_interval(metrics, 'accuracy', percent)}, "
        f"by {metrics['ci_unit']}, as those below)",
        "macro F1": f"{metrics['macro_f1']:.4f} ({_interval(metrics, 'macro_f1', _four)})",
        "log loss": f"{metrics['log_loss']:.4f}",
        "calibration error": f"{metrics['ece']:.4f}",
    }
    if metrics["positive_labels"]:
        against = f"({', '.join(metrics['positive_labels'])} against the rest)"
        facts |= {
            **{
                f"{name} {against}": f"{percent(metrics[name])} ({_interval(metrics, name, percent)})"
                for name in ("sensitivity", "specificity")
                if metrics[name] is not None
            },
            **(
                {f"AUROC {against}": f"{metrics['auroc_positive']:.4f} ({_interval(metrics, 'auroc_positive', _four)})"}
                if metrics["auroc_positive"] is not None
                else {}
            ),
            "sensitivity at 95 % specificity": percent(metrics["sensitivity_at_specificity_95"]) or "",
        }
    facts |= trust_facts(metrics)
    labels = metrics["labels"]
    classes = [
        [label, percent(row["precision"]), percent(row["recall"]), f"{row['f1']:.4f}", row["support"]]
        for label, row in ((label, metrics["per_class"][label]) for label in labels)
    ]
    confusion = [[label, *row] for label, row in zip(labels, metrics["confusion"], strict=True)]
    parts = [
        record(facts),
        table(["class", "precision", "recall", "F1", "images"], classes),
        table(["true \\ predicted", *labels], confusion),
    ]
    if metrics["subjects"]:
        parts.append(subjects_text(metrics["subjects"]))
    return "\n\n".join(parts)


def trust_facts(found: Mapping[str, Any]) -> dict[str, str]:
    """Lines of what `edgeall.train.reliability.trust` says; none of a result without it."""
    if "reliability" not in found:
        return {}
    fitted, before, after = (found["reliability"][key] for key in ("temperature", "before", "after"))
    said = f"calibration error {before['ece']:.4f}, Brier score {before['brier']:.4f}"
    if after is None:
        facts = {"calibration": f"none; {said}"}
    else:
        later = f"{after['ece']:.4f} and {after['brier']:.4f} after"
        facts = {"calibration": f"temperature {fitted:.2f}: {said} before, {later}"}
    curve, review = found["risk_coverage"], found["review"]
    shares = ", ".join(f"{percent(error)} of the surest {100 * float(s):g} %" for s, error in curve["error_at"].items())
    facts["wrong"] = f"{shares} (area under the risk-coverage curve {curve['aurc']:.5f})"
    if review is not None:
        why = []
        if review["unfamiliar"] is not None:
            why.append(f"{percent(review['unfamiliar'])} unlike the training images")
        if review["below"] is not None:
            why.append(f"{'else ' if why else ''}with a probability below {review['below']:.4f}")
        rest = percent(review["accuracy_of_the_rest"]) or "-"
        facts["sent to review"] = f"{percent(review['reviewed'])}: {', '.join(why)}; accuracy of the rest {rest}"
        facts["wrong answers"] = wrong_text(review)
    return facts


def wrong_text(review: Mapping[str, Any]) -> str:
    """What became of wrong answers: ``wrong`` and its like of `edgeall.train.reliability.review`."""
    missed = percent(review["wrong_not_reviewed"])
    return f"{review['wrong_reviewed']:,} of {review['wrong']:,} sent to review; not sent: {missed} of the images"


def subjects_text(found: Mapping[str, Any], most: int = 12) -> str:
    """The figures of people, ``subjects`` of the metrics; of the people themselves the ``most`` that go worst."""
    several = found["several_classes"]
    facts = {"subjects": f"{found['subjects']:,}, each by the mean of its images"}
    if several:
        facts["subjects"] += f"; {several:,} with images of several classes left out"
    for name, said in (("accuracy", percent), ("sensitivity", percent), ("specificity", percent)):
        if found.get(name) is not None:
            facts[f"{name} by subject"] = f"{said(found[name])} ({_interval(found, name, said)})"
    if found.get("auroc_positive") is not None:
        facts["AUROC by subject"] = f"{found['auroc_positive']:.4f} ({_interval(found, 'auroc_positive', _four)})"
    rows = [
        [row["subject"], row["label"] or "several", row["predicted"], row["images"], percent(row["accuracy"])]
        for row in found["per_subject"][:most]
    ]
    rest = len(found["per_subject"]) - len(rows)
    shown = table(["subject", "class", "taken for", "images", "of them right"], rows)
    return f"{record(facts)}\n\n{shown}" + (f"\nand {rest:,} more, none worse (--json has all)" if rest else "")


def _interval(found: Mapping[str, Any], name: str, said: Callable[[float], str | None]) -> str:
    """``98.25 % to 99.61 %``."""
    low, high = found[f"{name}_ci95"]
    return f"{said(low)} to {said(high)}"


def _four(value: float) -> str:
    return f"{value:.4f}"


def quantize_text(summary: Mapping[str, Any]) -> str:
    """The summary of `edgeall.optimize.quantize.quantize`."""
    facts = {
        "file": f"{summary['out']}, {summary['file_bytes']:,} bytes, of which flatbuffer "
        f"{summary['flatbuffer_bytes']:,} (float32: {summary['float_flatbuffer_bytes']:,})",
        "scheme": summary["scheme"],
        "test images": f"{summary['test_images']:,} ({_split(summary['split_level'])})",
        "accuracy": f"{percent(summary['accuracy'])}, Keras float32 {percent(summary['float_accuracy'])}, "
        f"drop {summary['drop_points']:.2f} points",
        "agreement with Keras": f"{percent(summary['agreement'])}, largest difference of a probability "
        f"{summary['max_abs_difference']:.2g}",
        "float32 TFLite with Keras": f"{percent(summary['tflite_float']['agreement'])}, "
        f"{summary['tflite_float']['max_abs_difference']:.2g}",
        "compressed": f"{summary['compressed_bytes']:,} bytes of flatbuffer in a zip; "
        f"{percent(summary['sparsity_frac'])} of the weights are zero",
    }
    fitted, decision = summary["calibration"], summary["decision"]
    facts["calibration"] = (
        f"temperature {fitted['temperature']:.2f}: calibration error on {fitted['images']:,} validation images and "
        f"{fitted['changed_images']:,} mildly changed ones {fitted['ece_before']:.4f} before, "
        f"{fitted['ece_after']:.4f} after"
    )
    if decision:
        facts["review"] = (
            f"below a probability of {decision['review_below']:.4f}, or unfamiliar: "
            f"{percent(decision['reviewed_unchanged'])} of the validation images, {percent(decision['reviewed'])} of "
            f"them and the changed ones; accuracy of the rest {percent(decision['accuracy_of_the_rest']) or '-'}"
        )
    novelty = summary["novelty"]
    share = percent(novelty["reviewed"])
    facts["unfamiliar"] = f"{share} of {novelty['images']['validation']:,} validation images, by their features"
    if summary["review"] is not None:
        facts["wrong test answers"] = wrong_text(summary["review"])
    if summary.get("report"):
        facts["report"] = summary["report"]
    if summary["clusters"] is not None:
        facts["clusters"] = f"at most {summary['clusters']} different weights in a layer that is pruned"
    if summary["float_layers"] is not None:
        facts["left in float"] = ", ".join(summary["float_layers"]) or "nothing"
    classes = [
        [label, percent(row["reference_recall"]), percent(row["recall"]), row["support"]]
        for label, row in summary["per_class"].items()
    ]
    return f"{record(facts)}\n\n{table(['class', 'float32 recall', 'recall', 'images'], classes)}"


def models_text(models: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `edgeall.models.listing.listing`.

    Figures are at alpha 1.0 and the input size of the design; the last columns say which share of the weights can be
    zeroed, and in how many places channels can be removed.
    """
    rows = [
        [
            model["name"],
            f"{model['input_hw'][0]}",
            f"{model['sizes'][0]}-{model['sizes'][1]}",
            f"{model['parameters'] / 1e6:.2f} M",
            f"{model['macs'] / 1e6:,.0f} M",
            f"{model['float32_bytes'] / 1e6:.1f} MB",
            "yes" if model["pretrained"] else "no",
            "all" if model["unfreeze"] is None else f"last {model['unfreeze']}",
            "yes" if model["int8"] else "no",
            percent(model["sparsity_weights"] / model["parameters"]),
            model["channel_groups"],
        ]
        for model in models
    ]
    heads = ["backbone", "input", "takes", "weights", "MACs", "float32", "ImageNet", "fine-tunes", "int8"]
    heads += ["--sparsity on", "--macs in"]
    return table(heads, rows)


def demo_text(result: Mapping[str, Any]) -> str:
    """The closing table of `edgeall.optimize.demo.demo`, and where things lie."""
    rows = [
        [
            row["scheme"],
            f"{row['file_bytes'] / 1e6:.2f} MB",
            percent(row["accuracy"]),
            f"{row['drop_points']:.2f} points",
            f"{row['p50_ms']:.2f} ms",
            f"{row['end_to_end_p50_ms']:.2f} ms",
        ]
        for row in result["rows"]
    ]
    facts = {
        "images": f"SYNTHETIC; {result['test_images']:,} test images, {_split(result['split_level'])}",
        "Keras float32": percent(result["float_accuracy"]),
        "model": result["model"],
        "report": result["report"],
    }
    return f"{table(['scheme', 'size', 'accuracy', 'drop', 'p50 model', 'p50 image'], rows)}\n\n{record(facts)}"


def bench_text(result: Mapping[str, Any]) -> str:
    """The figures of `edgeall.edge_runtime.tools.bench.bench`."""
    device = result["device"]
    facts = {
        "device": ", ".join(str(device[key]) for key in ("cpu", "os", "runtime") if device.get(key)),
        "threads": str(result["threads"]),
        "load": f"{result['load_ms']:.1f} ms",
        "first image": f"{result['first_ms']:.1f} ms",
        "throughput": f"{result['images_per_s']:.1f} images/s",
        "peak memory": f"{result['peak_rss_bytes'] / 1e6:.1f} MB",
        "accuracy": "unknown (no labelled images)"
        if result["accuracy"] is None
        else f"{percent(result['accuracy'])} on the {result['accuracy_images']:,} given images "
        "(may include training images)",
    }
    stages = [
        [name, *(f"{times[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms"))]
        for name, times in result["stages"].items()
    ]
    return f"{record(facts)}\n\n{table(['stage', 'p50 ms', 'p90 ms', 'p99 ms'], stages)}"


_SCORES = {
    "probabilities": "probabilities of the labels",
    "logits": "logits, or a model that is no classifier: a softmax is applied to them",
    "sigmoid": "one sigmoid: the second label's probability",
    None: "no classifier of one label: each output is scored by itself",
}


def inspect_text(facts: Mapping[str, Any]) -> str:
    """What `edgeall.edge_runtime.tools.inspect.inspect_model` found."""
    manifest = facts["manifest"] or {}
    labels = facts["labels"]
    rows: dict[str, object] = {
        "file": f"{facts['path']}, {facts['file_bytes']:,} bytes",
        "flatbuffer": f"{facts['flatbuffer_bytes']:,} bytes, of which weights {facts['weights_bytes']:,}",
        "packed by edgeall": "yes" if facts["packed"] else "no: a foreign model, without digest and golden images",
    }
    if manifest:
        rows |= {
            "name": f"{manifest['name']}, created {manifest['created']}",
            "digest": "matches",
            "golden images": _golden_verdict(facts),
            "quantization": manifest["quantization"],
            "trained": manifest["training"],
            "metrics": {key: value for key, value in manifest["metrics"].items() if _is_short(value)},
            "positive labels": manifest["positive_labels"] or "none known",
            "calibration": manifest["calibration"] or "none",
            "decision": manifest["decision"] or "the most probable label",
            "novelty": {key: value for key, value in manifest["novelty"].items() if _is_short(value)} or "none",
            "fit": manifest["input"]["fit"],
        }
    rows |= {
        "labels": "not in the file" if labels is None else labels if len(labels) <= 20 else f"{len(labels):,}",
        "normalization": "not in the file" if facts["normalization"] is None else _normalization(facts),
        "input": "; ".join(map(_tensor, facts["input"])),
        "output": "; ".join(map(_tensor, facts["output"])),
        "scores": _SCORES[facts["scores"]],
        "TFLite metadata": "yes" if facts["tflite_metadata"] else "no",
        "tensors": facts["tensor_types"],
        "operators": facts["operators"],
        "runtime": facts["runtime"],
        "intended use": manifest.get("intended_use"),
    }
    return record(rows)


def data_text(facts: Mapping[str, Any], most: int = 20) -> str:
    """What `edgeall.train.listing.list_data` found; of problems and conflicts the first ``most``."""
    sizes = list(facts["sizes"].items())
    shown = ", ".join(f"{size} ({count:,})" for size, count in sizes[:5])
    counts = {
        "root": facts["root"],
        "layout": f"{facts['layout']}, one image is a {facts['unit']}",
        "images": facts["images"],
        "subjects": "unknown" if facts["subjects"] is None else facts["subjects"],
        "sizes": shown + (f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""),
        "positive classes": facts["positive_labels"] or "none known",
        "exact duplicates": facts["exact_duplicates"],
        "near duplicates": facts["near_duplicates"],
        "skipped": len(facts["problems"]),
        "default split": _default_split(facts["split"]),
    }
    kept_out = [f"{one['folder']} ({one['images']:,})" for one in facts.get("independent", ())]
    if kept_out:
        counts["independent test set"] = ", ".join(kept_out)
    parts = [
        record(counts),
        table(
            ["class", "images", "subjects"],
            [[label, row["images"], row["subjects"]] for label, row in facts["labels"].items()],
        ),
    ]
    if facts["conflicts"]:
        parts.append(_some("duplicates with different labels:", [" = ".join(g) for g in facts["conflicts"]], most))
    if facts.get("narrow_range"):
        parts.append(f"{facts['narrow_range']}\nhave the camera's program scale them to 16 bits, or save 8-bit images")
    if facts["split"].get("across"):
        parts.append(_some("duplicates on several sides:", [" = ".join(g) for g in facts["split"]["across"]], most))
    if facts["problems"]:
        parts.append(_some("skipped:", [f"{p['path']}: {p['reason']}" for p in facts["problems"]], most))
    return "\n\n".join(parts)


def _default_split(split: Mapping[str, Any]) -> str:
    if "train" not in split:
        return str(split["text"])
    sides = ", ".join(f"{split[side]:,} {side}" for side in ("train", "validation", "test"))
    return f"{split['text']} ({sides})"


_SPLITS = {
    "subject": "subject-level split",
    "block": "blocks of neighbouring file numbers",
    "image": "image-level split: optimistic",
    "given": "split as given",
    "none": "no split known",
    "site": "another laboratory's",
}


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(str(key))} {_cell(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _plain(str(value))


def _split(level: str) -> str:
    return _SPLITS.get(level, level)


def _golden_verdict(facts: Mapping[str, Any]) -> str:
    results = facts["golden"]
    if not results:
        return "none"
    worst = max(results, key=lambda result: result["difference"])
    source = facts["manifest"]["golden"].get("source", "unknown")
    pixels = "" if all(result["pixels_ok"] for result in results) else ", PREPROCESSING DIFFERS"
    verdict = "as packed" if facts["golden_ok"] else "NOT as packed"
    return (
        f"{len(results)} {verdict}, largest difference {worst['difference']:g} {worst['unit']} "
        f"(allowed {worst['tolerance']:g}){pixels}; from: {source}"
    )


def _normalization(facts: Mapping[str, Any]) -> str:
    mean, std = facts["normalization"]
    return f"(pixel - {mean:g}) / {std:g}"


def _tensor(tensor: Mapping[str, Any]) -> str:
    shape = "x".join("any" if size is None else str(size) for size in tensor["shape"])
    if tensor["scale"] is None:
        return f"{tensor['type']} {shape}"
    return f"{tensor['type']} {shape}, (unit - {tensor['zero_point']}) * {tensor['scale']:.8g}"


def _is_short(value: object) -> bool:
    return isinstance(value, (str, int, float)) or value is None


def _some(title: str, lines: Sequence[str], most: int) -> str:
    rest = [f"  and {len(lines) - most} more (--json has all)"] if len(lines) > most else []
    return "\n".join([title, *(f"  {_plain(line)}" for line in lines[:most]), *rest])


def _plain(text: str) -> str:
    """One line, whatever a file's name holds: line breaks, terminal escapes and undecodable bytes are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _csv_line(values: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(values)  # which quotes a line break in a name only if its own lines end in one
    return buffer.getvalue().removesuffix("\r\n")
