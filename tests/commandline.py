"""The commands of the command line, for the tests that walk over all of them."""

from __future__ import annotations

import click

from edgeall.cli import cli


def leaves(group: click.Group = cli, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """Every command that is no group, by its words: ``("data", "ls")``."""
    found: dict[tuple[str, ...], click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found |= leaves(command, (*at, name)) if isinstance(command, click.Group) else {(*at, name): command}
    return found
