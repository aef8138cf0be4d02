"""Turns the configuration of a Keras model, nested models included, into one flat `graph.Network`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...edge_runtime.errors import DataError
from .archive import Opened, open_keras
from .calls import Call, call_of
from .graph import INPUT, Network, Node
from .operations import is_operation, join_channels, operation
from .refusal import check_layer
from .twins import variable_names
from .weights import Place, group_keys

MODELS = ("Functional", "Sequential", "Model")


def read_network(path: Path) -> Network:
    """Read a ``.keras``, ``.h5`` or SavedModel of Keras 2 or 3 as plain data.

    Raises:
        DataError: not such a file, damaged, or with a layer that has no twin in `twins`; the layer is named.
    """
    opened = open_keras(path)
    try:
        return _Reader(opened).read()
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: its configuration is not what Keras writes ({error!r})", hint="save the model again"
        ) from error


@dataclass
class _Layer:
    """One layer of one model in the file: its configuration, place, calls, and variables once they are read."""

    config: Mapping[str, Any]
    kind: str
    place: Place
    calls: list[Call]
    variables: Mapping[str, Any] | None = None


class _Reader:
    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.path = opened.path
        self.nodes: list[Node] = []
        self.names: set[str] = set()

    def read(self) -> Network:
        config = self.opened.config
        if config["class_name"] not in MODELS:
            check_layer(config, self.path)
            raise DataError(f"{self.path}: its model is a {config['class_name']}, which is code of its own")
        output = self._model(config, None, Place())
        name = str(config["config"].get("name", "model"))
        return Network(name, self.opened.version, (), output).with_nodes(join_channels(self.nodes))

    def _model(self, config: Mapping[str, Any], feed: str | None, place: Place) -> str:
        """Add the nodes of a model that takes the output of the node ``feed``; returns the node of its output."""
        if config["class_name"] == "Sequential":
            return self._sequential(config["config"], feed, place)
        return self._functional(config["config"], feed, place)

    def _sequential(self, config: Mapping[str, Any], feed: str | None, place: Place) -> str:
        layers = self._layers(config["layers"], place)
        for layer in layers:
            if layer.kind == INPUT:
                feed = feed or self._input(layer.config)
                continue
            feed = feed or self._input(layer.config, config.get("build_input_shape"))
            feed = self._call(layer, Call((feed,), None))
        if feed is None:
            raise DataError(f"{self.path}: its model has no layer")
        return feed

    def _functional(self, config: Mapping[str, Any], feed: str | None, place: Place) -> str:
        layers = {str(one.place.names[-1]): one for one in self._layers(config["layers"], place)}
        starts, ends = _references(config["input_layers"]), _references(config["output_layers"])
        if len(starts) != 1 or len(ends) != 1:
            what = f"{len(starts)} inputs and {len(ends)} outputs"
            raise DataError(
                f"{self.path}: {'/'.join(place.names) or 'the model'} has {what}; only one of each is supported"
            )
        start = layers[starts[0][0]]
        done: dict[tuple[str, int], str] = {(starts[0][0], 0): feed or self._input(start.config)}
        first = _first_calls(layers, ends)
        waiting = [(name, index) for name, layer in layers.items() for index in range(len(layer.calls))]
        while waiting:
            left = []
            for name, index in waiting:
                layer = layers[name]
                call, found = layer.calls[index], []
                for source, number in call.references:
                    found.append(done.get((source, number - first.get(source, 0))))
                if any(one is None for one in found):
                    left.append((name, index))
                    continue
                done[name, index] = self._call(layer, replace(call, inputs=tuple(str(one) for one in found)))
            if len(left) == len(waiting):
                raise DataError(
                    f"{self.path}: layer {left[0][0]}: its input does not exist", hint="save the model again"
                )
            waiting = left
        return done[ends[0][0], ends[0][1] - first.get(ends[0][0], 0)]

    def _layers(self, configs: Sequence[Mapping[str, Any]], place: Place) -> list[_Layer]:
        """The layers of one model, with their places. Operations of Keras 3 are no layers and have no weights."""
        for config in configs:
            check_layer(config, self.path)
        stored = [config for config in configs if not is_operation(config)]
        keys = dict(zip(map(id, stored), group_keys(config["class_name"] for config in stored), strict=True))
        found = []
        for config in configs:
            name = str(config.get("name") or config["config"].get("name", config["class_name"]))
            calls = [call_of(one) for one in config.get("inbound_nodes", ())]
            found.append(
                _Layer(config["config"], config["class_name"], place.inside(name, keys.get(id(config), "")), calls)
            )
            if config["class_name"] in MODELS:
                found[-1].config = config
        return found

    def _call(self, layer: _Layer, call: Call) -> str:
        if layer.kind in MODELS:
            if len(call.inputs) != 1:
                raise DataError(f"{self.path}: the nested model {layer.place.names[-1]} has {len(call.inputs)} inputs")
            return self._model(layer.config, call.inputs[0], layer.place)
        name = layer.place.names[-1]
        kind, config = operation(layer.kind, layer.config, call, f"{self.path}: layer {name}")
        if layer.variables is None:
            names = variable_names(kind, config, f"{self.path}: layer {name}")
            layer.variables = self.opened.weights.variables(layer.place, names) if names else {}
        return self._add(Node(name, kind, config, call.inputs, layer.variables, name))

    def _input(self, config: Mapping[str, Any], build_shape: Any = None) -> str:
        shape = config.get("batch_shape") or config.get("batch_input_shape") or build_shape
        shape = shape.get("items") if isinstance(shape, Mapping) else shape
        if not isinstance(shape, Sequence) or len(shape) != 4 or shape[-1] not in (1, 3):
            raise DataError(
                f"{self.path}: its input is {shape}, not one image (any, height, width, 3) or grey (…, 1)",
                hint="images must come with channels last",
            )
        return self._add(Node("image", INPUT, {"shape": tuple(shape[1:])}, (), {}, str(config.get("name", "input"))))

    def _add(self, node: Node) -> str:
        base = node.name.replace("/", "_")
        name, number = base, 0
        while name in self.names:
            number += 1
            name = f"{base}_{number}"
        self.names.add(name)
        self.nodes.append(replace(node, name=name))
        return name


def _first_calls(layers: Mapping[str, _Layer], ends: Sequence[tuple[str, int]]) -> dict[str, int]:
    """How many calls of each nested model precede those in the configuration.

    Keras 2 counts the call that built a nested model, which is not stored.
    """
    highest: dict[str, int] = dict(ends)
    for layer in layers.values():
        for call in layer.calls:
            for name, index in call.references:
                highest[name] = max(highest.get(name, 0), index)
    return {
        name: 1
        for name, index in highest.items()
        if name in layers and layers[name].kind in MODELS and index >= len(layers[name].calls)
    }


def _references(found: Any) -> list[tuple[str, int]]:
    """The layers and call numbers in ``input_layers`` or ``output_layers``."""
    if isinstance(found, Mapping):
        found = found.get("items", list(found.values()))
    if isinstance(found[0], str):
        found = [found]
    return [(str(one[0]), int(one[1])) for one in (_plain(item) for item in found)]


def _plain(item: Any) -> Any:
    return item["items"] if isinstance(item, Mapping) else item
