"""Channels are followed where a factor on them would pass unchanged, and nowhere else."""

import re
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from int8_graphs import (
    constants_of,
    multiplied,
    normal,
    open_tiny,
    parsed,
    photos,
    run,
    tiny,
)
from onnx import helper, numpy_helper

from exporters.linears import linears
from exporters.onnx_precision.channels import Graph
from exporters.onnx_precision.migration import Group, groups

TOKENS, CHANNELS = 6, 4
INTEGERS = {
    "rows": [-1, 4],
    "heads": [1, 6, 2, 2],
    "image": [1, 4, 2, 3],
    "mixed": [1, 4, 6],
    "axis0": [0],
    "axis1": [1],
    "axis2": [2],
    "axes01": [0, 1],
    "first": [0],
    "third": [2],
    "end": [2**63 - 1],
    "before_all": [-(2**63) + 1],
    "last": [-1],
    "back": [-1],
    "two": [2, 2],
}
FLOATS = {
    "w4": (4, 3),
    "w2": (2, 3),
    "w6": (6, 3),
    "w8": (8, 3),
    "b": (3,),
    "kernel": (3, 4, 1, 1),
    "grouped": (4, 1, 1, 1),
    "other": (1, 6, 4),
    "each": (4,),
    "weights": (1, 5, 6),
    "per_head": (1, 2, 3, 6),
    "column": (4, 4),
    "grid": (1, 2, 2, 2),
}


def _model(body: str) -> onnx.ModelProto:
    """From x, (1, tokens, channels), and v, another such, to the sums of a layer."""
    used = set(re.findall(r"\w+", body))
    constants = {name: np.array(v, np.int64) for name, v in INTEGERS.items() if name in used}
    constants |= {name: normal(*shape) for name, shape in FLOATS.items() if name in used}
    rank = 4 if "Conv" in body.rpartition("y =")[2] else 2
    sizes = ",".join("abcd"[:rank])
    signature = f"(float[1,6,4] x, float[1,6,4] v) => (float[{sizes}] y)"
    return parsed(signature, body, **constants)


def _reached(body: str) -> dict[str, list[int]] | None:
    model = _model(body)
    labels = np.broadcast_to(np.arange(CHANNELS, dtype=np.int32), (1, TOKENS, CHANNELS))
    found = Graph(model, linears(model)).readers({"x": labels})
    return None if found is None else {name: row.tolist() for name, row in found.items()}


