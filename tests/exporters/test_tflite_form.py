"""A graph made for TFLite is the same function in operators that convert well."""

import itertools

import numpy as np
import onnx
import pytest
from int8_graphs import Graph, normal, parsed, photos, run

from exporters.tflite.form import tflite_form
from exporters.tflite.low_rank import transpositions
from exporters.tflite.static_graph import StaticGraph, rewritten
from exporters.tflite.tent_sampling import tent_sampling
from rfdetr_edge.demo import model_path
from rfdetr_edge.errors import ArtifactError

TASKS = ("detection", "segmentation", "keypoint")


@pytest.fixture(scope="module", params=TASKS)
def pair(request) -> tuple[Graph, Graph]:
    """An embedded model, as it was traced, with windows of rank 6; and its form for TFLite."""
    model = onnx.load(model_path(request.param))
    return model, tflite_form(model)


def _image(model: Graph) -> np.ndarray:
    return photos(model)[:1]


def test_raw_outputs_stay(pair):
    model, form = pair
    expected, found = (run(graph, _image(model)) for graph in pair)
    assert [*found] == [*expected]
    for name, values in expected.items():
        if name in ("masks", "keypoints"):
            # logits, of masks up to 60, where float32 itself is as coarse as 4e-6
            np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=5e-5)
        else:
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)
    assert form.metadata_props == model.metadata_props


def test_nothing_is_left_that_converts_badly(pair):
    form = pair[1]
    graph = StaticGraph(form)  # every size is known
    kinds = {node.op_type for node in form.graph.node}
    assert not kinds & {"GridSample", "GatherElements", "Constant", "Shape"}
    assert max(len(graph.shape(name)) for node in form.graph.node for name in node.output) <= 4
    for node in form.graph.node:
        constants = [graph.constant(name) for name in node.input if node.op_type == "MatMul"]
        assert all(array is None or array.ndim > 2 for array in constants)  # no linear layer
    types = onnx.shape_inference.infer_shapes(form).graph.value_info
    whole = {v.name for v in types if v.type.tensor_type.elem_type == onnx.TensorProto.INT64}
    (picked,) = (node for node in form.graph.node if node.op_type == "TopK")
    assert whole == {picked.output[1]}  # ONNX has no TopK that gives int32


@pytest.mark.parametrize(("batch", "takes"), [("dynamic", "any number of images"), (2, "2 images")])
def test_another_number_of_images_is_refused(batch, takes):
    size = "N" if batch == "dynamic" else batch
    model = parsed(f"(float[{size},3] input) => (float[{size},3] y)", "y = Relu(input)")
    with pytest.raises(ArtifactError, match=rf"one image a run, .* {takes}; .* --batch 1"):
        tflite_form(model)


def test_an_open_size_is_refused():
    model = parsed("(float[1,K] x) => (float[1,K] y)", "y = Relu(x)")
    with pytest.raises(ArtifactError, match=r"the size of .* is open; .*--batch 1"):
        StaticGraph(model)


SAMPLED = "(float[2,5,6,4] a, float[2,5,3,7] b, float[2,9,3,2] p, float[2,9,3,2] q"


def _same(model: Graph, *tensors: np.ndarray) -> set[str]:
    """Compares a graph with its rewritten form; the kinds of nodes that are left."""
    found = rewritten(model, tent_sampling)
    (expected,), (values,) = (run(graph, *tensors).values() for graph in (model, found))
    np.testing.assert_allclose(values, expected, atol=1e-5)
    return {node.op_type for node in found.graph.node}


@pytest.mark.parametrize("swapped", [False, True])
def test_sampling_of_two_levels_is_a_product(swapped):
    """Points lie up to half the grid outside of it, where there are zeros."""
    factors = "w, s" if swapped else "s, w"
    body = f"""
        first = GridSample <align_corners = 0> (a, p)
        second = GridSample <mode = "bilinear", padding_mode = "zeros"> (b, q)
        s = Concat <axis = 3> (first, second)
        weighted = Mul({factors})
        y = ReduceSum <keepdims = 0> (weighted, last)
    """
    signature = f"{SAMPLED}, float[2,1,9,6] w) => (float[2,5,9] y)"
    model = parsed(signature, body, last=np.array([-1]))
    places = np.random.default_rng(1).uniform(-2, 2, (2, 2, 9, 3, 2)).astype(np.float32)
    maps = normal(2, 5, 6, 4), normal(2, 5, 3, 7, seed=2)
    assert "GridSample" not in _same(model, *maps, *places, normal(2, 1, 9, 6, seed=3))


