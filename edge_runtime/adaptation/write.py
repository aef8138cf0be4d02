"""Writes an adapted model: the parent's file with another last layer, other decisions and one more line of lineage."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import signature
from ..bundle import GOLDEN, GOLDEN_FOLDER, MANIFEST, MAX_GOLDEN, MODEL_CARD, Bundle, open_bundle
from ..classifier import Classifier
from ..errors import BundleError, DataError
from ..flatbuffer import read_graph
from ..images import decode_rgb, open_rgb
from ..manifest import Manifest
from ..messages import message
from ..ood import MEMBER as NOVELTY
from ..preprocess import preprocess
from ..tools.archive import signature_of, write_archive
from ..tools.atomic import atomic_write
from ..tools.golden import check_golden, pixels_digest
from ..tools.golden_images import choose_golden
from .head import find_layer
from .learn import Learned, check_agreement
from .site import Site

SITE_GOLDEN = 2
"""Golden images that each site adds."""
CANDIDATES = 12
"""Images of the site of which its golden images are chosen."""


@dataclass(frozen=True)
class Origin:
    """Where an adapted model comes from.

    Attributes:
        parent_sha256: hex digest of the parent's file.
        by: who adapted it.
        when: UTC, ISO 8601.
        key: signs the new file; None leaves it unsigned.
        public_key: the new file must be signed with its private key; None for any.
    """

    parent_sha256: str
    by: str
    when: str
    key: Path | None
    public_key: Path | None


@dataclass(frozen=True)
class Golden:
    """The label of a golden image before and after an adaptation."""

    name: str
    before: str
    after: str

    def to_json(self) -> dict[str, Any]:
        """The fields, and whether the label changed."""
        return {**dataclasses.asdict(self), "changed": self.before != self.after}


def write_adapted(
    bundle: Bundle, classifier: Classifier, site: Site, learned: Learned, origin: Origin, out: Path
) -> tuple[Golden, ...]:
    """Write the adapted model. It is checked as on a device before it gets its name.

    Args:
        bundle: the parent.
        classifier: of the parent.
        site: the images that were learned from.
        learned: from them.
        origin: for the lineage.
        out: file to write.

    Returns:
        The labels of the parent's golden images.

    Raises:
        BundleError: the new file is not what it should be.
        DataError: it cannot be written.
    """
    manifest = bundle.manifest
    assert manifest is not None
    name = f"{bundle.path}, adapted"
    graph = read_graph(learned.flatbuffer, name)
    adapted = dataclasses.replace(bundle, flatbuffer=learned.flatbuffer, graph=graph, ood_detector=None, path=name)
    new = Classifier.from_bundle(adapted, threads=1)
    labels = _golden_labels(classifier, new)
    golden = _golden(new, bundle, site)
    lineage = _entry(bundle, site, learned, origin, labels)
    manifest = _manifest(manifest, learned, origin, lineage, [name for name, *_ in golden])
    members = _members(bundle)
    members[MANIFEST] = manifest.to_json().encode()
    members[MODEL_CARD] = _card(bundle.model_card or "", lineage).encode()
    for name in [name for name in members if name.startswith(GOLDEN_FOLDER)]:
        del members[name]
    entries = [_golden_entry(new, name, image) for name, image in golden]
    members[GOLDEN] = (json.dumps({"images": entries}, indent=1) + "\n").encode()
    members |= {GOLDEN_FOLDER + name: image for name, image in golden}
    if learned.detector is not None:
        members[NOVELTY] = learned.detector
    if origin.key is not None:
        members[signature.MEMBER] = signature_of(learned.flatbuffer, members, origin.key)
    _write(out, learned.flatbuffer, members, origin)
    return labels


def _write(out: Path, flatbuffer: bytes, members: dict[str, bytes], origin: Origin) -> None:
    try:
        with atomic_write(out) as temporary:
            with open(temporary, "wb") as file:
                file.write(flatbuffer)
                write_archive(file, members, origin.when)
            written = Classifier.from_bundle(open_bundle(temporary, origin.public_key), threads=1)
            for result in check_golden(written):
                if not result.ok:
                    raise BundleError(message("{file}: golden image {result}", file=out, result=result.describe()))
    except OSError as error:
        text = message("{path}: can't be written ({reason})", path=out, reason=error.strerror)
        raise DataError(text, hint="check the folder and the disk") from error


def _manifest(parent: Manifest, learned: Learned, origin: Origin, entry: dict[str, Any], golden: list[str]) -> Manifest:
    """The parent's manifest with what changes. The metrics become those of the site, if its images have labels."""
    metrics = parent.metrics
    if learned.labelled is not None:
        after = learned.labelled.after.to_json()
        recall = after.pop("recall")
        metrics = {"split": "site", **after, "recall": recall, "folds": learned.labelled.folds}
    return dataclasses.replace(
        parent,
        created=origin.when,
        flatbuffer_sha256=hashlib.sha256(learned.flatbuffer).hexdigest(),
        metrics=metrics,
        golden={**parent.golden, "site": [name for name in golden if name.startswith("site")]},
        lineage=(*parent.lineage, entry),
        drift=learned.drift,
        **learned.changed,
    )


