"""Graphs in half precision: what becomes half, what stays in float32, and what that costs."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import save_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporters.difference import boxes_apart
from exporters.fp16 import Fp16Model, overflow_nodes, to_fp16
from rfdetr_edge import Detector
from rfdetr_edge.demo import model_path, photo_paths
from rfdetr_edge.errors import ArtifactError, BackendError, InputError
from rfdetr_edge.images import read_image
from rfdetr_edge.preprocess import preprocess

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 4)).astype(np.float32)
X = RNG.normal(size=(3, 4)).astype(np.float32)


def _model(body: str, *, x: str = "float[N, 4] x", y: str = "float[N, 4] y", **weights):
    """A graph in onnx's text form; `w` and those given are its weights."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> test ({x}) => ({y}) {{ {body} }}'
    )
    for name, array in {"w": W, **weights}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def _cast(model: onnx.ModelProto, **options) -> Fp16Model:
    """The model in half precision, after checks that any such model must pass."""
    before = model.SerializeToString()
    made = to_fp16(model, **options)
    assert model.SerializeToString() == before
    onnx.checker.check_model(made.model, full_check=True)
    graph = made.model.graph
    assert graph.input == model.graph.input
    assert graph.output == model.graph.output
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert not {node.input[0] for node in casts} & {node.output[0] for node in casts}
    assert len({(node.input[0], node.attribute[0].i) for node in casts}) == len(casts)
    assert made.casts == len(casts) - sum(node.op_type == "Cast" for node in model.graph.node)
    return made


