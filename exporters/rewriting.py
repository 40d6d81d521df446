"""A graph with other nodes in the place of chosen layers; which ones is decided elsewhere."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters.linears import Linear

Float32 = NDArray[np.float32]


class Writer:
    """The nodes and the new constants of a graph, in order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._originals = {tensor.name: tensor for tensor in model.graph.initializer}

    def weights(self, layer: Linear) -> Float32:
        """Of the layer as it was, in its own shape."""
        weights: Float32 = numpy_helper.to_array(self._originals[layer.weight])
        return weights

    def bias(self, layer: Linear) -> Float32 | None:
        """Of the layer as it was, (out,); None without one."""
        return None if layer.bias is None else numpy_helper.to_array(self._originals[layer.bias])

    def node(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> None:
        """A new node; attributes as `onnx.helper.make_node` takes them."""
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """A new constant; its name."""
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def restored(self, name: str, whole: NDArray[Any], step: Float32, axis: int) -> str:
        """What a DequantizeLinear node makes of constant whole numbers, one step a channel."""
        constants = [
            self.constant(f"{name}/whole", whole),
            self.constant(f"{name}/step", step.astype(np.float32)),
            self.constant(f"{name}/zero", np.zeros(step.shape, whole.dtype)),
        ]
        self.node("DequantizeLinear", constants, [f"{name}_restored"], axis=axis)
        return f"{name}_restored"


Write = Callable[[Writer, onnx.NodeProto, Linear], None]
"""Writes what takes the place of a layer and of its node; the name of the output stays."""


def rewritten(model: onnx.ModelProto, layers: Sequence[Linear], write: Write) -> onnx.ModelProto:
    """The graph in which these layers are written anew; the given one is not changed.

    Constants of theirs that nothing reads any more are gone.
    """
    chosen = {layer.name: layer for layer in layers}
    writer = Writer(model)
    for node in model.graph.node:
        layer = chosen.get(node.name)
        if layer is None:
            writer.nodes.append(node)
        else:
            write(writer, node, layer)
    read = {name for node in writer.nodes for name in node.input}
    gone = {name for layer in layers for name in (layer.weight, layer.bias)} - read
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in gone]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(writer.nodes)
    result.graph.initializer.extend([*kept, *writer.constants])
    onnx.checker.check_model(result, full_check=True)
    return result
