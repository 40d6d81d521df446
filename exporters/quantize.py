"""Static INT8 as explicit QuantizeLinear and DequantizeLinear pairs around chosen layers.

Activations have one scale a tensor, weights one a channel. Whether a layer is chosen, and where
its ranges come from, is decided elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters.linears import Linear
from exporters.observers import quantization

Float32 = NDArray[np.float32]
Range = tuple[float, float]

# Below it numbers lose their digits, and processors may take them for 0.
_SMALLEST = np.finfo(np.float32).tiny
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
    # On x86 without VNNI two products of uint8 and int8 are added in 16 bits, which overflow beyond
    # 7-bit weights (ONNX Runtime's documentation on quantisation): files must be right there too.
    "cpu": Scheme(False, weight_limit=63, integer_bias=True, closed_convolutions=True),
    "tensorrt": Scheme(True, weight_limit=127, integer_bias=False, closed_convolutions=False),
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
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, chosen = result.graph, {layer.name: layer for layer in layers}
    writer = _Writer({tensor.name: tensor for tensor in graph.initializer}, scheme)
    for node in model.graph.node:
        layer = chosen.get(node.name)
        if layer is None:
            writer.nodes.append(node)
        else:
            writer.add(node, layer, ranges, means[layer.data])
    del graph.node[:]
    graph.node.extend(writer.nodes)
    replaced = {name for layer in layers for name in (layer.weight, layer.bias)}
    kept = [tensor for tensor in graph.initializer if tensor.name not in replaced]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *writer.constants])
    onnx.checker.check_model(result, full_check=True)
    return result


def rounded(
    weights: Float32, out_axis: int, limit: int, least: Float32 | float = 0.0
) -> tuple[NDArray[np.int8], Float32]:
    """Weights as whole numbers of at most `limit`, and the step (out,) that each is worth.

    least: (out,), or one for all; no step is smaller. Where that leaves none, it is 1.
    """
    others = tuple(axis for axis in range(weights.ndim) if axis != out_axis)
    step = np.abs(weights).max(axis=others) / np.float32(limit)
    step = np.maximum(step, least).astype(np.float32)
    step[step < _SMALLEST] = 1.0
    return np.rint(weights / np.expand_dims(step, others)).astype(np.int8), step


class _Writer:
    """The nodes and constants of the new graph, in order; a tensor is rounded once for all."""

    def __init__(self, originals: Mapping[str, onnx.TensorProto], scheme: Scheme) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._originals, self._scheme = originals, scheme
        self._steps: dict[str, np.float32] = {}  # of the activations that have their Q/DQ pair

    def add(
        self, node: onnx.NodeProto, layer: Linear, ranges: Mapping[str, Range], mean: Float32
    ) -> None:
        """A layer between its Q/DQ nodes."""
        if layer.data not in self._steps:
            self._pair(layer.data, f"{layer.data}_rounded", ranges[layer.data])
        weights = numpy_helper.to_array(self._originals[layer.weight])
        bias = np.zeros(weights.shape[layer.out_axis], np.float32)
        if layer.bias is not None:
            bias = numpy_helper.to_array(self._originals[layer.bias])
        whole, step = rounded(
            weights, layer.out_axis, self._scheme.weight_limit, self._least_step(layer, bias)
        )
        bias = bias + _mean_loss(weights, whole, step, mean, layer)
        new = onnx.NodeProto()
        new.CopyFrom(node)
        del new.input[:]
        new.input.append(f"{layer.data}_rounded")
        new.input.append(self._restored(layer.weight, whole, step, layer.out_axis))
        new.input.append(self._bias(f"{layer.name}/bias", bias, self._steps[layer.data] * step))
        self.nodes.append(new)
        if layer.kind == "Conv" and self._scheme.closed_convolutions:
            new.output[0] = f"{layer.output}_exact"
            self._pair(new.output[0], layer.output, ranges[layer.output])

    def _pair(self, name: str, restored: str, given: Range) -> None:
        """Q and DQ from one tensor to another."""
        step, zero = quantization(*given, symmetric=self._scheme.symmetric)
        kind = np.int8 if self._scheme.symmetric else np.uint8
        constants = [
            self._constant(f"{name}/step", np.asarray(step, np.float32)),
            self._constant(f"{name}/zero", np.asarray(zero, kind)),
        ]
        whole = f"{name}_whole"
        self.nodes.append(helper.make_node("QuantizeLinear", [name, *constants], [whole]))
        self.nodes.append(helper.make_node("DequantizeLinear", [whole, *constants], [restored]))
        self._steps[name] = np.float32(step)

    def _least_step(self, layer: Linear, bias: Float32) -> Float32 | float:
        """Of the weights (out,), so that a bias in the scale of the products fits its integers.

        It would not where the weights of a channel are next to nothing and its bias is not.
        """
        if not self._scheme.integer_bias:
            return 0.0
        unit: Float32 = np.maximum(np.abs(bias) / np.float32(_LARGEST_BIAS), _SMALLEST)
        return unit / self._steps[layer.data]

    def _bias(self, name: str, bias: Float32, unit: Float32) -> str:
        if not self._scheme.integer_bias:
            return self._constant(name, bias.astype(np.float32))
        whole = np.rint(bias.astype(np.float64) / unit)
        return self._restored(name, whole.astype(np.int32), unit, 0)

    def _restored(self, name: str, whole: NDArray[Any], step: Float32, axis: int) -> str:
        """A constant that a DQ node makes of whole numbers, one step a channel."""
        constants = [
            self._constant(f"{name}/whole", whole),
            self._constant(f"{name}/step", step.astype(np.float32)),
            self._constant(f"{name}/zero", np.zeros(step.shape, whole.dtype)),
        ]
        restored = f"{name}_restored"
        self.nodes.append(helper.make_node("DequantizeLinear", constants, [restored], axis=axis))
        return restored

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name


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
