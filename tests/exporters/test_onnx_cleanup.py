"""A cleaned graph is the same function in Gemm and Conv, each of which `linears` knows by name."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_graphs import (
    Graph,
    constants_of,
    embedded,
    normal,
    open_batch,
    open_tiny,
    parsed,
    photos,
    run,
    tiny,
)

from exporters.linears import Linear, linears
from exporters.onnx_cleanup import cleaned
from exporters.verify import compare
from rfdetr_edge.backends import open_session
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.errors import ArtifactError

EXPORTS = pytest.mark.parametrize(
    ("export", "clean"), [(embedded, tiny), (open_batch, open_tiny)], ids=["fixed", "open"]
)


def _names(model: Graph) -> list[str]:
    return [layer.name for layer in linears(model)]


def test_raw_outputs_stay():
    image = photos(embedded())[:1]
    found = run(tiny(), image)
    for name, values in run(embedded(), image).items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)


def test_an_open_batch_finds_the_same_in_any_number_of_images(tmp_path: Path):
    paths = tmp_path / "before.onnx", tmp_path / "after.onnx"
    for path, model in zip(paths, (open_batch(), open_tiny()), strict=True):
        onnx.save(model, path)
    # alone, and in a batch of three
    comparison = compare(*map(open_session, paths), photo_paths()[:1])
    assert comparison.passed, comparison
    assert comparison.worst.score < 1e-5
    assert comparison.pairs == 4 * 100


@EXPORTS
def test_what_is_around_the_graph_stays(export, clean):
    model, found = export(), clean()
    assert list(found.metadata_props) == list(model.metadata_props) != []
    assert list(found.graph.input) == list(model.graph.input)
    assert list(found.graph.output) == list(model.graph.output)
    assert found.ir_version == model.ir_version
    assert (found.producer_name, found.producer_version) == ("rfdetr-edge", model.producer_version)
    # ONNX Runtime lists every domain that it knows of
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", 17)]


@EXPORTS
def test_there_is_less_of_it_and_a_second_time_changes_no_layer(export, clean):
    once = clean()
    assert len(once.graph.node) < 0.85 * len(export().graph.node)
    before = once.SerializeToString(deterministic=True)
    assert sorted(_names(cleaned(once))) == sorted(_names(once))
    assert once.SerializeToString(deterministic=True) == before


def _matrix_products(model: Graph) -> list[str]:
    """MatMul nodes whose right operand is a constant matrix."""
    matrices = {name for name, array in constants_of(model).items() if array.ndim == 2}
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in matrices]


@EXPORTS
def test_every_linear_layer_is_found_under_its_own_name(export, clean):
    found = clean()
    assert _matrix_products(found) == []
    names = _names(found)
    assert len(set(names)) == len(names) == 73 + (export is open_batch)
    assert not [name for name in names if re.search("MatMul|Gemm|/Conv", name)]
    for block in range(6):
        root = f"/model/encoder/blocks.{block}"
        parts = ("attention/query", "attention/key", "attention/value", "attention/output")
        assert {f"{root}/{part}" for part in (*parts, "fc1", "fc2")} <= set(names)
    assert names[0] == "/model/encoder/patches"
    assert {"/model/class_head", "/model/box_head/layers.2"} <= set(names)


def test_an_open_batch_has_the_layers_of_a_fixed_one():
    # one more has the learned queries alone for data, which a fixed batch makes a constant
    more = set(_names(open_tiny())) - set(_names(tiny()))
    assert len(more) == 1
    assert set(_names(tiny())) < set(_names(open_tiny()))


OPEN = "(float[N,T,4] x) => (float[{sizes}] y, float[{sizes}] z)"
FORMS = {  # nodes, and how many layers come of them
    "bias on the right": ("p = MatMul(x, w)  y = Add(p, b)  z = Relu(y)", 1),
    "bias on the left": ("p = MatMul(x, w)  y = Add(b, p)  z = Relu(y)", 1),
    "rank 2": ("r = Reshape(x, flat)  p = MatMul(r, w)  y = Add(p, b)  z = Relu(y)", 1),
    "rank 4": ("r = Unsqueeze(x, axis)  p = MatMul(r, w)  y = Add(p, b)  z = Relu(y)", 1),
    "two of one tensor": (
        "p = MatMul(x, w)  y = Add(p, b)  q = MatMul(x, v)  z = Add(q, c)",
        2,
    ),
    "one after the other": ("p = MatMul(x, w)  y = Add(p, b)  q = MatMul(y, u)  z = Add(q, b)", 2),
    "product read twice": ("p = MatMul(x, w)  y = Add(p, b)  z = Relu(p)", 0),
    "product is an output": ("z = MatMul(x, w)  y = Add(z, b)", 0),
    "no vector": ("p = MatMul(x, w)  y = Add(p, several)  z = Relu(y)", 0),
    "one number": ("p = MatMul(x, w)  y = Add(p, one)  z = Relu(y)", 0),
    "no constant": ("p = MatMul(x, w)  s = MatMul(x, w)  y = Add(p, s)  z = Relu(y)", 0),
    "no bias": ("y = MatMul(x, w)  z = Relu(y)", 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_layers_of_any_rank_are_fused_where_a_size_is_open(form: str):
    nodes, count = FORMS[form]
    constants = {
        **{name: normal(4, 3, seed=seed) for seed, name in enumerate("wv")},
        **{name: normal(3, seed=seed) for seed, name in enumerate("bc")},
        "u": normal(3, 3),
        "several": normal(2, 3),
        "one": normal(1),
        "flat": np.array([-1, 4]),
        "axis": np.array([0]),
    }
    used = {name: array for name, array in constants.items() if re.search(rf"\b{name}\b", nodes)}
    sizes = {"rank 2": "R,3", "rank 4": "1,N,T,3"}.get(form, "N,T,3")
    model = onnx.shape_inference.infer_shapes(parsed(OPEN.format(sizes=sizes), nodes, **used))
    found = cleaned(model)
    assert len([node for node in found.graph.node if node.op_type == "Gemm"]) == count
    for batch in (1, 3):
        data = normal(batch, 2, 4)
        for name, values in run(model, data, plainly=True).items():
            np.testing.assert_allclose(run(found, data)[name], values, atol=1e-6)


def test_layers_that_read_the_same_tensor_still_do():
    nodes = "p = MatMul(x, w)  y = Add(p, b)  q = MatMul(x, v)  z = Add(q, c)"
    constants = {"w": normal(4, 3), "v": normal(4, 5), "b": normal(3), "c": normal(5)}
    first, second = linears(cleaned(parsed(OPEN.format(sizes="N,T,K"), nodes, **constants)))
    assert first.data == second.data != "x"


NAMES = {
    ("/a/query/MatMul", "/a/key/MatMul"): ["/a/query", "/a/key"],
    ("/a/self_attn/MatMul", "/a/self_attn/MatMul_1"): ["/a/self_attn", "/a/self_attn_1"],
    # what a layer does a second time, and the layer that really has that name
    ("/a/attn/MatMul_1", "/a/attn_1/MatMul"): ["/a/attn_1", "/a/attn_1/MatMul/MatMulAddFusion"],
    ("/a/head/Gemm", "/b/head/Gemm"): ["/a/head", "/b/head"],
    ("/a/head/Gemm", "/a/head"): ["/a/head", "z"],
    ("Gemm", ""): ["Gemm", "z"],
}


@pytest.mark.parametrize("given", NAMES)
def test_names_are_those_of_the_layers_and_no_two_are_the_same(given: tuple[str, str]):
    kinds = ["MatMul" if "MatMul" in name else "Gemm" for name in given]
    body = "  ".join(
        f"{out} = Gemm(x, {w}, {b})"
        if kind == "Gemm"
        else f"p{w} = MatMul(x, {w})  {out} = Add(p{w}, {b})"
        for kind, out, w, b in zip(kinds, "yz", "wv", "bc", strict=True)
    )
    constants = {
        "w": normal(4, 3),
        "v": normal(4, 3, seed=1),
        "b": normal(3),
        "c": normal(3, seed=1),
    }
    model = parsed("(float[2,4] x) => (float[2,3] y, float[2,3] z)", body, **constants)
    products = [node for node in model.graph.node if node.op_type != "Add"]
    for node, name in zip(products, given, strict=True):
        node.name = name
    assert _names(cleaned(model)) == NAMES[given]


def _nothing() -> Graph:
    return onnx.ModelProto()


def _truncated() -> Graph:
    model = onnx.ModelProto()
    model.CopyFrom(embedded())
    del model.graph.node[5:8]
    return model


def _changed(**fields: str) -> Graph:
    model = parsed("(float[2,4] x) => (float[2,4] y)", "y = Relu(x)")
    for field, value in fields.items():
        setattr(model.graph.node[0], field, value)
    return model


def _no_match() -> Graph:
    model = parsed("(float[2,4] x) => (float[2,K] y)", "y = MatMul(x, w)", w=normal(4, 3))
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([3, 4])
    return model


@pytest.mark.parametrize(
    "broken",
    [
        _nothing,
        _truncated,
        _no_match,
        lambda: _changed(op_type="Rulu"),
        lambda: _changed(domain="elsewhere"),
    ],
)
def test_a_graph_that_cannot_be_loaded_is_an_artifact_error(broken):
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot load the graph: "):
        cleaned(broken())


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("/model/encoder/blocks.3/attention/query", "/model/encoder/blocks.3"),
        ("/model/projector/levels.0/fuse/chain.2/conv1/conv", "/model/projector/levels.0"),
        ("/model/decoder/layers.1/self_attn_1", "/model/decoder/layers.1"),
        ("/model/decoder/layers.11", "/model/decoder/layers.11"),
        ("/model/encoder/patches", "/model/encoder/patches"),
        ("/model/class_head", "/model/class_head"),
    ],
)
def test_a_block_ends_with_the_first_number(name: str, block: str):
    assert Linear(name, "Gemm", "x", "w", "b", "y").block == block


GEMMS = {
    "y = Gemm(x, w, b)": True,
    "y = Gemm(x, w)": True,
    "y = Gemm <alpha = 1.0, beta = 1.0, transA = 0, transB = 0> (x, w, b)": True,
    "y = Gemm <transB = 1> (x, square, b4)": False,
    "s = Transpose(x)  y = Gemm <transA = 1> (s, w, b)": False,
    "y = Gemm <alpha = 0.5> (x, w, b)": False,
    "y = Gemm <beta = 2.0> (x, w, b)": False,
    "y = Gemm(x, w, rows)": False,
    "y = Gemm(x, w, one)": False,
    "s = Relu(w)  y = Gemm(x, s, b)": False,
    "s = Relu(b)  y = Gemm(x, w, s)": False,
    "s = Gemm(x, w, b)  t = Gemm(x, w)  y = Add(s, t)": False,
    "s = Gemm(x, w, b)  t = Gemm(x, v, b)  y = Add(s, t)": False,
    "s = Gemm(x, w, b)  t = Identity(b)  y = Add(s, t)": False,
}


@pytest.mark.parametrize("body", GEMMS)
def test_a_gemm_is_a_layer_if_it_is_plain_and_its_constants_are_its_own(body: str):
    shapes = {"w": (4, 3), "v": (4, 3), "b": (3,), "square": (4, 4), "b4": (4,)}
    shapes |= {"rows": (2, 3), "one": ()}
    used = {n: normal(*shape) for n, shape in shapes.items() if re.search(rf"\b{n}\b", body)}
    model = parsed("(float[2,4] x) => (float[2,K] y)", body, **used)
    if not GEMMS[body]:
        assert linears(model) == []
        return
    bias = "b" if "b)" in body else None
    assert linears(model) == [Linear("y", "Gemm", "x", "w", bias, "y")]
    assert linears(model)[0].out_axis == 1


@pytest.mark.parametrize("group", [1, 2])
def test_a_convolution_is_a_layer_if_it_is_not_in_groups(group: int):
    model = parsed(
        "(float[1,4,5,5] x) => (float[1,6,5,5] y)",
        f"y = Conv <group = {group}, pads = [1, 1, 1, 1]> (x, w)",
        w=normal(6, 4 // group, 3, 3),
    )
    assert linears(model) == ([Linear("y", "Conv", "x", "w", None, "y")] if group == 1 else [])
