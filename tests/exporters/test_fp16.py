"""Graphs in half precision: what is cast, what is counted, and what half costs."""

from collections import Counter

import numpy as np
import onnx
import pytest
from fp16_graphs import (
    FLOAT,
    HALF,
    HUGE,
    W,
    cast,
    difference,
    model_of,
    precisions,
    run,
    run_rounding,
    types_of,
)
from graphs import save_detector
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.difference import boxes_apart
from exporters.onnx_precision.fp16 import Fp16Model, to_fp16
from rfdetr_edge import Detector
from rfdetr_edge.demo import model_path, photo_paths
from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.images import read_image

RNG = np.random.default_rng(1)


def test_products_compute_in_half_between_float32_inputs_and_outputs():
    model = model_of("a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)")
    made = cast(model)
    assert precisions(made) == {"Cast": "16 32", "MatMul": "16", "Relu": "16"}
    assert (made.half_nodes, made.island_nodes, made.casts) == (3, 0, 2)
    assert 0 < difference(made, model) < 5e-3


def test_a_tensor_is_cast_once_for_all_its_islands():
    made = cast(
        model_of(
            "a = MatMul(x, w) b = Softmax(a) c = Softmax <axis = 0> (a) d = MatMul(a, w)"
            "e = MatMul(b, w) f = MatMul(c, w) g = Sum(d, e, f) y = MatMul(g, w)"
        )
    )
    assert made.casts == 5  # x and a, both results, y
    assert precisions(made)["Sum"] == "16"


def test_an_initializer_is_shared_by_half_and_float32():
    model = model_of(
        "a = MatMul(x, w) b = LayerNormalization(a, v, v) c = Mul(b, v) y = MatMul(c, w)",
        v=W[0],
        unused=W[1],
    )
    made = cast(model)
    assert difference(made, model) < 1e-2
    stored = {t.name: t.data_type for t in made.model.graph.initializer}
    assert stored == {"w": HALF, "v": FLOAT, "v_fp16": HALF, "unused": FLOAT}


def test_new_names_avoid_those_there():
    made = cast(model_of("x_fp16 = Abs(x) a = MatMul(x_fp16, w) b = MatMul(x, w) y = MatMul(a, b)",
                        x="float[4, 4] x"))  # fmt: skip
    assert {"x_fp16", "x_fp16_"} <= {*types_of(made.model)}


def test_inputs_that_the_schema_wants_in_float32_keep_it():
    body = 'a = Conv(x, k) b = Resize <mode = "linear"> (a, , s) y = Conv(b, k)'
    kernel = RNG.normal(size=(2, 2, 1, 1)).astype(np.float32)
    image = RNG.normal(size=(1, 2, 3, 3)).astype(np.float32)
    model = model_of(
        body,
        x="float[N, 2, 3, 3] x",
        y="float[N, 2, 6, 6] y",
        k=kernel,
        s=np.array([1, 1, 2, 2], np.float32),
    )
    made = cast(model)
    stored = {t.name: t.data_type for t in made.model.graph.initializer}
    assert stored["s"] == FLOAT
    assert types_of(made.model)["b"] == HALF
    assert difference(made, model, image) < 5e-3


def test_sources_of_values_give_them_in_half():
    model = model_of(
        "n = Shape(x) a = MatMul(x, w) f = ConstantOfShape <value = float[1] {0.5}> (n)"
        "b = Add(a, f) i = Constant <value_ints = [1, 2, 3, 4]> () j = Cast <to = 1> (i)"
        "c = Mul(b, j) h = Constant <value_float = 0.25> () d = Mul(c, h)"
        "g = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () e = Add(d, g) y = MatMul(e, w)"
    )
    made = cast(model)
    types = types_of(made.model)
    assert {name: types[name] for name in "fjhg"} == dict.fromkeys("fjhg", HALF)
    assert (made.half_nodes, made.casts) == (6, 2)
    assert difference(made, model) < 5e-3


def test_sources_are_doubled_where_both_types_are_wanted():
    """In place of a cast behind a cast."""
    model = model_of(
        "i = Shape(x) k = ReduceSum(i) j = Cast <to = 1> (k) c = Constant <value_float = 2.0> ()"
        "a = MatMul(x, w) b = Mul(a, j) d = Mul(b, c) e = Softmax(d) f = Add(e, j) g = Mul(f, c)"
        "h = Softmax(g) y = MatMul(h, w)"
    )
    made = cast(model)
    makers = Counter(node.op_type for node in made.model.graph.node)
    assert (makers["Constant"], makers["Cast"]) == (2, 1 + 5)  # x, d, h, y and j's double
    assert difference(made, model) < 5e-3


