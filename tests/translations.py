"""The texts of the rig in other languages: ``python tests/translations.py`` updates and compiles the catalogues.

It collects the texts from the Python files, templates and scripts of ``rig/`` into ``rig/locale/*/LC_MESSAGES/rig.po``,
where a translator fills the new ones in, and compiles them to ``rig.mo``, which the program reads.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from jinja2.ext import babel_extract

from edgeall.rig.language import DOMAIN, LANGUAGES, LOCALE, SOURCE
from edgeall.rig.web.display import script_texts

PACKAGE = Path(__file__).resolve().parents[1]
RIG = PACKAGE / "rig"
SINGLE, PLURAL = ("_", "N_", "gettext", "message"), ("ngettext", "plural")
COMMAND_LINE: dict[str, tuple[str, ...]] = {
    "rig/serve.py": (),
    "rig/service.py": (),
    "rig/capture/slide.py": (),
    "rig/record/backup.py": ("back_up", "restore", "_check_target", "_copy", "_check_same"),
    "rig/record/backup_zip.py": ("restore_zip",),
    "rig/record/lock.py": (),
    "rig/record/ome.py": ("_metadata",),
    "rig/record/record.py": ("__init__",),
    "rig/snapshot.py": ("__post_init__",),
    "rig/web/access.py": ("add_user", "remove_user", "form_key"),
    "rig/web/address.py": (),
    "rig/web/certificate.py": (),
    "rig/web/page.py": ("research_use_note",),
    # The app is written by a command, too.
    "browser/build.py": ("_check_replaceable", "_replace"),
    "browser/runtime.py": ("_fetched",),
    "browser/serve.py": (),
    # What only a command asks of an adaptation.
    "edge_runtime/adaptation/adapt.py": ("require_better", "_warnings", "_check", "_open"),
    "edge_runtime/adaptation/learn.py": ("_learn_unlabelled",),
    "edge_runtime/adaptation/site.py": ("_labelled",),
    "edge_runtime/adaptation/verdict.py": (),
    "edge_runtime/adaptation/write.py": ("_card", "_change"),
    "edge_runtime/tools/archive.py": (),
    "edge_runtime/tools/device.py": ("condition_warnings",),
    "console/tables.py": (),
    "edge_runtime/tools/decisions.py": (),
    "edge_runtime/tools/explain.py": ("dense_head", "__init__", "draw", "_weights", "_values", "_drawing"),
    "edge_runtime/pipeline.py": ("expand",),
    "edge_runtime/images.py": ("not_an_image", "refuse_inside"),
    # A model that cannot be opened stops the rig when it starts. Files that it opens later are those that it has opened
    # before, or has written: their digests are compared first.
    "edge_runtime/bundle.py": (),
    "edge_runtime/classifier.py": (),
    "edge_runtime/drift.py": (),
    "edge_runtime/exemplars.py": (),
    "edge_runtime/flatbuffer.py": (),
    "edge_runtime/foreign.py": (),
    "edge_runtime/interpreter.py": ("load", "runtime_package"),
    "edge_runtime/manifest.py": ("check_manifest", "_bad", "_input", "_take", "_choice", "_texts", "_objects"),
    "edge_runtime/masks.py": (),
    "edge_runtime/network.py": (),
    "edge_runtime/ood.py": (),
    "edge_runtime/probe.py": (),
    "edge_runtime/segmenter.py": ("__init__", "from_bundle", "mask_index"),
    "edge_runtime/signature.py": (),
    "edge_runtime/tasks.py": ("_compare_mask",),
    "edge_runtime/vision/finder.py": ("open_finder",),
    "edge_runtime/vision/quality.py": (),
    "edge_runtime/vision/scale.py": ("red_cell_from",),
}
"""Files that the rig reaches, or some of their functions, whose errors only the command line shows. They stay in
English."""
MADE = datetime(2026, 11, 30, tzinfo=timezone.utc)
"""A constant: a catalogue changes only with its texts."""
Text = str | tuple[str, str]
"""A text, or its forms for one and for several."""


def modules() -> Iterator[tuple[str, str]]:
    """The modules whose texts a page can show: name relative to the package, and source."""
    for file in sorted(reached(RIG)):
        yield file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8")


def reached(folder: Path) -> set[Path]:
    """The modules of a folder, and all of the package that they import, also indirectly or late."""
    found: set[Path] = set()
    waiting = set(folder.rglob("*.py"))
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= set(imported(file)) - found
    return found


def imported(file: Path) -> Iterator[Path]:
    """The modules of the package that a module imports. Inside the package imports are relative."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            place = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names = (place.with_suffix(".py"), *(place / f"{each.name}.py" for each in node.names))
            yield from (each for each in names if each.is_file())


