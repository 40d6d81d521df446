"""Tensors of rank 5 and more as ones of rank 4, the most that delegates of TFLite take.

Such a tensor is known by another one of lower rank with the same numbers in the same order; what
reads it brings that to the shape it needs. Windows of an image are cut that way: the axes that a
transposition keeps side by side are one axis to it.
"""

from collections.abc import Sequence

import numpy as np
import onnx

from exporters.rewriting import Writer
from exporters.tflite.static_graph import Shape, StaticGraph, attributes, reshaped

_MOST = 4
_SAME_ORDER = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Flatten"})
_POINTWISE = frozenset({"Add", "Sub", "Mul", "Div"})


class LowRank:
    """A rewrite of whole graphs, node after node; each takes one of its own."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}  # tensor of high rank -> the one that has its numbers

    def __call__(self, writer: Writer, graph: StaticGraph, node: onnx.NodeProto) -> bool:
        """Rewrites nodes with tensors of high rank, if there is a way."""
        tensors = [name for name in (*node.input, *node.output) if name]
        if all(len(graph.shape(name)) <= _MOST for name in tensors):
            return False
        given = graph.outputs.intersection(node.output)
        if all(len(graph.shape(name)) <= _MOST for name in given):  # else their shape is wanted
            if node.op_type in _SAME_ORDER:
                self._give(writer, graph, self._known.get(node.input[0], node.input[0]), node)
                return True
            if node.op_type == "Transpose":
                return self._transposed(writer, graph, node)
            if node.op_type in _POINTWISE or node.op_type == "Slice":
                return self._without_ones(writer, graph, node)
        return self._left(writer, graph, node)

    def _give(self, writer: Writer, graph: StaticGraph, found: str, node: onnx.NodeProto) -> None:
        """The output of a node, as it is in `found`."""
        output = node.output[0]
        if len(graph.shape(output)) > _MOST:
            self._known[output] = found
        else:
            reshaped(writer, found, graph.shape(output), output)

    def _transposed(self, writer: Writer, graph: StaticGraph, node: onnx.NodeProto) -> bool:
        source, output = node.input[0], node.output[0]
        steps = transpositions(graph.shape(source), attributes(node)["perm"])
        if max(len(sizes) for sizes, _ in steps) > _MOST:
            return self._left(writer, graph, node)
        found = self._known.get(source, source)
        for number, (sizes, order) in enumerate(steps):
            given = reshaped(writer, found, sizes, f"{output}/joined_{number}")
            found = f"{output}/moved_{number}"
            writer.node("Transpose", [given], [found], perm=order)
        self._give(writer, graph, found, node)
        return True

    def _without_ones(self, writer: Writer, graph: StaticGraph, node: onnx.NodeProto) -> bool:
        """Pointwise nodes and slices, without axes of size 1 in front."""
        output = node.output[0]
        surplus = len(graph.shape(output)) - _MOST
        axes = graph.constant(node.input[3]) if len(node.input) > 3 else None
        sliced = node.op_type == "Slice"
        if any(size != 1 for size in graph.shape(output)[:surplus]) or sliced != (axes is not None):
            return self._left(writer, graph, node)
        inputs = [*node.input]
        for place, name in enumerate(node.input):
            if len(graph.shape(name)) > _MOST:
                low = f"{output}/input_{place}"
                lower = graph.shape(name)[len(graph.shape(name)) - _MOST :]
                inputs[place] = reshaped(writer, self._known.get(name, name), lower, low)
        if axes is not None:
            moved = axes - np.where(axes < 0, 0, surplus)
            if np.any((axes >= 0) & (moved < 0)) or np.any(axes < -_MOST):
                return self._left(writer, graph, node)
            inputs[3] = writer.constant(f"{output}/axes", moved)
        writer.node(node.op_type, inputs, [f"{output}/low"], name=node.name)
        self._known[output] = f"{output}/low"
        return True

    def _left(self, writer: Writer, graph: StaticGraph, node: onnx.NodeProto) -> bool:
        """Nothing to be done for a node: what it reads has its high rank after all."""
        for name in node.input:
            if name in self._known:
                reshaped(writer, self._known.pop(name), graph.shape(name), name)
        return False


Transposition = tuple[Shape, tuple[int, ...]]
"""Sizes of the axes before it, and their order after it."""


def transpositions(shape: Shape, order: Sequence[int]) -> list[Transposition]:
    """The same transposition with fewer axes, in one step or two.

    Axes of size 1 are left out; those that stay side by side are one. Where that is not enough,
    the axis that is to be the first goes to the end in the first step, to its place in the second.
    """
    joined = _joined(shape, order)
    if len(joined[0]) <= _MOST:
        return [joined]
    first, *others = (axis for axis in order if shape[axis] != 1)
    front, back = shape[first], int(np.prod([shape[axis] for axis in others]))
    return [_joined(shape, [*others, first]), ((back, front), (1, 0))]


def _joined(shape: Shape, order: Sequence[int]) -> Transposition:
    real = [axis for axis, size in enumerate(shape) if size != 1]
    groups: list[list[int]] = []
    for axis in (axis for axis in order if axis in real):
        if groups and real.index(axis) == real.index(groups[-1][-1]) + 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    before = sorted(groups)
    sizes = tuple(int(np.prod([shape[axis] for axis in group])) for group in before)
    return sizes, tuple(before.index(group) for group in groups)
