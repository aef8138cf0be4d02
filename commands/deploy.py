"""`edgeall deploy` and `edgeall devices`."""

from __future__ import annotations

from typing import Any

import click

from .options import DEVICE_PYTHON, JSON, WHEEL, command
from .output import note, note_research_use, print_result


@click.group("devices")
def devices() -> None:
    """Manage the list of named devices."""


@command("deploy")
@click.argument("arguments", metavar="[MODEL] TARGET", nargs=-1, required=True)
@click.option("--rollback", is_flag=True, help="Switch back to the previous model; takes only TARGET.")
@click.option("--offline", is_flag=True, help="Download the device's packages here, for a device without network.")
@WHEEL
@DEVICE_PYTHON
@JSON
def deploy(arguments: tuple[str, ...], rollback: bool, device_python: str, json: bool, **settings: Any) -> None:
    """Deploy a packed model to a device over ssh.

    The model is copied, verified on the device, and then activated in one step. The previous model is kept. If a step
    fails, the previous model stays active. TARGET is ssh://user@host, ssh://user@host:port or a name from
    `edgeall devices`. Log-in is by key; the host key must be in ~/.ssh/known_hosts.

    \b
    edgeall deploy model.tflite ssh://pi@raspberrypi.local
    edgeall deploy --rollback ssh://pi@raspberrypi.local
    """
    from ..console.progress import Progress
    from ..deploy.command import deploy_to
    from ..deploy.release import deploy_text

    result = deploy_to(arguments, rollback, Progress(), python=device_python, **settings)
    print_result(result, json, lambda: deploy_text(result))
    note_research_use(json)


@command("ls", devices)
@JSON
def devices_ls(json: bool) -> None:
    """List the named devices."""
    from ..console.tables import record
    from ..deploy.devices import read_devices

    known = read_devices()
    print_result(
        {"devices": known},
        json,
        lambda: record(known) if known else "no devices; add one with: edgeall devices add NAME TARGET",
    )


@command("add", devices)
@click.argument("name")
@click.argument("target")
def devices_add(name: str, target: str) -> None:
    """Name a device. TARGET is ssh://user@host, ssh://user@host:port or adb:SERIAL."""
    from ..deploy.devices import add_device, list_file

    add_device(name, target)
    note(f"{name}: added to {list_file()}")


@command("rm", devices)
@click.argument("name")
def devices_rm(name: str) -> None:
    """Remove a device from the list."""
    from ..deploy.devices import remove_device

    remove_device(name)
