"""`edgeall deploy` and `edgeall devices`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import DEVICE_PYTHON, FILE, JSON, WHEEL, command
from .output import note, note_research_use, print_result


@click.group("devices")
def devices() -> None:
    """Manage the list of named devices."""


@command("deploy")
@click.argument("arguments", metavar="[MODEL] [TARGET]", nargs=-1, required=True)
@click.option("--to", type=FILE, metavar="FILE", help="Instead of TARGET: a file with one target a line.")
@click.option(
    "--rollback",
    is_flag=True,
    help="Switch back to the previous model; takes only TARGET. With --to: on the devices that serve MODEL.",
)
@click.option(
    "--health-seconds",
    type=click.FloatRange(0),
    help="Let the model judge its golden images on the device for so long before it is activated.  "
    "[default: 60 with --to, else 0]",
)
@click.option(
    "--max-regression",
    metavar="PERCENT",
    help="Health: status 3 if the network is slower than the previous model's by more than this.  [default: 100%]",
)
@click.option("--offline", is_flag=True, help="Download the device's packages here, for a device without network.")
@WHEEL
@DEVICE_PYTHON
@JSON
def deploy(
    arguments: tuple[str, ...],
    to: Path | None,
    rollback: bool,
    json: bool,
    wheel: Path | None,
    device_python: str,
    offline: bool,
    **health: Any,
) -> None:
    """Deploy a packed model to a device over ssh, or to several, one after the other.

    The model is copied, verified on the device, and then activated in one step. The previous model is kept. If a step
    fails, the previous model stays active. TARGET is ssh://user@host, ssh://user@host:port or a name from
    `edgeall devices`. Log-in is by key; the host key must be in ~/.ssh/known_hosts.

    With --to, the work stops at the first device that fails. Devices that are done keep the new model. The same command
    again goes on.

    \b
    edgeall deploy model.tflite ssh://pi@raspberrypi.local
    edgeall deploy --rollback ssh://pi@raspberrypi.local
    edgeall deploy model.tflite --to clinics.txt
    """
    from ..console.progress import Progress
    from ..deploy.command import DeployRequest, deploy_to, deploy_to_all
    from ..deploy.environment import Install
    from ..deploy.fleet import fleet_text
    from ..deploy.release import deploy_text

    request = DeployRequest(arguments, to, rollback, install=Install(wheel, device_python, offline), **health)
    if to is None:
        result = deploy_to(request, Progress())
        print_result(result, json, lambda: deploy_text(result))
        note_research_use(json)
        return
    fleet, stopped = deploy_to_all(request, Progress())
    print_result(fleet, json, lambda: fleet_text(fleet))
    note_research_use(json)
    if stopped is not None:
        raise stopped


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
