"""Dynamic INT8: linear layers in integers, the scales of their activations found at each run.

Needs no images, and costs a pass over each activation. In standard operators, in the arrangement
that ONNX Runtime turns into single nodes (MatMulIntegerToFloat, DynamicQuantizeMatMul).
A scale is that of a whole tensor, so images of one batch share it.
"""

from collections.abc import Sequence

import onnx

from exporters.linears import Linear
from exporters.onnx_precision.rounding import SEVEN_BITS, rounded
from exporters.onnx_precision.weight_only import restore_weights
from exporters.rewriting import Writer, rewritten


def dynamic(model: onnx.ModelProto, layers: Sequence[Linear]) -> onnx.ModelProto:
    """The graph with these layers in INT8; the given one is not changed.

    Convolutions have INT8 weights alone: ConvInteger is slower than Conv in float.
    """
    seen: set[str] = set()  # tensors that are rounded already, for all that read them

    def write(writer: Writer, node: onnx.NodeProto, layer: Linear) -> None:
        if layer.kind == "Conv":
            restore_weights(writer, node, layer)
            return
        if layer.data not in seen:
            seen.add(layer.data)
            parts = [f"{layer.data}_{part}" for part in ("whole", "step", "zero")]
            writer.node("DynamicQuantizeLinear", [layer.data], parts)
        _multiply(writer, layer)

    return rewritten(model, layers, write)


def _multiply(writer: Writer, layer: Linear) -> None:
    """data @ weights + bias of a rounded tensor: (tokens, in) @ (in, out) in int32, then float."""
    whole, step = rounded(writer.weights(layer), layer.out_axis, SEVEN_BITS)
    numbers = writer.constant(f"{layer.weight}/whole", whole)
    steps = writer.constant(f"{layer.weight}/step", step)
    data, name = layer.data, layer.output
    inputs = [f"{data}_whole", numbers, f"{data}_zero"]
    writer.node("MatMulInteger", inputs, [f"{name}_sums"], name=layer.name)
    writer.node("Cast", [f"{name}_sums"], [f"{name}_float"], to=onnx.TensorProto.FLOAT)
    writer.node("Mul", [f"{data}_step", steps], [f"{name}_unit"])
    product = name if layer.bias is None else f"{name}_product"
    writer.node("Mul", [f"{name}_float", f"{name}_unit"], [product])
    if layer.bias is not None:
        writer.node("Add", [product, layer.bias], [name])
