"""Values beyond the range of half are found before it is chosen, and where a CPU hides them."""

import numpy as np
import onnx
import pytest
from fp16_graphs import HUGE, W, X, cast, difference, model_of, run, run_rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from exporters.onnx_precision.fp16 import to_fp16
from exporters.onnx_precision.overflow import overflow_nodes, overflows
from rfdetr_edge.demo import model_path, photo_paths
from rfdetr_edge.detector import Detector
from rfdetr_edge.errors import ArtifactError, BackendError, InputError
from rfdetr_edge.images import load_image
from rfdetr_edge.preprocess import preprocess_batch

# Beyond the range in b alone.
CHAIN = "a = MatMul(x, v) b = MatMul(a, v) c = MatMul(b, u) d = MatMul(c, u) y = MatMul(d, w)"
WEIGHTS = {"v": 300 * W, "u": W / 300}


def test_an_overflow_is_found_and_cured():
    model = model_of(CHAIN, **WEIGHTS)
    assert not np.isfinite(run_rounding(cast(model).model)).all()
    found = overflow_nodes(model, [0.01 * X, X, 0.01 * X])
    assert found == {"b", "c"}
    cured = cast(model, islands=found)
    assert cured.island_nodes == 2
    assert difference(cured, model) < 1e-2
    assert overflow_nodes(model, [0.01 * X]) == frozenset()
    assert overflows(cured.model, [X]) == []


def test_a_mask_may_be_infinite():
    model = model_of(
        "a = MatMul(x, w) b = Where(hidden, m, a) c = Softmax(b) y = MatMul(c, w)",
        m=np.float32(-np.inf),
        hidden=np.array([False, True, False, False]),
    )
    assert difference(cast(model), model) < 1e-2
    assert overflow_nodes(model, [X]) == frozenset()


def test_other_images_may_make_four_times_larger_values():
    model = model_of("a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)", w=np.eye(4, dtype=np.float32))
    x = np.full((1, 4), 17000, np.float32)
    assert overflow_nodes(model, [x]) == {"a", "b", "y"}
    assert overflow_nodes(model, [0.9 * x]) == frozenset()


def test_weights_that_overflow_are_found_and_cured():
    model = model_of("a = MatMul(x, v) b = Mul(a, s) y = MatMul(b, w)", v=HUGE, s=np.float32(1e-5))
    found = overflow_nodes(model, [0.01 * X])
    assert found == {"a"}
    assert difference(cast(model, islands=found), model, 0.01 * X) < 1e-2


@pytest.mark.parametrize("body", ["a = Log(x)", "z = Sub(x, x) a = Div(x, z)"])
def test_a_model_that_breaks_in_float32_is_no_overflow(body):
    model = model_of(f"{body} b = MatMul(a, w) c = Relu(b) y = MatMul(c, w)")
    with pytest.raises(ArtifactError, match="a becomes NaN or infinite"):
        overflow_nodes(model, [np.abs(X), X])


def test_overflows_are_sought_with_images_that_fit():
    model = model_of("a = MatMul(x, w) y = MatMul(a, w)")
    with pytest.raises(InputError, match="no images"):
        overflow_nodes(model, [])
    for search, graph in ((overflow_nodes, model), (overflows, cast(model).model)):
        with pytest.raises(BackendError, match="takes x float32"):
            search(graph, [X[:, :3]])
    model = model_of("a = MatMul(x, z) y = MatMul(a, w)", x="float[N, 4] x, float[4, 4] z")
    with pytest.raises(ArtifactError, match="takes x, z"):
        overflow_nodes(model, [X])


def test_a_fixed_batch_takes_one_image_at_a_time():
    model = model_of(CHAIN, x="float[2, 4] x", y="float[2, 4] y", **WEIGHTS)
    images = [0.01 * X[:1], X[:1]]
    assert overflow_nodes(model, images) == {"b", "c"}
    assert overflows(cast(model).model, images) == ["b"]


