"""`edgeall rig`, `rig-user` and `record`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console.progress import Progress
from ..edge_runtime.errors import UsageError
from .options import CELL_MODEL, FILE, INPUT_SIZE, JSON, LABELS, MEAN, RED_CELL_PX, STD, UM_PER_PX, command
from .output import note, note_research_use, print_result

if TYPE_CHECKING:
    from datetime import datetime


@click.group("rig-user")
def rig_user() -> None:
    """Manage the users of a rig's page."""


@click.group("record")
def record() -> None:
    """Verify, back up, restore, prune and export the record of a rig."""


@command("rig")
@click.argument("model", type=FILE, required=False)
@click.option(
    "--camera",
    metavar="SOURCE",
    help="picamera2, /dev/video0, a folder to watch, replay:PATH of images or a video, or simulated.",
)
@click.option("--record", type=FILE, metavar="DIR", help="Folder of the record: images, predictions and reviews.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:8000",
    help="Address of the page. An address beyond this machine requires --users.",
)
@click.option("--users", type=FILE, help="File of users, made by `edgeall rig-user`.")
@click.option(
    "--demo", is_flag=True, help="Use a simulated slide and the model for it, with a record in build/rig-demo."
)
@click.option(
    "--slide", metavar="SAMPLE", help="Start a slide of this sample at once; an open one of the same sample continues."
)
@click.option(
    "--exit-at-end",
    is_flag=True,
    help="With --camera replay:PATH: end the slide and the rig when the replay has ended.",
)
@CELL_MODEL
@RED_CELL_PX
@UM_PER_PX
@LABELS
@MEAN
@STD
@INPUT_SIZE
@click.option(
    "--litertjs",
    type=FILE,
    metavar="DIR",
    help="The npm package @litertjs/core, for the app that runs the model on a phone: its .tgz file, or the unpacked"
    " folder.  [default: what `edgeall web` has fetched]",
)
@click.option("--install-service", is_flag=True, help="Install as a systemd service; requires root.")
def rig(
    model: Path | None, camera: str | None, record: Path | None, demo: bool, install_service: bool, **settings: Any
) -> None:
    """Classify what a microscope's camera sees, record it, and show it on a page in the browser.

    \b
    edgeall rig --demo
    edgeall rig model.tflite --camera picamera2 --record slides
    """
    from ..edge_runtime.tasks import ForeignFacts
    from ..edge_runtime.vision.scale import red_cell_from
    from ..rig import serve as server

    if demo:
        model, camera = model or server.DEMO_MODEL, camera or server.SIMULATED
        record = record or Path("build/rig-demo")
    if model is None or camera is None or record is None:
        raise UsageError("a rig needs MODEL, --camera and --record", hint="or use --demo, which provides all three")
    note_research_use(False)
    settings["red_cell_px"] = red_cell_from(settings.pop("um_per_px"), settings["red_cell_px"])
    facts = ForeignFacts(*(settings.pop(name) for name in ("labels", "mean", "std", "input_size")))
    options = server.RigOptions(model, camera, record, facts=facts, **settings)
    if install_service:
        for command in server.install(options):
            print(command)
        return
    server.serve(options, note=note, opened=server.show if demo else lambda address: None)


@command("add", rig_user)
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["view", "operate"]),
    required=True,
    help="view: look only. operate: also start slides, capture and review.",
)
@click.option("--users", type=FILE, required=True, help="File of users; created if missing.")
@click.option("--force", is_flag=True, help="Replace an existing user.")
def rig_user_add(name: str, role: str, users: Path, force: bool) -> None:
    """Add a user. The password is asked for twice, or is the first line of stdin."""
    from ..rig.web.access import add_user

    if sys.stdin.isatty():
        from getpass import getpass

        try:
            note("password (it is not shown):")
            password = getpass("")
            note("the same password again:")
            again = getpass("")
        except EOFError:
            raise click.Abort from None
        if again != password:
            raise UsageError("the two passwords differ", hint="try again; nothing was changed")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    add_user(users, name, role, password, replace=force)
    note(f"{users}: added {name} with role {role}")


@command("rm", rig_user)
@click.argument("name")
@click.option("--users", type=FILE, required=True, help="File of users.")
def rig_user_rm(name: str, users: Path) -> None:
    """Remove a user. A running rig logs the user out at once."""
    from ..rig.web.access import remove_user

    remove_user(users, name)


