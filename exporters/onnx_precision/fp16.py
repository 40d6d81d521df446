"""Half precision: an ONNX graph with float16 weights and arithmetic, float32 inputs and outputs.

The types stand in the graph itself, so that TensorRT (as a strongly typed network), ONNX Runtime
and OpenVINO all run the same arithmetic. Some nodes stay in float32: `fp16_islands` says which.
Knows nothing of detectors, and does not judge what the result finds: `exporters.lossy` does.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.onnx_precision.float_graph import INVALID, FloatGraph, Operand, read_graph
from exporters.onnx_precision.fp16_islands import choose_islands
from rfdetr_edge.errors import ArtifactError

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
_SUFFIX = {_FLOAT: "_fp32", _HALF: "_fp16"}
_LARGEST = float(np.finfo(np.float16).max)  # 65504
_NORMAL = float(np.finfo(np.float16).smallest_normal)  # 6.1e-5
_TypedNames: TypeAlias = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, slots=True)
class Fp16Model:
    """A graph in half precision, and what was done to it.

    half_nodes, island_nodes: nodes that compute in float16 and in float32. casts: Cast nodes added.
    subnormal_weights: float16 weights below 6.1e-5, which have fewer digits than the others.
    zeroed_weights: those that became 0.
    """

    model: onnx.ModelProto
    half_nodes: int
    island_nodes: int
    casts: int
    subnormal_weights: int
    zeroed_weights: int


def to_fp16(model: onnx.ModelProto, *, islands: Collection[str] = ()) -> Fp16Model:
    """The model in float16, with the same float32 inputs and outputs; `model` is not changed.

    islands: nodes that stay in float32 besides those that always do, such as
        `overflow.overflow_nodes` finds. A node without a name goes by that of its first output.
    The metadata stays as it is, the precision it states included.
    Raises InputError for an island that is no node, and ArtifactError for a model that is invalid,
    already quantised or in half precision, has subgraphs or operators that onnx does not know, or
    holds weights that are NaN, infinite (but for what a Where fills in) or, outside the islands,
    beyond 65504.
    """
    graph = read_graph(model)
    precise = choose_islands(graph, frozenset(islands))
    names = _names(graph, precise)
    halves = _halves(graph, names)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(_emit(graph, precise, names, halves))
    for tensor in model.graph.initializer:
        result.graph.initializer.extend(_initializers(tensor, names, halves))
    result.graph.value_info.extend(_retyped(model.graph.value_info, names))
    try:
        onnx.checker.check_model(result, full_check=True)
    except INVALID as error:
        raise ArtifactError(f"the graph cannot be cast to half precision: {error}") from error
    computing = [node for node in graph.nodes if node.computes]
    half_nodes = sum(any(_type(at, precise) == _HALF for at in node.operands) for node in computing)
    return Fp16Model(
        model=result,
        half_nodes=half_nodes,
        island_nodes=len(computing) - half_nodes,
        casts=_casts(result) - _casts(model),
        subnormal_weights=sum(_count((a != 0) & (np.abs(a) < _NORMAL)) for a in halves.values()),
        zeroed_weights=sum(_count((a == 0) & (graph.weights[n] != 0)) for n, a in halves.items()),
    )


def _type(at: Operand, islands: Collection[int]) -> int:
    return int(_HALF if at.may_be_half and at.node not in islands else _FLOAT)


def _names(graph: FloatGraph, islands: Collection[int]) -> dict[str, dict[int, str]]:
    """Float32 tensor -> each type that somebody wants it in -> what it is called in that type."""
    wanted: dict[str, set[int]] = {name: {_FLOAT} for name in (*graph.inputs, *graph.outputs)}
    keeps: dict[str, int] = dict.fromkeys(wanted, _FLOAT)
    for node in graph.nodes:
        for at in node.operands if node.computes else ():
            wanted.setdefault(at.name, set()).add(_type(at, islands))
        for write in node.writes if node.computes else ():
            keeps.setdefault(write.name, _type(write, islands))
    for name in (*graph.weights, *graph.makers):
        types = wanted.setdefault(name, {_FLOAT})  # nobody reads it, or in any precision
        keeps.setdefault(name, _FLOAT if _FLOAT in types else _HALF)
    return {
        name: {
            type_: name if type_ == keeps[name] else _free(name + _SUFFIX[type_], graph.taken_names)
            for type_ in sorted(types)
        }
        for name, types in wanted.items()
    }


def _free(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _halves(graph: FloatGraph, names: _TypedNames) -> dict[str, NDArray[np.float16]]:
    """The weights that are wanted in float16, by their names in the float32 graph."""
    halves = {}
    for name, array in graph.weights.items():
        if _HALF not in names[name]:
            continue
        largest = graph.largest_weight(name)
        if largest > _LARGEST:
            users = ", ".join(graph.nodes[user.node].label for user in graph.users[name])
            raise ArtifactError(
                f"the weights {name} reach {largest:g}, and half precision ends at "
                f"{_LARGEST:g}: keep the nodes that use them in float32 ({users})"
            )
        halves[name] = array.astype(np.float16)
    return halves


def _emit(
    graph: FloatGraph,
    islands: Collection[int],
    names: _TypedNames,
    halves: Mapping[str, NDArray[np.float16]],
) -> Iterator[onnx.NodeProto]:
    """The nodes of the new graph in order, each cast behind the node that makes the value."""
    for name in graph.inputs:
        yield from _cast(names[name], _FLOAT)
    for node in graph.nodes:
        if node.is_source:
            name = node.proto.output[0]
            for type_, typed in names[name].items():
                yield _source(node.proto, type_, typed, halves.get(name))
            continue
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        for read in node.reads:
            proto.input[read.place] = names[read.name][_type(read, islands)]
        for write in node.writes:
            proto.output[write.place] = names[write.name][_type(write, islands)]
        yield proto
        for write in node.writes:
            yield from _cast(names[write.name], _type(write, islands))


def _cast(names: Mapping[int, str], made: int) -> Iterator[onnx.NodeProto]:
    """The cast of a tensor from the type it is made in to the other, where that is wanted."""
    for type_, name in names.items():
        if type_ != made:
            yield onnx.helper.make_node("Cast", [names[made]], [name], f"{name}/Cast", to=type_)


def _source(
    proto: onnx.NodeProto, type_: int, name: str, half: NDArray[np.float16] | None
) -> onnx.NodeProto:
    """A copy of a source that gives its values in the type and by the name."""
    copy = onnx.NodeProto()
    copy.CopyFrom(proto)
    if name != proto.output[0]:
        copy.output[0] = name
        copy.name = f"{name}/{proto.op_type}"
    if type_ == _FLOAT:
        return copy
    if half is None:  # a Cast, whose other attributes are for types that are not these
        changed = onnx.helper.make_attribute("to", _HALF)
    else:
        changed = onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(half))
    del copy.attribute[:]
    copy.attribute.append(changed)
    return copy


def _initializers(
    tensor: onnx.TensorProto, names: _TypedNames, halves: Mapping[str, NDArray[np.float16]]
) -> Iterator[onnx.TensorProto]:
    """An initializer in each type it is wanted in."""
    name = tensor.name
    if name not in halves or _FLOAT in names[name]:
        yield tensor
    if name in halves:
        yield onnx.numpy_helper.from_array(halves[name], names[name][_HALF])


def _retyped(
    values: Iterable[onnx.ValueInfoProto], names: _TypedNames
) -> Iterator[onnx.ValueInfoProto]:
    """What the model says of its inner tensors, with their new types."""
    for value in values:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        for type_, name in names.get(value.name, {}).items():
            if name == value.name:
                copy.type.tensor_type.elem_type = type_
        yield copy


def _count(which: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(which))


def _casts(model: onnx.ModelProto) -> int:
    return sum(str(node.op_type) == "Cast" for node in model.graph.node)
