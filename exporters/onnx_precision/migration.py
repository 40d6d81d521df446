"""Difficult channels made easy: their size moves from activations into weights, exactly.

A few channels of a trained encoder are many times larger than the others, and one scale a tensor
then leaves the others a few steps of 8 bits. Where a layer, or a normalisation, is followed by
linear layers only, its channel can be divided and their weights multiplied by the same factor
(Xiao et al. 2023, SmoothQuant; Nagel et al. 2019, section 4.1).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from exporters.linears import Linear
from exporters.onnx_precision.channels import Graph, Labels

Float32 = NDArray[np.float32]
# Share of the size that moves, in the exponent: half makes both as difficult (SmoothQuant).
_ALPHA = 0.5
# Of what the largest channel gives the layers, activation times weight: a channel that gives less
# counts as if it gave that much. Else one that lay idle in calibration would grow without bound,
# and dwarf all others on an image on which it does not. (The product stays the same wherever the
# size is, so that outliers move no other channel's floor.)
_LEAST_SHARE = 1e-3


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that factors can move from.

    parameters: the constants that are divided: vectors (n,), or weights of a layer with n outputs.
    readers: layer name -> label of each of its input channels, the channel it comes from.
    """

    parameters: tuple[str, ...]
    channels: int
    readers: Mapping[str, Labels]


def groups(model: onnx.ModelProto, layers: Sequence[Linear]) -> list[Group]:
    """Every normalisation and layer of the graph whose channels reach linear layers unchanged.

    Normalisations that share their parameters are one group; parameters that anything else uses
    are of none.
    """
    graph = Graph(model, layers)
    uses = Counter(name for node in model.graph.node for name in node.input)
    starts: dict[tuple[str, ...], list[str]] = {}
    for node in graph.nodes:
        if node.op_type == "LayerNormalization" and all(
            n in graph.constants for n in node.input[1:]
        ):
            starts.setdefault(tuple(node.input[1:]), []).append(node.output[0])
    for layer in layers:
        if layer.kind == "Gemm":
            own = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
            starts.setdefault(own, []).append(layer.output)
    found = []
    for parameters, tensors in starts.items():
        known = all(name in graph.shapes for name in tensors)
        if not known or any(uses[name] != len(tensors) for name in parameters):
            continue
        labels = {}
        for name in tensors:
            shape = graph.shapes[name]
            labels[name] = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)
        readers = graph.readers(labels)
        if readers:
            found.append(Group(parameters, graph.shapes[tensors[0]][-1], readers))
    return found


def migrated(
    model: onnx.ModelProto,
    layers: Sequence[Linear],
    sizes: Mapping[str, Float32],
) -> onnx.ModelProto:
    """The same function with activations and weights equally hard to round; a new graph.

    sizes: of every layer's data, by the tensor's name, the largest absolute value of each channel.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    by_name = {layer.name: layer for layer in layers}
    # Layers before normalisations, later ones first: to divide what a layer gives is to change the
    # weights that the group which it reads is measured by.
    for group in reversed(groups(model, layers)):
        active, passive = np.zeros(group.channels), np.zeros(group.channels)
        for name, labels in group.readers.items():
            layer, ours = by_name[name], labels >= 0
            weights = np.abs(_by_input(constants[layer.weight], layer))
            np.maximum.at(active, labels[ours], sizes[layer.data][ours])
            np.maximum.at(passive, labels[ours], weights.max(axis=1)[ours])
        factors = np.ones(group.channels)
        used = (active > 0) & (passive > 0)
        least = _LEAST_SHARE * (active * passive).max() / passive[used]
        factors[used] = np.maximum(active[used], least) ** _ALPHA / passive[used] ** (1 - _ALPHA)
        for name in group.parameters:
            _multiply(constants[name], 1 / factors)
        for name, labels in group.readers.items():
            along = np.where(labels >= 0, factors[labels], 1.0)
            layer = by_name[name]
            shape = (-1, 1) if layer.kind == "Gemm" else (1, -1, 1, 1)
            _multiply(constants[layer.weight], along.reshape(shape))
    return result


def _by_input(tensor: onnx.TensorProto, layer: Linear) -> Float32:
    """Weights as (in, everything else)."""
    weights: Float32 = numpy_helper.to_array(tensor)
    if layer.kind == "Conv":
        weights = weights.swapaxes(0, 1)
    return weights.reshape(len(weights), -1)


def _multiply(tensor: onnx.TensorProto, factors: NDArray[np.float64]) -> None:
    scaled = (numpy_helper.to_array(tensor) * factors).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
