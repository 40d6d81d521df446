"""Which channels of a layer's input are which channels of a tensor before it.

A factor on one channel of a normalisation, or of a linear layer, reaches the layers after it
unchanged if nothing on the way mixes channels, adds to them or bends them. Each channel is followed
as a label: arrays of the shape of the real tensors, holding channel numbers instead of values.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters.linears import Linear
from exporters.onnx_cleanup import folded

Labels = NDArray[np.int32]
"""Channel numbers in the shape of a tensor; -1 where no followed channel is."""


class Graph:
    """What following channels needs to know of a graph: constants, readers, sizes.

    A batch that is left open is followed as one image.
    """

    def __init__(self, model: onnx.ModelProto, layers: Sequence[Linear]) -> None:
        graph = onnx.shape_inference.infer_shapes(_one_image(model), data_prop=True).graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes: dict[str, tuple[int, ...]] = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.value_info, *graph.input, *graph.output)
            if all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
        }
        self.shapes.update({name: tuple(t.dims) for name, t in self.constants.items()})
        self.nodes = list(graph.node)
        self.layers = {layer.name: layer for layer in layers}
        self.outputs = {value.name for value in graph.output}

    def constant(self, name: str) -> list[int]:
        """A constant list of whole numbers. Raises KeyError for what is no constant."""
        values: list[int] = numpy_helper.to_array(self.constants[name]).ravel().tolist()
        return values

    def readers(self, starts: Mapping[str, Labels]) -> dict[str, Labels] | None:
        """Layer name -> labels of its input channels (in,), of every layer that the tensors reach.

        starts: tensor -> its labels. None when a factor on their channels would not arrive
        unchanged everywhere: something reads them that bends or mixes, or they leave the graph.
        """
        known = dict(starts)
        found: dict[str, Labels] = {}
        for node in self.nodes:
            if not any(name in known for name in node.input):
                continue
            if (layer := self.layers.get(node.name)) is not None:
                labels = known.get(node.input[0])
                row = None if labels is None else _vector(labels, 1 if layer.kind == "Conv" else -1)
                if row is None:
                    return None
                found[layer.name] = row
                continue
            rule = _RULES.get(node.op_type)
            try:
                after = None if rule is None else rule(self, node, known)
            except KeyError:  # a list, or a shape, that only a run of the graph would tell
                return None
            if after is None:
                return None
            known.update(zip(node.output, after, strict=True))
        return None if self.outputs & set(known) else found


def _one_image(model: onnx.ModelProto) -> onnx.ModelProto:
    """With a batch of one where it is left open, and what follows from that folded."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    inputs, outputs = (
        [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param]
        for values in (fixed.graph.input, fixed.graph.output)
    )
    if not inputs:
        return model
    for dim in inputs:
        dim.dim_value = 1
    for dim in outputs:
        dim.Clear()
    del fixed.graph.value_info[:]
    return folded(fixed)


def _vector(labels: Labels, axis: int) -> Labels | None:
    """The labels along one axis, if they are the same at every place of the others."""
    rows = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])
    return rows[0] if (rows == rows[0]).all() else None


def _squeezed(labels: Labels, axes: Sequence[int]) -> Labels | None:
    """The labels with these axes cut to length 1, if they do not differ along them."""
    first = labels
    for axis in axes:
        first = np.take(first, [0], axis=axis)
    return first if (labels == first).all() else None


# Of each operator: the labels of its outputs, or None where a factor would not pass unchanged.
_Known = Mapping[str, Labels]
_Rule = Callable[["Graph", onnx.NodeProto, _Known], "list[Labels] | None"]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _reshape(graph: Graph, node: onnx.NodeProto, known: _Known) -> list[Labels] | None:
    """Also Squeeze and Unsqueeze: the output's shape says it all."""
    return [known[node.input[0]].reshape(graph.shapes[node.output[0]])]


def _transpose(graph: Graph, node: onnx.NodeProto, known: _Known) -> list[Labels] | None:
    return [known[node.input[0]].transpose(_attributes(node).get("perm"))]


def _slice(graph: Graph, node: onnx.NodeProto, known: _Known) -> list[Labels] | None:
    labels = known[node.input[0]]
    starts, ends, *rest = (graph.constant(name) for name in node.input[1:])
    axes = rest[0] if rest else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    cut = [slice(None)] * labels.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return [labels[tuple(cut)]]


def _split(graph: Graph, node: onnx.NodeProto, known: _Known) -> list[Labels] | None:
    axis = _attributes(node).get("axis", 0)
    sizes = [graph.shapes[name][axis] for name in node.output]
    return np.split(known[node.input[0]], np.cumsum(sizes)[:-1], axis=axis)


def _concat(graph: Graph, node: onnx.NodeProto, known: _Known) -> list[Labels] | None:
    parts = [
        known[name] if name in known else np.full(graph.shapes[name], -1, np.int32)
        for name in node.input
    ]
    return [np.concatenate(parts, axis=_attributes(node)["axis"])]


def _relu(graph: Graph, node: onnx.NodeProto, known: _Known) -> list[Labels] | None:
    """Factors are positive."""
    return [known[node.input[0]]]


def _matmul(graph: Graph, node: onnx.NodeProto, known: _Known) -> list[Labels] | None:
    """Weighted sums of rows, when the labels are on the right: each column keeps its own."""
    left, right = node.input
    if left in known or known[right].ndim < 2:
        return None
    row = _squeezed(known[right], [-2])
    return None if row is None else [np.broadcast_to(row, graph.shapes[node.output[0]])]


def _multiply(graph: Graph, node: onnx.NodeProto, known: _Known) -> list[Labels] | None:
    if all(name in known for name in node.input):
        return None
    labels = next(known[name] for name in node.input if name in known)
    return [np.broadcast_to(labels, graph.shapes[node.output[0]])]


def _sum(graph: Graph, node: onnx.NodeProto, known: _Known) -> list[Labels] | None:
    axes = graph.constant(node.input[1]) if len(node.input) > 1 else []
    if not axes:  # over all of them
        return None
    labels = _squeezed(known[node.input[0]], axes)
    return None if labels is None else [labels.reshape(graph.shapes[node.output[0]])]


def _sample(graph: Graph, node: onnx.NodeProto, known: _Known) -> list[Labels] | None:
    """Bilinear, so a sum over places of one channel."""
    if node.input[1] in known:
        return None
    labels = _squeezed(known[node.input[0]], [2, 3])
    return None if labels is None else [np.broadcast_to(labels, graph.shapes[node.output[0]])]


_RULES: Mapping[str, _Rule] = {
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Relu": _relu,
    "MatMul": _matmul,
    "Mul": _multiply,
    "ReduceSum": _sum,
    "GridSample": _sample,
}
