"""What stays in float32 when a graph becomes half precision."""

import numpy as np
import pytest
from fp16_graphs import FLOAT, HALF, cast, difference, model_of, precisions, run_rounding, types_of

from exporters.onnx_precision.fp16 import to_fp16
from rfdetr_edge.errors import InputError


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Exp", "Sin", "Sqrt", "TopK"])
def test_operators_that_overflow_or_rank_stay_in_float32(operator):
    body = "y, i = TopK(b, k)" if operator == "TopK" else f"y = {operator}(b)"
    model = model_of(
        f"a = MatMul(x, w) m = MatMul(a, w) b = Abs(m) {body.replace('y', 'c')} y = MatMul(c, w)",
        k=np.array([4]),
    )
    made = cast(model)
    assert precisions(made)[operator] == "32"
    assert difference(made, model) < 2e-2


def test_light_nodes_between_islands_join_them():
    made = cast(
        model_of(
            "a = MatMul(x, w) b = Softmax(a) c = Transpose <perm = [1, 0]> (b) d = Mul(c, c)"
            "e = Softmax(d) f = Transpose <perm = [1, 0]> (e) y = MatMul(f, w)"
        )
    )
    assert precisions(made)["Mul"] == "32"
    assert made.casts == 4  # x, a, f, y; the last Transpose has a product behind it


def test_a_light_node_between_sources_and_an_island_joins_it():
    made = cast(
        model_of(
            "n = Size(w) j = Cast <to = 1> (n) r = Range(zero, four, one) b = Mul(r, j)"
            "c = LogSoftmax(b) a = MatMul(x, w) d = Add(a, c) y = MatMul(d, w)",
            zero=np.float32(0),
            four=np.float32(4),
            one=np.float32(1),
        )
    )
    assert precisions(made)["Mul"] == "32"
    assert made.casts == 3


def test_a_light_node_between_an_island_and_a_product_is_half():
    made = cast(
        model_of(
            "a = MatMul(x, w) b = Softmax(a) c = Mul(a, b) d = Softmax(c) e = MatMul(d, w)"
            "y = MatMul(e, w)"
        )
    )
    assert precisions(made)["Mul"] == "16"


def test_what_leads_from_the_last_product_to_an_output_is_float32():
    model = model_of(
        "a = MatMul(x, w) b, c = Split <axis = 1> (a) d = Exp(c) e = Mul(b, d)"
        "y = Concat <axis = 1> (e, d)"
    )
    made = cast(model)
    found = precisions(made)
    assert found.pop("MatMul") == "16"
    assert found.pop("Cast") == "16 32"
    assert {*found.values()} == {"32"}
    assert made.casts == 2


def test_a_ranking_is_that_of_float32():
    """Of scores that half cannot tell apart: 1 and 0.9999."""
    body = "s = MatMul(x, w) t = ReduceMax <axes = [1], keepdims = 0> (s) v, i = TopK(t, k)"
    model = model_of(
        f"{body} r = Gather(x, i) y = MatMul(r, w)", k=np.array([3]), w=np.eye(4, dtype="f4")
    )
    x = np.diag(np.array([0.9998, 0.9999, 1.0, 0], np.float32))[:3]
    made = cast(model)
    assert run_rounding(made.model, x).argmax(axis=1).tolist() == [2, 1, 0]


def test_angles_are_exact_from_the_last_product_on():
    made = cast(
        model_of("a = MatMul(x, w) b = Mul(a, c) d = Sin(b) y = MatMul(d, w)", c=np.float32(6.28))
    )
    assert precisions(made)["Mul"] == "32"


def test_only_a_computed_divisor_makes_an_island():
    scaled = "b = Div(a, w)"
    made = cast(model_of(f"a = MatMul(x, w) {scaled} y = MatMul(b, w)", x="float[4, 4] x"))
    assert precisions(made)["Div"] == "16"
    normed = "c = Abs(a) b = Div(a, c)"
    made = cast(model_of(f"a = MatMul(x, w) {normed} y = MatMul(b, w)"))
    assert precisions(made)["Div"] == "32"


def test_named_nodes_become_islands():
    model = model_of("a = MatMul(x, w) b = MatMul(a, w) c = MatMul(b, w) y = MatMul(c, w)")
    model.graph.node[1].name = "middle"
    made = cast(model, islands=["middle", "c"])
    types = types_of(made.model)
    assert (types["a"], types["b"], types["c"]) == (HALF, FLOAT, FLOAT)
    assert (made.half_nodes, made.island_nodes, made.casts) == (2, 2, 4)
    with pytest.raises(InputError, match="no node elsewhere"):
        to_fp16(model, islands=["middle", "elsewhere"])
