"""What a file really holds, whatever it says of itself; of ONNX, read from the graph alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from rfdetr_edge.metadata import Precision

_FLOATS: Mapping[int, Precision] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}
_INTEGERS = (TensorProto.INT8, TensorProto.UINT8)
# Of 8-bit weights, by the node that rounds the activations they meet; without one these are float.
_ROUNDED_BY: Mapping[str, Precision] = {
    "QuantizeLinear": "int8",
    "DynamicQuantizeLinear": "int8-dynamic",
}
# Precisions whose weights are stored alike.
_STORED_ALIKE: tuple[tuple[Precision, ...], ...] = (
    ("fp32",),
    ("fp16",),
    ("int8", "int8-dynamic", "int8-weight-only"),
)
_PRODUCTS = ("Gemm", "MatMul", "Conv", "MatMulInteger", "ConvInteger")
# What stands between a stored weight and the product that uses it.
_CARRIERS = ("DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the matrix products and convolutions of a file work with.

    weights: how many numbers of their weights work in each precision: how they are stored and, of 8
        bits, what they are multiplied by.
    faults: what no trained network has, one line each: weights of a layer that are all zero, NaN
        or infinite.
    """

    weights: Mapping[Precision, int]
    faults: tuple[str, ...]

    @property
    def precision(self) -> Precision:
        """That of most of the weights that are stored as most are."""

        def count(kind: Precision) -> int:
            return self.weights.get(kind, 0)

        return max(max(_STORED_ALIKE, key=lambda kinds: sum(map(count, kinds))), key=count)


def inspected(model: onnx.ModelProto) -> Inspection:
    """Reads a graph."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    makers = {name: node for node in model.graph.node for name in node.output}
    weights: Counter[Precision] = Counter()
    faults = []
    for node in model.graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        tensor = _stored(node.input[1], makers, constants)
        if tensor is None or tensor.data_type not in (*_FLOATS, *_INTEGERS):
            continue
        kind = _FLOATS.get(tensor.data_type) or _met(node.input[0], makers)
        weights[kind] += int(np.prod(tensor.dims))
        if fault := fault_of(numpy_helper.to_array(tensor)):
            faults.append(f"the weights of {node.name or node.op_type} are {fault}")
    return Inspection(dict(weights), tuple(faults))


def _met(data: str, makers: Mapping[str, onnx.NodeProto]) -> Precision:
    """What weights of 8 bits are multiplied by."""
    maker = makers.get(data)
    if maker is not None and maker.op_type == "DequantizeLinear":
        maker = makers.get(maker.input[0])
    return _ROUNDED_BY.get("" if maker is None else maker.op_type, "int8-weight-only")


def _stored(
    name: str, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, TensorProto]
) -> TensorProto | None:
    """The constant behind an input; None where it is computed."""
    while name not in constants:
        node = makers.get(name)
        if node is None or node.op_type not in _CARRIERS:
            return None
        name = node.input[0]
    return constants[name]


def fault_of(values: NDArray[Any]) -> str | None:
    """What is wrong with a layer's weights; None if nothing."""
    if not np.isfinite(values).all():
        return "NaN or infinite"
    return None if values.any() else "all zero"