def test_an_overflow_that_the_cpu_does_not_show_is_found():
    made = cast(model_of(CHAIN, **WEIGHTS)).model
    assert np.isfinite(run(made)).all()
    assert overflows(made, [0.01 * X, X, 0.01 * X]) == ["b"]
    assert overflows(made, [0.01 * X]) == []
    made.graph.node[2].name = "second product"
    assert overflows(made, [X]) == ["second product"]


@pytest.mark.parametrize(("added", "found"), [(15, []), (16, ["b"])])
def test_a_value_overflows_where_it_rounds_to_infinity(added, found):
    """From 65520 on, half way from 65504 to what would come next."""
    model = model_of(
        "a = MatMul(x, w) b = Add(a, c) y = MatMul(b, u)",
        w=np.eye(4, dtype=np.float32),
        u=np.eye(4, dtype=np.float32) / 64,
        c=np.float32(added),
    )
    made = cast(model).model
    x = np.full((1, 4), 65504, np.float32)
    assert overflows(made, [x]) == found
    assert np.isfinite(run_rounding(made, x)).all() == (not found)


def test_a_nan_in_half_is_found():
    made = cast(model_of("a = MatMul(x, w) b = Mul(a, s) y = MatMul(b, w)", s=np.float32(1))).model
    (scale,) = (tensor for tensor in made.graph.initializer if tensor.name == "s")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float16(np.nan), "s"))
    assert overflows(made, [X])[0] == "b"


def test_a_graph_without_half_overflows_nowhere():
    assert overflows(model_of(CHAIN, **WEIGHTS), [X]) == []


@settings(max_examples=25)
@given(st.lists(st.sampled_from([0.003, 0.2, 1, 20, 300]), min_size=2, max_size=7))
def test_what_overflows_first_is_what_does_where_every_half_is_rounded(factors):
    body, last = "", "x"
    for number in range(len(factors)):
        body += f"p{number} = MatMul({last}, v{number}) r{number} = Relu(p{number}) "
        last = f"r{number}"
    weights = {f"v{number}": factor * np.abs(W) for number, factor in enumerate(factors)}
    made = cast(model_of(f"{body} y = MatMul({last}, w)", **weights)).model
    x = np.abs(X)
    with np.errstate(all="ignore"):
        values = ReferenceEvaluator(made).run(None, {"x": x}, intermediate=True)
    wanted = [
        node.name or node.output[0]
        for node in made.graph.node
        if values[node.output[0]].dtype == np.float16 and np.isinf(values[node.output[0]]).any()
    ]
    assert overflows(made, [x])[:1] == wanted[:1]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """An embedded photo as the embedded model takes it."""
    with Detector(model_path()) as detector:
        spec = detector.metadata.input
    return preprocess_batch([load_image(photo_paths()[0], upright=False)], spec)


def test_the_embedded_model_is_within_range(photo):
    model = onnx.load(model_path())
    assert overflow_nodes(model, [photo]) == frozenset()
    assert overflows(to_fp16(model).model, [photo]) == []


def test_an_overflow_planted_in_the_embedded_model_is_found_by_its_nodes(photo):
    """One layer's results are 32768 times as large, and what they are multiplied with as small."""
    model = onnx.load(model_path())
    block = "model/encoder/blocks.3"
    nodes = {node.name: node for node in model.graph.node}
    factors = {
        nodes[f"/{block}/fc2/MatMul"].input[1]: 2.0**15,
        f"{block.replace('/', '.')}.fc2.bias": 2.0**15,
        f"{block.replace('/', '.')}.scale2": 2.0**-15,
    }
    for tensor in model.graph.initializer:
        if tensor.name in factors:
            array = onnx.numpy_helper.to_array(tensor) * np.float32(factors.pop(tensor.name))
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    assert not factors
    half = to_fp16(model).model
    planted = [f"/{block}/fc2/MatMul", f"/{block}/fc2/Add"]
    assert np.isfinite(run(half, photo)).all()
    # ONNX Runtime decides how far an infinity gets from there
    assert overflows(half, [photo])[:2] == planted
    assert overflow_nodes(model, [photo]) == {*planted, f"/{block}/Mul_3"}