def texts() -> dict[Text, set[str]]:
    """All texts with the files, relative to ``rig/`` or to the package, that use them."""
    found: dict[Text, set[str]] = {}
    for name, source in modules():
        for text in in_python(source, command_line(name)):
            found.setdefault(text, set()).add(name.removeprefix("rig/"))
    for file in sorted(RIG.rglob("templates/*.html")):
        keywords = {"_": None, "ngettext": (1, 2)}
        with open(file, "rb") as template:
            for _, function, text, _ in babel_extract(template, keywords, (), {"encoding": "utf-8"}):
                strings = [each for each in (text if isinstance(text, tuple) else (text,)) if each is not None]
                if strings:
                    each = (strings[0], strings[1]) if function == "ngettext" else strings[0]
                    found.setdefault(each, set()).add(file.relative_to(RIG).as_posix())
    for text in script_texts():
        found.setdefault(text, set()).add("web/static")
    return found


def command_line(name: str) -> tuple[str, ...] | None:
    """Functions of a module whose errors only the command line shows; None for all of them."""
    found = COMMAND_LINE.get(name)
    return None if found == () else found or ()


def in_python(source: str, command_line: tuple[str, ...] | None = ()) -> Iterator[Text]:
    """The texts of a module: those that are marked, and the constant messages and hints of the errors of a page."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        constants = [_constant(each) for each in node.args] if isinstance(node, ast.Call) else []
        if _called(node) in PLURAL and len(constants) > 1 and constants[0] and constants[1]:
            yield constants[0], constants[1]
        elif _called(node) in SINGLE and constants and constants[0]:
            yield constants[0]
    for error in _errors(_shown(tree, command_line)):
        yield from filter(None, map(_constant, _told(error)))


def untranslatable(source: str, command_line: tuple[str, ...] | None = ()) -> list[str]:
    """Texts of a module that a page would show in English only: ``line: code``.

    They are the parts of an error's message or hint that are put together, or named, without `message` or `N_`; the
    text of a `message` likewise; and any other f-string that reads like a sentence.
    """
    tree = ast.parse(source)
    named: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Name):
                named.setdefault(target.id, []).append(node.value)
    shown = _shown(tree, command_line)
    found: list[ast.expr] = []
    for told in [each for error in _errors(shown) for each in _told(error)]:
        found += _plain(told, named) if _constant(told) is None else []
    for node in shown:
        if isinstance(node, ast.Call) and _called(node) == "message" and _constant(node.args[0]) is None:
            found += _plain(node.args[0], named)
        if isinstance(node, ast.JoinedStr) and node not in found and _reads(node):
            found.append(node)
    return sorted(f"{node.lineno}: {ast.unparse(node)}" for node in found)


_SENTENCE = re.compile(r"\b[a-z]{2,}[,;:.]? [a-z]{2,}\b")
_NO_SENTENCE = re.compile(r"<|\b(SELECT|WHERE|AND|IS|NULL|FROM)\b|filename=|Path=/")
"""HTML, SQL and headers of HTTP."""
_COMMAND = re.compile("pip |sudo ")


def _reads(node: ast.JoinedStr) -> bool:
    text = "".join(str(each.value) if isinstance(each, ast.Constant) else "\0" for each in node.values)
    return bool(_SENTENCE.search(text)) and not _NO_SENTENCE.search(text)


def _plain(node: ast.expr, named: dict[str, list[ast.expr]]) -> list[ast.expr]:
    """The strings in an expression, and in what its names are assigned, that are not marked. Values of calls are not
    looked at: `str.join` and formats give no texts."""
    if isinstance(node, ast.Call):
        return []
    if isinstance(node, ast.Constant):
        text = str(node.value)
        return [] if _COMMAND.match(text) or not re.search(r"[^\W\d_]{2}", text) else [node]
    if isinstance(node, ast.JoinedStr):
        words = "".join(str(each.value) for each in node.values if isinstance(each, ast.Constant))
        return [node] if re.search(r"[^\W\d_]{2}", words) else []
    if isinstance(node, ast.Name):
        return [text for value in named.get(node.id, ()) for text in _plain(value, {})]
    if isinstance(node, ast.BoolOp | ast.BinOp | ast.IfExp):
        parts = [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr)]
        kept = [each for each in parts if not (isinstance(node, ast.IfExp) and each is node.test)]
        return [text for each in kept for text in _plain(each, named)]
    return []


def _shown(tree: ast.Module, command_line: tuple[str, ...] | None) -> list[ast.AST]:
    """The nodes of a module without the functions of the command line, and without the errors of Python."""

    def is_silent(node: ast.AST) -> bool:
        of_python = _is_error(_called(node)) and hasattr(builtins, _called(node))
        return of_python or (isinstance(node, ast.FunctionDef) and node.name in (command_line or ()))

    silent = {id(each) for node in ast.walk(tree) if is_silent(node) for each in ast.walk(node)}
    return [] if command_line is None else [node for node in ast.walk(tree) if id(node) not in silent]


def _errors(shown: list[ast.AST]) -> Iterator[ast.Call]:
    """The calls among nodes that make an error of edgeall."""
    for node in shown:
        if isinstance(node, ast.Call) and _is_error(_called(node)):
            yield node
        if isinstance(node, ast.ClassDef) and _is_error(node.name):
            yield from (each for each in ast.walk(node) if isinstance(each, ast.Call) and _called(each) == "__init__")


def _is_error(name: str) -> bool:
    return name.endswith("Error")


def _told(error: ast.Call) -> list[ast.expr]:
    """An error's message and hint."""
    return [*error.args[:2], *(each.value for each in error.keywords if each.arg == "hint")]


