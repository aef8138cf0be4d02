"""Finds the variables of a layer in the formats that Keras stores them in."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import DataError

ALIASES = {"depthwise_kernel": ("depthwise_kernel", "kernel")}
"""Names that versions of Keras give to a variable, by its name in Keras 2."""
MAX_VARIABLE_BYTES = 2_000_000_000
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
"""The group of a model's layers in a ``.keras`` file; Keras 2.12 used the second name."""


@dataclass(frozen=True)
class Place:
    """Where a layer is in the model.

    Attributes:
        names: of the nested models around it, from outside, and of the layer.
        keys: the same as groups of a ``.keras`` file, such as ``conv2d_1``.
    """

    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def inside(self, name: str, key: str) -> Place:
        return Place((*self.names, name), (*self.keys, key))


class Weights(ABC):
    """The variables in one file."""

    @abstractmethod
    def variables(self, place: Place, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The variables of a layer.

        Args:
            place: of the layer.
            names: of its variables in Keras 2, in the order of its `get_weights`.

        Raises:
            DataError: they are not in the file.
        """


class ArchiveWeights(Weights):
    """``model.weights.h5`` of a ``.keras`` file: numbered variables by the class of each layer."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def variables(self, place: Place, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        group = self._file
        for key in place.keys:
            container = next((name for name in _CONTAINERS if name in group), "")
            group = _child(_child(group, container, self._path, place), key, self._path, place)
        group = _child(group, "vars", self._path, place)
        written = group.attrs.get("name")  # Keras 3 writes the layer's name
        if written is not None and str(written) != place.names[-1]:
            raise DataError(
                f"{self._path}: the weights of layer {place.names[-1]} are those of {written}",
                hint="save the model again",
            )
        return {name: _array(group, str(index), self._path, place) for index, name in enumerate(names)}


class LegacyWeights(Weights):
    """``model_weights`` of an ``.h5`` file: named variables by the outermost layer."""

    def __init__(self, group: Any, path: Path) -> None:
        self._group, self._path = group, path

    def variables(self, place: Place, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        group = _child(self._group, place.names[0], self._path, place)
        listed = [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs["weight_names"]]
        own = place.names[-1]
        found = [name for name in listed if _layer_of(name) == own or _layer_of(name).endswith(f"/{own}")]
        if len(place.names) == 1:
            found = listed
        return match(
            {_variable_of(name): _array(group, name, self._path, place) for name in found}, names, self._path, place
        )


def match(found: Mapping[str, NDArray[Any]], names: Iterable[str], path: Path, place: Place) -> dict[str, NDArray[Any]]:
    """The variables under their names in Keras 2. Raises DataError for a missing one."""
    result = {}
    for name in names:
        known = next((alias for alias in ALIASES.get(name, (name,)) if alias in found), None)
        if known is None:
            raise _missing(path, place, name)
        result[name] = found[known]
    return result


def snake_case(name: str) -> str:
    """The name of a class as a group of a ``.keras`` file."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def group_keys(classes: Iterable[str]) -> list[str]:
    """The group of each layer of a model, by their classes in order."""
    counts: dict[str, int] = {}
    keys = []
    for name in map(snake_case, classes):
        counts[name] = counts.get(name, -1) + 1
        keys.append(f"{name}_{counts[name]}" if counts[name] else name)
    return keys


def _layer_of(weight: str) -> str:
    return weight.rpartition("/")[0]


def _variable_of(weight: str) -> str:
    return weight.rpartition("/")[2].partition(":")[0]


def _child(group: Any, name: str, path: Path, place: Place) -> Any:
    """A member of a group. Links to other files are not followed."""
    parts = [part for part in name.split("/") if part]
    if not parts:
        raise _missing(path, place)
    for part in parts:
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise _missing(path, place)
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{path}: layer {place.names[-1]}: its weights are a link to another place")
        group = group[part]
    return group


def _array(group: Any, name: str, path: Path, place: Place) -> NDArray[Any]:
    found = _child(group, name, path, place)
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise DataError(f"{path}: layer {place.names[-1]}: its weights are not stored in the file")
    if found.dtype.kind not in "fiu" or found.nbytes > MAX_VARIABLE_BYTES:
        raise DataError(f"{path}: layer {place.names[-1]}: weights of type {found.dtype} and {found.nbytes:,} bytes")
    return np.asarray(found[()])


def _missing(path: Path, place: Place, name: str = "") -> DataError:
    what = f"the variable {name} of layer" if name else "the weights of layer"
    return DataError(f"{path}: {what} {'/'.join(place.names)} are not in the file", hint="save the whole model again")
