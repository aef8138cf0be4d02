"""The rig as a systemd service: its unit file, and its notifications to systemd (sd_notify)."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ..edge_runtime.errors import EdgeallError, UsageError
from ..edge_runtime.manifest import RESEARCH_USE

NAME = "edgeall-rig"
UNIT = Path(f"/etc/systemd/system/{NAME}.service")
STATE = Path(f"/var/lib/{NAME}")
"""The folder that the service may write to. The record must be below it."""
WATCHDOG_S = 30
"""systemd restarts the rig after this many seconds without a notification."""

_TEMPLATE = """\
# Written by `edgeall rig --install-service`. Use `systemctl edit {name}` to change it permanently.
[Unit]
Description=edgeall microscope rig ({use})
After=local-fs.target network.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
WatchdogSec={watchdog_s}
Restart=on-failure
RestartSec=5
TimeoutStartSec=120
TimeoutStopSec=30
KillSignal=SIGTERM

# A separate user that exists while the service runs, and the folders that it may write to.
DynamicUser=yes
SupplementaryGroups=video
StateDirectory={name}
StateDirectoryMode=0700
CacheDirectory={name}
WorkingDirectory={state}
Environment=HOME={state} XDG_CACHE_HOME=/var/cache/{name} PYTHONUNBUFFERED=1
UMask=0077

MemoryMax=75%
TasksMax=128
LimitNOFILE=4096
OOMPolicy=stop

# Access to cameras and the network.
DevicePolicy=closed
DeviceAllow=char-video4linux rw
DeviceAllow=char-media rw
DeviceAllow=char-dma_heap rw
DeviceAllow=char-vcio rw
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
CapabilityBoundingSet=
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
"""


def unit_text(arguments: Sequence[str]) -> str:
    """The unit file that runs ``edgeall ARGUMENTS``.

    Args:
        arguments: of the installed `edgeall`, with absolute paths: ``["rig", "/opt/model.tflite", ...]``.

    Raises:
        UsageError: an argument holds a line break or another control character.
    """
    command = " ".join(_quoted(word) for word in (str(program()), *arguments))
    return _TEMPLATE.format(name=NAME, use=RESEARCH_USE, command=command, watchdog_s=WATCHDOG_S, state=STATE)


def program() -> Path:
    """The `edgeall` executable of this environment."""
    return Path(sys.executable).parent / "edgeall"


def install(arguments: Sequence[str], files: Sequence[Path] = (), unit: Path = UNIT) -> list[str]:
    """Write the unit file and reload systemd. Nothing is started.

    Args:
        arguments: see `unit_text`.
        files: files that the service must be able to read besides the program: the model, the users file.
        unit: path of the unit file.

    Returns:
        The commands that start and watch the service.

    Raises:
        EdgeallError: not root, the service's user cannot read a file, or the unit file cannot be written.
    """
    text = unit_text(arguments)
    if os.geteuid() != 0:
        raise EdgeallError(f"{unit}: installing a service requires root", hint="run it with sudo")
    for file in (program(), *files):
        check_reachable(file)
    part = unit.with_name(f".{unit.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.chmod(0o644)
        os.replace(part, unit)
    except OSError as error:
        raise EdgeallError(
            f"{unit}: cannot be written ({error.strerror})", hint="does this system use systemd?"
        ) from error
    if Path("/run/systemd/system").is_dir():
        done = subprocess.run(["systemctl", "daemon-reload"], capture_output=True, text=True)
        if done.returncode:
            raise EdgeallError(f"systemctl daemon-reload: {done.stderr.strip()}", hint="run it manually")
    return [f"systemctl enable --now {unit.stem}", f"systemctl status {unit.stem}", f"journalctl -u {unit.stem} -f"]


def check_reachable(file: Path) -> None:
    """Raise EdgeallError unless every user may read ``file``, or list it if it is a folder, and enter its parents."""
    path = file.absolute()
    folders = [(folder, stat.S_IXOTH) for folder in ((path,) if path.is_dir() else ()) + tuple(path.parents)]
    for place, needed in ((path, stat.S_IROTH), *folders):
        try:
            mode = place.stat().st_mode
        except OSError as error:
            raise EdgeallError(f"{place}: {error.strerror}", hint="check the path") from error
        if not mode & needed:
            right = "r" if needed == stat.S_IROTH else "x"
            raise EdgeallError(
                f"{file}: the service's user cannot read it, {place} has no permission for others",
                hint=f"move it to /opt or /usr/local, or run chmod o+{right} {place}",
            )


def notify(state: str) -> bool:
    """Send a notification to systemd: ``READY=1``, ``WATCHDOG=1``, ``STOPPING=1``, ``STATUS=...``.

    Returns:
        False if it was not received: the process is not a service, or systemd does not run.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall(state.encode())
        except OSError:
            return False
    return True


def watchdog_s() -> float | None:
    """The interval in which systemd expects ``WATCHDOG=1`` from this process, seconds; None if it does not."""
    microseconds, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or process not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1e6


class Watchdog:
    """Notifies systemd, from a thread of its own, while ``alive`` returns True.

    If ``alive`` returns False, or never returns, systemd gets no notification and restarts the rig.

    Args:
        alive: a fast function; called a few times per interval of systemd's watchdog.
    """

    def __init__(self, alive: Callable[[], bool]) -> None:
        self._alive = alive
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Send ``READY=1``, and start the watchdog if systemd expects it."""
        notify("READY=1")
        if watchdog_s() is not None:
            self._thread.start()

    def stop(self) -> None:
        """Send ``STOPPING=1`` and end the watchdog."""
        self._stop.set()
        notify("STOPPING=1")
        if self._thread.is_alive():
            self._thread.join(timeout=5)  # with a timeout: `alive` may hang

    def _run(self) -> None:
        pause_s = (watchdog_s() or WATCHDOG_S) / 4
        while not self._stop.wait(pause_s):
            if self._alive():
                notify("WATCHDOG=1")


def _quoted(word: str) -> str:
    """Quote a word of ExecStart. Source: systemd.service(5), COMMAND LINES, and systemd.syntax(7)."""
    if re.search(r"[\x00-\x1f\x7f]", word):
        raise UsageError(f"{word!r}: a unit file cannot contain control characters")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w@%+=:,./$-]+", escaped, re.ASCII) else f'"{escaped}"'