def _called(node: ast.AST) -> str:
    """Name of the function that a call calls; empty for any other node."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _constant(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def po_file(language: str) -> Path:
    return LOCALE / language / "LC_MESSAGES" / f"{DOMAIN}.po"


def read_catalog(language: str) -> Catalog:
    with open(po_file(language), "rb") as file:
        return read_po(file, locale=language, domain=DOMAIN)


def compiled(catalog: Catalog) -> bytes:
    """The ``.mo`` file of a catalogue. Empty translations are left out."""
    file = io.BytesIO()
    write_mo(file, catalog)
    return file.getvalue()


def update(language: str) -> int:
    """Add new texts to a catalogue, remove those that are gone, and compile it; the number without a translation."""
    path = po_file(language)
    old = read_catalog(language) if path.exists() else Catalog(locale=language, domain=DOMAIN)
    new = Catalog(
        locale=language,
        domain=DOMAIN,
        header_comment=f"# Texts of the rig: {LANGUAGES[language]}.",
        project="edgeall",
        version="0",
        creation_date=MADE,
        revision_date=MADE,
        last_translator="edgeall",
        language_team=LANGUAGES[language],
        msgid_bugs_address="",
        fuzzy=False,
    )
    for text, files in sorted(texts().items(), key=lambda pair: str(pair[0])):
        known = old.get(text if isinstance(text, str) else text[0])
        kept = known.string if known is not None and known.id == text else None
        new.add(text, kept, locations=[(name, None) for name in sorted(files)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        write_po(file, new, width=120, omit_header=False, include_lineno=False)
    path.with_suffix(".mo").write_bytes(compiled(new))
    return sum(not all(forms(message.string)) for message in new if message.id)


def forms(string: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    """The forms of a translation; one empty form if there is none."""
    return (string,) if isinstance(string, str) else tuple(string or ("",))


if __name__ == "__main__":
    for code in LANGUAGES:
        if code != SOURCE:
            print(f"{code}: {update(code)} texts have no translation")
