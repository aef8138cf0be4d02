"""`edgeall rig`, `rig-user` and `record`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..edge_runtime.errors import UsageError
from .options import FILE, JSON, command
from .output import note, note_research_use, print_result

if TYPE_CHECKING:
    from datetime import datetime


@click.group("rig-user")
def rig_user() -> None:
    """Who may log in to a rig's page."""


@click.group("record")
def record() -> None:
    """Check, thin out and export what a rig has recorded."""


@command("rig")
@click.argument("model", type=FILE, required=False)
@click.option(
    "--camera",
    metavar="SOURCE",
    help="picamera2, /dev/video0, a folder to watch, replay:PATH of images or a video, or simulated.",
)
@click.option("--record", type=FILE, metavar="DIR", help="Where all that is seen and said is kept.")
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:8000", help="Beyond this machine it needs --users.")
@click.option("--users", type=FILE, help="Who may log in: made by edgeall rig-user.")
@click.option("--demo", is_flag=True, help="A simulated slide, a model of its cells, a record in build/rig-demo.")
@click.option("--install-service", is_flag=True, help="Have systemd run it from now on; needs root.")
def rig(
    model: Path | None,
    camera: str | None,
    record: Path | None,
    listen: str,
    users: Path | None,
    demo: bool,
    install_service: bool,
) -> None:
    """Judge what a microscope's camera sees, keep a record, and show it on a page in the browser.

    \b
    edgeall rig --demo
    edgeall rig model.tflite --camera picamera2 --record slides
    """
    from ..rig import serve as room

    if demo:
        model, camera = model or room.DEMO_MODEL, camera or room.SIMULATED
        record = record or Path("build/rig-demo")
    if model is None or camera is None or record is None:
        raise UsageError("a rig needs MODEL, --camera and --record", hint="or --demo, which brings all three")
    note_research_use(False)
    if install_service:
        for command in room.install(model, camera, record, listen, users):
            print(command)
        return
    room.serve(model, camera, record, listen, users, note=note, opened=room.show if demo else lambda address: None)


@command("add", rig_user)
@click.argument("name")
@click.option("--role", type=click.Choice(["view", "operate"]), required=True, help="Look, or also act and review.")
@click.option("--users", type=FILE, required=True, help="The file; made when missing.")
@click.option("--force", is_flag=True, help="Give somebody who is there a new role and password.")
def rig_user_add(name: str, role: str, users: Path, force: bool) -> None:
    """Let somebody in; the password is the first line of stdin."""
    from ..rig.web.access import add_user

    if sys.stdin.isatty():
        from getpass import getpass

        note("password (it is not shown):")
        try:
            password = getpass("")
        except EOFError:
            raise click.Abort from None
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    add_user(users, name, role, password, replace=force)
    note(f"{name} may {role}: {users}")


@command("rm", rig_user)
@click.argument("name")
@click.option("--users", type=FILE, required=True, help="The file.")
def rig_user_rm(name: str, users: Path) -> None:
    """Let somebody in no longer; a running rig forgets them at once."""
    from ..rig.web.access import remove_user

    remove_user(users, name)


@command("verify", record)
@click.argument("folder", type=FILE)
@click.option("--head", metavar="HASH", help="A head noted earlier: shows that no row up to it was cut off.")
@JSON
@click.pass_context
def record_verify(ctx: click.Context, folder: Path, head: str | None, json: bool) -> None:
    """Find every alteration of a record: rows changed, removed, inserted or reordered; images missing or altered.

    Rows cut off at the end leave no trace in the record itself. Note the head that is printed, somewhere else, and give
    it with --head later.
    """
    from ..rig.record.check import as_json, check, check_text

    found = check(folder, head)
    print_result(as_json(found), json, lambda: check_text(found))
    ctx.exit(1 if found.problems else 0)


@command("prune", record)
@click.argument("folder", type=FILE)
@click.option("--before", type=click.DateTime(["%Y-%m-%d"]), required=True, help="UTC.")
@JSON
def record_prune(folder: Path, before: datetime, json: bool) -> None:
    """Remove images recorded before a day; rows stay, and the removal is recorded."""
    from datetime import timezone

    from ..console.tables import record as facts
    from ..rig.record.record import Record

    with Record(folder, create=False) as opened:
        pruned = opened.prune_images(before.replace(tzinfo=timezone.utc))
    result = {"images": pruned.images, "freed_bytes": pruned.freed_bytes}
    print_result(result, json, lambda: facts(result))


@command("export", record)
@click.argument("folder", type=FILE)
@click.option(
    "--session", type=click.IntRange(1, 2**62), required=True, help="Its number: of the slide's page, /slides/2."
)
@click.option("--out", type=FILE, required=True, help="A new or empty folder.")
@JSON
def record_export(folder: Path, session: int, out: Path, json: bool) -> None:
    """Write a session's frames as a table, its images, and the reviewed ones as a folder for `edgeall train`."""
    from ..console.tables import record as facts
    from ..rig.record.export import export_session
    from ..rig.record.record import Record

    with Record(folder, create=False) as opened:
        result = export_session(opened, session, out)
    print_result(result, json, lambda: facts(result))
    note_research_use(json)
