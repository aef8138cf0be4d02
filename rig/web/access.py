"""Access control of the page: the users file, log-ins, sessions and CSRF tokens."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from ...edge_runtime.errors import EdgeallError, UsageError
from ..language import message

ROLES = ("view", "operate")
"""In ascending order: ``operate`` includes ``view``."""
SHORTEST_PASSWORD = 10
LONGEST_PASSWORD = 1024
SESSION_S = 12 * 3600
"""Lifetime of a session."""
MAX_SESSIONS = 256
KEY_BYTES = 32
FAILURES = 5
"""Failed log-ins of one address, or for one name, before it is blocked for a while."""
FAILURE_WINDOW_S = 300
MAX_WAITING = 4
"""Concurrent log-ins, of which one is checked at a time: a flood of them must not occupy all worker threads."""
MAX_WATCHED = 4096
"""Addresses and names whose failures are stored. The limit bounds the memory."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class User:
    """One entry of the users file: ``role`` is one of `ROLES`, ``password_hash`` is an argon2id hash."""

    name: str
    role: str
    password_hash: str

    def may(self, role: str) -> bool:
        """Whether this user may do what requires ``role``."""
        return ROLES.index(self.role) >= ROLES.index(role)


LOCAL_USER = User("local", "operate", "")
"""The user of a rig without a users file, which listens on loopback only."""


def read_users(path: Path) -> dict[str, User]:
    """The users of a file, by name; empty if it does not exist.

    Raises:
        EdgeallError: it is not a users file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise _invalid_file(path) from error
    try:
        table = json.loads(text)["users"]
        users = {name: User(name, entry["role"], entry["password_hash"]) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _invalid_file(path) from error
    for user in users.values():
        if not _NAME.fullmatch(user.name) or user.role not in ROLES or not isinstance(user.password_hash, str):
            raise _invalid_file(path)
    return users


def add_user(path: Path, name: str, role: str, password: str, replace: bool = False) -> None:
    """Add a user to a users file. A missing file is created, readable only by its owner.

    Args:
        path: the file.
        name: letters, digits, dots, dashes and underscores.
        role: one of `ROLES`.
        password: at least `SHORTEST_PASSWORD` characters; only its hash is stored.
        replace: change the role and password of an existing user.

    Raises:
        UsageError: the name or the password is invalid, or the user exists.
        EdgeallError: the file is not a users file.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a valid user name", hint="use letters, digits, dots, dashes and underscores")
    if role not in ROLES:
        raise UsageError(f"{role!r} is not a role", hint=f"choose one of: {', '.join(ROLES)}")
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise UsageError(
            f"the password must have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters, got {len(password)}"
        )
    users = read_users(path)
    if name in users and not replace:
        raise UsageError(f"{path}: {name} exists already", hint="--force sets a new role and password")
    users[name] = User(name, role, PasswordHasher().hash(password))
    _write_users(path, users)


def remove_user(path: Path, name: str) -> None:
    """Remove a user from a users file. A running rig ends the user's sessions at once. Raises UsageError."""
    users = read_users(path)
    if name not in users:
        raise UsageError(f"{path}: there is no user {name}", hint=f"users: {', '.join(sorted(users)) or 'none'}")
    del users[name]
    _write_users(path, users)


