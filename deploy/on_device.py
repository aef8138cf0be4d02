"""The part of a deploy that runs on the device. It is sent on the stdin of ``python3 -``, never installed.

Uses only the standard library, and only syntax that older versions of Python can parse: it must be able to report that
the version is too old. Everything is in ``~/.edgeall``:

    current -> releases/NAME          the active release; replaced atomically by a rename
    releases/NAME/model.tflite        the model
    releases/NAME/env -> ../../env/X  the environment that verified it
    releases/NAME/release.json        digest, time of the deploy, and the previous release
    env/X/                            a virtual environment; usable once it contains `COMPLETE`
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from typing import Any

ROOT = os.path.join(os.path.expanduser("~"), ".edgeall")
COMPLETE = "edgeall-complete"
ABANDONED_S = 7 * 86400
"""Age in seconds after which an incomplete release is removed."""


def facts() -> dict[str, Any]:
    """The facts for choosing packages and checking the disk space."""
    folder = ROOT if os.path.isdir(ROOT) else os.path.dirname(ROOT)
    return {
        "root": ROOT,
        "python": list(sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "libc": " ".join(platform.libc_ver()),
        "free_bytes": shutil.disk_usage(folder).free,
        "writable": os.access(folder, os.W_OK),
        "current": _current(),
    }


def environment(name: str) -> dict[str, Any]:
    """Path of an environment, and whether it is complete."""
    folder = os.path.join(ROOT, "env", name)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    return {"path": folder, "complete": os.path.exists(os.path.join(folder, COMPLETE))}


def environment_done(name: str) -> dict[str, Any]:
    """Mark an environment as complete."""
    _write(os.path.join(ROOT, "env", name, COMPLETE), time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()))
    return {}


def receive(path: str, size: int, digest: str) -> dict[str, Any]:
    """How much of a file is already on the device: all of it, or the part that an interrupted copy left.

    Args:
        path: below ``ROOT``.
        size: of the complete file, bytes.
        digest: its hex SHA-256.
    """
    whole = os.path.join(ROOT, path)
    part = f"{whole}.{digest[:16]}.part"
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    if os.path.isfile(whole) and _sha256(whole) == digest:
        return {"path": whole, "part": part, "have_bytes": size}
    have = os.path.getsize(part) if os.path.exists(part) else 0
    if have > size:
        os.remove(part)
        have = 0
    return {
        "path": whole,
        "part": part,
        "have_bytes": have,
        "free_bytes": shutil.disk_usage(os.path.dirname(whole)).free,
    }


def received(path: str, digest: str) -> dict[str, Any]:
    """Rename a received file to its path if its digest is right; remove it otherwise."""
    whole = os.path.join(ROOT, path)
    part = f"{whole}.{digest[:16]}.part"
    if _sha256(part) != digest:
        os.remove(part)
        return {"ok": False}
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, whole)
    _sync_folder(os.path.dirname(whole))
    return {"ok": True, "path": whole}


def unpack(path: str) -> dict[str, Any]:
    """Unpack a tar archive into a folder with its name without the suffix, and remove the archive."""
    import tarfile

    archive = os.path.join(ROOT, path)
    folder = os.path.splitext(archive)[0]
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        if any(os.path.isabs(name) or ".." in name.split("/") for name in names):
            raise ValueError(f"{path}: a member has a path outside the archive")
        options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, **options)
    os.remove(archive)
    return {"path": folder}


def remove(path: str) -> dict[str, Any]:
    """Remove a file or folder below ``ROOT``, unless it is the active release or the one for a rollback."""
    target = os.path.join(ROOT, path)
    if os.path.basename(target) not in _kept():
        _remove(target)
    return {}


def free(path: str) -> dict[str, Any]:
    """Free bytes on the disk of ``path``, which is below ``ROOT``. First removes partial copies of that path."""
    folder, name = os.path.split(os.path.join(ROOT, path))
    for entry in os.listdir(folder):
        if entry.startswith(name + ".") and entry.endswith(".part"):
            os.remove(os.path.join(folder, entry))
    return {"free_bytes": shutil.disk_usage(folder).free}


def publish(release: str, environment: str, about: dict[str, Any]) -> dict[str, Any]:
    """Activate a release, and record the previous one."""
    current = _current()
    folder = os.path.join(ROOT, "releases", release)
    _link(os.path.join("..", "..", "env", environment), os.path.join(folder, "env"))
    previous = current if current != release else _about(release).get("previous")
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    _write(os.path.join(folder, "release.json"), json.dumps(dict(about, previous=previous, deployed=when), indent=1))
    _link(os.path.join("releases", release), os.path.join(ROOT, "current"))
    _sweep()
    return status()


def switch(release: str) -> dict[str, Any]:
    """Activate a release that is already on the device."""
    _link(os.path.join("releases", release), os.path.join(ROOT, "current"))
    return status()


def status() -> dict[str, Any]:
    """The active release and the previous one: name and the facts from `publish`; None if there is none."""
    current = _current()
    previous = _about(current).get("previous") if current else None
    return {
        "root": ROOT,
        "current": dict(_about(current), release=current) if current else None,
        "previous": dict(_about(previous), release=previous) if previous and _about(previous) else None,
    }


def _current() -> str | None:
    try:
        return os.path.basename(os.readlink(os.path.join(ROOT, "current")))
    except OSError:
        return None


def _about(release: str) -> dict[str, Any]:
    try:
        with open(os.path.join(ROOT, "releases", release, "release.json")) as file:
            about: dict[str, Any] = json.load(file)
            return about
    except (OSError, ValueError):
        return {}


def _kept() -> set[str]:
    """The active release, and the one for a rollback."""
    current = _current()
    previous = _about(current).get("previous") if current else None
    return {name for name in (current, previous) if name}


def _sweep() -> None:
    """Remove releases that are not kept, incomplete ones older than `ABANDONED_S`, and unused environments."""
    kept = _kept()
    releases = os.path.join(ROOT, "releases")
    for name in os.listdir(releases):
        folder = os.path.join(releases, name)
        if name not in kept and (_about(name) or time.time() - os.path.getmtime(folder) > ABANDONED_S):
            _remove(folder)
    used = {os.path.basename(os.path.realpath(os.path.join(releases, name, "env"))) for name in os.listdir(releases)}
    for name in os.listdir(os.path.join(ROOT, "env")):
        folder = os.path.join(ROOT, "env", name)
        if name not in used and os.path.exists(os.path.join(folder, COMPLETE)):
            _remove(folder)


def _link(to: str, path: str) -> None:
    """Create or replace a symbolic link atomically."""
    part = f"{path}.{os.getpid()}"
    os.symlink(to, part)
    os.replace(part, path)
    _sync_folder(os.path.dirname(path))


def _write(path: str, text: str) -> None:
    part = f"{path}.{os.getpid()}"
    with open(part, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync_folder(os.path.dirname(path))


def _sync_folder(folder: str) -> None:
    """Sync a folder to the disk, so that a rename survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.remove(path)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


ACTIONS = (facts, environment, environment_done, receive, received, unpack, remove, free, publish, switch, status)

if __name__ == "__main__":
    try:
        answer = {action.__name__: action for action in ACTIONS}[sys.argv[1]](**json.loads(sys.argv[2]))
    except (OSError, ValueError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
