"""Runs one `edgeall` command as a user would, and says what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOAD = os.getloadavg()[0]
EDGEALL = str(Path(sys.executable).parent / "edgeall")


@dataclass(frozen=True)
class Done:
    """What a command left behind.

    Attributes:
        status: its exit status.
        answer: the JSON object it printed; empty where it failed.
        seconds: wall time.
        cpu_seconds: of all its threads together, which other programs change little.
        peak_bytes: of its resident memory.
    """

    status: int
    answer: dict[str, Any]
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(*words: object) -> Done:
    """``edgeall WORDS --json``; its progress goes to our stderr."""
    started = time.perf_counter()
    process = subprocess.Popen([EDGEALL, *map(str, words), "--json"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # the usage of this child alone
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    answer = json.loads(printed) if process.returncode == 0 else {}
    used = usage.ru_utime + usage.ru_stime
    return Done(process.returncode, answer, seconds, used, usage.ru_maxrss * 1024)


def answer(*words: object) -> dict[str, Any]:
    """What ``edgeall WORDS --json`` printed. Raises SystemExit where it failed: a figure without it is none."""
    done = run(*words)
    if done.status:
        raise SystemExit(f"edgeall {' '.join(map(str, words))} ended with status {done.status}")
    return done.answer


def machine_lines() -> list[str]:
    """Markdown: the machine, and its load when the benchmark began."""
    from edgeall.edge_runtime.tools.device import describe_device

    facts = describe_device().to_json().items()
    return [*(f"- {key}: {value}" for key, value in facts if value is not None), f"- load before: {_LOAD:.1f}"]


def revision(*folders: str) -> str:
    """The git commit that last changed ``folders`` of this checkout, in ten digits; ``-dirty`` with changes on top."""
    top = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", top, *words], capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", *folders)
    return git("log", "-1", "--format=%h", "--abbrev=10", "--", *folders) + ("-dirty" if changed else "")
