"""`--config`: a TOML file gives the defaults of a command."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ..edge_runtime.errors import UsageError


def load_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take the defaults of the command from a TOML file. Raises UsageError for an unknown key."""
    if path is None:
        return
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error})") from error
    for key, known in _unknown_keys(ctx, ctx.find_root().command, table, ""):
        raise UsageError(f"{path}: no setting called {key}", hint=f"there are: {', '.join(known)}")
    for word in ctx.command_path.split()[1:]:
        table = table.get(word, {})
    # As text, like the command line's: click would cut 1.5 to an int, and take true for 1.
    ctx.default_map = {
        key.replace("-", "_"): [str(item) for item in value] if isinstance(value, list) else str(value)
        for key, value in table.items()
    }


def _unknown_keys(
    ctx: click.Context, command: click.Command, table: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, list[str]]]:
    """Each key of ``table`` that ``command`` does not have, and the keys that it has."""
    if not isinstance(command, click.Group):
        names = [str(p.name) for p in command.params if isinstance(p, click.Option) and p.expose_value]
        yield from ((prefix + key, names) for key in table if key.replace("-", "_") not in names)
        return
    for key, value in table.items():
        inner = command.get_command(ctx, key)
        if inner is not None and isinstance(value, dict):
            yield from _unknown_keys(ctx, inner, value, f"{prefix}{key}.")
        else:
            yield prefix + key, [f"[{prefix}{name}]" for name in sorted(command.list_commands(ctx))]
