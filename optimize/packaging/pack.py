"""Writes a packed model: everything that a device needs, in one ``model.tflite``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...edge_runtime.bundle import GOLDEN, GOLDEN_FOLDER, LABELS, MANIFEST, MODEL_CARD, open_bundle
from ...edge_runtime.errors import BundleError, DataError
from ...edge_runtime.exemplars import MEMBER as EXEMPLARS
from ...edge_runtime.flatbuffer import METADATA, Tensor, read_graph
from ...edge_runtime.images import decode_rgb
from ...edge_runtime.manifest import Manifest, check_manifest
from ...edge_runtime.ood import MEMBER as NOVELTY
from ...edge_runtime.preprocess import preprocess
from ...edge_runtime.tasks import open_model
from ...edge_runtime.tools.archive import write_archive
from ...edge_runtime.tools.atomic import atomic_write
from ...edge_runtime.tools.golden import check_golden, pixels_digest
from .metadata import marked, model_metadata
from .outputs import OUTPUTS


def pack(
    flatbuffer: bytes,
    manifest: Manifest,
    golden: Sequence[tuple[str, bytes, Any]],
    model_card: str,
    out: Path,
    novelty: bytes | None = None,
    exemplars: bytes | None = None,
) -> Path:
    """Write a packed model: the flatbuffer with TFLite metadata, then a stored zip with the rest.

    The same arguments give the same bytes. The file is checked as on a device (digest, archive, golden images) before
    it gets its name, so ``out`` is either a complete model or unchanged.

    Args:
        flatbuffer: the converted model; its first output is the one that the task is about.
        manifest: ``flatbuffer_sha256`` and ``flatbuffer_bytes`` are set here.
        golden: at least one tuple of file name ending in ``.png``, PNG file, and the model's own probabilities from
            `Classifier.predict`, or `Segmenter.infer`; see `edgeall.edge_runtime.tools.golden_images`.
        model_card: Markdown, see `edgeall.optimize.packaging.card`.
        out: file to write; its folder is made.
        novelty: stored OOD detector, from `edgeall.edge_runtime.tools.novelty.fit_novelty`.
        exemplars: stored exemplars, from `edgeall.edge_runtime.exemplars.store_exemplars`.

    Returns:
        ``out``.

    Raises:
        BundleError: the manifest contradicts the model, a golden image has the model's own size, or its probabilities
            are not those of the model.
        DataError: the file cannot be written.
    """
    check_manifest(manifest, out.name)
    graph = read_graph(flatbuffer, out.name)
    main, outputs, meaning = graph.main, graph.main.outputs, OUTPUTS[manifest.task]
    if manifest.scores == "probabilities" and meaning.first(graph, out.name) != outputs[0]:
        raise BundleError(f"{out.name}: the {meaning.name} must be the first output, as other programs expect")
    names = [meaning.name, *(meaning.second(main.tensors[index]) for index in outputs[1:])]
    entry = model_metadata(manifest.name, manifest.intended_use, LABELS, manifest.input, names)
    model = marked(flatbuffer, {METADATA: entry})
    manifest = dataclasses.replace(
        manifest, flatbuffer_sha256=hashlib.sha256(model).hexdigest(), flatbuffer_bytes=len(model)
    )
    members = {
        MANIFEST: manifest.to_json().encode(),
        LABELS: "".join(f"{label}\n" for label in manifest.labels).encode(),
        MODEL_CARD: model_card.encode(),
    }
    members |= _golden_members(golden, manifest, main.tensors[outputs[0]], out.name)
    members |= {name: content for name, content in ((NOVELTY, novelty), (EXEMPLARS, exemplars)) if content is not None}
    members |= {GOLDEN_FOLDER + name: image for name, image, _ in golden}
    try:
        with atomic_write(out) as temporary:
            with open(temporary, "wb") as file:
                file.write(model)
                write_archive(file, members, manifest.created)
            _check(temporary, out.name)
    except OSError as error:
        raise DataError(f"{out}: can't be written ({error.strerror})", hint="check the folder and the disk") from error
    return out


def _golden_members(
    golden: Sequence[tuple[str, bytes, Any]], manifest: Manifest, output: Tensor, name: str
) -> dict[str, bytes]:
    """``golden.json``, and what it names besides the images."""
    if not golden:
        raise BundleError(f"{name}: a packed model needs at least one golden image")
    if len({file for file, _, _ in golden}) != len(golden):
        raise BundleError(f"{name}: two golden images have one name")
    spec = manifest.input
    entries: list[dict[str, Any]] = []
    members: dict[str, bytes] = {}
    for file, data, answer in golden:
        if not re.fullmatch(r"[\w-]+\.png", file):
            raise BundleError(f"{name}: golden image {file!r} must have a plain name that ends in .png")
        image = decode_rgb(data, file)
        if image.size == (spec.width, spec.height):
            raise BundleError(
                f"{name}: golden image {file} has the model's own size, so it would not test resizing",
                hint="make it with golden_png",
            )
        entry = OUTPUTS[manifest.task].record(file, answer, output, f"{name}: golden image {file}")
        entries.append({"name": file, **entry.facts, "pixels_sha256": pixels_digest(preprocess(image, spec))})
        members |= entry.members
    return {GOLDEN: (json.dumps({"images": entries}, indent=1) + "\n").encode(), **members}


def _check(path: Path, name: str) -> None:
    for result in check_golden(open_model(open_bundle(path), 1)):
        if not result.ok:
            raise BundleError(f"{name}: golden image {result.describe()}")
