"""Adapts a packed classifier to another laboratory, on the device: learns from its images and writes another file.

The new file is a packed model like any other. Its manifest holds the lineage: one object for each adaptation, with the
digest of the file that it came from, who adapted it and when, the digests of the images, and figures before and after.
"""

from __future__ import annotations

import getpass
import hashlib
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...console.progress import QUIET, Progress
from ..bundle import Bundle, open_bundle
from ..classifier import Classifier
from ..errors import BundleError, GateError, UsageError
from ..files import output_lock
from ..images import refuse_inside
from ..manifest import TASKS
from ..messages import message
from ..tools.golden import check_golden
from .learn import LEAST_LABELLED, LEAST_PER_CLASS, Learned, learn
from .site import Site, read_site
from .write import Golden, Origin, write_adapted


@dataclass(frozen=True)
class AdaptConfig:
    """What to adapt, and to what.

    Attributes:
        model: packed classifier.
        data: folder of the site: one folder per class, or with ``unlabelled`` images at any depth.
        out: file to write.
        unlabelled: learn from the images alone.
        by: who adapts it; None takes the name of the user and of the machine.
        key: Ed25519 private key in PEM that signs the new file.
        public_key: if given, ``model`` must be signed with its private key, and so must the new file.
        force: overwrite ``out``.
    """

    model: Path
    data: Path
    out: Path
    unlabelled: bool = False
    by: str | None = None
    key: Path | None = None
    public_key: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Adapted:
    """What an adaptation did.

    Attributes:
        model: path of the old file.
        out: path of the new file.
        written: False if the site gains no more than by chance; then no file was written.
        signed: whether the new file is signed.
        site: the images, see `edgeall.edge_runtime.adaptation.site.Site`.
        learned: see `edgeall.edge_runtime.adaptation.learn.Learned`.
        golden: labels of home's golden images before and after.
        seconds: duration.
        warnings: what the user should know, one sentence each.
    """

    model: Path
    out: Path
    written: bool
    signed: bool
    site: Site
    learned: Learned
    golden: tuple[Golden, ...]
    seconds: float
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON of ``edgeall adapt --json``."""
        labelled = self.learned.labelled
        return {
            "model": str(self.model),
            "out": str(self.out),
            "written": self.written,
            "signed": self.signed,
            "images": len(self.site),
            "repeated": self.site.repeated,
            "problems": list(self.site.problems),
            "labelled": labelled and labelled.to_json(),
            "unfamiliar": self.learned.unfamiliar and list(self.learned.unfamiliar),
            **self.learned.changed,
            "golden": [one.to_json() for one in self.golden],
            "seconds": self.seconds,
            "warnings": list(self.warnings),
        }


def adapt(
    config: AdaptConfig, skipped: Callable[[Path, str], None] | None = None, progress: Progress = QUIET
) -> Adapted:
    """Learn from the images of a site, and write the adapted model if the site gains more than by chance.

    ``config.out`` is at any moment what it was before, or the complete and verified new file.

    Args:
        config: see `AdaptConfig`.
        skipped: receives files that are not images.
        progress: shows the number of images.

    Raises:
        UsageError: invalid arguments, or ``config.out`` exists.
        DataError: the images cannot be learned from, or the file cannot be written.
        BundleError: the model is damaged, does not compute on this device what it should, cannot be adapted, or lacks
            the required signature.
        EdgeallError: a key cannot be used.
    """
    begin = time.perf_counter()
    _check(config)
    bundle = open_bundle(config.model, config.public_key)
    classifier = _open(bundle)
    with output_lock(config.out, "adapt"):
        site = read_site(classifier, config.data, not config.unlabelled, skipped, progress)
        learned = learn(classifier, site)
        golden: tuple[Golden, ...] = ()
        if learned.is_better:
            golden = write_adapted(bundle, classifier, site, learned, _origin(config), config.out)
    seconds = round(time.perf_counter() - begin, 3)
    signed = learned.is_better and config.key is not None
    warnings = tuple(_warnings(bundle, config, learned))
    return Adapted(config.model, config.out, learned.is_better, signed, site, learned, golden, seconds, warnings)


def require_better(result: Adapted) -> None:
    """Raise GateError if the model was not written."""
    if result.written:
        return
    labelled = result.learned.labelled
    if labelled is None:
        assert result.learned.unfamiliar is not None
        share = 100 * result.learned.unfamiliar[0]
        found = f"only {share:.1f} % of the images are out of distribution for it, not more than by chance"
    else:
        found = f"{labelled.gained.describe()}: not better by more than chance"
    raise GateError(
        f"{result.model}: {found}; {result.out} was not written", hint="label more images, or keep the model"
    )


def _warnings(bundle: Bundle, config: AdaptConfig, learned: Learned) -> Iterator[str]:
    labelled = learned.labelled
    if labelled is not None and labelled.left_alone:
        yield f"fewer than {LEAST_PER_CLASS} images, so not learned: {', '.join(labelled.left_alone)}"
    if labelled is not None and labelled.home is None:
        yield "the file holds no exemplars of home, so the cost there is unknown; quantize the run again"
    if labelled is not None and learned.detector is None and bundle.ood_detector is not None:
        yield f"fewer than {LEAST_LABELLED} images: the out-of-distribution detector stays"
    if bundle.manifest is not None and bundle.manifest.drift and not learned.drift:
        yield "too few images for the drift alarm: the adapted model has none"
    if bundle.is_signed and config.key is None:
        yield "the model is signed and the adapted one is not: devices that require a signature refuse it (--key)"


def _check(config: AdaptConfig) -> None:
    same = config.out.exists() and config.model.exists() and config.out.samefile(config.model)
    if config.out.is_dir():
        raise UsageError(f"--out {config.out}: a folder", hint="give the name of a file")
    if config.out.exists() and not config.force:
        what = "the model itself" if same else "exists"
        raise UsageError(f"--out {config.out}: {what}", hint="choose another name, or overwrite it with --force")
    refuse_inside(config.data, config.out)
    if config.public_key is not None and config.key is None:
        raise UsageError(
            "a signature is required, and an adapted model must be signed again",
            hint="give the private key with --key, or adapt where it is kept",
        )


def _open(bundle: Bundle) -> Classifier:
    """The classifier, which must compute here what it computed where it was packed."""
    if bundle.manifest is None:
        raise BundleError(f"{bundle.path}: a foreign model has no features", hint="pack it with `edgeall quantize`")
    if bundle.task != TASKS[0]:
        raise UsageError(f"{bundle.path}: a {bundle.task} model; only classifiers are adapted", hint="train it again")
    classifier = Classifier.from_bundle(bundle, threads=1)
    for result in check_golden(classifier):
        if not result.ok:
            text = message("{file}: golden image {result}", file=bundle.path, result=result.describe())
            raise BundleError(text, hint="see `edgeall doctor`")
    return classifier


def _origin(config: AdaptConfig) -> Origin:
    return Origin(
        parent_sha256=hashlib.sha256(config.model.read_bytes()).hexdigest(),
        by=_user() if config.by is None else config.by,
        when=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        key=config.key,
        public_key=config.public_key,
    )


def _user() -> str:
    name = "unknown"
    with suppress(Exception):  # KeyError or OSError where the user has no name, as in a container
        name = getpass.getuser()
    return f"{name}@{platform.node()}"