@command("verify", record)
@click.argument("folder", type=FILE)
@click.option("--head", metavar="HASH", help="Head noted earlier; detects rows removed from the end.")
@JSON
@click.pass_context
def record_verify(ctx: click.Context, folder: Path, head: str | None, json: bool) -> None:
    """Find alterations of a record: changed, removed, inserted or reordered rows; missing or altered images.

    Rows removed from the end leave no trace in the record itself. Note the printed head elsewhere, and give it with
    --head later.
    """
    from ..rig.record.check import check, check_text

    found = check(folder, head, Progress())
    print_result(found.to_json(), json, lambda: check_text(found))
    ctx.exit(1 if found.problems else 0)


@command("prune", record)
@click.argument("folder", type=FILE)
@click.option("--before", type=click.DateTime(["%Y-%m-%d"]), required=True, help="Day in UTC, as 2026-01-31.")
@JSON
def record_prune(folder: Path, before: datetime, json: bool) -> None:
    """Remove images recorded before a day. The rows stay, and the removal is recorded."""
    from datetime import timezone

    from ..console.tables import record as facts
    from ..rig.record.record import Record

    with Record(folder, create=False) as opened:
        pruned = opened.prune_images(before.replace(tzinfo=timezone.utc))
    result = {"images": pruned.images, "freed_bytes": pruned.freed_bytes}
    print_result(result, json, lambda: facts(result))


@command("backup", record)
@click.argument("folder", type=FILE)
@click.option("--out", type=FILE, required=True, help="New or empty folder, on another disk. Or an older backup of it.")
@JSON
def record_backup(folder: Path, out: Path, json: bool) -> None:
    """Copy a record, also while a rig writes to it, and verify the copy.

    Into an older backup of the same record, only new images are copied. An interrupted backup is continued by the same
    command.
    """
    from ..console.tables import record as facts
    from ..rig.record.backup import back_up

    found = back_up(folder, out, Progress())
    print_result(found.to_json(), json, lambda: facts(found.to_json()))


@command("restore", record)
@click.argument("backup", type=FILE)
@click.option("--record", type=FILE, required=True, metavar="DIR", help="New or empty folder of the record.")
@JSON
def record_restore(backup: Path, record: Path, json: bool) -> None:
    """Make a record from a backup, a folder or the ZIP file of the rig's page, and verify it.

    `edgeall rig` then continues it.
    """
    from ..console.tables import record as facts
    from ..rig.record.backup import restore
    from ..rig.record.backup_zip import restore_zip

    found = (restore_zip if backup.is_file() else restore)(backup, record, Progress())
    print_result(found.to_json(), json, lambda: facts(found.to_json()))


@command("export", record)
@click.argument("folder", type=FILE)
@click.option(
    "--session", type=click.IntRange(1, 2**62), required=True, help="Number of the slide, as in its page /slides/2."
)
@click.option("--out", type=FILE, required=True, help="New or empty folder.")
@click.option("--ome-tiff", is_flag=True, help="Also the fields whose images were saved, as OME-TIFF with pixel size.")
@JSON
def record_export(folder: Path, session: int, out: Path, ome_tiff: bool, json: bool) -> None:
    """Export a slide: a table of frames, the images, and the reviewed images as a folder for `edgeall train`."""
    from ..console.tables import record as facts
    from ..rig.record.export import export_session
    from ..rig.record.record import Record

    with Record(folder, create=False) as opened:
        result = export_session(opened, session, out, ome_tiff=ome_tiff, progress=Progress())
    print_result(result, json, lambda: facts(result))
    note_research_use(json)


@command("report", record)
@click.argument("folder", type=FILE)
@click.option("--session", type=click.IntRange(1, 2**62), required=True, help="Number of the slide.")
@click.option("--out", type=FILE, required=True, metavar="PDF", help="New file.")
@click.option("--language", type=click.Choice(["en", "de", "fr", "es"]), default="en", help="Language of the report.")
@JSON
def record_report(folder: Path, session: int, out: Path, language: str, json: bool) -> None:
    """Write the report of a slide as a PDF: results with intervals, pictures by label, lines to sign.

    The header of the laboratory is a setting on the page of the rig.
    """
    from ..console.tables import record as facts
    from ..rig.language import speaking
    from ..rig.record.record import Record
    from ..rig.report.facts import report_facts
    from ..rig.report.pdf import report_pdf

    if out.exists():
        raise UsageError(f"--out {out}: already exists", hint="choose another name")
    with Record(folder, create=False) as opened, speaking(language):
        content = report_pdf(report_facts(opened, session))
    try:
        out.write_bytes(content)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}", hint="choose another name") from error
    result = {"out": str(out), "bytes": len(content)}
    print_result(result, json, lambda: facts(result))
    note_research_use(json)
