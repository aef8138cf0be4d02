"""A device for tests: a real ssh server on loopback, with a home of its own, and a wire to it that can be cut.

OpenSSH's sshd where it is installed; else a server of paramiko's that runs the same commands on this machine, so that
the tests run anywhere. EDGEALL_TEST_SSHD=paramiko takes that one.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import paramiko
import pytest

from edgeall.deploy.on_device import COMPLETE
from edgeall.deploy.package import environment_name

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", ""))
START_S = 120


@dataclass
class Device:
    """A home that a server on loopback logs in to, and this side's own home with its ``.ssh``.

    Attributes:
        home: of the user there; holds ``.edgeall``.
        user_home: of the user here.
        port: of the server, or of the wire to it.
        wheel: an edgeall wheel whose environment is there already.
    """

    home: Path
    user_home: Path
    port: int
    wheel: Path
    user: str = field(default_factory=lambda: os.environ.get("USER") or "root")

    @property
    def url(self) -> str:
        return f"ssh://127.0.0.1:{self.port}"

    @property
    def root(self) -> Path:
        return self.home / ".edgeall"

    def replace_program(self, script: str) -> Callable[[], None]:
        """Let the device's edgeall begin with these lines of shell script. Returns the function that repairs it."""
        (environment,) = (self.root / "env").iterdir()
        real = environment.resolve()
        environment.unlink()
        program = environment / "bin" / "edgeall"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\n{script}\nexec "{real}/bin/edgeall" "$@"\n')
        program.chmod(0o755)
        (environment / COMPLETE).write_text("")

        def repair() -> None:
            shutil.rmtree(environment)
            environment.symlink_to(real)

        return repair

    def trust(self, port: int) -> None:
        """Let the server's host key stand for another port as well."""
        key = (self.user_home / "server_key.pub").read_text()
        with (self.user_home / ".ssh" / "known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{port} {key}")


