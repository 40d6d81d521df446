"""What an ONNX file really holds, whatever it says of itself: read from the graph alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from rfdetr_edge.metadata import Precision

_KINDS: Mapping[int, Precision] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}
_PRODUCTS = ("Gemm", "MatMul", "Conv")
# What stands between a stored weight and the product that uses it.
_CARRIERS = ("DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the matrix products and convolutions of a file work with.

    weights: how many numbers of their weights are stored in each precision.
    integer_inputs: share of the INT8 weights whose activations are rounded too; where they are not,
        the arithmetic is float and INT8 saves only space.
    faults: what no trained network has, one line each: weights of a layer that are all zero, NaN
        or infinite.
    """

    weights: Mapping[Precision, int]
    integer_inputs: float
    faults: tuple[str, ...]

    @property
    def precision(self) -> Precision:
        """That of most weights."""
        return max(self.weights, key=lambda kind: self.weights[kind], default="fp32")


def inspected(model: onnx.ModelProto) -> Inspection:
    """Reads a graph."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    makers = {name: node for node in model.graph.node for name in node.output}
    weights: Counter[Precision] = Counter()
    rounded = 0
    faults = []
    for node in model.graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        tensor = _stored(node.input[1], makers, constants)
        if tensor is None or tensor.data_type not in _KINDS:
            continue
        kind, count = _KINDS[tensor.data_type], int(np.prod(tensor.dims))
        weights[kind] += count
        if kind == "int8":
            maker = makers.get(node.input[0])
            rounded += count * (maker is not None and maker.op_type == "DequantizeLinear")
        if fault := _fault(tensor):
            faults.append(f"the weights of {node.name or node.op_type} are {fault}")
    share = rounded / weights["int8"] if weights["int8"] else 0.0
    return Inspection(dict(weights), share, tuple(faults))


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


def _fault(tensor: TensorProto) -> str | None:
    values = numpy_helper.to_array(tensor)
    if not np.isfinite(values).all():
        return "NaN or infinite"
    return None if values.any() else "all zero"
