"""A graph is read with its float32 tensors, or refused for what cannot be read."""

import numpy as np
import onnx
import pytest
from fp16_graphs import W, model_of

from exporters.onnx_precision.float_graph import Operand, read_graph
from rfdetr_edge.errors import ArtifactError

NAN, INFINITE = np.array(W), np.array(W)
NAN[1, 1], INFINITE[1, 1] = np.nan, np.inf


def test_operands_are_float32_tensors_and_say_what_may_be_half():
    kernel = np.zeros((2, 2, 1, 1), np.float32)
    graph = read_graph(
        model_of(
            'a = Conv(x, k) r = Resize <mode = "linear"> (a, , s) n = Shape(r)'
            "f = Cast <to = 1> (n) y = Conv(r, k)",
            x="float[N, 2, 3, 3] x",
            y="float[N, 2, 6, 6] y",
            k=kernel,
            s=np.array([1, 1, 2, 2], np.float32),
        )
    )
    convolution, resize, shape, made, _ = graph.nodes
    assert convolution.reads == (Operand(0, 0, "x", True), Operand(0, 1, "k", True))
    # the schema wants the scales in float32; place 1 is left out
    assert resize.reads == (Operand(1, 0, "a", True), Operand(1, 2, "s", False))
    assert (shape.operands, shape.computes) == ((), False)  # of any precision, to integers
    assert (made.reads, made.is_source, made.computes) == ((), True, False)
    assert graph.makers["r"] == Operand(1, 0, "r", True)
    assert graph.users["k"] == [Operand(0, 1, "k", True), Operand(4, 1, "k", True)]
    assert (graph.inputs, graph.outputs) == (("x",), ("y",))
    assert {*graph.weights} == {"k", "s", "w"}
    assert "n" in graph.taken_names


def test_constants_are_weights():
    graph = read_graph(
        model_of(
            "n = Shape(x) f = ConstantOfShape <value = float[1] {-3.0}> (n) a = Add(x, f)"
            "c = Constant <value_floats = [1.0, -5.0, 3.0, 4.0]> () y = Mul(a, c)"
        )
    )
    assert [graph.largest_weight(name) for name in ("f", "c")] == [3, 5]


def test_a_node_without_a_name_goes_by_its_first_output():
    model = model_of("a = MatMul(x, w) b, c = Split <axis = 1> (a) y = Concat <axis = 1> (b, c)")
    model.graph.node[0].name = "product"
    assert [node.label for node in read_graph(model).nodes] == ["product", "b", "y"]


def test_an_infinity_that_a_where_fills_in_is_no_fault():
    hidden = {"m": np.float32(-np.inf), "hidden": np.array([False, True, False, False])}
    graph = read_graph(model_of("a = Where(hidden, m, x) y = Softmax(a)", **hidden))
    assert (graph.weights["m"], graph.largest_weight("m")) == (-np.inf, 0)


@pytest.mark.parametrize(
    ("body", "weights", "message"),
    [
        ("a = MatMul(x, v) y = MatMul(a, w)", {"v": NAN}, "weights v are NaN"),
        ("a = MatMul(x, v) y = MatMul(a, w)", {"v": INFINITE}, "weights v are NaN or infinite"),
        ("a = MatMul(x, w) y = NotAnOperator(a)", {}, "model is invalid"),
        ("a = MatMul(x, missing) y = MatMul(a, w)", {}, "model is invalid"),
        ("a = MatMul(x, v) y = MatMul(a, w)", {"v": W.astype(np.float64)}, "model is invalid"),
        ("a = Cast <to = 10> (x) y = Cast <to = 1> (a)", {}, "half precision already"),
        (
            "q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) y = MatMul(d, w)",
            {"s": np.float32(1)},
            "quantised already",
        ),
        (
            "y = If (always) <then_branch = t () => (float[N, 4] r) { r = MatMul(x, w) },"
            "else_branch = e () => (float[N, 4] r) { r = Abs(x) }>",
            {"always": np.array(True)},
            "subgraph",
        ),
    ],
)
def test_models_that_cannot_be_read_are_refused(body, weights, message):
    with pytest.raises(ArtifactError, match=message):
        read_graph(model_of(body, **weights))


def test_operators_of_a_foreign_domain_are_refused():
    model = model_of("a = MatMul(x, w) y = FusedRelu(a)")
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    with pytest.raises(ArtifactError, match=r"does not know com\.example\.FusedRelu"):
        read_graph(model)


def test_onnx_may_be_named_in_full():
    model = model_of("a = MatMul(x, w) y = MatMul(a, w)")
    model.opset_import[0].domain = "ai.onnx"
    assert len(read_graph(model).makers) == 2