ALL = [0, 1, 2, 3]
PASSES = {
    "to a layer": ("r = Reshape(x, rows) y = Gemm(r, w4, b)", {"y": ALL}),
    "to two layers": (
        "r = Reshape(x, rows) s = Gemm(r, w4, b) t = Gemm(r, w4_, b_) y = Add(s, t)",
        {"s": ALL, "t": ALL},
    ),
    "to a convolution": (
        "t = Transpose <perm = [0, 2, 1]> (x) i = Reshape(t, image) y = Conv(i, kernel)",
        {"y": ALL},
    ),
    "heads apart and together": (
        "h = Reshape(x, heads) t = Transpose <perm = [0, 2, 1, 3]> (h)"
        " u = Transpose <perm = [0, 2, 1, 3]> (t) r = Reshape(u, rows) y = Gemm(r, w4, b)",
        {"y": ALL},
    ),
    "attention's values": (
        "h = Reshape(x, heads) t = Transpose <perm = [0, 2, 1, 3]> (h) m = MatMul(per_head, t)"
        " u = Transpose <perm = [0, 2, 1, 3]> (m) r = Reshape(u, rows) y = Gemm(r, w4, b)",
        {"y": ALL},
    ),
    "the mean of tokens": (
        "m = MatMul(weights, x) r = Reshape(m, rows) y = Gemm(r, w4, b)",
        {"y": ALL},
    ),
    "the later channels": (
        "s = Slice(x, third, end, axis2) r = Reshape(s, two_wide) y = Gemm(r, w2, b)",
        {"y": [2, 3]},
    ),
    "backwards": (
        "s = Slice(x, last, before_all, axis2, back) r = Reshape(s, rows) y = Gemm(r, w4, b)",
        {"y": [3, 2, 1, 0]},
    ),
    "fewer tokens": (
        "s = Slice(x, third, end, axis1) r = Reshape(s, rows) y = Gemm(r, w4, b)",
        {"y": ALL},
    ),
    "halves": (
        "s, t = Split <axis = 2> (x, two) q = Reshape(s, two_wide) r = Reshape(t, two_wide)"
        " g = Gemm(q, w2, b) h = Gemm(r, w2_, b_) y = Add(g, h)",
        {"g": [0, 1], "h": [2, 3]},
    ),
    "beside others": (
        "k = Concat <axis = 2> (v, x) r = Reshape(k, eight_wide) y = Gemm(r, w8, b)",
        {"y": [-1, -1, -1, -1, *ALL]},
    ),
    "twice": (
        "k = Concat <axis = 2> (x, x) r = Reshape(k, eight_wide) y = Gemm(r, w8, b)",
        {"y": [*ALL, *ALL]},
    ),
    "a ReLU": ("a = Relu(x) r = Reshape(a, rows) y = Gemm(r, w4, b)", {"y": ALL}),
    "times others": ("a = Mul(v, x) r = Reshape(a, rows) y = Gemm(r, w4, b)", {"y": ALL}),
    "times constants": ("a = Mul(x, each) r = Reshape(a, rows) y = Gemm(r, w4, b)", {"y": ALL}),
    "the sum of tokens": (
        "a = ReduceSum(x, axis1) r = Reshape(a, rows) y = Gemm(r, w4, b)",
        {"y": ALL},
    ),
    "an axis more and less": (
        "u = Unsqueeze(x, axis0) q = Squeeze(u, axes01) y = Gemm(q, w4, b)",
        {"y": ALL},
    ),
    "samples of a map": (
        "t = Transpose <perm = [0, 2, 1]> (x) i = Reshape(t, image) s = GridSample(i, grid)"
        " y = Conv(s, kernel)",
        {"y": ALL},
    ),
    "nowhere": ("r = Reshape(v, rows) y = Gemm(r, w4, b)", {}),
}
INTEGERS |= {"two_wide": [-1, 2], "eight_wide": [-1, 8]}
FLOATS |= {"w4_": (4, 3), "w2_": (2, 3), "b_": (3,)}


@pytest.mark.parametrize("way", PASSES)
def test_a_factor_passes(way: str):
    body, wanted = PASSES[way]
    assert _reached(body) == wanted


