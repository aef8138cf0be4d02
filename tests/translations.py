"""The texts of the rig in other languages: ``python tests/translations.py`` updates and compiles the catalogues.

It collects the texts from the Python files, templates and scripts of ``rig/`` into ``rig/locale/*/LC_MESSAGES/rig.po``,
where a translator fills the new ones in, and compiles them to ``rig.mo``, which the program reads.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from jinja2.ext import babel_extract

from edgeall.rig.language import DOMAIN, LANGUAGES, LOCALE, SOURCE
from edgeall.rig.web.display import script_texts

RIG = Path(__file__).resolve().parents[1] / "rig"
SINGLE, PLURAL = ("_", "N_", "gettext", "message"), ("ngettext", "plural")
SHOWN = ("*_page.py", "exports.py", "app.py", "errors.py", "context.py", "station.py", "open_slide.py", "record.py")
SHOWN += ("count.py", "queries.py", "reader.py", "chain.py", "lessons.py", "model.py")
"""Files whose errors a page shows: their constant messages and hints are texts too."""
MADE = datetime(2026, 11, 30, tzinfo=timezone.utc)
"""A constant: a catalogue changes only with its texts."""
Text = str | tuple[str, str]
"""A text, or its forms for one and for several."""


def texts() -> dict[Text, set[str]]:
    """All texts with the files, relative to ``rig/``, that use them."""
    found: dict[Text, set[str]] = {}
    for file in sorted(RIG.rglob("*.py")):
        name = file.relative_to(RIG).as_posix()
        for text in in_python(file.read_text(encoding="utf-8"), errors=any(map(file.match, SHOWN))):
            found.setdefault(text, set()).add(name)
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


def in_python(source: str, *, errors: bool) -> Iterator[Text]:
    """The texts of a module; with ``errors`` also the constant messages and hints of the errors that it makes."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        constants = [each.value if isinstance(each, ast.Constant) else None for each in node.args]
        if name in PLURAL and len(constants) > 1 and isinstance(constants[0], str) and isinstance(constants[1], str):
            yield constants[0], constants[1]
        elif constants and isinstance(constants[0], str) and (name in SINGLE or (errors and name.endswith("Error"))):
            yield constants[0]
        if errors and name.endswith("Error"):
            for keyword in node.keywords:
                if keyword.arg == "hint" and isinstance(keyword.value, ast.Constant) and keyword.value.value:
                    yield str(keyword.value.value)


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
