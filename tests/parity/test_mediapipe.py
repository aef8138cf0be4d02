"""MediaPipe Tasks gives the same predictions as edgeall, with only the model file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import venvs
from agreement import FLOAT_ROUNDING, UNITS_ROUNDING, assert_same_answers
from fixtures_models import LABELS, SPEC, grainy_image
from numpy.typing import NDArray

from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.images import open_rgb
from edgeall.edge_runtime.preprocess import load_input

IMAGES = 60

PROGRAM = """
import json, sys
import numpy
import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

for line in sys.stdin:
    model, files, decoded = json.loads(line)
    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=model))
    heads, scores, pixels = [], [], []
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for path in files:
            image = mp.Image.create_from_file(path)
            pixels.append(image.numpy_view()[..., :3].copy())
            result = classifier.classify(image)
            heads.append([len(head.categories) for head in result.classifications])
            scores.append({item.category_name: item.score for item in result.classifications[0].categories})
    if decoded:
        numpy.save(decoded, numpy.stack(pixels))
    print(json.dumps([heads, scores]), flush=True)
"""


class MediaPipe:
    """A process of an environment with MediaPipe; one for all tests, since its import takes seconds."""

    def __init__(self, python: Path, log: Path) -> None:
        self.log = log
        pipe = subprocess.PIPE
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [python, "-c", PROGRAM], stdin=pipe, stdout=pipe, stderr=stderr, text=True, env=venvs.environment()
            )

    def classify(self, model: Path, files: Sequence[Path], decoded: Path | None = None) -> tuple[list[Any], list[Any]]:
        """The number of categories of each output, and the scores by label, of each image.

        The pixels that MediaPipe decoded go into the file ``decoded``.
        """
        assert self.process.stdin is not None
        asked = [str(model), [*map(str, files)], None if decoded is None else str(decoded)]
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        answer = venvs.answer(self.process)
        assert answer, self.log.read_text()
        heads, scores = json.loads(answer)
        assert len(scores) == len(files) and all(set(found) == set(LABELS) for found in scores)
        return heads, scores


@pytest.fixture(scope="module")
def mediapipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MediaPipe]:
    """MediaPipe in an environment of its own, created once."""
    try:
        python = venvs.make_venv(venvs.CACHED / "mediapipe", ["mediapipe==1.2.2"])
    except AssertionError as error:
        venvs.unavailable(f"MediaPipe can't be installed here: {str(error).strip().splitlines()[-1]}")
    peer = MediaPipe(python, tmp_path_factory.mktemp("mediapipe") / "log")
    with peer.process:
        yield peer
        peer.process.kill()


@pytest.fixture(scope="session")
def photographs(test_data: Path) -> list[Path]:
    """Real images of all classes at the model's size of 224x224, so that MediaPipe does not resize them."""
    files = [file for label in LABELS for file in sorted((test_data / "all4" / label).iterdir())[1::8]]
    return [files[index] for index in np.linspace(0, len(files) - 1, IMAGES).astype(int)]


def test_same_answers_on_real_images(
    smear_bundle: Path, mediapipe: MediaPipe, photographs: list[Path], tmp_path: Path
) -> None:
    """JPEG files: MediaPipe uses another decoder, so edgeall gets the pixels that MediaPipe decoded."""
    theirs = _theirs(mediapipe, smear_bundle, photographs, tmp_path / "decoded.npy")
    decoded = np.load(tmp_path / "decoded.npy")
    classifier = Classifier.open(smear_bundle)
    ours = np.stack([classifier.predict(pixels) for pixels in decoded])
    assert_same_answers(ours, theirs, _rounding(classifier))
    assert len(set(ours.argmax(axis=1))) == len(LABELS), "no accident of a model that always says the same"
    levels = [
        np.abs(load_input(file, classifier.input) - one.astype(float)).mean()
        for file, one in zip(photographs, decoded, strict=True)
    ]
    assert max(levels) < 1, "the same pictures, one level here and there"


