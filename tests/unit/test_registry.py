"""The registry of backbones and its errors; `test_families` tests the backbones."""

from __future__ import annotations

import pytest

from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.models import registry
from edgeall.models.registry import BuildArgs, ModelSpec


def _args(spec: ModelSpec, **changes: object) -> BuildArgs:
    size = spec.sizes[0]
    values = {"height": size, "width": size, "alpha": spec.alphas[0] if spec.alphas else None, "weights": "none"}
    return BuildArgs(**{**values, **changes})  # type: ignore[arg-type]


def test_an_unknown_name_lists_what_exists_and_the_nearest() -> None:
    with pytest.raises(UsageError) as error:
        registry.get("mobilnet_v2")
    assert "did you mean mobilenet_v2" in error.value.hint
    assert "basic_cnn" in error.value.hint


def test_a_second_registration_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        registry.register(registry.get("basic_cnn"))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mobilenet_v2", {"alpha": 0.4}, "does not support alpha 0.4"),
        ("basic_cnn", {"alpha": 1.0}, "takes no alpha"),
        ("vgg16", {"alpha": 0.5}, "takes no alpha"),
        ("inception_v3", {"height": 74}, "75 to 512"),
        ("alexnet", {"weights": "imagenet"}, "no pretrained weights"),
        ("mobilenet_v2", {"height": 256}, "96 to 224"),
        ("basic_cnn", {"weights": "imagenet"}, "no pretrained weights"),
        ("mobilenet_v2", {"weights": "nowhere.h5"}, "nowhere.h5: no such weights file"),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(name: str, changes: dict[str, object], message: str) -> None:
    spec = registry.get(name)
    with pytest.raises(UsageError, match=message):
        registry.check_args(spec, _args(spec, **changes))


def test_weights_of_another_alpha_are_refused_by_name(test_data) -> None:  # type: ignore[no-untyped-def]
    spec = registry.get("mobilenet_v2")
    file = test_data / "weights" / "mobilenet_v2_0.35_no_top.h5"
    spec.build(_args(spec, alpha=0.35, weights=str(file)))
    with pytest.raises(DataError, match=r"not the weights of mobilenet_v2 alpha 0\.5"):
        spec.build(_args(spec, alpha=0.5, weights=str(file)))


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from edgeall.models.keras_compat import keras

    monkeypatch.setattr(keras.utils, "get_file", _offline)
    monkeypatch.setattr("tf_keras.src.utils.data_utils.get_file", _offline)
    spec = registry.get("mobilenet_v2")
    with pytest.raises(DataError, match="could not be downloaded") as error:
        spec.build(_args(spec, weights="imagenet"))
    assert "--weights FILE" in error.value.hint


def _offline(*args: object, **kwargs: object) -> None:
    raise OSError("no route to host")
