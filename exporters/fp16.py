"""Half precision: an ONNX graph with float16 weights and arithmetic, float32 inputs and outputs.

The types stand in the graph itself, so that TensorRT (as a strongly typed network), ONNX Runtime
and OpenVINO all run the same arithmetic. Where half would overflow, or lose what the result turns
on, nodes stay in float32: the islands. Knows the operators' schemas and nothing of detectors, and
does not judge what the result finds: `exporters.verify` does.
"""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from rfdetr_edge.backends import open_session
from rfdetr_edge.errors import ArtifactError, InputError

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
_SUFFIX = {_FLOAT: "_fp32", _HALF: "_fp16"}
_LARGEST = float(np.finfo(np.float16).max)  # 65504
_NORMAL = float(np.finfo(np.float16).smallest_normal)  # 6.1e-5
# Other images make larger values than those measured, and a sum may pass through larger ones than
# it ends with. A quarter of the range leaves a factor of two for each.
_HEADROOM = 4.0

# Operators that are islands wherever they stand. Sigmoid, Tanh, Erf and Relu are not among them:
# they are bounded or pass values on, and add one rounding at most.
_ISLANDS = frozenset(
    {
        # They leave the range from ordinary operands (256 squared, e to the 12th), or magnify what
        # was lost near 0, where half ends at 6e-8. So does a Div by what is computed.
        *("Exp", "Log", "Pow", "Reciprocal", "Sqrt", "ReduceSumSquare", "ReduceL2"),
        # Sums of many values, inside a normalisation too: they leave the range, and stop growing
        # at 2048 times what is added.
        *("LayerNormalization", "GroupNormalization", "InstanceNormalization"),
        *("RMSNormalization", "LpNormalization", "MeanVarianceNormalization"),
        *("Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceLogSumExp"),
        *("CumSum", "GlobalAveragePool"),
        # Angles near 2 pi are 0.004 apart in half; places on a map near 1 are 0.0005 apart.
        *("Sin", "Cos", "GridSample"),
        # Neighbours in a ranking become ties, and their order that of their places.
        "TopK",
    }
)
# The input of an operator whose rounding shows in full in what it gives: what leads there from the
# last matrix product is an island too, as is what leads to the outputs.
_EXACT_INPUT = {"Sin": 0, "Cos": 0, "GridSample": 1, "TopK": 0}
# They cost no more than casts around them would. What half is for are the others.
_LIGHT = frozenset(
    {
        *("Abs", "Add", "Clip", "Concat", "Cos", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten"),
        *("Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less"),
        *("LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Pad", "Pow", "Reciprocal"),
        *("ReduceMax", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Sin", "Slice"),
        *("Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze"),
        "Where",
    }
)
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
# They take a value in whatever precision it has.
_INDIFFERENT = frozenset({"Cast", "Shape", "Size"})
_QUANTISED = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"),
        *("ConvInteger", "QLinearConv", "QLinearMatMul"),
    }
)
# They give the same values in either type: constants, and integers or booleans made float.
_SOURCES = frozenset({"Constant", "ConstantOfShape", "Cast"})
_INVALID = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
_MEASURING = "rfdetr_edge/largest/"  # names that no exporter gives
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

    islands: nodes that stay in float32 besides those that always do, such as `overflow_nodes`
        finds. A node without a name goes by that of its first output.
    The metadata stays as it is, the precision it states included.
    Raises InputError for an island that is no node, and ArtifactError for a model that is invalid,
    already quantised or in half precision, has subgraphs or operators that onnx does not know, or
    holds weights that are NaN, infinite (but for what a Where fills in) or, outside the islands,
    beyond 65504.
    """
    graph = _read(model)
    precise = _islands(graph, frozenset(islands))
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
    except _INVALID as error:
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


def overflow_nodes(
    model: onnx.ModelProto, tensors: Iterable[NDArray[np.float32]]
) -> frozenset[str]:
    """The nodes of a float32 model that give or take values too large for half precision.

    tensors: what the model's one input takes, each for a run of its own; only the largest magnitude
        of every value is kept. Values count as too large beyond a quarter of 65504.
    Returns names as `to_fp16` takes them.
    Raises InputError without tensors, ArtifactError for a model that `to_fp16` refuses for more
    than its large weights, takes several inputs or itself becomes NaN or infinite, and BackendError
    for tensors that do not fit its input.
    """
    graph = _read(model)
    largest = _measure(model, graph, tensors)
    largest |= {name: _magnitude(array) for name, array in graph.weights.items()}
    large = {name for name, value in largest.items() if value > _LARGEST / _HEADROOM}
    return frozenset(
        node.label
        for node in graph.nodes
        if node.computes and any(at.name in large for at in node.operands)
    )


class _Operand(NamedTuple):
    """A float32 tensor as an input or output of a node.

    node: its number in the graph. place: among the inputs, or outputs, of the node.
    may_be_half: the schema of the operator allows it.
    """

    node: int
    place: int
    name: str
    may_be_half: bool


@dataclass(frozen=True, slots=True)
class _Node:
    """A node and its float32 operands; `reads` leaves out what it takes in any precision.

    is_source: its values come from no float32 tensor, and it can give them in either type.
    """

    proto: onnx.NodeProto
    reads: tuple[_Operand, ...]
    writes: tuple[_Operand, ...]
    is_source: bool

    @property
    def label(self) -> str:
        """What a caller knows it by."""
        return str(self.proto.name or self.proto.output[0])

    @property
    def operands(self) -> tuple[_Operand, ...]:
        """What it reads, then what it writes."""
        return self.reads + self.writes

    @property
    def computes(self) -> bool:
        """Whether there is a precision to choose: it is no source, and not all integers."""
        return not self.is_source and bool(self.operands)


@dataclass(frozen=True, slots=True)
class _Graph:
    """A checked graph with its float32 tensors.

    inputs, outputs: of the graph. weights: initializers and the values of constants.
    makers, users: who writes and who reads a tensor.
    taken_names: of all tensors, whatever their type.
    """

    nodes: tuple[_Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, NDArray[np.float32]]
    makers: Mapping[str, _Operand]
    users: Mapping[str, list[_Operand]]
    taken_names: frozenset[str]


def _read(model: onnx.ModelProto) -> _Graph:
    """Raises ArtifactError for what `to_fp16` does not take, but for weights that are too large."""
    _check_kind(model.graph)
    types = _types(model)
    opsets = {_domain(entry): entry.version for entry in model.opset_import}
    nodes = tuple(_node(*numbered, types, opsets) for numbered in enumerate(model.graph.node))
    inputs = tuple(value.name for value in model.graph.input if types[value.name] == _FLOAT)
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == _FLOAT and tensor.name not in inputs
    }
    users: dict[str, list[_Operand]] = {}
    for node in nodes:
        for read in node.reads:
            users.setdefault(read.name, []).append(read)
        if node.is_source and node.proto.op_type != "Cast":
            weights[node.proto.output[0]] = _constant(node.proto)
    for name, array in weights.items():
        # half holds an infinity as well as float32 does: a mask in front of a Softmax
        fills = {nodes[user.node].proto.op_type for user in users.get(name, [])} == {"Where"}
        if np.isnan(array).any() or (np.isinf(array).any() and not fills):
            raise ArtifactError(f"the weights {name} are NaN or infinite: the model is broken")
    return _Graph(
        nodes=nodes,
        inputs=inputs,
        outputs=tuple(value.name for value in model.graph.output if types[value.name] == _FLOAT),
        weights=weights,
        makers={write.name: write for node in nodes for write in node.writes},
        users=users,
        taken_names=frozenset(types),
    )


def _check_kind(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.op_type in _QUANTISED:
            raise ArtifactError(
                f"the model is quantised already ({node.op_type} {node.name}): cast the float32 "
                "model it was made from"
            )
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ArtifactError(
                f"the node {node.name} ({node.op_type}) has a subgraph, which cannot be cast: "
                "export the model without control flow"
            )


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor of the graph."""
    try:
        onnx.checker.check_model(model)
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    except _INVALID as error:
        raise ArtifactError(f"the model is invalid: {error}") from error
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    types |= {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    for name, type_ in types.items():
        if type_ in (_HALF, onnx.TensorProto.BFLOAT16):
            raise ArtifactError(
                f"the model is in half precision already ({name}): cast the float32 model it was "
                "made from"
            )
    return types


def _node(
    number: int, proto: onnx.NodeProto, types: Mapping[str, int], opsets: Mapping[str, int]
) -> _Node:
    if proto.op_type == "Cast" and types.get(proto.input[0]) == types.get(proto.output[0]):
        # it does nothing, and is not to decide about a precision
        proto = onnx.helper.make_node("Identity", proto.input, proto.output, proto.name)
    try:
        domain = _domain(proto)
        schema = onnx.defs.get_schema(proto.op_type, opsets[domain], domain)
    except onnx.defs.SchemaError:
        raise ArtifactError(
            f"onnx does not know {proto.domain}.{proto.op_type} ({proto.name}), nor what types it "
            "takes: export the model with standard operators"
        ) from None
    for name in filter(None, proto.output):
        if not types.get(name):
            raise ArtifactError(f"the type of {name} ({proto.op_type}) cannot be inferred")
    allow_half = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if "tensor(float16)" in constraint.allowed_type_strs
    }
    # An output whose type no input decides is what an attribute or the schema says, so that the
    # type of a source is chosen when it is copied.
    decided = allow_half & {formal.type_str for formal in schema.inputs}
    reads = [
        _Operand(number, index, name, type_ in allow_half)
        for index, (name, type_) in enumerate(_formals(proto.input, schema.inputs))
        if types.get(name) == _FLOAT and proto.op_type not in _INDIFFERENT
    ]
    writes = [
        _Operand(number, index, name, type_ in decided)
        for index, (name, type_) in enumerate(_formals(proto.output, schema.outputs))
        if types.get(name) == _FLOAT
    ]
    is_source = bool(writes) and proto.op_type in _SOURCES
    return _Node(proto, tuple(reads), tuple(writes), is_source)


