"""An ONNX graph with its float32 tensors: who makes them, who reads them, which could be halved.

Knows the operators' schemas, and takes only what can be read from them in full: no subgraphs, no
operators that onnx does not know, nothing quantised or in half precision. Does not choose a
precision: `exporters.onnx_precision.fp16_islands` does.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from rfdetr_edge.errors import ArtifactError

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
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
INVALID = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
"""What onnx raises for a graph that breaks its rules."""


class Operand(NamedTuple):
    """A float32 tensor as an input or output of a node.

    node: its number in the graph. place: among the inputs, or outputs, of the node.
    may_be_half: the schema of the operator allows it.
    """

    node: int
    place: int
    name: str
    may_be_half: bool


@dataclass(frozen=True, slots=True)
class FloatNode:
    """A node and its float32 operands; `reads` leaves out what it takes in any precision.

    is_source: its values come from no float32 tensor, and it can give them in either type.
    """

    proto: onnx.NodeProto
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    is_source: bool

    @property
    def label(self) -> str:
        """What a caller knows it by."""
        return str(self.proto.name or self.proto.output[0])

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, then what it writes."""
        return self.reads + self.writes

    @property
    def computes(self) -> bool:
        """Whether there is a precision to choose: it is no source, and not all integers."""
        return not self.is_source and bool(self.operands)


@dataclass(frozen=True, slots=True)
class FloatGraph:
    """A checked graph with its float32 tensors.

    inputs, outputs: of the graph. weights: initializers and the values of constants.
    makers, users: who writes and who reads a tensor.
    taken_names: of all tensors, whatever their type.
    """

    nodes: tuple[FloatNode, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, NDArray[np.float32]]
    makers: Mapping[str, Operand]
    users: Mapping[str, list[Operand]]
    taken_names: frozenset[str]

    def largest_weight(self, name: str) -> float:
        """The largest magnitude among the weights of that name, but for infinities."""
        array = self.weights[name]
        return float(np.abs(array).max(initial=0.0, where=np.isfinite(array)))


def read_graph(model: onnx.ModelProto) -> FloatGraph:
    """Checks the model and finds its float32 tensors.

    Raises ArtifactError for a model that is invalid, already quantised or in half precision, has
    subgraphs or operators that onnx does not know, or holds weights that are NaN or infinite, but
    for what a Where fills in.
    """
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
    users: dict[str, list[Operand]] = {}
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
    return FloatGraph(
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
    except INVALID as error:
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
) -> FloatNode:
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
        Operand(number, index, name, type_ in allow_half)
        for index, (name, type_) in enumerate(_formals(proto.input, schema.inputs))
        if types.get(name) == _FLOAT and proto.op_type not in _INDIFFERENT
    ]
    writes = [
        Operand(number, index, name, type_ in decided)
        for index, (name, type_) in enumerate(_formals(proto.output, schema.outputs))
        if types.get(name) == _FLOAT
    ]
    is_source = bool(writes) and proto.op_type in _SOURCES
    return FloatNode(proto, tuple(reads), tuple(writes), is_source)


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
