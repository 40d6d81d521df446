"""Deformable sampling in ONNX as a matrix product, which is what TFLite is fast at.

The function of `trainer.model.sampling.gathered`, GridSample, weights and sum, becomes that of
`multiplied` there: cell j of a row has the share max(0, 1 - |x - j|) of a value interpolated at x,
the tent function, and a cell of a grid the product of those of its row and its column.
"""

from collections.abc import Sequence

import numpy as np
import onnx

from exporters.rewriting import Writer
from exporters.tflite.static_graph import StaticGraph, attributes, reshaped

# of the operator, where the node does not say
_DEFAULTS = {"mode": b"bilinear", "padding_mode": b"zeros", "align_corners": 0}
_BILINEAR = (b"bilinear", b"linear")  # before and since opset 20


def tent_sampling(writer: Writer, graph: StaticGraph, node: onnx.NodeProto) -> bool:
    """Rewrites the sum of what GridSample nodes give, one a level, times weights.

    The sum is over the points, the last axis: of (M, d, Q, points) times (M, 1, Q, points).
    """
    found = _levels_and_weights(graph, node)
    if found is None:
        return False
    levels, weights = found
    name = node.output[0]
    counts = [graph.shape(level.input[1])[2] for level in levels]
    heads, _, queries, places = graph.shape(weights)
    shares = [reshaped(writer, weights, (heads, queries, 1, places), f"{name}/weights")]
    if len(levels) > 1:
        (whole,), shares = shares, [f"{name}/weights_{level}" for level in range(len(levels))]
        split = writer.constant(f"{name}/levels", np.array(counts, np.int64))
        writer.node("Split", [whole, split], shares, axis=3)
    mixed = [
        _level(writer, graph, level, share, f"{name}/level_{number}")
        for number, (level, share) in enumerate(zip(levels, shares, strict=True))
    ]
    total = mixed[0]
    for number, other in enumerate(mixed[1:], start=1):
        writer.node("Add", [total, other], [f"{name}/sum_{number}"])
        total = f"{name}/sum_{number}"
    writer.node("Transpose", [total], [name], perm=(0, 2, 1))  # (M, Q, d) -> (M, d, Q)
    return True


def _levels_and_weights(
    graph: StaticGraph, node: onnx.NodeProto
) -> tuple[list[onnx.NodeProto], str] | None:
    """The GridSample nodes of a sum and what they are multiplied by; None for any other node."""
    if node.op_type != "ReduceSum" or attributes(node).get("keepdims", 1):
        return None
    axes = graph.constant(node.input[1]) if len(node.input) > 1 else None
    product = graph.maker(node.input[0], "Mul")
    if product is None or axes is None or axes.tolist() not in ([-1], [3]):
        return None
    for sampled, weights in (product.input, reversed(product.input)):
        joined = graph.maker(sampled, "Concat")
        if joined is not None and attributes(joined)["axis"] not in (-1, 3):
            continue
        parts = [sampled] if joined is None else joined.input
        levels = [level for part in parts if (level := _bilinear(graph, part)) is not None]
        if len(levels) == len(parts) and _one_a_point(graph, sampled, weights):
            return levels, weights
    return None


def _bilinear(graph: StaticGraph, name: str) -> onnx.NodeProto | None:
    node = graph.maker(name, "GridSample")
    if node is None:
        return None
    given = _DEFAULTS | attributes(node)
    plain = given["padding_mode"] == b"zeros" and not given["align_corners"]
    return node if plain and given["mode"] in _BILINEAR else None


def _one_a_point(graph: StaticGraph, sampled: str, weights: str) -> bool:
    """Whether the weights are the same for all channels."""
    heads, _, *points = graph.shape(sampled)
    return graph.shape(weights) == (heads, 1, *points)


def _level(
    writer: Writer, graph: StaticGraph, level: onnx.NodeProto, weights: str, name: str
) -> str:
    """One level, (M, Q, d). weights: (M, Q, 1, P)."""
    maps, points = level.input
    heads, size, rows, columns = graph.shape(maps)
    queries, places = graph.shape(points)[1:3]
    x, y = f"{name}/x", f"{name}/y"
    halves = writer.constant(f"{name}/halves", np.array([1, 1], np.int64))
    writer.node("Split", [points, halves], [x, y], axis=3)  # (M, Q, P, 1)
    y = reshaped(writer, y, (heads, queries, 1, places), f"{y}/row")
    across = _tents(writer, x, columns, (1, columns))  # (M, Q, P, columns)
    down = _tents(writer, y, rows, (rows, 1))  # (M, Q, rows, P)
    writer.node("Mul", [down, weights], [f"{name}/down"])
    writer.node("MatMul", [f"{name}/down", across], [f"{name}/shares"])  # (M, Q, rows, columns)
    flat = reshaped(writer, f"{name}/shares", (heads, queries, rows * columns), f"{name}/flat")
    cells = reshaped(writer, maps, (heads, size, rows * columns), f"{name}/cells")
    writer.node("Transpose", [cells], [f"{name}/values"], perm=(0, 2, 1))
    writer.node("MatMul", [flat, f"{name}/values"], [f"{name}/mixed"])
    return f"{name}/mixed"


def _tents(writer: Writer, places: str, count: int, shape: Sequence[int]) -> str:
    """Places from -1 to 1 between the outer edges of `count` cells -> the share of each cell.

    shape: of the cells, so that they lie along the axis that places have not.
    """
    # x is at (x + 1) * count / 2 - 0.5, counted in cells
    half = writer.constant(f"{places}/half", np.array(count / 2, np.float32))
    centres = np.arange(count, dtype=np.float32).reshape(shape) + np.float32(0.5 - count / 2)
    writer.node("Mul", [places, half], [f"{places}/cells"])
    cells = writer.constant(f"{places}/centres", centres)
    writer.node("Sub", [f"{places}/cells", cells], [f"{places}/apart"])
    writer.node("Abs", [f"{places}/apart"], [f"{places}/distance"])
    one = writer.constant(f"{places}/one", np.array(1, np.float32))
    writer.node("Sub", [one, f"{places}/distance"], [f"{places}/tent"])
    writer.node("Relu", [f"{places}/tent"], [f"{places}/shares"])
    return f"{places}/shares"