def _domain(named: onnx.NodeProto | onnx.OperatorSetIdProto) -> str:
    """Its operator set; onnx's own has two names."""
    return "" if named.domain == "ai.onnx" else str(named.domain)


def _formals(names: Iterable[str], formals: Any) -> Iterator[tuple[str, str]]:
    """Names with what the schema calls their types; its last operand may be repeated."""
    for index, name in enumerate(names):
        yield name, formals[min(index, len(formals) - 1)].type_str


def _constant(proto: onnx.NodeProto) -> NDArray[np.float32]:
    """The value of a float32 Constant, or the one that a ConstantOfShape repeats."""
    for attribute in proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            array: NDArray[np.float32] = onnx.numpy_helper.to_array(value)
            return array
        if attribute.name in ("value_float", "value_floats"):
            return np.array(value, np.float32)
    return np.zeros(1, np.float32)


def _islands(graph: _Graph, named: frozenset[str]) -> frozenset[int]:
    """The numbers of the nodes that compute in float32."""
    unknown = named - {node.label for node in graph.nodes}
    if unknown:
        raise InputError(f"the model has no node {min(unknown)} to keep in float32")
    found = set()
    for number, node in enumerate(graph.nodes):
        operator = node.proto.op_type
        divides = operator == "Div" and node.proto.input[1] not in graph.weights
        if node.computes and (node.label in named or operator in _ISLANDS or divides):
            found.add(number)
        for read in node.reads:
            if _EXACT_INPUT.get(operator) == read.place:
                found |= _leading_to(graph, read.name, with_products=operator == "TopK")
    for name in graph.outputs:
        found |= _leading_to(graph, name, with_products=False)
    return frozenset(found | _between(graph, found))