def test_same_answers_on_the_same_pixels(
    smear_bundle: Path, mediapipe: MediaPipe, photographs: list[Path], tmp_path: Path
) -> None:
    files = []
    for index, photograph in enumerate(photographs[::4]):
        files.append(tmp_path / f"{index}.png")
        open_rgb(photograph).save(files[-1])
    _same(smear_bundle, mediapipe, files)


@pytest.mark.parametrize("kind", ["float32", "dynamic", "uint8"])
def test_every_scheme(kind: str, pack_tiny: Callable[..., Path], mediapipe: MediaPipe, tmp_path: Path) -> None:
    """A float model takes its normalization from the metadata. MediaPipe refuses int8 inputs; edgeall writes none."""
    model, exact = (pack_tiny(each, tmp_path / f"{each}.tflite") for each in (kind, "float32"))
    files = []
    for seed in range(5):
        files.append(tmp_path / f"{seed}.png")
        grainy_image(seed, (SPEC.width, SPEC.height)).save(files[-1])
    _same(model, mediapipe, files, exact if kind == "dynamic" else None)


@pytest.mark.parametrize("scheme", ["float32", "dynamic", "ptq-int8", "qat-int8"])
def test_what_quantize_makes(
    scheme: str,
    tiny_models: dict[str, dict[str, Any]],
    synthetic_fields: Path,
    mediapipe: MediaPipe,
    tmp_path: Path,
) -> None:
    files = []
    for index, image in enumerate(sorted(synthetic_fields.glob("*/*.png"))[::8]):
        files.append(tmp_path / f"{index}.png")
        open_rgb(image).resize((48, 48)).save(files[-1])  # the model's own size: MediaPipe resizes otherwise
    exact = Path(tiny_models["float32"]["out"]) if scheme == "dynamic" else None
    _same(Path(tiny_models[scheme]["out"]), mediapipe, files, exact)


@pytest.mark.parametrize("scheme", ["float32", "ptq-int8"])
@pytest.mark.parametrize("explain", [False, True], ids=["features", "feature map"])
def test_the_second_output_is_there_and_silent(
    scheme: str,
    explain: bool,
    tiny_models: dict[str, dict[str, Any]],
    explained: dict[str, Path],
    synthetic_fields: Path,
    mediapipe: MediaPipe,
    tmp_path: Path,
) -> None:
    """MediaPipe treats it as another classification, whose metadata suppress all results."""
    model = explained[scheme] if explain else Path(tiny_models[scheme]["out"])
    image = tmp_path / "image.png"
    open_rgb(next(synthetic_fields.glob("*/*.png"))).resize((48, 48)).save(image)
    (heads,), (scores,) = mediapipe.classify(model, [image])
    assert heads == [len(LABELS), 0]
    classifier = Classifier.open(model)
    ours = _ours(classifier, [image])
    assert np.abs(ours - [[scores[label] for label in LABELS]]).max() <= _rounding(classifier)


def _same(model: Path, peer: MediaPipe, files: list[Path], exact: Path | None = None) -> None:
    """MediaPipe gives the same output as edgeall to within rounding.

    Dynamic-range kernels quantize activations as they go, each version of the runtime a little differently: by less
    than that moves the answers of ``exact``, the same network in float.
    """
    classifier = Classifier.open(model)
    ours, rounding = _ours(classifier, files), _rounding(classifier)
    if exact is not None:
        rounding += 2 * float(np.abs(ours - _ours(Classifier.open(exact), files)).max())
    assert_same_answers(ours, _theirs(peer, model, files), rounding)


def _rounding(classifier: Classifier) -> float:
    return max(FLOAT_ROUNDING, UNITS_ROUNDING * classifier.model.output.scale)


def _ours(classifier: Classifier, files: list[Path]) -> NDArray[np.float32]:
    """Uncalibrated outputs: MediaPipe does not apply the manifest's temperature."""
    return np.stack([classifier.predict(load_input(file, classifier.input)) for file in files])


def _theirs(peer: MediaPipe, model: Path, files: list[Path], decoded: Path | None = None) -> list[list[float]]:
    """MediaPipe's scores in the order of `LABELS`; the pixels that it decoded go into ``decoded``."""
    return [[scores[label] for label in LABELS] for scores in peer.classify(model, files, decoded)[1]]
