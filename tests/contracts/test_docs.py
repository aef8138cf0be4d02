"""The documentation: its commands parse, its links and file names exist, and it builds without a network."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import leaves

import edgeall

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("benchmarks/**/*.md"),
    ]
)
HOW_TO = sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/how-to/*.md"))


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """The arguments of every ``edgeall ...`` line inside a code block."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("edgeall ")]


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if commands(read(page))])
def test_every_documented_command_line_parses(page: str) -> None:
    known = leaves()
    for arguments in commands(read(page)):
        name = tuple(arguments[:2]) if tuple(arguments[:2]) in known else tuple(arguments[:1])
        known[name].make_context(" ".join(name), arguments[len(name) :], obj={})


def test_the_how_to_pages_name_every_command() -> None:
    text = "\n".join(map(read, HOW_TO))
    assert [name for name in leaves() if f"edgeall {' '.join(name)}" not in text] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", without_code(read(page))):
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("benchmarks/results/")])
def test_files_named_in_the_text_exist(page: str) -> None:
    """Inline code such as `train/data/split.py`, from the top folder of the repository."""
    folders = "benchmarks|browser|commands|console|deploy|docs|edge_runtime|models|optimize|rig|tests|train"
    names = re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", read(page))
    assert [name for name in names if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_page_cites_what_a_reader_does_not_have(page: str) -> None:
    assert re.findall(r"\.\./shared|\bDESIGN\b|\bANCHORS\b", read(page)) == []


def test_every_how_to_page_is_in_its_index() -> None:
    index = read("docs/how-to/index.md")
    assert [page for page in HOW_TO if f"({Path(page).name})" not in index and not page.endswith("index.md")] == []


def test_licence_and_citation() -> None:
    assert "Apache License\n" in read("LICENSE").splitlines(keepends=True)[1]
    assert f"\nversion: {edgeall.__version__}\nlicense: Apache-2.0\n" in read("CITATION.cff")


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs edgeall[docs]")
@pytest.mark.parametrize(
    "packages", ["edgeall edgeall.console", pytest.param("", marks=pytest.mark.long)], ids=["two packages", "all"]
)
def test_the_site_builds_and_needs_no_network(packages: str, tmp_path: Path) -> None:
    """Every page of text, and the reference of two packages or of all, which takes most of the time."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "DOCS_PACKAGES": packages}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference" / "python" / "edgeall.console.html").exists()
    pages = [page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")]
    assert len(pages) > len(HOW_TO)
    loaded = r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:|//)|<link[^>]*\shref=\"?(https?:|//)|class=\"?mermaid"
    assert [page[:200] for page in pages if re.search(loaded, page)] == []
