"""The summary of a quantization as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...console.tables import percent, record, table
from ...train.data.levels import split_text
from ...train.evaluation.text import wrong_text


def quantize_text(summary: Mapping[str, Any]) -> str:
    """The summary of `edgeall.optimize.quantize.quantize`."""
    facts = {
        "file": f"{summary['out']}, {summary['file_bytes']:,} bytes, of which flatbuffer "
        f"{summary['flatbuffer_bytes']:,} (float32: {summary['float_flatbuffer_bytes']:,})",
        "scheme": summary["scheme"],
        "test images": f"{summary['test_images']:,} ({split_text(summary['split_level'])})",
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
