"""Users, log-ins, sessions and CSRF tokens of the rig's page."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from fixtures_rig import PASSWORDS, quick_hashes
from venvs import HANG_S

from edgeall.edge_runtime.errors import EdgeallError, UsageError
from edgeall.rig.web import access
from edgeall.rig.web.access import (
    FAILURES,
    LOCAL_USER,
    Access,
    TooManyFailures,
    add_user,
    form_key,
    read_users,
    remove_user,
)

PASSWORD = "correct horse battery"


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _quick_hashes() -> Iterator[None]:
    with quick_hashes():
        yield


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.json"
    add_user(path, "olga", "operate", PASSWORD)
    return path


def test_a_users_file_holds_hashes_and_only_its_owner_reads_it(users: Path) -> None:
    assert PASSWORD not in users.read_text()
    assert users.stat().st_mode & 0o777 == 0o600
    user = read_users(users)["olga"]
    assert user.password_hash.startswith("$argon2id$")
    assert user.may("view") and user.may("operate")
    add_user(users, "viktor", "view", PASSWORD)
    assert not read_users(users)["viktor"].may("operate")
    assert [path.name for path in users.parent.iterdir()] == ["users.json"]


def test_the_hash_has_argon2s_own_parameters(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "PasswordHasher", PasswordHasher)
    add_user(users, "slow", "view", PASSWORD)
    assert "m=65536,t=3,p=4" in read_users(users)["slow"].password_hash


@pytest.mark.parametrize(
    ("name", "role", "password", "message"),
    [
        ("", "view", PASSWORD, "is not a valid user name"),
        ("../x", "view", PASSWORD, "is not a valid user name"),
        ("a b", "view", PASSWORD, "is not a valid user name"),
        ("x" * 65, "view", PASSWORD, "is not a valid user name"),
        ("anna", "admin", PASSWORD, "is not a role"),
        ("anna", "view", "short", "10 to 1024 characters"),
        ("anna", "view", "x" * 1025, "10 to 1024 characters"),
        ("olga", "view", PASSWORD, "exists already"),
    ],
)
def test_who_can_not_be_a_user(users: Path, name: str, role: str, password: str, message: str) -> None:
    before = users.read_text()
    with pytest.raises(UsageError, match=message):
        add_user(users, name, role, password)
    assert users.read_text() == before


NO_USERS = ("", "[]", "{}", '{"users": {"x": {}}}', '{"users": []}', "\xff", '{"users": {"x": 1}}')


@pytest.mark.parametrize("text", NO_USERS)
def test_what_is_not_a_users_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "users.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(EdgeallError, match="not a users file"):
        read_users(path)


def test_a_role_nobody_knows_is_refused(users: Path) -> None:
    table = json.loads(users.read_text())
    table["users"]["olga"]["role"] = "root"
    users.write_text(json.dumps(table))
    with pytest.raises(EdgeallError, match="not a users file"):
        read_users(users)


def test_remove(users: Path) -> None:
    with pytest.raises(UsageError, match="there is no user anna"):
        remove_user(users, "anna")
    remove_user(users, "olga")
    assert read_users(users) == {}


def test_without_a_users_file_everybody_is_local() -> None:
    rules = Access(None)
    assert rules.user_of(Access.new_token()) is LOCAL_USER
    assert LOCAL_USER.may("operate")


def test_log_in_gives_a_token_of_its_own(users: Path) -> None:
    rules = Access(users)
    brought = Access.new_token()
    assert rules.user_of(brought) is None
    token = rules.log_in("olga", PASSWORD, "10.0.0.1")
    assert token != brought and Access.is_token(token)
    user = rules.user_of(token)
    assert user is not None and user.name == "olga"
    assert rules.user_of(brought) is None
    assert rules.log_in("olga", PASSWORD, "10.0.0.1") != token
    rules.log_out(token)
    assert rules.user_of(token) is None


def test_a_session_ends(users: Path) -> None:
    clock = Clock()
    rules = Access(users, clock)
    token = rules.log_in("olga", PASSWORD, "10.0.0.1")
    clock.now += access.SESSION_S - 1
    assert rules.user_of(token) is not None
    clock.now += 1
    assert rules.user_of(token) is None


@pytest.mark.parametrize("change", ["remove", "password", "role", "file gone", "file spoilt"])
def test_a_session_ends_with_what_it_stood_on(users: Path, change: str) -> None:
    rules = Access(users)
    token = rules.log_in("olga", PASSWORD, "10.0.0.1")
    if change == "remove":
        remove_user(users, "olga")
    elif change == "password":
        add_user(users, "olga", "operate", "another password", replace=True)
    elif change == "role":
        add_user(users, "olga", "view", PASSWORD, replace=True)
    elif change == "file gone":
        users.unlink()
    else:
        users.write_text("nonsense")
    assert rules.user_of(token) is None


@pytest.mark.parametrize(
    ("name", "password"), [("olga", "wrong password"), ("nobody", PASSWORD), ("", ""), ("olga", "")]
)
def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(users: Path, name: str, password: str) -> None:
    with pytest.raises(UsageError) as refused:
        Access(users).log_in(name, password, "10.0.0.1")
    assert refused.value.message == "wrong name or password"


def test_somebody_unknown_costs_a_hash_too(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Access(users)
    asked: list[str] = []
    matches = rules._matches
    monkeypatch.setattr(rules, "_matches", lambda known, given: asked.append(known) or matches(known, given))
    with pytest.raises(UsageError):
        rules.log_in("nobody", PASSWORD, "10.0.0.1")
    assert asked[0].startswith("$argon2id$")


def test_an_address_that_fails_too_often_waits_even_with_the_right_password(users: Path) -> None:
    clock = Clock()
    rules = Access(users, clock)
    for number in range(access.FAILURES):
        with pytest.raises(UsageError):
            rules.log_in(f"guess{number}", PASSWORD, "10.0.0.1")
    with pytest.raises(TooManyFailures) as refused:
        rules.log_in("olga", PASSWORD, "10.0.0.1")
    assert 0 < refused.value.wait_s <= access.FAILURE_WINDOW_S
    assert rules.log_in("olga", PASSWORD, "10.0.0.2")
    clock.now += access.FAILURE_WINDOW_S
    assert rules.log_in("olga", PASSWORD, "10.0.0.1")


def test_a_name_that_is_guessed_at_from_everywhere_waits(users: Path) -> None:
    rules = Access(users)
    for number in range(access.FAILURES):
        with pytest.raises(UsageError):
            rules.log_in("olga", "a wrong password", f"10.0.0.{number}")
    with pytest.raises(TooManyFailures):
        rules.log_in("olga", PASSWORD, "10.0.1.1")


def test_a_right_password_does_not_wash_an_address_clean(users: Path) -> None:
    rules = Access(users)
    for number in range(access.FAILURES - 1):
        with pytest.raises(UsageError):
            rules.log_in(f"guess{number}", PASSWORD, "10.0.0.1")
    assert rules.log_in("olga", PASSWORD, "10.0.0.1")
    with pytest.raises(UsageError):
        rules.log_in("guess", PASSWORD, "10.0.0.1")
    with pytest.raises(TooManyFailures):
        rules.log_in("olga", PASSWORD, "10.0.0.1")


def test_failures_of_many_addresses_fill_no_memory(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_WATCHED", 10)
    failures = access.Failures(Clock())
    for number in range(100):
        failures.add(f"10.0.0.{number}")
    assert len(failures._times) == 10


def test_many_log_ins_at_once_are_sent_away(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Access(users)
    go, waiting = threading.Event(), threading.Semaphore(0)

    def slow(*_: object) -> bool:
        waiting.release()
        return go.wait(10)

    monkeypatch.setattr(rules, "_matches", slow)
    threads = [
        threading.Thread(target=rules.log_in, args=("olga", PASSWORD, f"10.0.0.{n}")) for n in range(access.MAX_WAITING)
    ]
    for thread in threads:
        thread.start()
    assert waiting.acquire(timeout=HANG_S)
    while rules._waiting._value:  # type: ignore[attr-defined]
        pass
    with pytest.raises(TooManyFailures):
        rules.log_in("olga", PASSWORD, "10.0.0.9")
    go.set()
    for thread in threads:
        thread.join(10)


def test_sessions_are_bounded(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_SESSIONS", 3)
    rules = Access(users)
    tokens = [rules.log_in("olga", PASSWORD, "10.0.0.1") for _ in range(5)]
    assert [rules.user_of(token) is not None for token in tokens] == [False, False, True, True, True]


def test_a_csrf_token_belongs_to_one_visitor_and_one_process(users: Path) -> None:
    rules, other = Access(users), Access(users)
    token = Access.new_token()
    assert rules.csrf_ok(token, rules.csrf(token))
    assert not rules.csrf_ok(token, None)
    assert not rules.csrf_ok(token, "")
    assert not rules.csrf_ok(token, "é")
    assert not rules.csrf_ok(Access.new_token(), rules.csrf(token))
    assert not other.csrf_ok(token, rules.csrf(token))


@pytest.mark.parametrize("text", [None, "", "x", "x" * 42, "x" * 44, "x" * 42 + "/", "é" * 43])
def test_what_is_not_a_token(text: str | None) -> None:
    assert not Access.is_token(text)


def test_a_stolen_record_of_sessions_is_worth_nothing(users: Path) -> None:
    rules = Access(users)
    token = rules.log_in("olga", PASSWORD, "10.0.0.1")
    assert token.encode() not in b"".join(rules._sessions)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_adds_stays_readable_for_the_service(users: Path) -> None:
    os.chown(users, 4321, 4321)
    add_user(users, "anna", "view", PASSWORD)
    assert (users.stat().st_uid, users.stat().st_mode & 0o777) == (4321, 0o600)


def test_the_fixtures_users_can_log_in(users_file: Path) -> None:
    assert set(read_users(users_file)) == set(PASSWORDS)


def test_every_refused_log_in_is_logged_without_an_unknown_name(users: Path, caplog: pytest.LogCaptureFixture) -> None:
    access = Access(users, Clock())
    for name, password in (("olga", "not her password"), ("my secret typed here", "x")):
        with pytest.raises(UsageError):
            access.log_in(name, password, "192.168.1.7")
    for _ in range(FAILURES):
        with contextlib.suppress(UsageError, TooManyFailures):
            access.log_in("olga", "guess", "192.168.1.7")
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "log-in refused: olga from 192.168.1.7: wrong password"
    assert said[1] == "log-in refused: unknown user from 192.168.1.7: unknown name"
    assert said[-1] == "log-in refused: olga from 192.168.1.7: too many failed attempts"
    assert access.refused == len(said) == 2 + FAILURES
    assert "secret" not in caplog.text and "guess" not in caplog.text


def test_forms_outlive_a_restart(tmp_path: Path) -> None:
    path, token = tmp_path / "page.key", Access.new_token()
    form = Access(None, key=form_key(path)).csrf(token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Access(None, key=form_key(path)).csrf_ok(token, form)
    assert not Access(None).csrf_ok(token, form)
    path.write_bytes(b"damaged")
    assert not Access(None, key=form_key(path)).csrf_ok(token, form)