def _write_users(path: Path, users: dict[str, User]) -> None:
    table = {user.name: {"role": user.role, "password_hash": user.password_hash} for user in users.values()}
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        if os.geteuid() == 0:  # the rig has to read it, and as a service it does not run as root
            owner = (path if path.exists() else path.parent).stat()
            os.chown(temporary, owner.st_uid, owner.st_gid)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump({"users": table}, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _invalid_file(path: Path) -> EdgeallError:
    text = message("{path}: not a users file", path=path)
    return EdgeallError(text, hint="create one with `edgeall rig-user add NAME --users FILE`")


def form_key(path: Path) -> bytes:
    """The key of the CSRF tokens, in a file readable only by its owner; a missing file is created.

    A page that was opened before a restart of the rig stays usable with it.

    Raises:
        EdgeallError: the file cannot be read or written.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            key = path.read_bytes()
            if len(key) == KEY_BYTES:
                return key
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.unlink(missing_ok=True)  # left by a killed process with the same id
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        return path.read_bytes()
    except OSError as error:
        raise EdgeallError(f"{path}: cannot be written ({error.strerror})", hint="check its owner and mode") from error


class TooManyFailures(EdgeallError):
    """Too many log-ins of an address or for a name have failed; the next is allowed after ``wait_s`` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(message("too many failed attempts; try again in {seconds} s", seconds=f"{wait_s:.0f}"))
        self.wait_s = wait_s


class Failures:
    """Counts failed log-ins in a sliding window."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: dict[str, list[float]] = {}

    def check(self, *keys: str) -> None:
        """Raises TooManyFailures when one of ``keys`` has failed `FAILURES` times within `FAILURE_WINDOW_S`."""
        now = self._clock()
        for key in keys:
            recent = [at for at in self._times.get(key, ()) if now - at < FAILURE_WINDOW_S]
            if len(recent) >= FAILURES:
                raise TooManyFailures(FAILURE_WINDOW_S - (now - recent[0]))

    def add(self, *keys: str) -> None:
        """Count one more failure of each key."""
        now = self._clock()
        for key in keys:
            self._times[key] = [at for at in self._times.pop(key, ()) if now - at < FAILURE_WINDOW_S] + [now]
        while len(self._times) > MAX_WATCHED:
            del self._times[next(iter(self._times))]  # the key whose last failure is the oldest

    def forget(self, key: str) -> None:
        """Reset a key after the correct password."""
        self._times.pop(key, None)


@dataclass(frozen=True)
class _Session:
    user: User
    ends: float


class Access:
    """The log-ins and sessions of one running rig. Thread-safe.

    A cookie holds a visitor's random token; the server stores only its digest. A CSRF token is an HMAC of the cookie
    under one key, so visitors who are not logged in need no memory. Every refused log-in is logged.

    Args:
        users_file: None gives everyone access as `LOCAL_USER`: for a page that listens on loopback only.
        clock: monotonic, seconds.
        key: of the CSRF tokens, see `form_key`; None for a new one: open pages then have to be reloaded.
    """

    def __init__(
        self, users_file: Path | None, clock: Callable[[], float] = time.monotonic, key: bytes | None = None
    ) -> None:
        self.open = users_file is None
        self._file = users_file
        self._clock = clock
        self._key = key or secrets.token_bytes(KEY_BYTES)
        self.refused = 0
        """Number of refused log-ins so far."""
        self._failures = Failures(clock)
        self._sessions: dict[bytes, _Session] = {}
        self._users: dict[str, User] = {}
        self._read_from: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        self._hashing = threading.Lock()  # argon2 takes 64 MiB: one at a time on a small board
        self._hasher = PasswordHasher()
        self._unknown_user_hash = self._hasher.hash(secrets.token_urlsafe()) if users_file else ""

    @staticmethod
    def new_token() -> str:
        """A new random token for a visitor's cookie."""
        return secrets.token_urlsafe(32)

    @staticmethod
    def is_token(text: str | None) -> bool:
        """Whether a cookie's value has the format of `new_token`."""
        return text is not None and _TOKEN.fullmatch(text) is not None

    def csrf(self, token: str) -> str:
        """The CSRF token that every state change with this cookie must include."""
        return hmac.new(self._key, token.encode(), hashlib.sha256).hexdigest()

    def csrf_ok(self, token: str, given: str | None) -> bool:
        """Whether the CSRF token is correct; compared in constant time."""
        return given is not None and hmac.compare_digest(self.csrf(token).encode(), given.encode())

    def user_of(self, token: str) -> User | None:
        """The user of this cookie; None if not logged in, logged out, expired, removed or given a new password."""
        if self.open:
            return LOCAL_USER
        with self._lock:
            digest = _digest(token)
            session = self._sessions.get(digest)
            if session is None:
                return None
            if session.ends <= self._clock() or self._known(session.user.name) != session.user:
                del self._sessions[digest]
                return None
            return session.user

    def log_in(self, name: str, password: str, address: str) -> str:
        """Check a password, which takes some tenths of a second on one core.

        Returns:
            The token of a new session, never one that the visitor sent.

        Raises:
            TooManyFailures: of this address or for this name, or too many concurrent log-ins; the password was not
                checked.
            UsageError: wrong name or password; the message does not tell which.
        """
        if not self._waiting.acquire(blocking=False):
            raise TooManyFailures(1)
        try:
            user = self._checked(name, password, address)
        finally:
            self._waiting.release()
        token = self.new_token()
        with self._lock:
            now = self._clock()
            self._sessions = {digest: each for digest, each in self._sessions.items() if each.ends > now}
            while len(self._sessions) >= MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[_digest(token)] = _Session(user, now + SESSION_S)
        return token

    def _checked(self, name: str, password: str, address: str) -> User:
        keys = (f"from {address}", f"for {name[:64]}")
        with self._hashing:
            with self._lock:
                user = self._known(name)
            try:
                self._failures.check(*keys)
            except TooManyFailures:
                self._refuse(address, user, "too many failed attempts")
                raise
            # An unknown name takes as long as a wrong password.
            correct = self._matches(user.password_hash if user else self._unknown_user_hash, password)
            if user is None or not correct:
                self._failures.add(*keys)
                self._refuse(address, user, "wrong password" if user else "unknown name")
                raise UsageError(message("wrong name or password"))
            self._failures.forget(keys[1])  # the address's failures stay: it may be trying other names
        return user

    def _refuse(self, address: str, user: User | None, why: str) -> None:
        """Log a refused log-in. An unknown name is not logged: it may be a password in the wrong field."""
        self.refused += 1
        name = user.name if user else "unknown user"
        logging.getLogger(__name__).warning("log-in refused: %s from %s: %s", name, address, why)

    def log_out(self, token: str) -> None:
        """Invalidate the cookie and all copies of it."""
        with self._lock:
            self._sessions.pop(_digest(token), None)

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password[: LONGEST_PASSWORD + 1])
        except (VerificationError, InvalidHashError):
            return False

    def _known(self, name: str) -> User | None:
        """A user in the current users file."""
        assert self._file is not None
        try:
            state = self._file.stat()
            stamp = (state.st_mtime_ns, state.st_ino)
        except OSError:
            self._users, self._read_from = {}, None  # a missing file gives no access
            return None
        if stamp != self._read_from:
            try:
                self._users, self._read_from = read_users(self._file), stamp
            except (EdgeallError, OSError):
                self._users, self._read_from = {}, stamp
        return self._users.get(name)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
