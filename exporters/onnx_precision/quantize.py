"""Static INT8 as explicit QuantizeLinear and DequantizeLinear pairs around chosen layers.

Activations have one scale a tensor, weights one a channel. Whether a layer is chosen, and where
its ranges come from, is decided elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from exporters.linears import Linear
from exporters.observers import quantization
from exporters.onnx_precision.rounding import EIGHT_BITS, SEVEN_BITS, SMALLEST, rounded
from exporters.rewriting import Writer, rewritten
from exporters.scales import Scale

Float32 = NDArray[np.float32]
Range = tuple[float, float]

# Of a bias in int32, which leaves as much again for the sum of products that is added to it.
_LARGEST_BIAS = 2.0**30


@dataclass(frozen=True, slots=True)
class Scheme:
    """What an executor wants of Q/DQ pairs.

    symmetric: activations are int8 around 0, else uint8 with a zero point.
    weight_limit: weights are whole numbers of at most this size.
    integer_bias: biases are int32 in the scale of the products, else they stay float.
    closed_convolutions: the result of a Conv is quantised too; otherwise it would run in float.
    """

    symmetric: bool
    weight_limit: int
    integer_bias: bool
    closed_convolutions: bool


SCHEMES: Mapping[str, Scheme] = {
    "cpu": Scheme(False, SEVEN_BITS, integer_bias=True, closed_convolutions=True),
    "tensorrt": Scheme(True, EIGHT_BITS, integer_bias=False, closed_convolutions=False),
}


def observed(layers: Sequence[Linear], scheme: Scheme) -> list[str]:
    """The tensors whose ranges `quantized` needs, each once."""
    names = [layer.data for layer in layers]
    if scheme.closed_convolutions:
        names += [layer.output for layer in layers if layer.kind == "Conv"]
    return list(dict.fromkeys(names))


def quantized(
    model: onnx.ModelProto,
    layers: Sequence[Linear],
    ranges: Mapping[str, Range],
    means: Mapping[str, Float32],
    scheme: Scheme,
) -> onnx.ModelProto:
    """The graph with these layers in INT8; the given one is not changed.

    ranges: (low, high) of every tensor of `observed`. means: of the input channels of each layer,
    by the tensor's name; what rounding the weights adds to the mean of a layer's output leaves its
    bias (bias correction: Nagel et al. 2019, Data-Free Quantization, section 4.2).
    """
    return rewritten(model, layers, _Pairs(ranges, means, scheme).write)


class _Pairs:
    """Writes layers between their Q/DQ nodes; a tensor is rounded once for all that read it."""

    def __init__(
        self, ranges: Mapping[str, Range], means: Mapping[str, Float32], scheme: Scheme
    ) -> None:
        self._ranges, self._means, self._scheme = ranges, means, scheme
        self._steps: dict[str, np.float32] = {}  # of the activations that have their Q/DQ pair

    def write(self, writer: Writer, node: onnx.NodeProto, layer: Linear) -> None:
        if layer.data not in self._steps:
            self._pair(writer, layer.data, f"{layer.data}_rounded", self._ranges[layer.data])
        weights = writer.weights(layer)
        bias = writer.bias(layer)
        if bias is None:
            bias = np.zeros(weights.shape[layer.out_axis], np.float32)
        whole, step = rounded(
            weights, layer.out_axis, self._scheme.weight_limit, self._least_step(layer, bias)
        )
        bias = bias + _mean_loss(weights, whole, step, self._means[layer.data], layer)
        unit = self._steps[layer.data] * step
        new = onnx.NodeProto()
        new.CopyFrom(node)
        del new.input[:]
        new.input.append(f"{layer.data}_rounded")
        new.input.append(writer.restored(layer.weight, whole, step, layer.out_axis))
        new.input.append(self._bias(writer, f"{layer.name}/bias", bias, unit))
        writer.nodes.append(new)
        if layer.kind == "Conv" and self._scheme.closed_convolutions:
            new.output[0] = f"{layer.output}_exact"
            self._pair(writer, new.output[0], layer.output, self._ranges[layer.output])

    def _pair(self, writer: Writer, name: str, restored: str, given: Range) -> None:
        """Q and DQ from one tensor to another."""
        step, zero = quantization(*given, symmetric=self._scheme.symmetric)
        kind = np.int8 if self._scheme.symmetric else np.uint8
        constants = [
            writer.constant(f"{name}/step", np.asarray(step, np.float32)),
            writer.constant(f"{name}/zero", np.asarray(zero, kind)),
        ]
        writer.node("QuantizeLinear", [name, *constants], [f"{name}_whole"])
        writer.node("DequantizeLinear", [f"{name}_whole", *constants], [restored])
        self._steps[name] = np.float32(step)

    def _least_step(self, layer: Linear, bias: Float32) -> Float32 | float:
        """Of the weights (out,), so that a bias in the scale of the products fits its integers.

        It would not where the weights of a channel are next to nothing and its bias is not.
        """
        if not self._scheme.integer_bias:
            return 0.0
        unit: Float32 = np.maximum(np.abs(bias) / np.float32(_LARGEST_BIAS), SMALLEST)
        return unit / self._steps[layer.data]

    def _bias(self, writer: Writer, name: str, bias: Float32, unit: Float32) -> str:
        if not self._scheme.integer_bias:
            return writer.constant(name, bias.astype(np.float32))
        whole = np.rint(bias.astype(np.float64) / unit)
        return writer.restored(name, whole.astype(np.int32), unit, 0)


def _mean_loss(
    weights: Float32, whole: NDArray[np.int8], step: Float32, mean: Float32, layer: Linear
) -> Float32:
    """(out,): by how much rounded weights lower the mean of a layer's output."""
    others = tuple(axis for axis in range(weights.ndim) if axis != layer.out_axis)
    lost: Float32 = weights - whole * np.expand_dims(step, others)
    if layer.kind == "Conv":
        lost = lost.sum(axis=(2, 3)).T
    lowered: Float32 = mean @ lost
    return lowered


def scales(model: onnx.ModelProto) -> dict[str, Scale]:
    """Of the activations that a Q/DQ graph rounds, by the name of the tensor."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            step, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
            info = np.iinfo(zero.dtype)
            found[node.input[0]] = Scale(float(step), int(zero), info.min, info.max)
    return found
