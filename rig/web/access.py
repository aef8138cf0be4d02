"""Who may see the page and who may act on it: the users file, log-ins that can't be guessed, sessions, CSRF tokens."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
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

ROLES = ("view", "operate")
"""In order: who may operate may view."""
SHORTEST_PASSWORD = 10
LONGEST_PASSWORD = 1024
SESSION_S = 12 * 3600
"""A long day at the microscope."""
MAX_SESSIONS = 256
FAILURES = 5
"""Of one address, and of one name from whatever address: then that one waits."""
FAILURE_WINDOW_S = 300
MAX_WAITING = 4
"""Log-ins at a time, one being checked: a flood of them must not take all the threads that pages are made in."""
MAX_WATCHED = 4096
"""Addresses and names whose failures are remembered, so that a flood of them can't fill the memory."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class User:
    """One line of the users file: ``role`` is one of `ROLES`, ``password_hash`` argon2id's text."""

    name: str
    role: str
    password_hash: str

    def may(self, role: str) -> bool:
        """Whether somebody of this role may do what needs ``role``."""
        return ROLES.index(self.role) >= ROLES.index(role)


LOCAL = User("local", "operate", "")
"""Whoever sits at the machine itself, where no users file was given."""


def read_users(path: Path) -> dict[str, User]:
    """The users of a file, by name; none when it isn't there.

    Raises:
        EdgeallError: it is no users file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise _no_users_file(path) from error
    try:
        table = json.loads(text)["users"]
        users = {name: User(name, entry["role"], entry["password_hash"]) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_users_file(path) from error
    for user in users.values():
        if not _NAME.fullmatch(user.name) or user.role not in ROLES or not isinstance(user.password_hash, str):
            raise _no_users_file(path)
    return users


def add_user(path: Path, name: str, role: str, password: str, replace: bool = False) -> None:
    """Add somebody to a users file, which is made when missing, for its owner's eyes alone.

    Args:
        path: the file.
        name: letters, digits, dot, dash and underline.
        role: one of `ROLES`.
        password: `SHORTEST_PASSWORD` characters or more; only its hash is kept.
        replace: somebody of that name gets the new role and password.

    Raises:
        UsageError: the name or the password won't do, or the name is taken.
        EdgeallError: the file is no users file.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} can't be a user's name", hint="use letters, digits, dots, dashes and underlines")
    if role not in ROLES:
        raise UsageError(f"{role!r} is no role", hint=f"there are: {', '.join(ROLES)}")
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise UsageError(
            f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters, this one {len(password)}"
        )
    users = read_users(path)
    if name in users and not replace:
        raise UsageError(f"{path}: {name} is there already", hint="--force gives a new role and password")
    users[name] = User(name, role, PasswordHasher().hash(password))
    _write_users(path, users)


def remove_user(path: Path, name: str) -> None:
    """Take somebody off a users file; a running rig forgets their sessions at once. Raises UsageError: no such user."""
    users = read_users(path)
    if name not in users:
        raise UsageError(f"{path}: no user called {name}", hint=f"there are: {', '.join(sorted(users)) or 'none'}")
    del users[name]
    _write_users(path, users)


def _write_users(path: Path, users: dict[str, User]) -> None:
    table = {user.name: {"role": user.role, "password_hash": user.password_hash} for user in users.values()}
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        if os.geteuid() == 0:  # the rig, which is not root as a service, has to read it
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


def _no_users_file(path: Path) -> EdgeallError:
    return EdgeallError(f"{path}: not a users file", hint="make one with `edgeall rig-user add NAME --users FILE`")


class TooManyFailures(EdgeallError):
    """Log-ins of an address or a name have failed too often; ``wait_s`` says when to come back."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many failed attempts; try again in {wait_s:.0f} s")
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
        """One more failure of each."""
        now = self._clock()
        for key in keys:
            self._times[key] = [at for at in self._times.pop(key, ()) if now - at < FAILURE_WINDOW_S] + [now]
        while len(self._times) > MAX_WATCHED:
            del self._times[next(iter(self._times))]  # the one whose last failure is longest ago

    def forget(self, key: str) -> None:
        """The right password was given."""
        self._times.pop(key, None)


@dataclass(frozen=True)
class _Session:
    user: User
    ends: float


class Access:
    """The rules of one running rig. Safe between threads.

    A visitor is known by a random token in a cookie; what is kept of it here is its digest. A CSRF token is an HMAC of
    the cookie under a key that this process alone knows, so that visitors who haven't logged in cost no memory.

    Args:
        users_file: None lets everybody in as `LOCAL`: for a page that listens on loopback alone.
        clock: seconds, monotonic.
    """

    def __init__(self, users_file: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.open = users_file is None
        self._file = users_file
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._failures = Failures(clock)
        self._sessions: dict[bytes, _Session] = {}
        self._users: dict[str, User] = {}
        self._read_from: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        self._hashing = threading.Lock()  # argon2 takes 64 MiB: once at a time on a small board
        self._hasher = PasswordHasher()
        self._nobody = self._hasher.hash(secrets.token_urlsafe()) if users_file else ""

    @staticmethod
    def new_token() -> str:
        """For the cookie of a visitor who brings none."""
        return secrets.token_urlsafe(32)

    @staticmethod
    def is_token(text: str | None) -> bool:
        """Whether a cookie holds what `new_token` might have made."""
        return text is not None and _TOKEN.fullmatch(text) is not None

    def csrf(self, token: str) -> str:
        """What every state change of the visitor with this cookie must bring along."""
        return hmac.new(self._key, token.encode(), hashlib.sha256).hexdigest()

    def csrf_ok(self, token: str, given: str | None) -> bool:
        """Compared in constant time."""
        return given is not None and hmac.compare_digest(self.csrf(token).encode(), given.encode())

    def who(self, token: str) -> User | None:
        """The user of this cookie; None when not logged in, logged out, expired, removed or given a new password."""
        if self.open:
            return LOCAL
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
        """Check a password; takes some tenths of a second of one core.

        Returns:
            The token of a new session: never one that the visitor brought.

        Raises:
            TooManyFailures: by this address or for this name, or many are logging in; the password wasn't looked at.
            UsageError: wrong name or password; which of them isn't told.
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
            self._failures.check(*keys)
            with self._lock:
                user = self._known(name)
            # Somebody unknown takes as long as a wrong password.
            right = self._matches(user.password_hash if user else self._nobody, password)
            if user is None or not right:
                self._failures.add(*keys)
                raise UsageError("wrong name or password")
            self._failures.forget(keys[1])  # the address's stay: it may be trying other names
        return user

    def log_out(self, token: str) -> None:
        """The cookie is worth nothing from now on, whoever kept a copy."""
        with self._lock:
            self._sessions.pop(_digest(token), None)

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password[: LONGEST_PASSWORD + 1])
        except (VerificationError, InvalidHashError):
            return False

    def _known(self, name: str) -> User | None:
        """Of the users file as it is now."""
        assert self._file is not None
        try:
            state = self._file.stat()
            stamp = (state.st_mtime_ns, state.st_ino)
        except OSError:
            self._users, self._read_from = {}, None  # nobody is let in by a file that is gone
            return None
        if stamp != self._read_from:
            try:
                self._users, self._read_from = read_users(self._file), stamp
            except (EdgeallError, OSError):
                self._users, self._read_from = {}, stamp
        return self._users.get(name)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
