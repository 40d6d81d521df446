"""INT8 graphs: what is rounded, how far it moves, and what ONNX Runtime makes of it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from int8_graphs import (
    constants_of,
    embedded,
    input_spec,
    normal,
    open_tiny,
    optimised,
    parsed,
    photos,
    run,
    tiny,
)

from benchmarks.outliers import injected
from exporters.agreement import agreement, detections
from exporters.calibration import calibration_set
from exporters.linears import Linear, linears
from exporters.onnx_precision import int8
from exporters.onnx_precision.activations import activations
from exporters.onnx_precision.int8 import Calibrated, calibrated
from exporters.onnx_precision.quantize import SCHEMES, observed, quantized
from rfdetr_edge.backends import open_session
from rfdetr_edge.demo import model_path, photo_paths
from rfdetr_edge.detections import Detections

CPU, TENSORRT = SCHEMES["cpu"], SCHEMES["tensorrt"]
BOTH = pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
_INT16 = 2**15 - 1


@pytest.fixture(scope="module")
def ready() -> Mapping[str, Calibrated]:
    """The embedded model, calibrated on the embedded photos, by scheme."""
    images, spec = calibration_set(photo_paths()), input_spec(tiny())
    return {name: calibrated(tiny(), images, spec, scheme) for name, scheme in SCHEMES.items()}


@pytest.fixture(scope="module")
def whole(ready: Mapping[str, Calibrated]) -> Mapping[str, onnx.ModelProto]:
    """The same with every layer in INT8."""
    return {name: one.quantized(one.layers) for name, one in ready.items()}


def test_no_two_products_on_a_cpu_leave_16_bits():
    assert 2 * np.iinfo(np.uint8).max * CPU.weight_limit <= _INT16
    assert 2 * np.iinfo(np.uint8).max * np.iinfo(np.int8).max > _INT16
    # largest values times largest weights: half of it is lost where 16 bits overflow
    weights = np.stack([np.ones(64), -np.ones(64)], axis=1).astype(np.float32)
    model = parsed("(float[1,64] x) => (float[1,2] y)", "y = Gemm(x, w)", w=weights)
    found = quantized(model, linears(model), {"x": (0, 1)}, {"x": np.ones(64, np.float32)}, CPU)
    sums = run(found, np.ones((1, 64), np.float32))["y"]
    np.testing.assert_allclose(sums, [[64, -64]], rtol=1e-3)


def _one_layer(kind: str, bias: bool, rng: np.random.Generator) -> tuple[onnx.ModelProto, tuple]:
    """A layer of random size and the shape of what it reads."""
    inside, outside = (int(size) for size in rng.integers(1, 9, 2))
    shape = (5, inside) if kind == "Gemm" else (1, inside, 4, 5)
    weights = (inside, outside) if kind == "Gemm" else (outside, inside, 3, 2)
    constants = {"w": (rng.normal(size=weights) * 10 ** rng.uniform(-2, 2)).astype(np.float32)}
    if bias:
        constants["b"] = rng.normal(size=outside).astype(np.float32)
    inputs = ",".join(["x", *constants])
    sizes = f"5,{outside}" if kind == "Gemm" else f"1,{outside},2,4"
    text = ",".join(map(str, shape))
    signature = f"(float[{text}] x) => (float[{sizes}] y)"
    return parsed(signature, f"y = {kind}({inputs})", **constants), shape


@given(st.integers(0, 2**32 - 1), st.sampled_from(["Gemm", "Conv"]), st.booleans())
@BOTH
def test_outputs_move_by_no_more_than_rounding_explains(scheme, seed, kind, bias):
    rng = np.random.default_rng(seed)
    model, shape = _one_layer(kind, bias, rng)
    data = (rng.normal(rng.normal(), 1, shape) * 10 ** rng.uniform(-2, 2)).astype(np.float32)
    wanted = run(model, data)["y"]
    axis = 1
    others = tuple(place for place in range(data.ndim) if place != axis)
    means = {"x": data.mean(axis=others)}
    ranges = {"x": (float(data.min()), float(data.max()))}
    ranges["y"] = (float(wanted.min()), float(wanted.max()))
    found = quantized(model, linears(model), ranges, means, SCHEMES[scheme])
    weights = np.abs(constants_of(model)["w"])
    if kind == "Conv":
        weights = np.moveaxis(weights, 0, -1).reshape(-1, weights.shape[0])
    # zero is among what is rounded; its own place may be half a step off
    limits = [max(-low, high, high - low) for low, high in (ranges["x"], ranges["y"])]
    step, closed = (limit / (127 if scheme == "tensorrt" else 255) for limit in limits)
    unit = weights.max(axis=0) / SCHEMES[scheme].weight_limit
    largest, count = np.abs(data).max(), len(weights)
    # what inputs lose, what weights lose, as much again in the bias, and the bias in whole numbers
    bound = step * weights.sum(axis=0) + count * unit * (largest + step / 2) + unit * step
    if kind == "Conv":
        bound = bound[:, None, None] + (closed if scheme == "cpu" else 0)
    for plainly in (True, False):
        apart = np.abs(run(found, data, plainly=plainly)["y"] - wanted)
        assert (apart <= bound * 1.01 + 1e-5 * np.abs(wanted).max()).all()


def test_a_bias_beside_next_to_no_weights_stays_as_exact():
    weights = normal(8, 3) * np.array([1, 1e-9, 0], np.float32)
    bias = np.array([1, 2, -3], np.float32)
    model = parsed("(float[4,8] x) => (float[4,3] y)", "y = Gemm(x, w, b)", w=weights, b=bias)
    data = normal(4, 8)
    ranges, means = {"x": (-3.0, 3.0)}, {"x": data.mean(axis=0)}
    found = run(quantized(model, linears(model), ranges, means, CPU), data)["y"]
    np.testing.assert_allclose(found[:, 1:], np.tile(bias[1:], (4, 1)), rtol=1e-3)
    np.testing.assert_allclose(found[:, 0], run(model, data)["y"][:, 0], atol=0.2)


@BOTH
def test_a_layer_that_saw_only_zeros_gives_its_bias(scheme):
    model = parsed(
        "(float[4,8] x) => (float[4,3] y)", "y = Gemm(x, w, b)", w=normal(8, 3), b=normal(3)
    )
    zeros = np.zeros((4, 8), np.float32)
    graph = quantized(model, linears(model), {"x": (0, 0)}, {"x": zeros[0]}, SCHEMES[scheme])
    np.testing.assert_allclose(run(graph, zeros)["y"], np.tile(normal(3), (4, 1)), atol=0.02)


def test_convolutions_one_after_the_other_keep_their_names():
    model = parsed(
        "(float[1,3,6,6] x) => (float[1,2,6,6] z, float[1,4,6,6] y)",
        "y = Conv(x, v) z = Conv(y, w)",
        v=normal(4, 3, 1, 1),
        w=normal(2, 4, 1, 1),
    )
    data = normal(1, 3, 6, 6)
    wanted = {"x": data, **run(model, data)}
    ranges = {name: (float(array.min()), float(array.max())) for name, array in wanted.items()}
    means = {name: array.mean(axis=(0, 2, 3)) for name, array in wanted.items()}
    assert observed(linears(model), CPU) == ["x", "y", "z"]
    assert observed(linears(model), TENSORRT) == ["x", "y"]
    for scheme in SCHEMES.values():
        found = run(quantized(model, linears(model), ranges, means, scheme), data)
        for name in "zy":
            np.testing.assert_allclose(found[name], wanted[name], atol=0.2)


def _constants(model: onnx.ModelProto, layer: Linear, part: str) -> np.ndarray:
    return constants_of(model)[f"{layer.weight}/{part}"]


@BOTH
def test_weights_have_one_step_a_channel_and_activations_one_a_tensor(ready, whole, scheme):
    model, rule = whole[scheme], SCHEMES[scheme]
    constants = constants_of(model)
    originals = constants_of(ready[scheme].model)
    largest = 0
    axes = {
        node.input[0]: node.attribute[0].i
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.attribute
    }
    for layer in ready[scheme].layers:
        numbers, step = (_constants(model, layer, part) for part in ("whole", "step"))
        assert numbers.dtype == np.int8
        axis = {"Gemm": 1, "Conv": 0}[layer.kind]
        assert axes[f"{layer.weight}/whole"] == axis
        assert step.shape == (numbers.shape[axis],)
        assert not _constants(model, layer, "zero").any()
        others = tuple(place for place in range(numbers.ndim) if place != axis)
        restored = numbers * np.expand_dims(step, others)
        lost = np.abs(restored - originals[layer.weight])
        assert (lost <= np.expand_dims(step, others) * 0.501).all()
        largest = max(largest, np.abs(numbers.astype(int)).max())
    assert largest == rule.weight_limit
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    for node in pairs:
        step, zero = (constants[name] for name in node.input[1:])
        assert step.shape == zero.shape == ()
        assert zero.dtype == (np.int8 if rule.symmetric else np.uint8)
        assert zero == 0 or not rule.symmetric
    # layers that read the same tensor share its pair; what a closed Conv gives has another name
    names = [node.input[0].removesuffix("_exact") for node in pairs]
    assert sorted(names) == sorted(observed(ready[scheme].layers, rule))
    assert len(names) < len(ready[scheme].layers)


@BOTH
def test_biases_are_whole_numbers_of_the_products_or_float(ready, whole, scheme):
    model, constants = whole[scheme], constants_of(whole[scheme])
    inputs = {node.name: list(node.input) for node in model.graph.node}
    for layer in ready[scheme].layers:
        if scheme == "tensorrt":
            assert constants[inputs[layer.name][2]].dtype == np.float32
            continue
        numbers, step = (constants[f"{layer.name}/bias/{part}"] for part in ("whole", "step"))
        assert numbers.dtype == np.int32
        unit = constants[f"{layer.data}/step"] * _constants(model, layer, "step")
        np.testing.assert_array_equal(step, unit)
    kinds = {array.dtype.name for array in constants.values()}
    assert ("int32" in kinds) == (scheme == "cpu")
    assert "uint8" in kinds if scheme == "cpu" else "uint8" not in kinds


@BOTH
def test_only_convolutions_on_a_cpu_are_closed(ready, whole, scheme):
    rounded_tensors = {n.input[0] for n in whole[scheme].graph.node if n.op_type.startswith("Q")}
    made_by = {node.output[0]: node.op_type for node in whole[scheme].graph.node}
    kinds = Counter(made_by.get(name) for name in rounded_tensors)
    assert kinds["Conv"] == (9 if scheme == "cpu" else 0)
    assert kinds["Gemm"] == 0


@BOTH
def test_layers_that_are_not_chosen_stay_as_they_are(ready, scheme):
    one = ready[scheme]
    before = one.model.SerializeToString(deterministic=True)
    chosen = [layer for layer in one.layers if layer.block == "/model/encoder/blocks.3"]
    assert len(chosen) == 6
    found = one.quantized(chosen)
    assert one.model.SerializeToString(deterministic=True) == before
    names = {layer.name for layer in chosen}
    nodes = [node for node in found.graph.node if "QuantizeLinear" not in node.op_type]
    nodes = [node for node in nodes if node.op_type != "DequantizeLinear"]
    for old, new in zip(one.model.graph.node, nodes, strict=True):
        assert old.name not in names or new.input[0].endswith("_rounded")
        assert old.name in names or old == new
    replaced = {constant for layer in chosen for constant in (layer.weight, layer.bias)}
    constants = constants_of(found)
    for name, array in constants_of(one.model).items():
        assert (name in constants) == (name not in replaced)
        assert name in replaced or np.array_equal(constants[name], array)
    assert one.quantized([]) == one.model
    assert found.metadata_props == one.model.metadata_props


def test_onnx_runtime_computes_every_layer_in_integers(whole):
    kinds = optimised(whole["cpu"])
    assert (kinds["QGemm"], kinds["QLinearConv"]) == (64, 9)
    assert (kinds["Gemm"], kinds["Conv"]) == (0, 0)
    assert kinds["DequantizeLinear"] == kinds["QLinearConv"]


def test_so_it_does_where_the_batch_is_open():
    noise = np.random.default_rng(0).integers(0, 256, (1, 160, 160, 3), np.uint8)
    opened = calibrated(open_tiny(), calibration_set(noise), input_spec(open_tiny()), CPU)
    model = opened.quantized(opened.layers)
    kinds = optimised(model)
    assert (kinds["QGemm"], kinds["QLinearConv"]) == (65, 9)
    assert (kinds["Gemm"], kinds["Conv"]) == (0, 0)
    assert (kinds["MatMul"], kinds["FusedMatMul"]) == (8, 8)  # of attention, half with its scale
    assert run(model, normal(3, 3, 160, 160))["labels"].shape == (3, 60, 4)


@BOTH
def test_the_file_is_less_than_a_third(whole, scheme):
    assert whole[scheme].ByteSize() < 0.33 * embedded().ByteSize()


def _mean_error(one: Calibrated, layer: Linear) -> float:
    """Of this layer alone in INT8: how far its outputs are off on average, channel by channel."""
    inputs = [image[None] for image in photos(tiny())]
    means = []
    for model in (one.model, one.quantized([layer])):
        values = np.concatenate(
            [v[layer.output] for v in activations(model, [layer.output], inputs)]
        )
        channels = 1 if layer.kind == "Conv" else values.ndim - 1
        means.append(values.mean(axis=tuple(a for a in range(values.ndim) if a != channels)))
    return float(np.abs(means[1] - means[0]).mean())


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("/model/encoder/blocks.0/attention/query", 10),
        ("/model/encoder/blocks.2/attention/output", 8),
        ("/model/projector/levels.0/fuse/chain.1/conv1/conv", 2),
    ],
)
def test_biases_take_up_what_rounding_weights_adds_to_the_mean(ready, name: str, factor: float):
    one = ready["cpu"]
    (layer,) = (layer for layer in one.layers if layer.name == name)
    zeros = {data: np.zeros_like(mean) for data, mean in one.means.items()}
    assert _mean_error(one, layer) * factor < _mean_error(replace(one, means=zeros), layer)


def test_scales_come_from_the_calibration_images(ready):
    spec, ranges = input_spec(tiny()), ready["cpu"].ranges
    again = calibrated(tiny(), calibration_set(photo_paths()), spec, CPU)
    assert again.ranges == ranges
    noise = np.random.default_rng(0).integers(0, 256, (2, 100, 100, 3), np.uint8)
    other = calibrated(tiny(), calibration_set(noise), spec, CPU).ranges
    growth = [
        (other[name][1] - other[name][0]) / (high - low) for name, (low, high) in ranges.items()
    ]
    assert np.mean(np.abs(np.log2(growth)) > 0.1) > 0.25


@pytest.fixture(scope="module")
def wanted() -> tuple[Detections, ...]:
    """What the embedded model finds on the embedded photos."""
    session = open_session(model_path(), provider="cpu")
    return detections(session, calibration_set(photo_paths()).pixels())


@BOTH
def test_outliers_spoil_plain_calibration_but_not_ours(scheme, wanted, tmp_path, monkeypatch):
    model, path = injected(embedded()), tmp_path / "model.onnx"

    def apart() -> float:
        images = calibration_set(photo_paths()[:2])
        one = calibrated(model, images, input_spec(model), SCHEMES[scheme])
        onnx.save(one.quantized(one.layers), path)
        session = open_session(path, provider="cpu")
        found = detections(session, calibration_set(photo_paths()).pixels())
        return agreement(zip(wanted, found, strict=True)).disagreement

    ours = apart()
    monkeypatch.setattr(int8, "migrated", lambda graph, layers, sizes: graph)
    plain = apart()
    assert ours < 0.06
    assert plain > 3 * ours
