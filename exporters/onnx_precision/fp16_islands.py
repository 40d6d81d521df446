"""Islands: the nodes that stay in float32 when a graph becomes half precision.

Where half would overflow, or lose what the result turns on. Knows operators and how they stand to
each other, and neither values (`overflow` measures them) nor casts (`fp16`).
"""

from collections.abc import Collection

from exporters.onnx_precision.float_graph import FloatGraph, Operand
from rfdetr_edge.errors import InputError

# Operators that are islands wherever they stand. Sigmoid, Tanh, Erf and Relu are not among them:
# they are bounded or pass values on, and add one rounding at most.
_ISLANDS = frozenset(
    {
        # They leave the range from ordinary operands (256 squared, e to the 12th), or magnify what
        # was lost near 0, where half ends at 6e-8. So does a Div by what is computed.
        *("Exp", "Log", "Pow", "Reciprocal", "Sqrt", "ReduceSumSquare", "ReduceL2"),
        # Sums of many values, inside a normalisation too: they leave the range, and stop growing
        # at 2048 times what is added.
        *("LayerNormalization", "GroupNormalization", "InstanceNormalization"),
        *("RMSNormalization", "LpNormalization", "MeanVarianceNormalization"),
        *("Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceLogSumExp"),
        *("CumSum", "GlobalAveragePool"),
        # Angles near 2 pi are 0.004 apart in half; places on a map near 1 are 0.0005 apart.
        *("Sin", "Cos", "GridSample"),
        # Neighbours in a ranking become ties, and their order that of their places.
        "TopK",
    }
)
# The input of an operator whose rounding shows in full in what it gives: what leads there from the
# last matrix product is an island too, as is what leads to the outputs.
_EXACT_INPUT = {"Sin": 0, "Cos": 0, "GridSample": 1, "TopK": 0}
LIGHT = frozenset(
    {
        *("Abs", "Add", "Clip", "Concat", "Cos", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten"),
        *("Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less"),
        *("LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Pad", "Pow", "Reciprocal"),
        *("ReduceMax", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Sin", "Slice"),
        *("Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze"),
        "Where",
    }
)
"""They cost no more than casts around them would. What half is for are the others."""
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


def choose_islands(graph: FloatGraph, named: frozenset[str]) -> frozenset[int]:
    """The numbers of the nodes that compute in float32.

    named: labels of nodes that do in any case. Raises InputError for one that no node has.
    """
    unknown = named - {node.label for node in graph.nodes}
    if unknown:
        raise InputError(f"the model has no node {min(unknown)} to keep in float32")
    found = set()
    for number, node in enumerate(graph.nodes):
        operator = node.proto.op_type
        divides = operator == "Div" and node.proto.input[1] not in graph.weights
        if node.computes and (node.label in named or operator in _ISLANDS or divides):
            found.add(number)
        for read in node.reads:
            if _EXACT_INPUT.get(operator) == read.place:
                found |= _leading_to(graph, read.name, with_products=operator == "TopK")
    for name in graph.outputs:
        found |= _leading_to(graph, name, with_products=False)
    return frozenset(found | _between(graph, found))


def _leading_to(graph: FloatGraph, name: str, *, with_products: bool) -> set[int]:
    """The light nodes that make a tensor of what products and normalisations give.

    with_products: these last products too, so that what they give is not rounded either.
    """
    found: set[int] = set()
    names = [name]
    while names:
        made = graph.makers.get(names.pop())
        if made is None or made.node in found:
            continue
        node = graph.nodes[made.node]
        if node.proto.op_type in LIGHT:
            found.add(made.node)
            names += [read.name for read in node.reads]
        elif with_products and node.proto.op_type in _PRODUCTS:
            found.add(made.node)
    return found


def _between(graph: FloatGraph, islands: Collection[int]) -> set[int]:
    """The light nodes with float32 alone around them, where casts would only lose digits."""
    joining = {
        number
        for number, node in enumerate(graph.nodes)
        if node.computes and node.proto.op_type in LIGHT and number not in islands
    }

    def is_float(at: Operand) -> bool:
        return at.node in islands or at.node in joining or not at.may_be_half

    def is_surrounded(number: int) -> bool:
        node = graph.nodes[number]
        makers = [graph.makers[read.name] for read in node.reads if read.name in graph.makers]
        users = [user for write in node.writes for user in graph.users.get(write.name, [])]
        return all(map(is_float, makers + users))

    while leaving := {number for number in joining if not is_surrounded(number)}:
        joining -= leaving
    return joining
