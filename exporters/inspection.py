"""What an ONNX file really holds, whatever it says of itself, read from the graph alone."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from exporters.weights import Inspection, fault_of
from rfdetr_edge.metadata import Precision

_FLOATS: Mapping[int, Precision] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}
_INTEGERS = (TensorProto.INT8, TensorProto.UINT8)
# Of 8-bit weights, by the node that rounds the activations they meet; without one these are float.
_ROUNDED_BY: Mapping[str, Precision] = {
    "QuantizeLinear": "int8",
    "DynamicQuantizeLinear": "int8-dynamic",
}
_PRODUCTS = ("Gemm", "MatMul", "Conv", "MatMulInteger", "ConvInteger")
# What stands between a stored weight and the product that uses it.
_CARRIERS = ("DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity")


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