SUMMED = "m = Mul(s, w) y = ReduceSum <keepdims = 0> (m, last)"


@pytest.mark.parametrize(
    ("attributes", "body", "shape"),
    [
        ("align_corners = 1", SUMMED, "2,5,9"),
        ('padding_mode = "border"', SUMMED, "2,5,9"),
        ('mode = "nearest"', SUMMED, "2,5,9"),
        ("align_corners = 0", "m = Mul(s, w) y = ReduceSum(m, last)", "2,5,9,1"),
        ("align_corners = 0", SUMMED.replace("last", "third"), "2,5,3"),
        ("align_corners = 0", SUMMED.replace("w", "s"), "2,5,9"),
        ("align_corners = 0", SUMMED.replace("Mul", "Add"), "2,5,9"),
        ("align_corners = 0", "y = ReduceSum <keepdims = 0> (s, last)", "2,5,9"),
    ],
)
def test_other_sampling_stays(attributes, body, shape):
    signature = f"(float[2,5,6,4] a, float[2,9,3,2] p, float[2,1,9,3] w) => (float[{shape}] y)"
    body = f"s = GridSample <{attributes}> (a, p) {body}"
    model = parsed(signature, body, last=np.array([3]), third=np.array([2]))
    assert "GridSample" in _same(model, normal(2, 5, 6, 4), normal(2, 9, 3, 2), normal(2, 1, 9, 3))


@pytest.mark.parametrize("shape", [(1, 2, 3, 2, 3, 4), (2, 1, 3, 1, 5), (1, 3, 4)])
def test_a_transposition_in_steps_is_the_same(shape):
    values = np.arange(np.prod(shape))
    for order in itertools.permutations(range(len(shape))):
        moved = values
        for sizes, step in transpositions(shape, order):
            moved = moved.reshape(sizes).transpose(step)
        expected = values.reshape(shape).transpose(order)
        np.testing.assert_array_equal(moved.ravel(), expected.ravel())


@pytest.mark.parametrize(
    ("sizes", "body", "shape", "lowered"),
    [
        # windows, put together with the channels in front
        (
            (1, 2, 2, 3, 3, 4),
            "t = Transpose <perm = [0, 5, 1, 3, 2, 4]> (r) y = Reshape(t, row)",
            "1,144",
            True,
        ),
        (  # points of heads around the centre of a box
            (1, 6, 4, 3, 2),
            """b = Slice(r, zero, two, fifth) d = Slice(r, zero, two, last)
            e = Sub(r, c) f = Mul(e, half) g = Add(b, d)
            t = Transpose <perm = [0, 2, 1, 3, 4]> (f) z = Reshape(t, row)
            u = Reshape(g, column) y = MatMul(z, u)""",
            "1,1",
            True,
        ),
        # nothing to be done: it stays, with what it reads
        ((1, 6, 4, 3, 2), "y = Softmax <axis = 2> (r)", "1,6,4,3,2", False),
        ((1, 6, 4, 3, 2), "e = Add(r, r) y = Softmax <axis = 2> (e)", "1,6,4,3,2", False),
        ((2, 3, 4, 3, 2), "y = Transpose <perm = [4, 3, 2, 1, 0]> (r)", "2,3,4,3,2", False),
        ((1, 2, 4, 3, 2), "y = Add(r, r)", "1,2,4,3,2", False),
        ((3, 2, 4, 3, 2), "y = Slice(r, zero, two, first)", "2,2,4,3,2", False),
        ((1, 2, 4, 3, 2), "y = Slice(r, zero, one, first)", "1,2,4,3,2", False),
    ],
)
def test_high_ranks_are_lowered_where_there_is_a_way(sizes, body, shape, lowered):
    places = {"zero": 0, "one": 1, "two": 2, "first": 0, "fifth": 4, "last": -1}
    model = parsed(
        f"(float[1,{np.prod(sizes)}] x) => (float[{shape}] y)",
        f"r = Reshape(x, sizes) {body}",
        **{name: np.array([place]) for name, place in places.items()},
        sizes=np.array(sizes),
        row=np.array([1, -1]),
        column=np.array([-1, 1]),
        half=np.array(0.5, np.float32),
        c=normal(1, 6, 1, 1, 2),
    )
    found = tflite_form(model)
    values = normal(1, int(np.prod(sizes)))
    np.testing.assert_allclose(run(found, values)["y"], run(model, values)["y"], rtol=1e-5)
    graph = StaticGraph(found)
    inner = [name for node in found.graph.node for name in node.output if name != "y"]
    assert (max(len(graph.shape(name)) for name in inner) <= 4) == lowered
