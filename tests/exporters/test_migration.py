"""Migration evens out channels and leaves the function as it is."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from int8_graphs import constants_of, embedded, normal, open_tiny, parsed, photos, run, tiny

from benchmarks.outliers import injected
from exporters.linears import linears
from exporters.onnx_precision.activations import activations
from exporters.onnx_precision.migration import groups, migrated

Sizes = Mapping[str, np.ndarray]


def _sizes(model: onnx.ModelProto) -> Sizes:
    """The largest absolute value of each channel of each layer's data, on one photo."""
    layers = {layer.data: layer for layer in linears(model)}
    (values,) = activations(model, [*layers], [photos(model)[:1]])
    found = {}
    for name, layer in layers.items():
        array = np.abs(values[name])
        channels = 1 if layer.kind == "Conv" else array.ndim - 1
        found[name] = array.max(axis=tuple(a for a in range(array.ndim) if a != channels))
    return found


def _migrated(model: onnx.ModelProto) -> onnx.ModelProto:
    return migrated(model, linears(model), _sizes(model))


@pytest.fixture(scope="module")
def models() -> Mapping[str, onnx.ModelProto]:
    return {"tiny": tiny(), "injected": injected(embedded()), "open": open_tiny()}


@pytest.fixture(scope="module")
def even(models: Mapping[str, onnx.ModelProto]) -> Mapping[str, onnx.ModelProto]:
    return {name: _migrated(model) for name, model in models.items()}


def _assert_same_function(first: onnx.ModelProto, second: onnx.ModelProto) -> None:
    data = photos(first)[:1]
    found = run(second, data)
    for name, values in run(first, data).items():
        np.testing.assert_allclose(found[name], values, atol=1e-4)


def _spread(model: onnx.ModelProto) -> dict[str, float]:
    """Of the data of the encoder's layers that read a group: the largest channel over the median.

    By the layer's name, since migration renames nothing.
    """
    sizes = _sizes(model)
    data = {layer.name: layer.data for layer in linears(model)}
    readers = {name for group in groups(model, linears(model)) for name in group.readers}
    found = {name: sizes[data[name]] for name in readers if "/encoder/" in name}
    return {name: float(size.max() / np.median(size)) for name, size in found.items()}


def test_injected_outliers_change_nothing_but_are_there(models):
    _assert_same_function(models["tiny"], models["injected"])
    before, after = _spread(models["tiny"]), _spread(models["injected"])
    assert len(before) == 6 * len(("query", "key", "value", "output", "fc1"))
    growth = [after[name] / before[name] for name in before]
    assert min(growth) > 3
    assert np.median(growth) > 10


@pytest.mark.parametrize("name", ["tiny", "injected", "open"])
def test_migration_changes_no_output(models, even, name: str):
    _assert_same_function(models[name], even[name])


def test_migration_takes_the_outliers_away(models, even):
    before, after = _spread(models["injected"]), _spread(even["injected"])
    fall = [before[name] / after[name] for name in before]
    assert min(fall) > 6
    assert np.median(fall) > 20
    # trained channels are not all alike either
    assert max(after[name] / spread for name, spread in _spread(models["tiny"]).items()) < 1


def _assert_same_weights(first: onnx.ModelProto, second: onnx.ModelProto) -> None:
    found = constants_of(second)
    for name, values in constants_of(first).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_second_migration_has_nothing_to_do(even):
    _assert_same_weights(even["tiny"], _migrated(even["tiny"]))


def test_what_comes_out_does_not_depend_on_where_the_sizes_were(even):
    _assert_same_weights(even["tiny"], even["injected"])


def test_constants_of_other_names_stay_and_so_does_the_given_graph(models):
    model = models["injected"]
    before = model.SerializeToString(deterministic=True)
    found = constants_of(_migrated(model))
    assert model.SerializeToString(deterministic=True) == before
    layers = {layer.name: layer for layer in linears(model)}
    moved = set()
    for group in groups(model, linears(model)):
        moved |= {*group.parameters, *(layers[name].weight for name in group.readers)}
    changed = [n for n, v in constants_of(model).items() if not np.array_equal(v, found[n])]
    assert {*changed} == moved


def _normalised(rows: np.ndarray) -> tuple[onnx.ModelProto, str]:
    """A normalisation of 4 channels, before a layer of these weights."""
    model = parsed(
        "(float[5,4] x) => (float[5,K] y)",
        "n = LayerNormalization(x, g, b) y = Gemm(n, w)",
        g=normal(4),
        b=normal(4, seed=1),
        w=rows,
    )
    return model, "n"


def test_a_channel_and_its_weights_end_up_of_the_same_size():
    weights = np.array([[1, -4], [2, 1], [0, 0], [3, 5]], np.float32)
    sizes = np.array([100, 2, 7, 0], np.float32)
    model, data = _normalised(weights)
    found = constants_of(migrated(model, linears(model), {data: sizes}))
    # sqrt(100 / 4) and sqrt(2 / 2); no weights, and no values, leave nothing to share
    factors = np.array([5, 1, 1, 1])
    np.testing.assert_allclose(found["w"], weights * factors[:, None])
    np.testing.assert_allclose(found["g"], normal(4) / factors, rtol=1e-6)
    np.testing.assert_allclose(found["b"], normal(4, seed=1) / factors, rtol=1e-6)


def test_a_channel_that_lay_idle_does_not_dwarf_the_others_once_it_is_active():
    model, data = _normalised(np.ones((4, 2), np.float32))
    sizes = np.array([100, 1e-9, 1, 1], np.float32)
    found = constants_of(migrated(model, linears(model), {data: sizes}))
    grown = found["g"] / normal(4)
    active = np.array([100, 1, 1, 1])  # on another image
    assert (active * grown).argmax() == 0
    np.testing.assert_allclose(grown, 1 / np.sqrt([100, 1e-3 * 100, 1, 1]), rtol=1e-6)


def test_readers_agree_and_what_others_give_is_left_alone():
    body = (
        "n = LayerNormalization(x, g) y = Gemm(n, w)"
        " t = Transpose <perm = [1, 0]> (n) s = Relu(t) c = Concat <axis = 0> (s, v)"
        " i = Reshape(c, image) z = Conv(i, k)"
    )
    kernel = normal(3, 6, 1, 1, seed=2)
    constants = {"g": normal(4), "w": normal(4, 3, seed=1), "k": kernel}
    model = parsed(
        "(float[6,4] x, float[2,6] v) => (float[6,3] y, float[1,3,2,3] z)",
        body,
        image=np.array([1, 6, 2, 3]),
        **constants,
    )
    # the second channel is large for the convolution alone
    sizes = {"n": np.array([9, 1, 1, 1]), "i": np.array([1, 16, 1, 1, 50, 50])}
    changed = migrated(model, linears(model), {k: v.astype(np.float32) for k, v in sizes.items()})
    found = constants_of(changed)
    largest = np.maximum(np.abs(constants["w"]).max(axis=1), np.abs(kernel[:, :4, 0, 0]).max(0))
    factors = np.sqrt(np.array([9, 16, 1, 1]) / largest)
    np.testing.assert_allclose(found["g"], constants["g"] / factors, rtol=1e-5)
    np.testing.assert_allclose(found["w"], constants["w"] * factors[:, None], rtol=1e-5)
    along = np.append(factors, [1, 1])[:, None, None]
    np.testing.assert_allclose(found["k"], kernel * along, rtol=1e-5)
    data = normal(6, 4, seed=3), normal(2, 6, seed=4)
    for name, values in run(model, *data).items():
        np.testing.assert_allclose(run(changed, *data)[name], values, rtol=1e-4, atol=1e-5)
