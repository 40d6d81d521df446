"""What the matrix products and convolutions of an ONNX graph compute in, to hold a network to it.

Not what its weights are (exporters.inspection): products of two activations count too. TensorRT's
parser makes one layer of each.
"""

from collections import Counter
from collections.abc import Mapping

import onnx

from rfdetr_edge.metadata import Precision

_PRODUCTS = ("Gemm", "MatMul", "Conv")
_FLOATS: Mapping[int, Precision] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
}
# What TensorRT fuses away between a factor and what restores it.
_RESHAPES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


def graph_products(model: onnx.ModelProto) -> Mapping[Precision, int]:
    """Counts them; those whose type does not follow from the graph are left out."""
    makers = {name: node for node in model.graph.node for name in node.output}
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)
    }
    counts: Counter[Precision] = Counter()
    for node in model.graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        if all(_source(name, makers) == "DequantizeLinear" for name in node.input[:2]):
            counts["int8"] += 1
        elif (kind := _FLOATS.get(types.get(node.output[0], 0))) is not None:
            counts[kind] += 1
    return counts


def _source(name: str, makers: Mapping[str, onnx.NodeProto]) -> str | None:
    """The operator that a tensor comes from, changes of shape aside."""
    node = makers.get(name)
    while node is not None and node.op_type in _RESHAPES:
        node = makers.get(node.input[0])
    return None if node is None else str(node.op_type)
