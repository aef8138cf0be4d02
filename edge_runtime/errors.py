"""The errors that edgeall raises on purpose. ``cli.py`` turns each into a message, a hint and an exit status.

Tree:

* EdgeallError: exit status 1
    * UsageError: exit status 2
    * DataError
        * NoSpaceError
        * ImageError
    * BundleError
    * GateError: exit status 3

`edgeall.deploy` and `edgeall.rig` derive their own errors from EdgeallError, with exit status 1.
"""

from __future__ import annotations

import errno

DISK_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""Values of ``errno`` for a full disk and an exhausted quota."""


class EdgeallError(Exception):
    """An error that the user can resolve.

    Args:
        message: what went wrong and where; names the file or the option.
        hint: what to do, as an imperative; shown on a line of its own.
    """

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgeallError):
    """Invalid arguments; raised before any work starts."""

    exit_status = 2


class DataError(EdgeallError):
    """A data folder, manifest or split that cannot be used."""


class NoSpaceError(DataError):
    """The disk is full. Loops over images, runs or devices stop at it instead of trying the next item."""


class ImageError(DataError):
    """An image that cannot be used. Loops over a folder report it and continue."""


class BundleError(EdgeallError):
    """A model file that is damaged, not supported or inconsistent."""


class GateError(EdgeallError):
    """The command completed, but a result violates a limit that the user set."""

    exit_status = 3
