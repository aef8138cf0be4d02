"""What README and the guide tell people to type exists; what exists is told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commandline import leaves

PAGES = ("README.md", "docs/guide.md")


def commands(text: str) -> list[list[str]]:
    """The arguments of every ``edgeall ...`` line inside a code block."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("edgeall ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("page", PAGES)
def test_every_documented_command_line_parses(repository: Path, page: str) -> None:
    known = leaves()
    lines = commands((repository / page).read_text(encoding="utf-8"))
    assert lines
    for arguments in lines:
        name = tuple(arguments[:2]) if tuple(arguments[:2]) in known else tuple(arguments[:1])
        known[name].make_context(" ".join(name), arguments[len(name) :], obj={})


def test_the_guide_names_every_command(repository: Path) -> None:
    text = (repository / "docs/guide.md").read_text(encoding="utf-8")
    assert [name for name in leaves() if f"edgeall {' '.join(name)}" not in text] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_somewhere(repository: Path, page: str) -> None:
    text = (repository / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    for target in targets:
        assert ((repository / page).parent / target).exists(), target
