"""An ONNX graph whose sizes are all known: shapes, constants and makers of its tensors, by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters.rewriting import Writer
from rfdetr_edge.errors import ArtifactError

Shape = tuple[int, ...]
_OPEN = "the size of {} in the graph is open; export the checkpoint again with --batch 1"


class StaticGraph:
    """What can be asked about the tensors of a model, which is not changed.

    Raises ArtifactError for a model with a size that is open.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.outputs = frozenset(value.name for value in model.graph.output)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self._shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self._shapes |= {value.name: _shape(value) for value in values}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        missing = [name for name in self._makers if name and name not in self._shapes]
        if missing:
            raise ArtifactError(_OPEN.format(missing[0]))

    def shape(self, name: str) -> Shape:
        """Of a tensor."""
        return self._shapes[name]

    def constant(self, name: str) -> NDArray[Any] | None:
        """The values of a tensor that the file holds; None for others."""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def maker(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The node that gives a tensor; None for another kind of node, and for what none gives."""
        node = self._makers.get(name)
        return node if node is not None and node.op_type in kinds else None


Rewrite = Callable[[Writer, StaticGraph, onnx.NodeProto], bool]
"""Writes what takes the place of a node, whose outputs keep their names; False leaves it alone."""


def rewritten(model: onnx.ModelProto, *rewrites: Rewrite) -> onnx.ModelProto:
    """The same function with each node as the first rewrite that knows it writes it.

    What nothing reads any more is gone. Raises ArtifactError for a graph with open sizes.
    """
    graph, writer = StaticGraph(model), Writer(model)
    for node in model.graph.node:
        if not any(rewrite(writer, graph, node) for rewrite in rewrites):
            writer.nodes.append(node)
    kept: list[onnx.NodeProto] = []
    read = {value.name for value in model.graph.output}
    for node in reversed(writer.nodes):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    constants = [*model.graph.initializer, *writer.constants]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(reversed(kept))
    result.graph.initializer.extend(tensor for tensor in constants if tensor.name in read)
    onnx.checker.check_model(result, full_check=True)
    return result


def reshaped(writer: Writer, name: str, shape: Shape, output: str) -> str:
    """Writes a Reshape; its output."""
    target = writer.constant(f"{output}/shape", np.array(shape, np.int64))
    writer.node("Reshape", [name, target], [output])
    return output


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """By name; those that the node leaves out are missing."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        raise ArtifactError(_OPEN.format(value.name))
    return tuple(dim.dim_value for dim in dims)