def _leading_to(graph: _Graph, name: str, *, with_products: bool) -> set[int]:
    """The light nodes that make a tensor of what products and normalisations give.

    with_products: these last products too, so that what they give is not rounded either.
    """
    found: set[int] = set()
    names = [name]
    while names:
        made = graph.makers.get(names.pop())
        if made is None or made.node in found:
            continue
        node = graph.nodes[made.node]
        if node.proto.op_type in _LIGHT:
            found.add(made.node)
            names += [read.name for read in node.reads]
        elif with_products and node.proto.op_type in _PRODUCTS:
            found.add(made.node)
    return found


def _between(graph: _Graph, islands: Collection[int]) -> set[int]:
    """The light nodes with float32 alone around them, where casts would only lose digits."""
    joining = {
        number
        for number, node in enumerate(graph.nodes)
        if node.computes and node.proto.op_type in _LIGHT and number not in islands
    }

    def is_float(at: _Operand) -> bool:
        return at.node in islands or at.node in joining or not at.may_be_half

    def is_surrounded(number: int) -> bool:
        node = graph.nodes[number]
        makers = [graph.makers[read.name] for read in node.reads if read.name in graph.makers]
        users = [user for write in node.writes for user in graph.users.get(write.name, [])]
        return all(map(is_float, makers + users))

    while leaving := {number for number in joining if not is_surrounded(number)}:
        joining -= leaving
    return joining


