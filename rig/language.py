"""The language of pages and reports: English in the source, and gettext catalogues for German, French and Spanish.

A text is translated when it is shown, in the language of the request that shows it. Texts that are made before that, by
the station's threads or as errors, are a `Message`: English for logs and the command line, translated on a page.

`tests/translations.py` collects the texts from the source and compiles the catalogues.
"""

from __future__ import annotations

import gettext as catalogues
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from ..edge_runtime.messages import N_ as N_
from ..edge_runtime.messages import Message as Message
from ..edge_runtime.messages import as_message as as_message
from ..edge_runtime.messages import message as message
from ..edge_runtime.messages import plural as plural

LANGUAGES = {"en": "English", "de": "Deutsch", "fr": "Français", "es": "Español"}
"""Each language by its code, under its own name; the first one is the source's."""
SOURCE = "en"
LOCALE = Path(__file__).with_name("locale")
DOMAIN = "rig"
_current: ContextVar[str] = ContextVar("language", default=SOURCE)


def gettext(text: str) -> str:
    """A text in the current language; `Message` with its values."""
    if isinstance(text, Message):
        return _message(text)
    return _catalogue(_current.get()).gettext(text) if text else ""


def ngettext(one: str, many: str, count: int) -> str:
    """The form of a text for ``count``, in the current language."""
    return _catalogue(_current.get()).ngettext(one, many, count)


def localized(number: str) -> str:
    """A number with the decimal sign of the current language."""
    return number if _current.get() == SOURCE else number.replace(".", ",")


def current() -> str:
    """Code of the current language."""
    return _current.get()


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Use a language of `LANGUAGES` within a ``with`` statement."""
    token = _current.set(language)
    try:
        yield
    finally:
        _current.reset(token)


def use(language: str) -> None:
    """Use a language of `LANGUAGES` from now on, in this context: a request, or a thread."""
    _current.set(language)


def accepted(header: str) -> str:
    """The best language for an ``Accept-Language`` header. Source: RFC 9110, 12.5.4."""
    wanted: list[tuple[float, str]] = []
    for part in header.split(",")[:20]:
        name, _, weight = part.partition(";")
        code = name.strip().lower().partition("-")[0]
        try:
            wanted.append((float(weight.strip().removeprefix("q=") or 1), code))
        except ValueError:
            continue
    found = [code for weight, code in sorted(wanted, key=lambda pair: -pair[0]) if code in LANGUAGES and weight > 0]
    return found[0] if found else SOURCE


def _message(text: Message) -> str:
    template = gettext(text.template) if text.one is None else ngettext(text.one, text.template, text.number)
    values = {name: gettext(value) if isinstance(value, Message) else value for name, value in text.values.items()}
    return template.format(**values) if values else template


@cache
def _catalogue(language: str) -> catalogues.NullTranslations:
    if language == SOURCE:
        return catalogues.NullTranslations()
    return catalogues.translation(DOMAIN, LOCALE, [language])
