"""SavedModels of Keras 2: the configuration in ``keras_metadata.pb`` and the variables of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...edge_runtime.errors import DataError
from .weights import Place, Weights, match

if TYPE_CHECKING:
    from .archive import Opened

PTQ = "without its Keras layers it can be quantized after training only: `edgeall pack {path} --scheme ptq-int8`"


def open_saved_model(path: Path) -> Opened:
    """Open a SavedModel that Keras 2 wrote with ``model.save``. Its functions are not loaded.

    Raises:
        DataError: not a SavedModel, or one without Keras' configuration, as ``model.export`` writes.
    """
    from ..keras_compat import object_graph, saved_metadata, tf
    from .archive import EXPORT, Opened, parse_config

    if not (path / "saved_model.pb").is_file():
        raise DataError(f"{path}: a folder without saved_model.pb", hint="give a SavedModel, a .keras or an .h5 file")
    try:
        metadata = saved_metadata((path / "keras_metadata.pb").read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: a SavedModel without Keras' layers, as model.export writes it",
            hint=f"{PTQ.format(path=path)}; for all of edgeall, {EXPORT}",
        ) from error
    except Exception as error:  # protobuf's DecodeError, which its versions define in different places
        raise DataError(f"{path}/keras_metadata.pb: damaged", hint="copy the folder again") from error
    root = [node for node in metadata.nodes if node.node_path == "root"]
    if not root:
        raise DataError(f"{path}: holds no Keras model", hint=PTQ.format(path=path))
    config = parse_config(root[0].metadata, path)
    paths = {node.node_path: json.loads(node.metadata) for node in metadata.nodes if node.identifier in _LAYERS}
    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    graph = object_graph(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    return Opened(path, config, "2", CheckpointWeights(reader, graph, paths, path))


_LAYERS = ("_tf_keras_layer", "_tf_keras_input_layer", "_tf_keras_network", "_tf_keras_sequential", "_tf_keras_model")
"""What Keras calls the objects that are layers."""


class CheckpointWeights(Weights):
    """The variables of a checkpoint, found by the attributes that lead to them from the model.

    Args:
        reader: TensorFlow's reader of checkpoints.
        graph: the object graph of the checkpoint.
        layers: the configuration of each layer by its path, such as ``root.layer-1.layer-2``.
        path: of the SavedModel, for messages.
    """

    def __init__(self, reader: Any, graph: Any, layers: dict[str, dict[str, Any]], path: Path) -> None:
        self._reader, self._graph, self._path = reader, graph, path
        self._paths = {(at.rpartition(".")[0], str(layer.get("name"))): at for at, layer in layers.items()}

    def variables(self, place: Place, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        at = "root"
        for name in place.names:
            found = self._paths.get((at, name))
            if found is None:
                raise DataError(f"{self._path}: the layer {'/'.join(place.names)} is not in the checkpoint")
            at = found
        node = self._graph.nodes[0]
        for part in at.split(".")[1:]:
            node = self._child(node, part, place)
        values = {}
        for child in node.children:
            attributes = self._graph.nodes[child.node_id].attributes
            if attributes and attributes[0].name == "VARIABLE_VALUE":
                values[child.local_name] = np.asarray(self._reader.get_tensor(attributes[0].checkpoint_key))
        return match(values, names, self._path, place)

    def _child(self, node: Any, name: str, place: Place) -> Any:
        for child in node.children:
            if child.local_name == name:
                return self._graph.nodes[child.node_id]
        raise DataError(f"{self._path}: the layer {'/'.join(place.names)} is not in the checkpoint")
