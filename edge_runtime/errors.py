"""Every error that edgeall raises on purpose: one family, turned into text once, in ``cli.py``."""

from __future__ import annotations

import errno

DISK_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""A full disk, a used-up quota."""


class EdgeallError(Exception):
    """Something a user can act on.

    Args:
        message: what went wrong and where, naming the file or the option.
        hint: the way out, as an imperative; shown on its own line.
    """

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgeallError):
    """The command was asked for something that can't be meant; raised before any work starts."""

    exit_status = 2


class DataError(EdgeallError):
    """A data folder, manifest or split that can't be used."""


class NoSpaceError(DataError):
    """A disk is full, which is nobody's fault and everybody's: work on several things ends with it."""


class ImageError(DataError):
    """One image that can't be used; callers that work through a folder report it and go on."""


class BundleError(EdgeallError):
    """A ``model.tflite`` that is damaged, foreign or not what it says."""


class GateError(EdgeallError):
    """Everything ran, but the result misses a limit that the user set."""

    exit_status = 3