def test_a_range_has_no_half_and_is_cast_behind():
    model = model_of(
        "n = Size(w) m = Cast <to = 1> (n) r = Range(o, m, o4) a = MatMul(x, w) b = Add(a, r)"
        "y = MatMul(b, w)",
        o=np.float32(0),
        o4=np.float32(4),
    )
    made = cast(model)
    types = types_of(made.model)
    assert (types["m"], types["r"], types["r_fp16"]) == (FLOAT, FLOAT, HALF)
    assert difference(made, model) < 5e-3


def test_a_cast_to_its_own_type_decides_nothing():
    made = cast(model_of("a = MatMul(x, w) b = Cast <to = 1> (a) c = Softmax(b) y = MatMul(c, w)"))
    assert made.casts == 4 - 1  # x, b for the Softmax, its result, y; one was there and is gone
    assert precisions(made)["Identity"] == "16"


def test_arithmetic_of_shapes_is_left_alone():
    model = model_of(
        "a = MatMul(x, w) n = Shape(a) i = Constant <value = int64[1] {0}> ()"
        "m = Gather(n, i) two = Constant <value = int64[1] {2}> () q = Mul(m, two)"
        "s = Concat <axis = 0> (q, two) z = Equal(q, two) t = Where(z, q, q)"
        "b = Reshape(a, s) y0 = MatMul(b, v) u = Expand(t, i) y = Reshape(y0, n)",
        v=np.eye(2, dtype=np.float32),
    )
    made = cast(model)
    inner = {"n", "i", "m", "two", "q", "s", "z", "t", "u"}
    before, after = (
        {node.output[0]: node for node in graph.node if node.output[0] in inner}
        for graph in (model.graph, made.model.graph)
    )
    assert before == after


def test_a_result_whose_type_no_input_decides_keeps_it():
    made = cast(
        model_of(
            "a = MatMul(x, w) e = EyeLike <dtype = 1> (a) b = Add(a, e) y = MatMul(b, w)",
            x="float[4, 4] x",
        )
    )
    types = types_of(made.model)
    assert (types["a"], types["e"], types["e_fp16"]) == (HALF, FLOAT, HALF)


def test_stated_types_of_inner_tensors_follow():
    plain = model_of("a = MatMul(x, w) b = Softmax(a) y = MatMul(b, w)")
    stated = onnx.shape_inference.infer_shapes(plain)
    assert {value.name for value in stated.graph.value_info} == {"a", "b"}
    values = cast(stated).model.graph.value_info
    assert {v.name: v.type.tensor_type.elem_type for v in values} == {"a": HALF, "b": FLOAT}


def test_inputs_weights_and_constants_may_be_outputs():
    model = model_of(
        "c = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> () a = Add(x, c) b = MatMul(a, w)"
        "y = MatMul(b, w)",
        y="float[N, 4] y, float[N, 4] b, float[4] c, float[4, 4] w",
    )
    assert difference(cast(model), model) < 5e-3


def test_lost_weights_are_counted():
    small = np.array([[0, 1e-9, -1e-9, 1e-6], [-1e-6, 7e-5, 1, -1]], np.float32).reshape(4, 2)
    made = cast(model_of("a = MatMul(x, small) y = MatMul(a, v)", small=small, v=W[:2]))
    assert (made.zeroed_weights, made.subnormal_weights) == (2, 2)


def test_weights_that_half_cannot_hold_are_refused_and_their_users_named():
    model = model_of("a = MatMul(x, v) y = MatMul(a, w)", v=HUGE)
    with pytest.raises(ArtifactError, match=r"weights v reach 70000.*\(a\)"):
        to_fp16(model)


def test_any_batch_goes_through_a_dynamic_graph(tmp_path):
    model = onnx.load(save_detector(tmp_path / "model.onnx", batch=None, masks="masks"))
    made = cast(model)
    for size in (1, 3):
        images = RNG.normal(size=(size, 3, 64, 96)).astype(np.float32)
        np.testing.assert_allclose(run(made.model, images), run(model, images), atol=5e-3)


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
    return model_of(
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
    made = cast(model)
    for found in (run(made.model, x), run_rounding(made.model, x)):
        np.testing.assert_allclose(found, run(model, x), rtol=0, atol=0.02)


@pytest.fixture(scope="module")
def tiny() -> tuple[onnx.ModelProto, Fp16Model]:
    model = onnx.load(model_path())
    return model, cast(model)


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
