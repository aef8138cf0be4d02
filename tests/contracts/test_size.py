"""Limits of CONTRIBUTING.md that keep the code readable: lines of a file, lines and parameters of a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 8


def faults(source: str) -> Iterator[str]:
    """What in ``source`` is over a limit."""
    if (lines := source.count("\n")) > FILE_LINES:
        yield f"{lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            parameters = len(names) - (names[:1] in (["self"], ["cls"]))
            if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES:
                yield f"{node.name}: {lines} lines"
            if parameters > PARAMETERS:
                yield f"{node.name}: {parameters} parameters"


def test_no_file_and_no_function_is_over_a_limit(repository: Path) -> None:
    folders = [path.parent for path in repository.glob("*/__init__.py") if path.parent.name != "benchmarks"]
    files = [*repository.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    assert len(files) > 200
    found = {str(file.relative_to(repository)): list(faults(file.read_text(encoding="utf-8"))) for file in files}
    assert {name: over for name, over in found.items() if over} == {}


def test_what_is_over_a_limit_is_seen() -> None:
    long = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
    assert list(faults(long)) == [f"f: {FUNCTION_LINES + 1} lines"]
    wide = f"def g(self, {', '.join(f'p{n}' for n in range(PARAMETERS + 1))}): ...\n"
    assert list(faults(wide)) == [f"g: {PARAMETERS + 1} parameters"]
    assert list(faults("\n" * (FILE_LINES + 1))) == [f"{FILE_LINES + 1} lines"]