def _run(model: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def _run_rounding(model: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    """By onnx's reference, with every half rounded.

    ONNX Runtime's CPU computes in float32 and drops the rounding between most neighbours.
    """
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, {"x": x})[0]


def _difference(made: Fp16Model, model: onnx.ModelProto, x: np.ndarray = X) -> float:
    """How far the results are apart at most, as a share of the largest one."""
    wanted = _run(model, x)
    results = [run(made.model, x) for run in (_run, _run_rounding)]
    assert [found.dtype for found in results] == [np.float32] * 2
    return float(max(np.abs(found - wanted).max() for found in results) / np.abs(wanted).max())


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _precisions(made: Fp16Model) -> dict[str, str]:
    """Operator -> the float types of all its nodes' operands, such as "16" or "32"."""
    types = _types(made.model)
    found: dict[str, set[int]] = {}
    for node in made.model.graph.node:
        at = {types.get(name) for name in (*node.input, *node.output)} & {HALF, FLOAT}
        found.setdefault(node.op_type, set()).update(at)
    return {
        operator: " ".join(text for type_, text in ((HALF, "16"), (FLOAT, "32")) if type_ in at)
        for operator, at in found.items()
    }


def test_products_compute_in_half_between_float32_inputs_and_outputs():
    model = _model("a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)")
    made = _cast(model)
    assert _precisions(made) == {"Cast": "16 32", "MatMul": "16", "Relu": "16"}
    assert (made.half_nodes, made.island_nodes, made.casts) == (3, 0, 2)
    assert 0 < _difference(made, model) < 5e-3


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Exp", "Sin", "Sqrt", "TopK"])
def test_operators_that_overflow_or_rank_stay_in_float32(operator):
    body = "y, i = TopK(b, k)" if operator == "TopK" else f"y = {operator}(b)"
    model = _model(
        f"a = MatMul(x, w) m = MatMul(a, w) b = Abs(m) {body.replace('y', 'c')} y = MatMul(c, w)",
        k=np.array([4]),
    )
    made = _cast(model)
    assert _precisions(made)[operator] == "32"
    assert _difference(made, model) < 2e-2


def test_a_tensor_is_cast_once_for_all_its_islands():
    made = _cast(
        _model(
            "a = MatMul(x, w) b = Softmax(a) c = Softmax <axis = 0> (a) d = MatMul(a, w)"
            "e = MatMul(b, w) f = MatMul(c, w) g = Sum(d, e, f) y = MatMul(g, w)"
        )
    )
    assert made.casts == 5  # x and a, both results, y
    assert _precisions(made)["Sum"] == "16"


def test_light_nodes_between_islands_join_them():
    made = _cast(
        _model(
            "a = MatMul(x, w) b = Softmax(a) c = Transpose <perm = [1, 0]> (b) d = Mul(c, c)"
            "e = Softmax(d) f = Transpose <perm = [1, 0]> (e) y = MatMul(f, w)"
        )
    )
    assert _precisions(made)["Mul"] == "32"
    assert made.casts == 4  # x, a, f, y; the last Transpose has a product behind it


def test_a_light_node_between_sources_and_an_island_joins_it():
    made = _cast(
        _model(
            "n = Size(w) j = Cast <to = 1> (n) r = Range(zero, four, one) b = Mul(r, j)"
            "c = LogSoftmax(b) a = MatMul(x, w) d = Add(a, c) y = MatMul(d, w)",
            zero=np.float32(0),
            four=np.float32(4),
            one=np.float32(1),
        )
    )
    assert _precisions(made)["Mul"] == "32"
    assert made.casts == 3


def test_a_light_node_between_an_island_and_a_product_is_half():
    made = _cast(
        _model(
            "a = MatMul(x, w) b = Softmax(a) c = Mul(a, b) d = Softmax(c) e = MatMul(d, w)"
            "y = MatMul(e, w)"
        )
    )
    assert _precisions(made)["Mul"] == "16"


def test_what_leads_from_the_last_product_to_an_output_is_float32():
    model = _model(
        "a = MatMul(x, w) b, c = Split <axis = 1> (a) d = Exp(c) e = Mul(b, d)"
        "y = Concat <axis = 1> (e, d)"
    )
    made = _cast(model)
    precisions = _precisions(made)
    assert precisions.pop("MatMul") == "16"
    assert precisions.pop("Cast") == "16 32"
    assert {*precisions.values()} == {"32"}
    assert made.casts == 2


def test_a_ranking_is_that_of_float32():
    """Of scores that half cannot tell apart: 1 and 0.9999."""
    body = "s = MatMul(x, w) t = ReduceMax <axes = [1], keepdims = 0> (s) v, i = TopK(t, k)"
    model = _model(
        f"{body} r = Gather(x, i) y = MatMul(r, w)", k=np.array([3]), w=np.eye(4, dtype="f4")
    )
    x = np.diag(np.array([0.9998, 0.9999, 1.0, 0], np.float32))[:3]
    made = _cast(model)
    assert _run_rounding(made.model, x).argmax(axis=1).tolist() == [2, 1, 0]


def test_angles_are_exact_from_the_last_product_on():
    made = _cast(
        _model("a = MatMul(x, w) b = Mul(a, c) d = Sin(b) y = MatMul(d, w)", c=np.float32(6.28))
    )
    assert _precisions(made)["Mul"] == "32"


def test_only_a_computed_divisor_makes_an_island():
    scaled = "b = Div(a, w)"
    made = _cast(_model(f"a = MatMul(x, w) {scaled} y = MatMul(b, w)", x="float[4, 4] x"))
    assert _precisions(made)["Div"] == "16"
    normed = "c = Abs(a) b = Div(a, c)"
    made = _cast(_model(f"a = MatMul(x, w) {normed} y = MatMul(b, w)"))
    assert _precisions(made)["Div"] == "32"


def test_an_initializer_is_shared_by_half_and_float32():
    model = _model(
        "a = MatMul(x, w) b = LayerNormalization(a, v, v) c = Mul(b, v) y = MatMul(c, w)",
        v=W[0],
        unused=W[1],
    )
    made = _cast(model)
    assert _difference(made, model) < 1e-2
    stored = {t.name: t.data_type for t in made.model.graph.initializer}
    assert stored == {"w": HALF, "v": FLOAT, "v_fp16": HALF, "unused": FLOAT}


def test_new_names_avoid_those_there():
    made = _cast(_model("x_fp16 = Abs(x) a = MatMul(x_fp16, w) b = MatMul(x, w) y = MatMul(a, b)",
                        x="float[4, 4] x"))  # fmt: skip
    assert {"x_fp16", "x_fp16_"} <= {*_types(made.model)}


def test_inputs_that_the_schema_wants_in_float32_keep_it():
    body = 'a = Conv(x, k) b = Resize <mode = "linear"> (a, , s) y = Conv(b, k)'
    kernel = RNG.normal(size=(2, 2, 1, 1)).astype(np.float32)
    image = RNG.normal(size=(1, 2, 3, 3)).astype(np.float32)
    model = _model(
        body,
        x="float[N, 2, 3, 3] x",
        y="float[N, 2, 6, 6] y",
        k=kernel,
        s=np.array([1, 1, 2, 2], np.float32),
    )
    made = _cast(model)
    stored = {t.name: t.data_type for t in made.model.graph.initializer}
    assert stored["s"] == FLOAT
    assert _types(made.model)["b"] == HALF
    assert _difference(made, model, image) < 5e-3


def test_sources_of_values_give_them_in_half():
    model = _model(
        "n = Shape(x) a = MatMul(x, w) f = ConstantOfShape <value = float[1] {0.5}> (n)"
        "b = Add(a, f) i = Constant <value_ints = [1, 2, 3, 4]> () j = Cast <to = 1> (i)"
        "c = Mul(b, j) h = Constant <value_float = 0.25> () d = Mul(c, h)"
        "g = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () e = Add(d, g) y = MatMul(e, w)"
    )
    made = _cast(model)
    types = _types(made.model)
    assert {name: types[name] for name in "fjhg"} == dict.fromkeys("fjhg", HALF)
    assert (made.half_nodes, made.casts) == (6, 2)
    assert _difference(made, model) < 5e-3


def test_sources_are_doubled_where_both_types_are_wanted():
    """In place of a cast behind a cast."""
    model = _model(
        "i = Shape(x) k = ReduceSum(i) j = Cast <to = 1> (k) c = Constant <value_float = 2.0> ()"
        "a = MatMul(x, w) b = Mul(a, j) d = Mul(b, c) e = Softmax(d) f = Add(e, j) g = Mul(f, c)"
        "h = Softmax(g) y = MatMul(h, w)"
    )
    made = _cast(model)
    makers = Counter(node.op_type for node in made.model.graph.node)
    assert (makers["Constant"], makers["Cast"]) == (2, 1 + 5)  # x, d, h, y and j's double
    assert _difference(made, model) < 5e-3


def test_a_range_has_no_half_and_is_cast_behind():
    model = _model(
        "n = Size(w) m = Cast <to = 1> (n) r = Range(o, m, o4) a = MatMul(x, w) b = Add(a, r)"
        "y = MatMul(b, w)",
        o=np.float32(0),
        o4=np.float32(4),
    )
    made = _cast(model)
    types = _types(made.model)
    assert (types["m"], types["r"], types["r_fp16"]) == (FLOAT, FLOAT, HALF)
    assert _difference(made, model) < 5e-3


def test_a_cast_to_its_own_type_decides_nothing():
    made = _cast(_model("a = MatMul(x, w) b = Cast <to = 1> (a) c = Softmax(b) y = MatMul(c, w)"))
    assert made.casts == 4 - 1  # x, b for the Softmax, its result, y; one was there and is gone
    assert _precisions(made)["Identity"] == "16"


def test_arithmetic_of_shapes_is_left_alone():
    model = _model(
        "a = MatMul(x, w) n = Shape(a) i = Constant <value = int64[1] {0}> ()"
        "m = Gather(n, i) two = Constant <value = int64[1] {2}> () q = Mul(m, two)"
        "s = Concat <axis = 0> (q, two) z = Equal(q, two) t = Where(z, q, q)"
        "b = Reshape(a, s) y0 = MatMul(b, v) u = Expand(t, i) y = Reshape(y0, n)",
        v=np.eye(2, dtype=np.float32),
    )
    made = _cast(model)
    inner = {"n", "i", "m", "two", "q", "s", "z", "t", "u"}
    before, after = (
        {node.output[0]: node for node in graph.node if node.output[0] in inner}
        for graph in (model.graph, made.model.graph)
    )
    assert before == after


def test_a_result_whose_type_no_input_decides_keeps_it():
    made = _cast(
        _model(
            "a = MatMul(x, w) e = EyeLike <dtype = 1> (a) b = Add(a, e) y = MatMul(b, w)",
            x="float[4, 4] x",
        )
    )
    types = _types(made.model)
    assert (types["a"], types["e"], types["e_fp16"]) == (HALF, FLOAT, HALF)


def test_stated_types_of_inner_tensors_follow():
    plain = _model("a = MatMul(x, w) b = Softmax(a) y = MatMul(b, w)")
    stated = onnx.shape_inference.infer_shapes(plain)
    assert {value.name for value in stated.graph.value_info} == {"a", "b"}
    values = _cast(stated).model.graph.value_info
    assert {v.name: v.type.tensor_type.elem_type for v in values} == {"a": HALF, "b": FLOAT}


def test_inputs_weights_and_constants_may_be_outputs():
    model = _model(
        "c = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> () a = Add(x, c) b = MatMul(a, w)"
        "y = MatMul(b, w)",
        y="float[N, 4] y, float[N, 4] b, float[4] c, float[4, 4] w",
    )
    assert _difference(_cast(model), model) < 5e-3


def test_named_nodes_become_islands():
    model = _model("a = MatMul(x, w) b = MatMul(a, w) c = MatMul(b, w) y = MatMul(c, w)")
    model.graph.node[1].name = "middle"
    made = _cast(model, islands=["middle", "c"])
    types = _types(made.model)
    assert (types["a"], types["b"], types["c"]) == (HALF, FLOAT, FLOAT)
    assert (made.half_nodes, made.island_nodes, made.casts) == (2, 2, 4)
    with pytest.raises(InputError, match="no node elsewhere"):
        to_fp16(model, islands=["middle", "elsewhere"])


def test_lost_weights_are_counted():
    small = np.array([[0, 1e-9, -1e-9, 1e-6], [-1e-6, 7e-5, 1, -1]], np.float32).reshape(4, 2)
    made = _cast(_model("a = MatMul(x, small) y = MatMul(a, v)", small=small, v=W[:2]))
    assert (made.zeroed_weights, made.subnormal_weights) == (2, 2)


def test_a_mask_may_be_infinite():
    model = _model(
        "a = MatMul(x, w) b = Where(hidden, m, a) c = Softmax(b) y = MatMul(c, w)",
        m=np.float32(-np.inf),
        hidden=np.array([False, True, False, False]),
    )
    assert _difference(_cast(model), model) < 1e-2
    assert overflow_nodes(model, [X]) == frozenset()


HUGE = np.array(W)
HUGE[0, 0] = 70000
NAN, INFINITE = np.array(W), np.array(W)
NAN[1, 1], INFINITE[1, 1] = np.nan, np.inf


@pytest.mark.parametrize(
    ("body", "weights", "message"),
    [
        ("a = MatMul(x, v) y = MatMul(a, w)", {"v": HUGE}, r"weights v reach 70000.*\(a\)"),
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
def test_models_that_cannot_be_cast_are_refused(body, weights, message):
    with pytest.raises(ArtifactError, match=message):
        to_fp16(_model(body, **weights))


def test_operators_of_a_foreign_domain_are_refused():
    model = _model("a = MatMul(x, w) y = FusedRelu(a)")
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    with pytest.raises(ArtifactError, match=r"does not know com\.example\.FusedRelu"):
        to_fp16(model)


def test_onnx_may_be_named_in_full():
    model = _model("a = MatMul(x, w) y = MatMul(a, w)")
    model.opset_import[0].domain = "ai.onnx"
    assert _cast(model).half_nodes == 2


def test_an_overflow_is_found_and_cured():
    model = _model(
        "a = MatMul(x, v) b = MatMul(a, v) c = MatMul(b, u) d = MatMul(c, u) y = MatMul(d, w)",
        v=300 * W,
        u=W / 300,
    )
    assert not np.isfinite(_run_rounding(_cast(model).model)).all()
    found = overflow_nodes(model, [0.01 * X, X, 0.01 * X])
    assert found == {"b", "c"}
    cured = _cast(model, islands=found)
    assert cured.island_nodes == 2
    assert _difference(cured, model) < 1e-2
    assert overflow_nodes(model, [0.01 * X]) == frozenset()


def test_other_images_may_make_four_times_larger_values():
    model = _model("a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)", w=np.eye(4, dtype=np.float32))
    x = np.full((1, 4), 17000, np.float32)
    assert overflow_nodes(model, [x]) == {"a", "b", "y"}
    assert overflow_nodes(model, [0.9 * x]) == frozenset()


def test_weights_that_overflow_are_found_and_cured():
    model = _model("a = MatMul(x, v) b = Mul(a, s) y = MatMul(b, w)", v=HUGE, s=np.float32(1e-5))
    found = overflow_nodes(model, [0.01 * X])
    assert found == {"a"}
    assert _difference(_cast(model, islands=found), model, 0.01 * X) < 1e-2


@pytest.mark.parametrize("body", ["a = Log(x)", "z = Sub(x, x) a = Div(x, z)"])
def test_a_model_that_breaks_in_float32_is_no_overflow(body):
    model = _model(f"{body} b = MatMul(a, w) c = Relu(b) y = MatMul(c, w)")
    with pytest.raises(ArtifactError, match="a becomes NaN or infinite"):
        overflow_nodes(model, [np.abs(X), X])


def test_overflows_are_sought_with_images_that_fit():
    model = _model("a = MatMul(x, w) y = MatMul(a, w)")
    with pytest.raises(InputError, match="no images"):
        overflow_nodes(model, [])
    with pytest.raises(BackendError, match="takes x float32"):
        overflow_nodes(model, [X[:, :3]])
    model = _model("a = MatMul(x, z) y = MatMul(a, w)", x="float[N, 4] x, float[4, 4] z")
    with pytest.raises(ArtifactError, match="takes x, z"):
        overflow_nodes(model, [X])


def test_any_batch_goes_through_a_dynamic_graph(tmp_path):
    model = onnx.load(save_detector(tmp_path / "model.onnx", batch=None, masks="masks"))
    made = _cast(model)
    for size in (1, 3):
        images = RNG.normal(size=(size, 3, 64, 96)).astype(np.float32)
        np.testing.assert_allclose(_run(made.model, images), _run(model, images), atol=5e-3)


STEPS = {
    "Add": "({one}, {other})",
    "Cast": " <to = 1> (i{number})",
    "Constant": " <value = float[1] {{0.5}}> ()",
    "MatMul": "({one}, w)",
    "Mul": "({one}, {other})",
    "ReduceMax": " <axes = [0]> ({one})",
    "Sigmoid": "({one})",
    "Sin": "({one})",
    "Softmax": "({one})",
    "Transpose": " <perm = [1, 0]> ({one})",
    "Where": "(mask, {one}, {other})",
}


@st.composite
def _graphs(draw) -> onnx.ModelProto:
    """Up to eight steps on 4x4 tensors within -1 to 1; the last comes out, and another."""
    body, made = "", ["x"]
    for number in range(draw(st.integers(1, 8))):
        step = draw(st.sampled_from(sorted(STEPS)))
        one, other = (draw(st.sampled_from(made)) for _ in range(2))
        body += (
            f"i{number} = Sub(whole, ones) "
            f"r{number} = {step}{STEPS[step].format(one=one, other=other, number=number)} "
            f"e{number} = Expand(r{number}, shape) t{number} = Clip(e{number}, low, high) "
        )
        made.append(f"t{number}")
    outputs = dict.fromkeys([made[-1], draw(st.sampled_from(made[1:]))])
    return _model(
        body,
        x="float[4, 4] x",
        y=", ".join(f"float[4, 4] {name}" for name in outputs),
        whole=np.arange(16).reshape(4, 4) % 3,
        ones=np.array(1),
        mask=np.arange(16).reshape(4, 4) % 2 == 0,
        shape=np.array([4, 4]),
        low=np.float32(-1),
        high=np.float32(1),
    )


@settings(max_examples=40)
@given(_graphs())
def test_any_graph_becomes_a_valid_one_with_nearly_the_same_results(model):
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    made = _cast(model)
    for run in (_run, _run_rounding):
        np.testing.assert_allclose(run(made.model, x), _run(model, x), rtol=0, atol=0.02)


@pytest.fixture(scope="module")
def tiny() -> tuple[onnx.ModelProto, Fp16Model]:
    model = onnx.load(model_path())
    return model, _cast(model)


def test_the_embedded_model_is_half_as_large_and_knows_no_overflow(tiny):
    model, made = tiny
    assert made.model.ByteSize() < 0.52 * model.ByteSize()
    assert made.model.metadata_props == model.metadata_props
    assert made.casts < made.island_nodes < made.half_nodes
    assert (made.zeroed_weights, made.subnormal_weights < 1e-2 * 3.9e6) == (1, True)


def test_the_embedded_model_finds_the_same_in_half(tiny, tmp_path):
    onnx.save(tiny[1].model, tmp_path / "half.onnx")
    with Detector(model_path()) as full, Detector(tmp_path / "half.onnx") as half:
        for path in photo_paths():
            image = read_image(path, upright=False)
            wanted, found = (d.predict(image, threshold=0.3) for d in (full, half))
            assert len(wanted) > 5
            for row in range(len(wanted)):
                same = found.class_id == wanted.class_id[row]
                apart = boxes_apart(wanted.xyxy[row], found.xyxy[same], wanted.source_size)
                assert apart.min(initial=1) < 0.02
                best = found.confidence[same][apart.argmin()]
                assert abs(best - wanted.confidence[row]) < 0.02


def test_the_embedded_model_is_within_range(tiny):
    with Detector(model_path()) as detector:
        spec = detector.metadata.input
    image = preprocess(read_image(photo_paths()[0], upright=False), spec)
    assert overflow_nodes(tiny[0], [image[None]]) == frozenset()