def _entry(bundle: Bundle, site: Site, learned: Learned, origin: Origin, golden: tuple[Golden, ...]) -> dict[str, Any]:
    """One object of the manifest's ``lineage``."""
    manifest, labelled = bundle.manifest, learned.labelled
    assert manifest is not None
    kept = ("split", "images", "accuracy", "accuracy_ci95")
    return {
        "parent_sha256": origin.parent_sha256,
        "parent_created": manifest.created,
        "parent_metrics": {key: manifest.metrics[key] for key in kept if key in manifest.metrics},
        "by": origin.by,
        "when": origin.when,
        "images": len(site),
        "images_sha256": sorted(site.sha256),
        "labelled": labelled and labelled.to_json(),
        "unfamiliar": learned.unfamiliar and list(learned.unfamiliar),
        "golden": [one.to_json() for one in golden],
    }


def _golden_labels(old: Classifier, new: Classifier) -> tuple[Golden, ...]:
    """The labels of the parent's golden images. The new model's outputs must be those of its last layer."""
    assert old.bundle is not None and new.bundle is not None
    found, features, probabilities = [], [], []
    for golden in old.bundle.golden:
        pixels = preprocess(decode_rgb(golden.image_bytes, golden.name), old.input)
        answer = new.infer(pixels)
        assert answer.units is not None
        features.append(new.pooled(answer.units))
        probabilities.append(answer.probabilities)
        before, after = old.predict(pixels).argmax(), answer.probabilities.argmax()
        found.append(Golden(golden.name, old.labels[before], old.labels[after]))
    layer = find_layer(new.bundle.graph, new.bundle.path)
    check_agreement(new.bundle, layer, np.stack(features), np.stack(probabilities))
    return tuple(found)


def _golden(new: Classifier, bundle: Bundle, site: Site) -> list[tuple[str, bytes]]:
    """Names and files of the golden images: the parent's, and `SITE_GOLDEN` of the site.

    If there are too many, those of the oldest sites go.
    """
    places = np.unique(np.linspace(0, len(site) - 1, CANDIDATES).astype(int))

    def candidates() -> Iterator[Image.Image]:
        return (open_rgb(site.paths[place]) for place in places)

    kept = [(golden.name, golden.image_bytes) for golden in bundle.golden]
    numbers = [int(match[1]) for name, _ in kept if (match := re.fullmatch(r"site-(\d+)\.png", name))]
    first = max(numbers, default=-1) + 1
    added = [
        (f"site-{first + index}.png", image)
        for index, (_, image, _) in enumerate(choose_golden(new, candidates(), SITE_GOLDEN))
    ]
    while len(kept) + len(added) > MAX_GOLDEN:
        kept.remove(next((item for item in kept if item[0].startswith("site-")), kept[-1]))
    return kept + added


def _golden_entry(new: Classifier, name: str, image: bytes) -> dict[str, Any]:
    pixels = preprocess(decode_rgb(image, name), new.input)
    units: NDArray[np.generic] = new.predict_units(pixels)
    is_integer = new.model.output.dtype != np.float32
    return {
        "name": name,
        "probabilities": [float(value) for value in new.dequantize(units)],
        "units": [int(unit) for unit in units] if is_integer else None,
        "pixels_sha256": pixels_digest(pixels),
    }


def _members(bundle: Bundle) -> dict[str, bytes]:
    """The members of the parent's archive, but for its signature."""
    with zipfile.ZipFile(bundle.path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != signature.MEMBER}


def _card(card: str, entry: dict[str, Any]) -> str:
    """The parent's card without the figure of its front matter, and what the adaptation did."""
    card = re.sub(r"^model-index:\n(?:[ -].*\n)*?(?=---$)", "", card, count=1, flags=re.MULTILINE)
    lines = [
        "## Adapted to another laboratory",
        "",
        f"- {entry['when']}, by {entry['by']}, from {entry['images']} images of the site.",
        f"- From the file with the digest {entry['parent_sha256']}.",
    ]
    labelled = entry["labelled"]
    if labelled is None:
        lines.append("- The images had no labels: the out-of-distribution detector moved, the last layer did not.")
    else:
        lines += [
            "- The last layer was refitted: the metrics, calibration and limits above are those of the file before.",
            f"- Balanced accuracy at the site {_change(labelled['site'])}, judged by images that were left out.",
        ]
        if labelled["home"] is not None:
            lines.append(f"- Balanced accuracy at home {_change(labelled['home'])}, on the exemplars in the file.")
        if labelled["left_alone"]:
            lines.append(f"- Not learned, too few images: {', '.join(labelled['left_alone'])}.")
    return card.rstrip("\n") + "\n\n" + "\n".join(lines) + "\n"


def _change(parts: dict[str, Any]) -> str:
    before, after = parts["before"], parts["after"]
    low, high = after["balanced_accuracy_ci95"]
    return (
        f"{before['balanced_accuracy']:.4f} before, {after['balanced_accuracy']:.4f} after"
        f" (95 % interval {low:.4f} to {high:.4f}, {after['images']} images)"
    )
