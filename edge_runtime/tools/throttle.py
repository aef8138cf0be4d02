"""Throttling of a Raspberry Pi: reads its bits and gives them names."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

REASONS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
"""Bits 0 to 3 of ``get_throttled``: the state now. Bits 16 to 19: the same at any time since boot.

Source: Raspberry Pi documentation, ``vcgencmd get_throttled``.
"""


def run_program(command: Sequence[str]) -> str | None:
    """The stdout of a program; None if it is missing, fails or takes longer than 5 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def throttled_bits(root: Path, run: Callable[[Sequence[str]], str | None] = run_program) -> int | None:
    """The bits, from the kernel or from ``vcgencmd``; None if this is not a Raspberry Pi.

    Args:
        root: folder that holds ``sys``.
        run: see `run_program`.
    """
    text = ""
    with contextlib.suppress(OSError):
        text = (root / "sys/devices/platform/soc/soc:firmware/get_throttled").read_text().strip().rstrip("\0")
    text = text or (run(["vcgencmd", "get_throttled"]) or "").strip().removeprefix("throttled=")
    try:
        return int(text, 16)
    except ValueError:
        return None


def throttle_reasons(bits: int | None) -> list[str]:
    """Names of the lowest four bits: why the board is throttled now. For since boot, pass ``bits >> 16``."""
    return [name for bit, name in enumerate(REASONS) if (bits or 0) >> bit & 1]
