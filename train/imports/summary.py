"""Text of an import."""

from __future__ import annotations

from ...console.tables import record
from ...edge_runtime.results import from_json
from ..evaluation.text import metrics_text
from ..run_info import RunInfo
from .conventions import Trial, trials_text

UNKNOWN = "It is not known which images the model was trained on: images of the test subset may be among them."
"""What every result of an imported model says."""
_HOW = {
    "named": "as named",
    "inside": "its first layers normalize: {layers}",
    "measured": "better than every other one by McNemar's test",
}


def import_text(run: RunInfo) -> str:
    """What ``edgeall import`` prints: where the network came from, the normalizations, and the test metrics."""
    model, found = run.model, run.model.imported
    assert found is not None
    how = _HOW[found.normalization_from].format(layers=", ".join(found.first_layers))
    facts = {
        "network": f"{model.name}, {model.parameters:,} parameters, {model.macs / 1e6:,.0f} M MACs",
        "file": f"{found.file}, Keras {found.keras}",
        "labels": f"{', '.join(run.labels)}{'' if found.labels_named else ' (the order fits the data)'}",
        "normalization": f"{found.normalization} ({how})",
    }
    trials = [from_json(Trial, trial) for trial in found.trials]
    parts = [record(facts), trials_text(trials, found.tried_images, found.normalization)]
    return "\n\n".join([*parts, metrics_text(run.classified["test"]), UNKNOWN])
