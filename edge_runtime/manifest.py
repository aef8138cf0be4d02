"""The manifest ``edgeall.json`` of a packed model: its fields, and the only code that reads and writes it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from .errors import BundleError
from .messages import N_, message
from .preprocess import Channels, InputSpec

SCHEMA = 1
"""Major version. Fields may be added within a version; a reader refuses any other version."""
UNITS = ("field", "cell")
TASKS = ("classification", "segmentation")
SCORES = ("probabilities", "logits", "sigmoid")
"""The outputs of a classifier: probabilities from a softmax, logits before it, or the probability of the second of two
labels."""

_FIRST = (
    *("schema", "name", "created", "task", "unit", "labels", "positive_labels", "input"),
    *("flatbuffer_sha256", "flatbuffer_bytes"),
)
RESEARCH_USE = "research use only, not a diagnosis"


@dataclass(frozen=True)
class Manifest:
    """The facts about one packed model.

    Attributes:
        name: of the model.
        created: UTC, ISO 8601 (``2026-11-21T10:00:00Z``).
        unit: content of one image, ``field`` or ``cell``.
        labels: one per output, in order.
        positive_labels: the positive classes; empty if the data have no negative class.
        input: the preprocessing contract.
        quantization: scheme and loss of accuracy.
        training: backbone, data and split digests, seed, versions.
        metrics: of one subset, which it names.
        calibration: temperature calibration; empty if uncalibrated.
        decision: thresholds, e.g. ``review_below``.
        novelty: the out-of-distribution detector; empty if the model has none.
        golden: origin of the golden images.
        quality: limits of the rig's quality gate (`edgeall.edge_runtime.vision.quality`); empty if none were fitted.
        intended_use: one sentence.
        flatbuffer_sha256: hex digest of the flatbuffer; set by `edgeall.optimize.packaging.pack`.
        flatbuffer_bytes: length of the flatbuffer; the archive starts there.
        task: one of `TASKS`.
        output: of a classifier: ``scores``, one of `SCORES`; empty for probabilities.
        exemplars: features of images of the home laboratory, see `edgeall.edge_runtime.exemplars`; empty without them.
        lineage: one object for each adaptation to another laboratory, the first one first; see
            `edgeall.edge_runtime.adaptation.adapt`.
        drift: reference of the drift alarm, see `edgeall.edge_runtime.drift`; empty without one.
        segmentation: of that task: ``red_cell_px``, the diameter in pixels that a red cell must have in the input.
        schema: see `SCHEMA`.
    """

    name: str
    created: str
    unit: str
    labels: tuple[str, ...]
    positive_labels: tuple[str, ...]
    input: InputSpec
    quantization: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, Any]
    calibration: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)
    novelty: dict[str, Any] = field(default_factory=dict)
    golden: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    intended_use: str = RESEARCH_USE
    flatbuffer_sha256: str = ""
    flatbuffer_bytes: int = 0
    task: str = "classification"
    segmentation: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)
    exemplars: dict[str, Any] = field(default_factory=dict)
    lineage: tuple[dict[str, Any], ...] = ()
    drift: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def scores(self) -> str:
        """What the outputs of a classifier are, one of `SCORES`."""
        return str(self.output.get("scores", SCORES[0]))

    def to_json(self) -> str:
        """The indented text of ``edgeall.json``, a list of numbers on one line.

        Raises ValueError for values that JSON cannot represent.
        """
        values = dataclasses.asdict(self)
        for key in ("segmentation", "output", "exemplars", "lineage", "drift"):
            if not values[key]:
                del values[key]
        ordered = {key: values.pop(key) for key in _FIRST} | values
        text = json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False)
        # A string has no line break in JSON, so only lists match.
        return re.sub(r"\[\n[-+\d.eE,\s]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def parse_manifest(text: str | bytes, name: str) -> Manifest:
    """Read ``edgeall.json``. Ignores unknown fields.

    Args:
        text: content of the file.
        name: of the model file, for errors.

    Raises:
        BundleError: not JSON, another major schema, or a field that is missing or has the wrong type.
    """
    try:
        values = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise _bad(name, "it is not JSON") from error
    if not isinstance(values, dict):
        raise _bad(name, "it is not a JSON object")
    schema = _take(values, "schema", int, name)
    if schema != SCHEMA:
        text = message(
            "{file}: manifest schema {schema} is unknown, this version reads {known}",
            file=name,
            schema=schema,
            known=SCHEMA,
        )
        raise BundleError(text, hint=_UPDATE if schema > SCHEMA else _PACK_AGAIN)
    manifest = Manifest(
        schema=schema,
        name=_take(values, "name", str, name),
        created=_take(values, "created", str, name),
        task=_choice(values, "task", TASKS, name) if "task" in values else TASKS[0],
        unit=_choice(values, "unit", UNITS, name),
        labels=_texts(values, "labels", name),
        positive_labels=_texts(values, "positive_labels", name),
        input=_input(_take(values, "input", dict, name), name),
        flatbuffer_sha256=_take(values, "flatbuffer_sha256", str, name),
        flatbuffer_bytes=_take(values, "flatbuffer_bytes", int, name),
        intended_use=_take(values, "intended_use", str, name),
        **{
            key: _take(values, key, dict, name) if key in values else {}
            for key in ("novelty", "quality", "segmentation", "output", "exemplars", "drift")
        },
        lineage=_objects(values, "lineage", name) if "lineage" in values else (),
        **{
            key: _take(values, key, dict, name)
            for key in ("quantization", "training", "metrics", "calibration", "decision", "golden")
        },
    )
    check_manifest(manifest, name)
    return manifest


def check_manifest(manifest: Manifest, name: str) -> None:
    """Check the values: at least two distinct labels, positive labels among them, valid thresholds.

    Raises:
        BundleError: names the field.
    """
    labels = manifest.labels
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise _bad(name, "`labels` must have two or more distinct labels")
    if any(not label or label != label.strip() or len(label.splitlines()) > 1 for label in labels):
        raise _bad(name, "`labels` has an empty label, a line break, or blanks around a label")
    if not set(manifest.positive_labels) <= set(labels):
        raise _bad(name, "`positive_labels` has a label that is not in `labels`")
    temperature = manifest.calibration.get("temperature", 1.0)
    if not _is_number(temperature) or not 0.01 <= temperature <= 100:
        raise _bad(name, "`calibration.temperature` must be a number from 0.01 to 100")
    threshold = manifest.decision.get("review_below", 0.0)
    if not _is_number(threshold) or not 0 <= threshold <= 1:
        raise _bad(name, "`decision.review_below` must be a number from 0 to 1")
    if manifest.scores not in SCORES:
        raise _bad(name, f"`output.scores` must be {', '.join(SCORES)}")
    if manifest.task == "segmentation":
        diameter = manifest.segmentation.get("red_cell_px", 0)
        if not _is_number(diameter) or not 1 <= diameter <= 4096:
            raise _bad(name, "`segmentation.red_cell_px` must be a number from 1 to 4096")


def _input(values: dict[str, Any], name: str) -> InputSpec:
    for key in ("mean", "std"):
        value = values.get(key)
        listed: list[Any] = value if isinstance(value, list) else [value]
        if len(listed) not in (1, 3) or not all(map(_is_number, listed)):
            raise _bad(name, f"`input.{key}` must be a number, or three")
    try:
        return InputSpec(
            height=_take(values, "height", int, name, "input."),
            width=_take(values, "width", int, name, "input."),
            fit=_take(values, "fit", str, name, "input."),
            color=_take(values, "color", str, name, "input."),
            resize=_take(values, "resize", str, name, "input."),
            mean=_channels(values["mean"]),
            std=_channels(values["std"]),
        )
    except BundleError as error:
        raise error if error.message.startswith(name) else BundleError(f"{name}: {error.message}", error.hint) from None


def _channels(value: Any) -> Channels:
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def _take(values: dict[str, Any], key: str, kind: type, name: str, prefix: str = "") -> Any:
    if key not in values:
        raise _bad(name, f"`{prefix}{key}` is missing")
    value = values[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _bad(name, f"`{prefix}{key}` must be {_KINDS[kind]}, not {json.dumps(value)[:40]}")
    return value


def _choice(values: dict[str, Any], key: str, allowed: tuple[str, ...], name: str) -> str:
    value: str = _take(values, key, str, name)
    if value not in allowed:
        raise _bad(name, f"`{key}` must be {' or '.join(allowed)}, not {value!r}")
    return value


def _texts(values: dict[str, Any], key: str, name: str) -> tuple[str, ...]:
    items = _take(values, key, list, name)
    if not all(isinstance(item, str) for item in items):
        raise _bad(name, f"`{key}` must be a list of texts")
    return tuple(items)


def _objects(values: dict[str, Any], key: str, name: str) -> tuple[dict[str, Any], ...]:
    items = _take(values, key, list, name)
    if not all(isinstance(item, dict) for item in items):
        raise _bad(name, f"`{key}` must be a list of objects")
    return tuple(items)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
        return False


def _finite(text: str) -> float:
    """Refuse NaN and infinity, which Python's reader accepts although they are not JSON; it reads 1e999 as infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _bad(name: str, what: str) -> BundleError:
    return BundleError(f"{name}: edgeall.json: {what}", hint=_PACK_AGAIN)


_UPDATE = N_("update edgeall on this device")
_PACK_AGAIN = N_("pack the model again with `edgeall quantize`")
_KINDS = {int: "a whole number", str: "a text", dict: "an object", list: "a list"}