def _type(at: _Operand, islands: Collection[int]) -> int:
    return int(_HALF if at.may_be_half and at.node not in islands else _FLOAT)


def _names(graph: _Graph, islands: Collection[int]) -> dict[str, dict[int, str]]:
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


def _halves(graph: _Graph, names: _TypedNames) -> dict[str, NDArray[np.float16]]:
    """The weights that are wanted in float16, by their names in the float32 graph."""
    halves = {}
    for name, array in graph.weights.items():
        if _HALF not in names[name]:
            continue
        if _magnitude(array) > _LARGEST:
            users = ", ".join(graph.nodes[user.node].label for user in graph.users[name])
            raise ArtifactError(
                f"the weights {name} reach {_magnitude(array):g}, and half precision ends at "
                f"{_LARGEST:g}: keep the nodes that use them in float32 ({users})"
            )
        halves[name] = array.astype(np.float16)
    return halves


def _magnitude(array: NDArray[np.float32]) -> float:
    """The largest absolute value, but for infinities."""
    return float(np.abs(array).max(initial=0.0, where=np.isfinite(array)))


def _emit(
    graph: _Graph,
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


def _measure(
    model: onnx.ModelProto, graph: _Graph, tensors: Iterable[NDArray[np.float32]]
) -> dict[str, float]:
    """Float32 tensor -> its largest magnitude over all runs, but for the weights."""
    if len(graph.inputs) != 1 or len(model.graph.input) != 1:
        raise ArtifactError(
            f"the model takes {', '.join(value.name for value in model.graph.input)}; it can be "
            "measured with one float32 input, the images"
        )
    infinite = _infinite(graph)
    measured = [n for n in (*graph.inputs, *graph.makers) if n not in infinite | {*graph.weights}]
    largest = dict.fromkeys(measured, 0.0)
    with tempfile.TemporaryDirectory(prefix="fp16_") as folder:
        path = Path(folder, "measuring.onnx")
        onnx.save(_measuring(model, measured), path)
        session = open_session(path, provider="cpu")
    runs = 0
    try:
        for tensor in tensors:
            runs += 1
            found = session.run({graph.inputs[0]: tensor})
            for name, top in zip(measured, found.values(), strict=True):
                largest[name] = max(largest[name], float(top))
    finally:
        session.close()
    if not runs:
        raise InputError("there are no images to measure the model with")
    for name, value in largest.items():  # in the graph's order, so that the first one is the cause
        if np.isinf(value):
            raise ArtifactError(f"{name} becomes NaN or infinite in float32: the model is broken")
    return largest


def _infinite(graph: _Graph) -> set[str]:
    """What light nodes make of an infinity on purpose, the mask in front of a Softmax.

    Its other values are measured where they come from.
    """
    found = {name for name, array in graph.weights.items() if np.isinf(array).any()}
    for node in graph.nodes:
        if node.proto.op_type in _LIGHT and any(read.name in found for read in node.reads):
            found |= {write.name for write in node.writes}
    return found


def _measuring(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A model whose outputs are the largest magnitude of each tensor, infinite if it has a NaN.

    Taken inside the graph, so that no more than a few tensors are in memory at a time.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    infinity = f"{_MEASURING}infinity"
    result.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array(np.inf, np.float32), infinity)
    )
    make = onnx.helper.make_node
    for number, name in enumerate(names):
        absolute, nan, safe, top = (f"{_MEASURING}{number}/{part}" for part in "abcd")
        result.graph.node.extend(
            [
                make("Abs", [name], [absolute]),
                make("IsNaN", [name], [nan]),
                make("Where", [nan, infinity, absolute], [safe]),
                make("ReduceMax", [safe], [top], keepdims=0),
            ]
        )
        result.graph.output.append(onnx.helper.make_tensor_value_info(top, _FLOAT, []))
    return result
