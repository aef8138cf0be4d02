"""MkDocs hooks: pages that are made from other files of the repository.

The site also shows ``benchmarks/``, ``CONTRIBUTING.md`` and ``CHANGES.md``, a page for each package (mkdocstrings reads
the docstrings) and a page for the command line (from click). Links between these files work on GitHub and on the site.
"""

from __future__ import annotations

import configparser
import html
import importlib
import os
import posixpath
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "build" / "docs"
"""The Python files of the package as ``build/docs/edgeall``: for mkdocstrings, and to import the command line."""
OUTSIDE = {"benchmarks/README.md": "results/index.md", "CONTRIBUTING.md": "contributing.md", "CHANGES.md": "changes.md"}
"""Pages outside ``docs/``, by their place on the site; the files of ``benchmarks/results`` are added by `_outside`."""


def on_config(config: Any) -> Any:
    """Copy the sources, and fill the navigation's empty sections."""
    _copy_sources()
    sections = {
        "Methods": [f"methods/{path.name}" for path in sorted((ROOT / "docs/methods").glob("*.md"))],
        "Decisions": [f"decisions/{path.name}" for path in sorted((ROOT / "docs/decisions").glob("*.md"))],
        "Results": ["results/index.md", *(uri for uri in _outside().values() if re.match(r"results/(?!index)", uri))],
        "Python": [_reference(package) for package in _referenced()],
    }
    _fill(config.nav, sections)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in ``docs/``."""
    pages = {uri: (ROOT / path).read_text(encoding="utf-8") for path, uri in _outside().items()}
    pages["reference/cli.md"] = _command_line()
    pages |= {_reference(package): _package_page(package) for package in _referenced()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links that are relative to the repository; a file that is not on the site becomes plain text."""
    by_uri = {uri: path for path, uri in _outside().items()}
    here = by_uri.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewrite(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        uri = _outside().get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if uri is None:
            return text if (ROOT / path).exists() else match[0]
        return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{anchor or ''})"

    return re.sub(r"(?<!!)\[([^\[\]]+)\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)", rewrite, markdown)


def _outside() -> dict[str, str]:
    """Place on the site of each page outside ``docs/``, by its path in the repository."""
    results = sorted((ROOT / "benchmarks/results").glob("*.md"))
    return OUTSIDE | {f"benchmarks/results/{path.name}": f"results/{path.name}" for path in results}


def _fill(nav: list[Any], sections: dict[str, list[str]]) -> None:
    for entry in nav:
        for title, value in entry.items() if isinstance(entry, dict) else ():
            if value == []:
                entry[title] = sections[title]
            elif isinstance(value, list):
                _fill(value, sections)


# --- Python -----------------------------------------------------------------------------------------------------------


def _packages() -> list[str]:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return settings["options"]["packages"].split()


def _referenced() -> list[str]:
    """The packages that get a page: all, or those that DOCS_PACKAGES names, which is quicker."""
    return os.environ.get("DOCS_PACKAGES", "").split() or _packages()


def _folder(package: str) -> Path:
    return ROOT.joinpath(*package.split(".")[1:])


def _modules(package: str) -> list[str]:
    return [path.stem for path in sorted(_folder(package).glob("*.py")) if not path.stem.startswith("_")]


def _copy_sources() -> None:
    shutil.rmtree(SOURCES, ignore_errors=True)
    for package in _packages():
        folder = SOURCES.joinpath(*package.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        for path in _folder(package).glob("*.py"):
            shutil.copy(path, folder)


def _reference(package: str) -> str:
    return f"reference/python/{package}.md"


def _package_page(package: str) -> str:
    lines = [f"# {package}", "", f"::: {package}", "    options:", "      show_root_heading: false"]
    lines += ["      show_root_toc_entry: false", *([] if package == "edgeall" else ["      members: false"]), ""]
    for module in _modules(package):
        lines += [f"::: {package}.{module}", "    options:", "      heading_level: 2", ""]
    return "\n".join(lines)


# --- command line -----------------------------------------------------------------------------------------------------


def _command_line() -> str:
    sys.path.insert(0, str(SOURCES))
    try:
        group = importlib.import_module("edgeall.cli").cli
    finally:
        sys.path.remove(str(SOURCES))
    context = click.Context(group, info_name="edgeall", show_default=True)
    return "\n".join(["# Command line", "", *_command(group, context, 1)])


def _command(command: click.Command, context: click.Context, level: int) -> list[str]:
    """The Markdown of a command, and of its subcommands."""
    lines = [] if level == 1 else [f"{'#' * level} {context.command_path}", ""]
    lines += [*_help(command), "", "```text", context.get_usage().removeprefix("Usage: "), "```", ""]
    found = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    records = [record for record in found if record and record[1]]  # an argument without help is in the usage line
    if records:
        lines += ["| option | what it does |", "| --- | --- |"]
        lines += [f"| {_names(names)} | {_cell(text)} |" for names, text in records]
        lines += [""]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                inner = click.Context(child, info_name=name, parent=context, show_default=True)
                lines += _command(child, inner, level + 1)
    return lines


def _help(command: click.Command) -> list[str]:
    """The help text; paragraphs that click must not wrap become literal blocks."""
    lines = []
    for paragraph in (command.help or "").split("\f")[0].strip().split("\n\n"):
        literal = paragraph.startswith("\b\n")
        text = paragraph.removeprefix("\b\n")
        lines += ["```text", text, "```", ""] if literal else [_escaped(" ".join(text.split())), ""]
    return lines[:-1]


def _names(names: str) -> str:
    """``--name, -n TEXT`` as code."""
    return f"<code>{_escaped(names)}</code>".replace("|", "&#124;")


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "&#124;")


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, but for code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [part if part.startswith("`") else html.escape(part, quote=False) for part in parts]
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_\[\]])", r"\\\1", part) for part in plain)
