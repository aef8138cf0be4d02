"""Results as frozen dataclasses: the fields are the keys of their JSON, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

R = TypeVar("R")


OPTIONAL = {"optional": True}
"""Metadata of a field that the JSON leaves out while it is None."""
SPREAD = {"spread": True}
"""Metadata of a field whose own keys stand among those of the object around it; none if it is None."""
EMPTY = {"empty": True}
"""Metadata of a field that is an empty object in the JSON while it is None."""
SPREAD_NULL = {"spread": True, "null": True}
"""As `SPREAD`, but if it is None each of its keys is null."""


@dataclass(frozen=True)
class Result:
    """A result that is printed or written as JSON."""

    @classmethod
    def read(cls: type[R], found: Mapping[str, Any]) -> R:
        """From what `to_json` wrote, see `from_json`."""
        return from_json(cls, found)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`: dataclasses become objects, tuples lists."""
        found: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = plain(getattr(self, item.name))
            if item.metadata.get("spread"):
                found |= value or (_nulls(type(self), item.name) if "null" in item.metadata else {})
            elif value is None and "empty" in item.metadata:
                found[item.name] = {}
            elif value is not None or "optional" not in item.metadata:
                found[item.metadata.get("key", item.name)] = value
        return found


def plain(value: Any) -> Any:
    """``value`` with dataclasses as dictionaries and tuples as lists."""
    if isinstance(value, Result):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({item.name: getattr(value, item.name) for item in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_json(kind: type[R], found: Mapping[str, Any]) -> R:
    """Read what `Result.to_json` wrote. Unknown keys are ignored.

    A key that an older version did not write gives the default of the field, or None.
    """
    hints: dict[str, Any] = get_type_hints(kind)
    values = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        key = item.metadata.get("key", item.name)
        if item.metadata.get("spread"):
            inner = _inner(hints[item.name])
            names = (own.name for own in dataclasses.fields(inner))
            has_any = any(found[name] is not None or "null" not in item.metadata for name in names if name in found)
            values[item.name] = from_json(inner, found) if has_any else None
        elif key in found:
            is_none = "empty" in item.metadata and not found[key]
            values[item.name] = None if is_none else _typed(hints[item.name], found[key])
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            values[item.name] = None
    return kind(**values)


def _inner(hint: Any) -> Any:
    """``X`` of ``X`` or ``X | None``."""
    return next(part for part in (*get_args(hint), hint) if part)


def _nulls(kind: type[Result], name: str) -> dict[str, None]:
    """The keys of a field that is None."""
    return dict.fromkeys(item.name for item in dataclasses.fields(_inner(get_type_hints(kind)[name])))


def _typed(kind: Any, value: Any) -> Any:
    """A plain value as the dataclass, list, tuple or dictionary of dataclasses that ``kind`` names.

    Of several dataclasses it is the one with the largest share of its keys in the value.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            return value
        return _reader(kind)(value)
    inner = [part for part in get_args(kind) if part not in (type(None), ...)]
    if isinstance(value, Mapping) and get_origin(kind) is dict:
        return {key: _typed(inner[-1], item) for key, item in value.items()}
    if isinstance(value, list) and get_origin(kind) in (list, tuple):
        return get_origin(kind)(_typed(inner[0], item) for item in value)
    kinds = [part for part in inner if dataclasses.is_dataclass(part)]
    if len(kinds) > 1 and isinstance(value, Mapping):
        return _typed(max(kinds, key=lambda each: _share(each, value)), value)
    return _typed(inner[0], value) if len(inner) == 1 and get_origin(kind) not in (dict, list, tuple) else value


def _reader(kind: Any) -> Callable[[Mapping[str, Any]], Any]:
    """`Result.read` of a dataclass, which some override; `from_json` for one that is not a `Result`."""
    return kind.read if issubclass(kind, Result) else lambda found: from_json(kind, found)


def _share(kind: Any, found: Mapping[str, Any]) -> float:
    keys = [item.metadata.get("key", item.name) for item in dataclasses.fields(kind)]
    return sum(key in found for key in keys) / len(keys)