ENDS = " r = Reshape(a, rows) y = Gemm(r, w4, b)"
STOPS = {
    "a residual": "a = Add(v, x)" + ENDS,
    "another bias": "a = Add(x, each)" + ENDS,
    "a sigmoid": "a = Sigmoid(x)" + ENDS,
    "a GELU": "e = Erf(x) a = Mul(v, e)" + ENDS,
    "a softmax": "a = Softmax(x)" + ENDS,
    "another normalisation": "a = LayerNormalization(x, each)" + ENDS,
    "its own square": "a = Mul(x, x)" + ENDS,
    "a product of two factors": "p = Relu(x) a = Mul(p, x)" + ENDS,
    "a layer and something else": "s = Sigmoid(x) a = Mul(v, x)" + ENDS,
    "the left of a product": "m = MatMul(x, column) r = Reshape(m, rows) y = Gemm(r, w4, b)",
    "both sides of a product": (
        "t = Transpose <perm = [0, 2, 1]> (x) m = MatMul(t, x) r = Reshape(m, rows)"
        " y = Gemm(r, w4, b)"
    ),
    "channels summed in a product": (
        "t = Transpose <perm = [0, 2, 1]> (x) m = MatMul(square, t) r = Reshape(m, six_wide)"
        " y = Gemm(r, w6, b)"
    ),
    "the sum of channels": "s = ReduceSum(x, axis2) a = Mul(s, v)" + ENDS,
    "the sum of everything": "s = ReduceSum(x) a = Mul(s, v)" + ENDS,
    "tokens for channels": "m = Reshape(x, mixed) r = Reshape(m, six_wide) y = Gemm(r, w6, b)",
    "channels for places": "i = Reshape(x, image) y = Conv(i, kernel)",
    "a convolution in groups": (
        "t = Transpose <perm = [0, 2, 1]> (x) i = Reshape(t, image)"
        " y = Conv <group = 4> (i, grouped)"
    ),
    "a layer that scales": "r = Reshape(x, rows) y = Gemm <alpha = 2.0> (r, w4, b)",
    "the weights of a layer": "r = Reshape(v, rows) q = Reshape(x, four) y = Gemm(r, q, c)",
    "the places of samples": (
        "t = Transpose <perm = [0, 2, 1]> (v) i = Reshape(t, image) h = Reshape(x, places)"
        " s = GridSample(i, h) y = Conv(s, kernel)"
    ),
    "samples across channels": (
        "i = Reshape(x, image) s = GridSample(i, grid) y = Conv(s, kernel)"
    ),
    "a slice that a run decides": (
        "m = ReduceMax <keepdims = 0> (v) i = Cast <to = 7> (m) e = Unsqueeze(i, axis0)"
        " s = Slice(x, first, e, axis1) r = Reshape(s, rows) y = Gemm(r, w4, b)"
    ),
    "an output of the graph": "y = ReduceSum <keepdims = 0> (x, axis0)",
}
INTEGERS |= {"six_wide": [-1, 6], "four": [4, 6], "places": [1, 3, 4, 2]}
FLOATS |= {"square": (4, 4), "c": (6,)}


@pytest.mark.parametrize("way", STOPS)
def test_a_factor_does_not_pass(way: str):
    assert _reached(STOPS[way]) is None


def _moved(model: onnx.ModelProto, group: Group, factors: np.ndarray) -> dict[str, np.ndarray]:
    """Name of a constant -> its factors, for a group whose channels are divided by `factors`."""
    layers = {layer.name: layer for layer in linears(model)}
    found = dict.fromkeys(group.parameters, 1 / factors)
    for name, labels in group.readers.items():
        along = np.where(labels >= 0, factors[labels], 1.0)
        gemm = layers[name].kind == "Gemm"
        found[layers[name].weight] = along.reshape((-1, 1) if gemm else (1, -1, 1, 1))
    return found


