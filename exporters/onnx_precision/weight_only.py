"""INT8 weights that are restored before they are used: the file shrinks, the arithmetic does not.

Needs no images, since activations stay as they are.
"""

from collections.abc import Sequence

import onnx

from exporters.linears import Linear
from exporters.onnx_precision.rounding import EIGHT_BITS, rounded
from exporters.rewriting import Writer, rewritten


def weight_only(model: onnx.ModelProto, layers: Sequence[Linear]) -> onnx.ModelProto:
    """The graph with the weights of these layers in INT8; the given one is not changed."""
    return rewritten(model, layers, restore_weights)


def restore_weights(writer: Writer, node: onnx.NodeProto, layer: Linear) -> None:
    """The same layer behind a DequantizeLinear node for its weights.

    Those of a Gemm are stored transposed, (out, in). As (in, out) ONNX Runtime 1.31 makes the two
    nodes one MatMulNBits, which rounds activations too and takes 1.4 times as long.
    """
    whole, step = rounded(writer.weights(layer), layer.out_axis, EIGHT_BITS)
    new = onnx.NodeProto()
    new.CopyFrom(node)
    if layer.kind == "Gemm":
        whole = whole.T
        del new.attribute[:]  # they say what a plain Gemm does anyway (see linears.py)
        new.attribute.append(onnx.helper.make_attribute("transB", 1))
    new.input[1] = writer.restored(layer.weight, whole, step, 0)
    writer.nodes.append(new)
