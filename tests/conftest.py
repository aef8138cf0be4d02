"""Fixtures for all tests. Those that make small models are in `fixtures_models`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # A process for each core: two threads of TensorFlow or of a numeric library in each would wait for each other.
    for _name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

pytest_plugins = ["fixtures_models", "fixtures_plots", "fixtures_rig", "fixtures_run", "fixtures_ssh"]

ROOT = Path(__file__).resolve().parent.parent
FIRST = (
    "e2e",
    "integration",
    "test_golden.py",
    "browser",
    "parity",
    "contracts",
    "test_segmentation.py",
    "test_families.py",
)
"""Folders and files that take longest. They come first, so that all processes of `make test` end together. Of the files
in parity/ that share a model, one comes much earlier: else the other process would wait while the model is made."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of `FIRST` before all others."""

    def place(item: pytest.Item) -> int:
        return min(
            FIRST.index(name) if name in FIRST else len(FIRST) for name in (item.path.parent.name, item.path.name)
        )

    items.sort(key=place)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images and foreign models, which is no part of the repository."""
    named = os.environ.get("EDGEALL_TEST_DATA")
    places = [*([Path(named)] if named else []), ROOT.parent / "shared" / "data"]
    for folder in places:
        if folder.is_dir():
            return folder
    pytest.skip(f"no real data in {' or '.join(map(str, places))}; set EDGEALL_TEST_DATA")


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither find what an earlier run cached, nor leave anything in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _less_overhead() -> None:
    """TensorFlow does not optimize graphs that run a few times; garbage is not sought among imported modules.

    Programs that tests start run as they do for a user.
    """
    gc.collect()
    gc.freeze()
    if tensorflow := sys.modules.get("tensorflow"):  # test modules import it
        tensorflow.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(autouse=True)
def _no_settings_from_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line reads EDGEALL_*; a developer's own must not decide a test."""
    for name in [name for name in os.environ if name.startswith("EDGEALL_") and not name.startswith("EDGEALL_TEST_")]:
        monkeypatch.delenv(name)
