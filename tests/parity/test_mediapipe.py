"""MediaPipe Tasks gives the same predictions as edgeall, with only the model file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
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

IMAGES = 200

PROGRAM = """
import json, sys
import numpy
import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]))
with vision.ImageClassifier.create_from_options(options) as classifier:
    decoded = []
    for path in sys.stdin.read().splitlines():
        image = mp.Image.create_from_file(path)
        decoded.append(image.numpy_view()[..., :3].copy())
        result = classifier.classify(image)
        print(json.dumps({item.category_name: item.score for item in result.classifications[0].categories}))
if sys.argv[2:]:
    numpy.save(sys.argv[2], numpy.stack(decoded))
"""


@pytest.fixture(scope="session")
def mediapipe_python() -> Path:
    """The Python of an environment with MediaPipe, created once."""
    try:
        return venvs.make_venv(venvs.CACHED / "mediapipe", ["mediapipe==1.2.2"])
    except AssertionError as error:
        venvs.unavailable(f"MediaPipe can't be installed here: {str(error).strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def photographs(test_data: Path) -> list[Path]:
    """Real images of all classes at the model's size of 224x224, so that MediaPipe does not resize them."""
    files = [file for label in LABELS for file in sorted((test_data / "all4" / label).iterdir())[1::8]]
    return [files[index] for index in np.linspace(0, len(files) - 1, IMAGES).astype(int)]


def test_same_answers_on_real_images(
    smear_bundle: Path, mediapipe_python: Path, photographs: list[Path], tmp_path: Path
) -> None:
    """JPEG files: MediaPipe uses another decoder, so edgeall gets the pixels that MediaPipe decoded."""
    theirs = _theirs(smear_bundle, mediapipe_python, photographs, tmp_path / "decoded.npy")
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
    smear_bundle: Path, mediapipe_python: Path, photographs: list[Path], tmp_path: Path
) -> None:
    files = []
    for index, photograph in enumerate(photographs[::4]):
        files.append(tmp_path / f"{index}.png")
        open_rgb(photograph).save(files[-1])
    _same(smear_bundle, mediapipe_python, files)


@pytest.mark.parametrize("kind", ["float32", "dynamic", "uint8"])
def test_every_scheme(kind: str, pack_tiny: Callable[..., Path], mediapipe_python: Path, tmp_path: Path) -> None:
    """A float model takes its normalization from the metadata. MediaPipe refuses int8 inputs; edgeall writes none."""
    model, exact = (pack_tiny(each, tmp_path / f"{each}.tflite") for each in (kind, "float32"))
    files = []
    for seed in range(5):
        files.append(tmp_path / f"{seed}.png")
        grainy_image(seed, (SPEC.width, SPEC.height)).save(files[-1])
    _same(model, mediapipe_python, files, exact if kind == "dynamic" else None)


@pytest.mark.parametrize("scheme", ["float32", "dynamic", "ptq-int8", "qat-int8"])
def test_what_quantize_makes(
    scheme: str,
    tiny_models: dict[str, dict[str, Any]],
    synthetic_fields: Path,
    mediapipe_python: Path,
    tmp_path: Path,
) -> None:
    files = []
    for index, image in enumerate(sorted(synthetic_fields.glob("*/*.png"))[::8]):
        files.append(tmp_path / f"{index}.png")
        open_rgb(image).resize((48, 48)).save(files[-1])  # the model's own size: MediaPipe resizes otherwise
    exact = Path(tiny_models["float32"]["out"]) if scheme == "dynamic" else None
    _same(Path(tiny_models[scheme]["out"]), mediapipe_python, files, exact)


@pytest.mark.parametrize("scheme", ["float32", "ptq-int8"])
@pytest.mark.parametrize("explain", [False, True], ids=["features", "feature map"])
def test_the_second_output_is_there_and_silent(
    scheme: str,
    explain: bool,
    tiny_run: Path,
    tiny_settings: Any,
    synthetic_fields: Path,
    mediapipe_python: Path,
    tmp_path: Path,
) -> None:
    """MediaPipe treats it as another classification, whose metadata suppress all results."""
    from edgeall.console.progress import Progress
    from edgeall.optimize.quantization.config import QuantizeConfig
    from edgeall.optimize.quantize import quantize

    model, cached = tmp_path / "model.tflite", tiny_settings.cache_dir
    quantize(QuantizeConfig(tiny_run, scheme, model, explain=explain, cache_dir=cached), Progress(quiet=True))
    image = tmp_path / "image.png"
    open_rgb(next(synthetic_fields.glob("*/*.png"))).resize((48, 48)).save(image)
    program = PROGRAM.replace("print(", "print([len(head.categories) for head in result.classifications]);print(")
    result = subprocess.run(
        [str(mediapipe_python), "-c", program, str(model)],
        input=str(image),
        capture_output=True,
        text=True,
        timeout=venvs.HANG_S,
    )
    assert result.returncode == 0, result.stderr
    heads, scores = map(json.loads, result.stdout.splitlines())
    assert heads == [len(LABELS), 0]
    classifier = Classifier.open(model)
    ours = _ours(classifier, [image])
    assert np.abs(ours - [[scores[label] for label in LABELS]]).max() <= _rounding(classifier)


def _same(model: Path, python: Path, files: list[Path], exact: Path | None = None) -> None:
    """MediaPipe gives the same output as edgeall to within rounding.

    Dynamic-range kernels quantize activations as they go, each version of the runtime a little differently: by less
    than that moves the answers of ``exact``, the same network in float.
    """
    classifier = Classifier.open(model)
    ours, rounding = _ours(classifier, files), _rounding(classifier)
    if exact is not None:
        rounding += 2 * float(np.abs(ours - _ours(Classifier.open(exact), files)).max())
    assert_same_answers(ours, _theirs(model, python, files), rounding)


def _rounding(classifier: Classifier) -> float:
    return max(FLOAT_ROUNDING, UNITS_ROUNDING * classifier.model.output.scale)


def _ours(classifier: Classifier, files: list[Path]) -> NDArray[np.float32]:
    """Uncalibrated outputs: MediaPipe does not apply the manifest's temperature."""
    return np.stack([classifier.predict(load_input(file, classifier.input)) for file in files])


def _theirs(model: Path, python: Path, files: list[Path], decoded: Path | None = None) -> list[list[float]]:
    """MediaPipe's scores in the order of `LABELS`; the pixels that it decoded go into ``decoded``."""
    command = [str(python), "-c", PROGRAM, str(model), *([] if decoded is None else [str(decoded)])]
    names = "\n".join(map(str, files))
    result = subprocess.run(command, input=names, capture_output=True, text=True, timeout=venvs.HANG_S)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == len(files) and all(set(scores) == set(LABELS) for scores in found)
    return [[scores[label] for label in LABELS] for scores in found]
