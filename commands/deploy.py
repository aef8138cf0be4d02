"""`edgeall deploy` and `edgeall devices`."""

from __future__ import annotations

from typing import Any

import click

from .options import DEVICE_PYTHON, JSON, WHEEL, command
from .output import note, note_research_use, print_result


@click.group("devices")
def devices() -> None:
    """The list of devices that have a name."""


@command("deploy")
@click.argument("arguments", metavar="[MODEL] TARGET", nargs=-1, required=True)
@click.option("--rollback", is_flag=True, help="Back to the model before; takes the TARGET alone.")
@click.option("--offline", is_flag=True, help="Collect the device's packages here: it has no network.")
@WHEEL
@DEVICE_PYTHON
@JSON
def deploy(arguments: tuple[str, ...], rollback: bool, device_python: str, json: bool, **settings: Any) -> None:
    """Put a packed model on a device over ssh: copied, verified there, switched to at once, the one before kept.

    TARGET is ssh://user@host, ssh://user@host:port or a name from `edgeall devices`. Whatever fails, the old model
    serves on. You log in by key; the host key must be in ~/.ssh/known_hosts.

    \b
    edgeall deploy model.tflite ssh://pi@raspberrypi.local
    edgeall deploy --rollback ssh://pi@raspberrypi.local
    """
    from ..console.progress import Progress
    from ..deploy.command import deploy_text, deploy_to

    result = deploy_to(arguments, rollback, Progress(), python=device_python, **settings)
    print_result(result, json, lambda: deploy_text(result))
    note_research_use(json)


@command("ls", devices)
@JSON
def devices_ls(json: bool) -> None:
    """Show the list."""
    from ..console.tables import record
    from ..deploy.devices import read_devices

    known = read_devices()
    print_result(
        {"devices": known}, json, lambda: record(known) if known else "none yet: edgeall devices add NAME TARGET"
    )


@command("add", devices)
@click.argument("name")
@click.argument("target")
def devices_add(name: str, target: str) -> None:
    """Give a TARGET a NAME: ssh://user@host, ssh://user@host:port or adb:SERIAL."""
    from ..deploy.devices import add_device, list_file

    add_device(name, target)
    note(f"{name} is in {list_file()}")


@command("rm", devices)
@click.argument("name")
def devices_rm(name: str) -> None:
    """Take a NAME off the list."""
    from ..deploy.devices import remove_device

    remove_device(name)
