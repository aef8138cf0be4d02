"""`edgeall web`."""

from __future__ import annotations

from pathlib import Path

import click

from ..edge_runtime.errors import UsageError
from .options import FILE, JSON, REQUIRE_SIGNATURE, command
from .output import note, note_research_use, print_result


@command("web")
@click.argument("model", type=FILE, required=False)
@click.option("--out", type=FILE, help="Folder of the app: new, empty, or an earlier app, which is replaced.")
@click.option(
    "--litertjs",
    type=FILE,
    metavar="DIR",
    help="The npm package @litertjs/core: its .tgz file, or the unpacked folder.  [default: fetched once]",
)
@REQUIRE_SIGNATURE
@click.option("--serve", is_flag=True, help="Serve the app to the browsers of this machine, for trying it.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="Port of --serve; 0 takes a free one.")
@JSON
@click.pass_context
def web(
    ctx: click.Context,
    /,
    model: Path | None,
    out: Path | None,
    litertjs: Path | None,
    require_signature: Path | None,
    serve: bool,
    port: int,
    json: bool,
) -> None:
    """Write an app that runs a packed model in any browser, also offline: a folder of static files.

    \b
    edgeall web model.tflite --out app
    edgeall web model.tflite --serve

    The app also finds and measures cells, as `edgeall cells` does; MODEL may be a segmentation model that finds them.
    With --serve and without MODEL, the app in --out is served as it is. The page verifies the model before its first
    answer; with --require-signature, also its signature.
    """
    from ..browser.build import is_app, write_app
    from ..browser.serve import serve as serve_app
    from ..console.tables import record
    from ..edge_runtime.tools.atomic import scratch

    if out is None:
        if not serve:
            raise UsageError("an app needs --out DIR", hint="or use --serve, which needs no folder")
        out = ctx.with_resource(scratch()) / "app"
    if model is not None:
        app = write_app(model, out, public_key=require_signature, litertjs=litertjs)
        print_result(app.to_json(), json, lambda: record(app.to_json()))
    elif not is_app(out):
        raise UsageError(f"{out}: no app of edgeall" if out.exists() else "MODEL is missing", hint="give MODEL")
    note_research_use(json)
    if serve:
        serve_app(out, port, note)
