"""The reference of the drift alarm for another laboratory: its own means, with the scatter of the old laboratory.

A few images, perhaps of one slide, show where a laboratory is, not how its slides differ. So they give the means, and
its slides are taken to differ as those of the old laboratory do. That the means are of one slide is counted.

The facts about the image are the same numbers as before: their scatter stays. The features are measured along the axes
of a new out-of-distribution detector: their scatter is that of the images known there, and the part of it that is
between slides is as large as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..drift import CLIP, FEATURES, IMAGE, LEAST, F, Group, coordinates, read_drift
from ..ood import OodDetector
from ..tools.drift import means_of
from .site import Site

FEWEST = 4
"""Least number of known images for each number of a feature vector: with fewer, its covariance is not estimated."""


def site_drift(
    bundle: Bundle, site: Site, predicted: NDArray[np.int64], detector: OodDetector | None
) -> dict[str, Any]:
    """The manifest's ``drift`` of an adapted file; empty without a reference in the old one, or with too few images.

    Args:
        bundle: the old file.
        site: images of the other laboratory.
        predicted: their labels by the adapted model, ``(n,)``.
        detector: of the adapted model.
    """
    assert bundle.manifest is not None
    labels = len(bundle.manifest.labels)
    old = read_drift(bundle.manifest.drift, labels, bundle.path)
    if not old or detector is None:
        return {}
    features = _features(bundle, site, predicted, detector, old[FEATURES])
    if features is None:
        return {}
    image = old[IMAGE]
    means = _moved(image.means, site.facts, predicted)
    moved = Group(means, image.between, image.within, image.run, image.runs, len(site))
    return {IMAGE: moved.to_json(), FEATURES: features.to_json()}


def _features(
    bundle: Bundle, site: Site, predicted: NDArray[np.int64], detector: OodDetector, old: Group
) -> Group | None:
    """The features along the new axes; None with too few images for their scatter."""
    labels = len(old.means)
    here, apart = np.stack([coordinates(each, detector) for each in site.features]), []
    if bundle.exemplars is None:
        means = means_of(here, predicted, labels)
    else:  # they tell how the labels differ, also those that the site has not shown
        known, truth = bundle.exemplars.features, bundle.exemplars.truth
        home = np.stack([coordinates(each, detector) for each in known])
        means = means_of(home, truth, labels)
        apart.append(home - means[truth])
        means = _moved(means, here, predicted)
    apart.append(here - means[predicted])
    rest = np.vstack(apart)
    numbers, free = rest.shape[1], len(rest) - labels
    if len(rest) < FEWEST * numbers + labels:
        return None
    most = CLIP * rest.std(axis=0)
    clipped = np.clip(rest, -most, most)
    scatter = clipped.T @ clipped / free
    share = float(np.mean(np.diag(old.between) / (np.diag(old.between) + np.diag(old.within))))
    if np.linalg.eigvalsh(share * scatter).min() <= 1e-12:
        return None
    runs = max(min(old.runs, free), labels + numbers + 1)
    return Group(means, share * scatter, (1 - share) * scatter, old.run, runs, len(site))


def _moved(means: F, numbers: F, predicted: NDArray[np.int64]) -> F:
    """Means of the labels ``(labels, numbers)``, moved to other images.

    All labels move together by the mean residual. A label also moves by its own, the more the more images it has.
    """
    rest = numbers - means[predicted]
    shift = rest.mean(axis=0)
    found = means + shift
    for label in np.unique(predicted):
        own = rest[predicted == label]
        found[label] += len(own) / (len(own) + LEAST) * (own.mean(axis=0) - shift)
    return np.asarray(found)