@dataclass
class Wire:
    """Passes bytes on to a server; cut, or watched, after so many of the client's.

    Attributes:
        sent: bytes that the client has sent so far.
        limit: when `sent` reaches it, `at_limit` is called, once, while nothing passes.
        at_limit: whether to cut the connection then.
    """

    target: int
    limit: int | None = None
    at_limit: Callable[[], bool] = lambda: True
    sent: int = 0
    port: int = 0

    def __enter__(self) -> Wire:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)  # else the thread that waits for one more would still get it
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._server.accept()[0]
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            back = threading.Thread(target=self._pass, args=(server, client, False), daemon=True)
            back.start()
            self._pass(client, server, True)
            back.join()

    def _pass(self, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(8192):
                if from_client and self._count(len(data)):
                    break
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _count(self, size: int) -> bool:
        """Whether the wire is cut here."""
        self.sent += size
        if self.limit is None or self.sent < self.limit:
            return False
        self.limit = None
        return self.at_limit()


@pytest.fixture(scope="session")
def ssh_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``user`` and ``server`` keys, and another ``wrong`` one."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("user", "server", "wrong"):
        key = paramiko.ECDSAKey.generate()
        key.write_private_key_file(str(folder / name))
        (folder / f"{name}.pub").write_text(f"{key.get_name()} {key.get_base64()}\n")
    return folder


@pytest.fixture(scope="session")
def device_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to put on a device's PATH: its ``python3`` is the one that runs these tests."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "python3").chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def ready_environment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """``(wheel, environment)``: a virtual environment with an ``edgeall`` that runs, as an install leaves one.

    It borrows this environment's packages: installing them takes longer than all these tests. The install itself
    is tested in tests/device.
    """
    folder = tmp_path_factory.mktemp("environment")
    wheel = folder / "edgeall-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"only its name and digest are looked at: its environment is there")
    environment = folder / environment_name(wheel)
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    script = environment / "bin" / "edgeall"
    script.write_text(f"#!{environment}/bin/python\nimport sys\nfrom edgeall.cli import main\n\nsys.exit(main())\n")
    script.chmod(0o755)
    (environment / COMPLETE).write_text("")
    return wheel, environment


@pytest.fixture
def make_device(
    tmp_path: Path,
    ssh_keys: Path,
    device_python: Path,
    ready_environment: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[str], Device]]:
    """Switches on devices by name, each with a home of its own: `Device.url` is where."""
    user_home = tmp_path / "user"
    (user_home / ".ssh").mkdir(parents=True)
    shutil.copy(ssh_keys / "user", user_home / ".ssh" / "id_ecdsa")
    shutil.copy(ssh_keys / "server.pub", user_home / "server_key.pub")
    monkeypatch.setenv("HOME", str(user_home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(user_home / ".config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    wheel, environment = ready_environment
    with ExitStack() as servers:

        def make(name: str) -> Device:
            home, server = tmp_path / name, tmp_path / f"{name}.sshd"
            server.mkdir()
            (home / ".edgeall" / "env").mkdir(parents=True)
            (home / ".edgeall" / "env" / environment.name).symlink_to(environment)
            port = servers.enter_context(serve(server, ssh_keys, home, f"{device_python}:/usr/bin:/bin"))
            made = Device(home, user_home, port, wheel)
            made.trust(port)
            return made

        yield make


@pytest.fixture
def device(make_device: Callable[[str], Device]) -> Device:
    """A device that is switched on."""
    return make_device("device")


@contextmanager
def serve(folder: Path, keys: Path, home: Path, path: str) -> Iterator[int]:
    """Run an ssh server for the one key and this user; yields its port."""
    if SSHD and os.environ.get("EDGEALL_TEST_SSHD") != "paramiko":
        with _openssh(folder, keys, home, path) as port:
            yield port
    else:
        with _Server(keys, {"HOME": str(home), "PATH": path}) as server:
            yield server.port


@contextmanager
def _openssh(folder: Path, keys: Path, home: Path, path: str) -> Iterator[int]:
    assert SSHD is not None
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where root's sshd locks up the part that talks to strangers
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": keys / "server",
        "AuthorizedKeysFile": keys / "user.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PidFile": "none",
        "SetEnv": f"HOME={home} PATH={path}",
    }
    config = folder / "sshd_config"
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    log = folder / "sshd.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=stderr)
    try:
        wait_for_port(port, process, log)
        yield port
    finally:
        process.terminate()
        process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until something listens there. Fails the test with the log when the process ends first."""
    for _ in range(START_S * 50):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    pytest.fail(f"no server on port {port}: {log.read_text()}", pytrace=False)


class _Server:
    """A server of paramiko's that runs what it is asked to in a shell of this machine."""

    def __init__(self, keys: Path, environment: dict[str, str]) -> None:
        self._keys, self._environment = keys, environment

    def __enter__(self) -> _Server:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        key = paramiko.ECDSAKey(filename=str(self._keys / "server"))
        with suppress(OSError):
            while True:
                transport = paramiko.Transport(self._socket.accept()[0])
                transport.add_server_key(key)
                with suppress(paramiko.SSHException, EOFError, OSError):
                    transport.start_server(threading.Event(), _Session(self._keys, self._environment))


class _Session(paramiko.ServerInterface):
    def __init__(self, keys: Path, environment: dict[str, str]) -> None:
        self._allowed = (keys / "user.pub").read_text().split()[1]
        self._environment = environment

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL if key.get_base64() == self._allowed else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        pipe = subprocess.PIPE
        words: Sequence[str | bytes] = ["/bin/sh", "-c", command]
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=self._environment)
        threading.Thread(target=self._serve, args=(channel, process), daemon=True).start()
        return True

    def _serve(self, channel: paramiko.Channel, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        outputs = (
            threading.Thread(target=_copy, args=(process.stdout, channel.sendall)),
            threading.Thread(target=_copy, args=(process.stderr, channel.sendall_stderr)),
        )
        for thread in (*outputs, threading.Thread(target=_feed, args=(channel, process), daemon=True)):
            thread.start()
        for thread in outputs:
            thread.join()
        with suppress(OSError, EOFError):
            if (status := process.wait()) >= 0:  # there is none of a program that a signal killed
                channel.send_exit_status(status)
            channel.close()


def _copy(stream: IO[bytes], send: Callable[[bytes], object]) -> None:
    with stream, suppress(OSError, EOFError):
        while data := os.read(stream.fileno(), 65536):
            send(data)


def _feed(channel: paramiko.Channel, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(OSError, EOFError), process.stdin:
        while data := channel.recv(65536):
            process.stdin.write(data)
