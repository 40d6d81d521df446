"""Which nodes leave the range of half precision, which ends at 65504?

Asked of a float32 graph, to leave them in float32, and of a float16 graph, where a GPU would give
NaN: by the largest magnitude of each inner tensor on some inputs. ONNX Runtime computes half in
float32 on most CPUs and rounds only what it must, so that no infinity need appear in what is too
large for half: its size tells.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.onnx_precision.activations import activations
from exporters.onnx_precision.float_graph import FloatGraph, read_graph
from exporters.onnx_precision.fp16_islands import LIGHT
from rfdetr_edge.errors import ArtifactError, InputError

_LARGEST = float(np.finfo(np.float16).max)  # 65504
# Half way to what would be the next number: from here on, rounding to half gives infinity.
_BECOMES_INFINITE = 65520.0
# Other images make larger values than those measured, and a sum may pass through larger ones than
# it ends with. A quarter of the range leaves a factor of two for each.
_HEADROOM = 4.0
_MEASURING = "rfdetr_edge/largest/"  # names that no exporter gives


def overflow_nodes(
    model: onnx.ModelProto, tensors: Iterable[NDArray[np.float32]]
) -> frozenset[str]:
    """The nodes of a float32 model that give or take values too large for half precision.

    tensors: each (1, 3, H, W) and a run of its own. Values count as too large beyond a quarter of
        65504.
    Returns names as `to_fp16` takes them.
    Raises InputError without tensors, ArtifactError for a model that `to_fp16` refuses for more
    than its large weights, takes several inputs or itself becomes NaN or infinite, and BackendError
    for tensors that do not fit its input.
    """
    graph = read_graph(model)
    if len(graph.inputs) != 1 or len(model.graph.input) != 1:
        raise ArtifactError(
            f"the model takes {', '.join(value.name for value in model.graph.input)}; it can be "
            "measured with one float32 input, the images"
        )
    unmeasured = _infinite(graph) | {*graph.weights}
    names = [name for name in (*graph.inputs, *graph.makers) if name not in unmeasured]
    largest = _largest(model, names, tensors)
    if not largest:
        raise InputError("there are no images to measure the model with")
    for name, value in largest.items():  # in the graph's order, so that the first one is the cause
        if np.isinf(value):
            raise ArtifactError(f"{name} becomes NaN or infinite in float32: the model is broken")
    largest |= {name: graph.largest_weight(name) for name in graph.weights}
    large = {name for name, value in largest.items() if value > _LARGEST / _HEADROOM}
    return frozenset(
        node.label
        for node in graph.nodes
        if node.computes and any(at.name in large for at in node.operands)
    )


def overflows(model: onnx.ModelProto, tensors: Iterable[NDArray[np.float32]]) -> list[str]:
    """The nodes that give NaN or infinity in float16 on these inputs, each (1, 3, H, W).

    In the order of the graph. BackendError for tensors that do not fit its input.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    half = {
        value.name
        for value in inferred.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    makers = {
        name: node.name or node.output[0]
        for node in model.graph.node
        for name in node.output
        if name in half
    }
    largest = _largest(model, [*makers], tensors) if makers else {}
    large = [makers[name] for name, top in largest.items() if top >= _BECOMES_INFINITE]
    return [*dict.fromkeys(large)]


def _infinite(graph: FloatGraph) -> set[str]:
    """What light nodes make of an infinity on purpose, the mask in front of a Softmax.

    Its other values are measured where they come from.
    """
    found = {name for name, array in graph.weights.items() if np.isinf(array).any()}
    for node in graph.nodes:
        if node.proto.op_type in LIGHT and any(read.name in found for read in node.reads):
            found |= {write.name for write in node.writes}
    return found


def _largest(
    model: onnx.ModelProto, names: Sequence[str], tensors: Iterable[NDArray[np.float32]]
) -> dict[str, float]:
    """Float tensor -> its largest magnitude over all runs, infinite if it has a NaN.

    In the order of `names`; empty without tensors to run.
    """
    tops = {name: f"{_MEASURING}{number}" for number, name in enumerate(names)}
    largest: dict[str, float] = {}
    for values in activations(_measuring(model, tops), [*tops.values()], tensors):
        for name, top in tops.items():
            largest[name] = max(largest.get(name, 0.0), float(values[top]))
    return largest


def _measuring(model: onnx.ModelProto, tops: Mapping[str, str]) -> onnx.ModelProto:
    """A model with nodes that give what `_largest` wants. tops: tensor -> name of its magnitude.

    Taken inside the graph, right behind the node that makes the tensor, so that no more than a few
    tensors are in memory at a time.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    infinity = f"{_MEASURING}infinity"
    result.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array(np.inf, np.float32), infinity)
    )
    del result.graph.node[:]
    for value in model.graph.input:
        result.graph.node.extend(_magnitude(value.name, tops, infinity))
    for node in model.graph.node:
        result.graph.node.append(node)
        for name in node.output:
            result.graph.node.extend(_magnitude(name, tops, infinity))
    return result


def _magnitude(name: str, tops: Mapping[str, str], infinity: str) -> list[onnx.NodeProto]:
    """The nodes for one tensor, none where it is not wanted.

    In float32, for what ONNX Runtime did not round to half.
    """
    if name not in tops:
        return []
    value, absolute, nan, safe = (f"{tops[name]}/{part}" for part in "abcd")
    make = onnx.helper.make_node
    return [
        make("Cast", [name], [value], to=onnx.TensorProto.FLOAT),
        make("Abs", [value], [absolute]),
        make("IsNaN", [value], [nan]),
        make("Where", [nan, infinity, absolute], [safe]),
        make("ReduceMax", [safe], [tops[name]], keepdims=0),
    ]
