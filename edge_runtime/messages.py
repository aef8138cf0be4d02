"""English texts that can be translated later: a program with a page in several languages has their template and values.

`edgeall.rig.language` translates them. Everywhere else they are the English text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Message(str):
    """An English text that can be translated later: ``template`` with its ``values``, and for a plural its ``one``."""

    __slots__ = ("number", "one", "template", "values")
    template: str
    values: Mapping[str, Any]
    one: str | None
    number: int


def message(template: str, **values: object) -> Message:
    """A text with ``{names}`` of values, to be translated when it is shown. Values may be messages themselves."""
    made = Message(template.format(**values) if values else template)
    made.template, made.values, made.one, made.number = template, values, None, 0
    return made


def plural(one: str, many: str, count: int, **values: object) -> Message:
    """The same with a form for one and a form for other counts, with ``{count}`` among the values."""
    made = message(one if count == 1 else many, count=count, **values)
    made.template, made.one, made.number = many, one, count
    return made


def N_(text: str) -> str:
    """Mark a text for translation that becomes a message, or is translated, elsewhere."""
    return text


def as_message(text: str) -> Message:
    """A text, such as an error's, as a value of another message: with its own template, or as it is."""
    return text if isinstance(text, Message) else message(text)
