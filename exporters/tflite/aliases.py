"""A `.tflite` that LiteRT runs right without XNNPACK where it reshapes what it needs twice.

To LiteRT's own kernels a RESHAPE is its input under another name, in the same memory. An ADD, SUB,
MUL or DIV whose input is read by nothing else writes its result over it. Where the reshaped tensor
is itself such a result, LiteRT 2.3 forgets that others have yet to read it, and overwrites it;
XNNPACK does not. A copy in front of such a RESHAPE is what helps.
"""

from collections import Counter
from typing import Any, NamedTuple

from ai_edge_litert import schema_py_generated as schema

_BUILTIN = schema.BuiltinOperator
_IN_PLACE = frozenset({_BUILTIN.ADD, _BUILTIN.SUB, _BUILTIN.MUL, _BUILTIN.DIV})
# of a tensor with itself: a copy in an operator that works in memory of its own
_COPY = _BUILTIN.MAXIMUM


class _Reshape(NamedTuple):
    """One whose result is written over while its source is still needed."""

    place: int  # among the operators
    source: int  # the tensor that has these numbers under their first name


def unshare(model: Any) -> int:
    """Puts copies into a ModelT of the schema, where they are needed; how many."""
    graph = model.subgraphs[0]
    kinds = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    found = sorted(set(_endangered(graph, kinds)), reverse=True)
    for reshape in found:  # from the last on, so that places stay
        tensor = _twin(graph, reshape.source)
        operator = schema.OperatorT()
        operator.opcodeIndex = _code(model)
        operator.inputs, operator.outputs = [reshape.source] * 2, [tensor]
        operator.builtinOptionsType = schema.BuiltinOptions.MaximumMinimumOptions
        operator.builtinOptions = schema.MaximumMinimumOptionsT()
        changed = graph.operators[reshape.place]
        changed.inputs = [tensor, *map(int, changed.inputs[1:])]
        graph.operators.insert(reshape.place, operator)
    return len(found)


def _endangered(graph: Any, kinds: list[int]) -> list[_Reshape]:
    nodes = [
        (kinds[node.opcodeIndex], [*map(int, node.inputs)], [*map(int, node.outputs)])
        for node in graph.operators
    ]
    uses = Counter(name for _, inputs, _ in nodes for name in inputs)
    uses.update(map(int, graph.outputs))
    # first name of some numbers -> the last operator that needs them
    last_read: dict[int, int] = {}
    first: dict[int, int] = {}  # what a RESHAPE gives -> the first name of its numbers
    maker: dict[int, int] = {}  # what a RESHAPE gives -> its place
    for place, (kind, inputs, outputs) in enumerate(nodes):
        if kind == _BUILTIN.RESHAPE:
            first[outputs[0]] = first.get(inputs[0], inputs[0])
            maker[outputs[0]] = place
        for name in inputs:
            last_read[first.get(name, name)] = place
    last_read |= {first.get(int(name), int(name)): len(nodes) for name in graph.outputs}
    return [
        _Reshape(maker[name], first[name])
        for place, (kind, inputs, _) in enumerate(nodes)
        for name in inputs
        if kind in _IN_PLACE and name in maker and uses[name] == 1
        if last_read[first[name]] > place
    ]


def _twin(graph: Any, index: int) -> int:
    """A new tensor of the same shape and type; its number."""
    old, new = graph.tensors[index], schema.TensorT()
    new.name, new.type, new.shape, new.buffer = old.name + b"/copy", old.type, old.shape, 0
    graph.tensors.append(new)
    return len(graph.tensors) - 1


def _code(model: Any) -> int:
    """The place of the copying operator among those that the file uses."""
    for place, code in enumerate(model.operatorCodes):
        if code.builtinCode == _COPY:
            return place
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = _COPY, _COPY, 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