class _Builder:
    """A random graph of what networks are made of, tensor by tensor."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": (2, 6, 8)}
        self.read: set[str] = set()

    def constant(self, values: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = values
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.rng.normal(size=shape).astype(np.float32))

    def sizes(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def node(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: int) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.read |= set(inputs)
        self.shapes[name] = shape
        return name

    def linear(self, data: str, width: int) -> str:
        inside = self.shapes[data][-1]
        flat = (int(np.prod(self.shapes[data])) // inside, inside)
        rows = self.node("Reshape", [data, self.sizes(*flat)], flat)
        constants = [self.weights(inside, width), self.weights(width)]
        return self.node("Gemm", [rows, *constants], (flat[0], width))

    def normalised(self, data: str) -> str:
        shape = self.shapes[data]
        constants = [self.weights(shape[-1]), self.weights(shape[-1])]
        return self.node("LayerNormalization", [data, *constants], shape)

    def step(self) -> None:
        """One more node, mostly of those that a factor passes."""
        # the newest more often than others
        names = list(self.shapes)
        data = names[-1 - min(int(self.rng.geometric(0.5)) - 1, len(names) - 1)]
        shape = self.shapes[data]
        same = [name for name in names if self.shapes[name] == shape]
        other = str(self.rng.choice([*same, self.weights(*shape)]))
        axis = int(self.rng.integers(len(shape)))
        match int(self.rng.integers(14)):
            case 0:
                self.node("Relu", [data], shape)
            case 1 | 2:
                perm = [int(place) for place in self.rng.permutation(len(shape))]
                self.node("Transpose", [data], tuple(shape[p] for p in perm), perm=perm)
            case 3 | 4:
                size = int(np.prod(shape))
                first = int(self.rng.choice([n for n in range(1, size + 1) if size % n == 0]))
                last = int(self.rng.choice([shape[-1], 1, 2]))
                rest = (size // first // last, last) if size // first % last == 0 else ()
                new = (first, *(rest or (size // first,)))
                self.node("Reshape", [data, self.sizes(*new)], new)
            case 5 if shape[axis] > 1:
                kept = tuple(size - (place == axis) for place, size in enumerate(shape))
                ends = [self.sizes(values) for values in (1, shape[axis], axis)]
                self.node("Slice", [data, *ends], kept)
            case 6:
                doubled = tuple(size * (1 + (place == axis)) for place, size in enumerate(shape))
                self.node("Concat", [data, other], doubled, axis=axis)
            case 7 | 8:
                self.node("Mul", [data, other], shape)
            case 9:
                self.node("Add", [data, other], shape)
            case 10 if len(shape) > 1:
                left = self.weights(3, shape[-2])
                self.node("MatMul", [left, data], (*shape[:-2], 3, shape[-1]))
            case 11 if len(shape) > 1:
                kept = tuple(1 if place == axis else size for place, size in enumerate(shape))
                self.node("ReduceSum", [data, self.sizes(axis)], kept)
            case 12:
                self.linear(data, 4)
            case 13:
                self.normalised(data)

    def model(self) -> onnx.ModelProto:
        """Ends each tensor that nothing reads with a layer, whose sums are outputs."""
        ends = [self.linear(name, 2) for name in [*self.shapes] if name not in self.read]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "random",
            [value("x", onnx.TensorProto.FLOAT, (2, 6, 8))],
            [value(name, onnx.TensorProto.FLOAT, self.shapes[name]) for name in ends],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _random_model(seed: int) -> onnx.ModelProto:
    builder = _Builder(seed)
    builder.normalised("x")
    for _ in range(builder.rng.integers(2, 9)):
        builder.step()
    return builder.model()


def _powers_of_two(count: int, seed: int) -> np.ndarray:
    """Factors that rounding does not notice."""
    return 2.0 ** np.random.default_rng(seed).integers(-3, 4, count)


def _unequal(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> list[str]:
    return [name for name, array in first.items() if not np.array_equal(array, second[name])]


def test_moving_the_factors_of_any_group_of_a_random_graph_changes_no_output():
    data = normal(2, 6, 8, seed=99)
    found = missed = 0
    for seed in range(150):
        model = _random_model(seed)
        wanted = run(model, data, plainly=True)
        for group in groups(model, linears(model)):
            factors = _moved(model, group, _powers_of_two(group.channels, seed))
            assert not _unequal(wanted, run(multiplied(model, factors), data, plainly=True)), seed
            # the readers' part alone is noticed
            weights = {name: f for name, f in factors.items() if name not in group.parameters}
            found += 1
            missed += not _unequal(wanted, run(multiplied(model, weights), data, plainly=True))
    assert found > 60
    assert missed < 0.1 * found


@pytest.mark.parametrize("model", [tiny, open_tiny], ids=["fixed", "open"])
def test_moving_the_factors_of_all_groups_of_a_network_changes_no_output(model):
    data = photos(model())[:1]
    every = groups(model(), linears(model()))
    factors: dict[str, np.ndarray] = {}
    for seed, group in enumerate(every):
        for name, values in _moved(model(), group, _powers_of_two(group.channels, seed)).items():
            factors[name] = factors.get(name, 1.0) * values
    assert not _unequal(run(model(), data), run(multiplied(model(), factors), data))


def _by_parameters(model: onnx.ModelProto) -> dict[str, list[str]]:
    return {g.parameters[-1]: sorted(g.readers) for g in groups(model, linears(model))}


def test_the_groups_of_the_network():
    found = _by_parameters(tiny())
    layers = {layer.bias: layer for layer in linears(tiny())}
    root = "/model/encoder/blocks.2"
    assert found["model.encoder.blocks.2.norm1.bias"] == [
        f"{root}/attention/{part}" for part in ("key", "query", "value")
    ]
    assert found["model.encoder.blocks.2.norm2.bias"] == [f"{root}/fc1"]
    # heads, and the mean over places of the deformable attention
    assert found["model.encoder.blocks.2.attention.value.bias"] == [f"{root}/attention/output"]
    assert found["model.decoder.layers.1.cross_attn.value_proj.bias"] == [
        "/model/decoder/layers.1/cross_attn/output_proj"
    ]
    # four normalised maps side by side
    assert found["model.encoder.norm.bias"] == ["/model/projector/levels.0/fuse/conv1/conv"]
    # a GELU comes after fc1, a residual after fc2
    assert not {f"model.encoder.blocks.2.fc{n}.bias" for n in (1, 2)} & {*found}
    assert {f"model.encoder.blocks.2.fc{n}.bias" for n in (1, 2)} <= {*layers}
    assert len(found) == 31


def test_an_open_batch_has_the_groups_of_a_fixed_one():
    fixed, opened = (sorted(_by_parameters(model()).values()) for model in (tiny, open_tiny))
    assert opened == fixed


TWO = " r = Reshape(m, rows) s = Gemm(r, w, b) q = Reshape(n, rows) t = Gemm(q, v, c) y = Add(s, t)"
SHARED = {
    "nothing": ("m = LayerNormalization(x, g, h) n = LayerNormalization(x, i, j)", [["s"], ["t"]]),
    "all": ("m = LayerNormalization(x, g, h) n = LayerNormalization(x, g, h)", [["s", "t"]]),
    "the scale": ("m = LayerNormalization(x, g, h) n = LayerNormalization(x, g, j)", []),
    "the shift": ("m = LayerNormalization(x, g, h) n = LayerNormalization(x, i, h)", []),
    "a scale alone": (
        "m = LayerNormalization(x, g) n = LayerNormalization(x, g)",
        [["s", "t"]],
    ),
    "the scale, with another node": ("m = LayerNormalization(x, g) n = Mul(x, g)", []),
    "one constant for both": (
        "m = LayerNormalization(x, g, g) n = LayerNormalization(x, i)",
        [["t"]],
    ),
    "none that is constant": ("k = Relu(g) m = LayerNormalization(x, k) n = Relu(x)", []),
}


@pytest.mark.parametrize("shared", SHARED)
def test_normalisations_that_share_parameters_are_divided_together_or_not_at_all(shared: str):
    body, wanted = SHARED[shared]
    constants = {name: normal(4, seed=ord(name)) for name in "ghij"}
    constants |= {"w": normal(4, 3), "v": normal(4, 3, seed=1), "b": normal(3), "c": normal(3)}
    used = set(re.findall(r"\w+", body + TWO))
    constants = {name: array for name, array in constants.items() if name in used}
    model = parsed(
        "(float[1,6,4] x) => (float[6,3] y)", body + TWO, rows=np.array([-1, 4]), **constants
    )
    found = groups(model, linears(model))
    assert [sorted(group.readers) for group in found] == wanted
    data = normal(1, 6, 4, seed=5)
    for group in found:
        factors = _moved(model, group, _powers_of_two(group.channels, 0))
        assert {*factors} <= {*constants_of(model)}
        assert not _unequal(run(model, data), run(multiplied(model, factors), data))
