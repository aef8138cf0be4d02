"""Packed models that differ from a given one in their archive alone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeall.edge_runtime.adaptation.site import read_site
from edgeall.edge_runtime.bundle import MANIFEST, open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.drift import coordinates
from edgeall.edge_runtime.exemplars import MEMBER as EXEMPLARS
from edgeall.edge_runtime.exemplars import store_exemplars
from edgeall.edge_runtime.ood import MEMBER as NOVELTY
from edgeall.edge_runtime.ood import read_ood_detector
from edgeall.edge_runtime.tools.drift import chosen_runs, fit_drift
from edgeall.edge_runtime.tools.novelty import fit_novelty


def repack(
    source: Path, out: Path, change: Callable[[dict[str, Any]], None] = lambda golden: None, pad: int = 0
) -> Path:
    """A copy of a packed model with other golden expectations, or ``pad`` more bytes of noise in its archive."""
    out.write_bytes(open_bundle(source).flatbuffer)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "a") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "golden/golden.json":
                golden = json.loads(content)
                change(golden)
                content = json.dumps(golden).encode()
            new.writestr(name, content)
        if pad:
            new.writestr("noise.bin", np.random.default_rng(pad).bytes(pad))
    return out


def other_units(golden: dict[str, Any]) -> None:
    """What no device will make of the first image."""
    golden["images"][0]["units"] = [255 - unit for unit in golden["images"][0]["units"]]


def with_reference(source: Path, out: Path, home: Path, exemplars: bool = True) -> Path:
    """A copy of a packed classifier with OOD detector, drift reference and exemplars of labelled images."""
    classifier = Classifier.open(source, threads=1)
    site = read_site(classifier, home, labelled=True)
    assert site.truth is not None
    labels = len(classifier.labels)
    novelty, member = fit_novelty(site.features, site.features, labels)
    runs = chosen_runs(site.truth)
    rows = runs.ravel()
    plane = read_ood_detector(novelty.to_json(), member, "novelty")
    numbers = np.stack([coordinates(each, plane) for each in site.features[rows]])
    predicted = site.probabilities[rows].argmax(axis=1)
    drift = fit_drift(site.facts[rows], numbers, predicted, len(runs), labels)
    assert drift, "too few images"
    sections: dict[str, Any] = {"novelty": novelty.to_json(), "drift": drift}
    members = {NOVELTY: member}
    if exemplars:
        sections["exemplars"], members[EXEMPLARS] = store_exemplars(site.features, site.truth, "test")
    out.write_bytes(open_bundle(source).flatbuffer)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "a") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == MANIFEST:
                content = json.dumps(json.loads(content) | sections).encode()
            new.writestr(name, content)
        for name, content in members.items():
            new.writestr(name, content)
    return out
