"""The layers of a cleaned graph that can be quantised: constant weights times activations."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import onnx

from exporters.blocks import block_of

_PLAIN = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0, "group": 1}


@dataclass(frozen=True, slots=True)
class Linear:
    """A Gemm, (tokens, in) @ (in, out), or a Conv.

    name: of the node and the layer. data, weight, bias, output: tensors; bias is None without one.
    """

    name: str
    kind: Literal["Gemm", "Conv"]
    data: str
    weight: str
    bias: str | None
    output: str

    @property
    def block(self) -> str:
        """The part of the network that it belongs to.

        `/model/encoder/blocks.3` of `/model/encoder/blocks.3/attention/query`.
        """
        return block_of(self.name)

    @property
    def out_axis(self) -> int:
        """Axis of the output channels in the weights."""
        return 1 if self.kind == "Gemm" else 0


def linears(model: onnx.ModelProto) -> list[Linear]:
    """All of them, in the order of the graph.

    Left out: a Gemm that scales or transposes, or adds more than a vector; convolutions in groups,
    which have few weights; and weights that more than one layer uses.
    """
    constants = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Gemm", "Conv"):
            continue
        data, weight, *bias = node.input
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        plain = all(attributes.get(name, value) == value for name, value in _PLAIN.items())
        own = all(name in constants and uses[name] == 1 for name in (weight, *bias))
        if plain and own and all(len(constants[name]) == 1 for name in bias):
            kind: Literal["Gemm", "Conv"] = "Gemm" if node.op_type == "Gemm" else "Conv"
            output = node.output[0]
            found.append(Linear(node.name, kind, data, weight, bias[0] if bias else None, output))
    return found
