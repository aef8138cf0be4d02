"""Virtual environments for tests that need other packages than ours, or fewer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

CACHED = Path(__file__).resolve().parent.parent / ".cache" / "venvs"
"""Where environments outlive a test run: installing a peer takes longer than testing against it."""

HANG_S = 300
"""More than any program takes on a loaded machine: one that is still running then hangs."""


def make_venv(folder: Path, requirements: Sequence[str], python: str = sys.executable) -> Path:
    """The Python of an environment that holds ``requirements`` and nothing else.

    Args:
        folder: made when missing; left alone when it was made from the same requirements.
        requirements: as pip takes them; paths of wheels too.
        python: the interpreter to build on.
    """
    stamp, wanted = folder / "requirements.txt", "\n".join([python, *requirements])
    if not stamp.exists() or stamp.read_text() != wanted:
        # Without its own pip, and without compiling what is never imported, it is made faster.
        run([python, "-m", "venv", "--clear", "--without-pip", str(folder)])
        install = ["install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        run([sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), *install, *requirements])
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def unavailable(reason: str) -> NoReturn:
    """Skip the test for want of an environment; continuous integration, which has the network, fails instead."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def run(command: Sequence[str | Path], cwd: Path | None = None, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program away from this environment's settings; fail with all its output on another exit status."""
    result = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)
    assert result.returncode == status, f"{command}: status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def environment() -> dict[str, str]:
    """The environment variables without those of this virtual environment."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


def answer(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints; empty when it ends, or hangs and is killed."""
    assert process.stdout is not None
    patience = threading.Timer(HANG_S, process.kill)
    patience.start()
    try:
        return process.stdout.readline()
    finally:
        patience.cancel()
