"""Observers give the ranges that brute force over all values gives, within what they state."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from exporters.observers import ChannelMean, Mse, Percentile, observer, quantization
from rfdetr_edge.errors import ArtifactError, InputError

KINDS = ("minmax", "percentile", "mse")
_BIN = 1 / 128
_SUBNORMAL = 1e-40  # the width of a bin next to 0

floats = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.just(0.0))
tensors = arrays(np.float32, st.integers(1, 30), elements=floats)


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _relu() -> np.ndarray:
    return np.maximum(_rng().normal(0, 1, 6000), 0)


def _gelu() -> np.ndarray:
    values = _rng().normal(-0.5, 2, 6000)
    return values / (1 + np.exp(-1.7 * values))


def _outliers() -> np.ndarray:
    values = _rng().normal(0, 1, 6000)
    values[:5] = [40, 35, -6, 50, 45]
    return values


def _far_from_zero() -> np.ndarray:
    return np.concatenate([_rng().normal(100, 1, 4000), _rng().normal(-3, 2, 2000)])


DATA = {
    "normal": lambda: _rng().normal(0.3, 1, 6000),
    "uniform": lambda: _rng().uniform(-1, 3, 6000),
    "relu": _relu,
    "gelu": _gelu,
    "outliers": _outliers,
    "far from zero": _far_from_zero,
    "student": lambda: _rng().standard_t(2, 6000),
    "log-normal": lambda: -_rng().lognormal(0, 2, 6000),
}


def _seen(name: str) -> np.ndarray:
    return DATA[name]().astype(np.float32)


def _observed(kind: str, *batches: np.ndarray):
    seer = observer(kind, "x")
    for batch in batches:
        seer.observe(batch)
    return seer


def _error(values: np.ndarray, low: float, high: float, symmetric: bool) -> float:
    """The summed squared error of values that went through 8 bits and back."""
    scale, zero_point = quantization(low, high, symmetric)
    first, last = (-127, 127) if symmetric else (0, 255)
    whole = np.clip(np.rint(values / float(scale)) + zero_point, first, last)
    return float((((whole - zero_point) * float(scale) - values) ** 2).sum())


@given(st.lists(tensors, min_size=1, max_size=4))
def test_minmax_is_the_whole_range_and_zero(batches):
    whole = np.append(np.concatenate(batches), 0)
    seer = _observed("minmax", *batches)
    assert seer.range(symmetric=False) == (whole.min(), whole.max())
    assert seer.range(symmetric=True) == (-abs(whole).max(), abs(whole).max())


def _exact_percentiles(values: np.ndarray, percent: float) -> tuple[float, float]:
    ordered = np.sort(values)
    dropped = int(len(values) * (100 - percent) / 100)
    return min(float(ordered[dropped]), 0.0), max(float(ordered[-1 - dropped]), 0.0)


@given(st.lists(tensors, min_size=1, max_size=4), st.sampled_from([50.1, 75.0, 90.0, 99.9, 100.0]))
def test_a_percentile_is_at_most_a_bin_wider_than_the_exact_one(batches, percent):
    values = np.concatenate(batches)
    seer = Percentile("x", percent)
    for batch in batches:
        seer.observe(batch)
    found, exact = seer.range(symmetric=False), _exact_percentiles(values, percent)
    for bound, wanted, extreme in zip(
        np.abs(found), np.abs(exact), (-values.min(), values.max()), strict=True
    ):
        assert wanted <= bound <= wanted * (1 + _BIN) + _SUBNORMAL
        assert bound <= max(extreme, 0)
    assert seer.range(symmetric=True) == (-max(np.abs(found)), max(np.abs(found)))


@pytest.mark.parametrize("name", DATA)
def test_the_default_percentile_leaves_out_one_in_ten_thousand_on_each_side(name):
    values = np.concatenate([_seen(name), _rng().normal(0, 1e-3, 94_000).astype(np.float32)])
    found = _observed("percentile", values).range(symmetric=False)
    np.testing.assert_allclose(found, _exact_percentiles(values, 99.99), rtol=_BIN)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_mse_finds_nearly_the_smallest_error(name, symmetric):
    values = _seen(name)
    seer = _observed("mse", *np.split(values, 3))
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    shrunk = 2.0 ** -np.arange(0, 7, 1 / 8)
    if symmetric:
        candidates = [(-max(-low, high) * by, max(-low, high) * by) for by in shrunk]
    else:
        candidates = [(low * a, high * b) for a in shrunk[: 32 if low else 1] for b in shrunk[:32]]
    best = min(_error(values, *bounds, symmetric) for bounds in candidates)
    assert _error(values, *seer.range(symmetric), symmetric) < 1.05 * best


def _rare_outliers() -> np.ndarray:
    return np.append(_rng().normal(0, 1, 500_000), [-27, 11, 19])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "draw",
    [
        _rare_outliers,
        lambda: _rng().standard_t(5, 500_000),
        lambda: _rng().lognormal(0, 1, 500_000),
    ],
)
def test_mse_beats_the_others_on_heavy_tails(draw, symmetric):
    values = draw().astype(np.float32)
    found = {kind: _observed(kind, values).range(symmetric) for kind in KINDS}
    errors = {kind: _error(values, *found[kind], symmetric) for kind in KINDS}
    assert errors["mse"] < 0.75 * errors["minmax"]
    assert errors["mse"] < 0.85 * errors["percentile"]


@given(st.lists(tensors, min_size=1, max_size=3), st.booleans())
def test_mse_lies_within_the_extremes(batches, symmetric):
    narrow, whole = (_observed(kind, *batches).range(symmetric) for kind in ("mse", "minmax"))
    assert whole[0] <= narrow[0] <= 0 <= narrow[1] <= whole[1]
    if symmetric:
        assert narrow[0] == -narrow[1]


def test_mse_looks_beyond_where_a_narrower_range_only_clips():
    """One step of the widest range is wider than nearly all values, so half of it is worse."""
    bulk = _rng().normal(0, 1, 20_000).astype(np.float32)
    outlier = np.array([2000], np.float32)
    seer = _observed("mse", outlier, *[bulk] * 300)
    high = seer.range(symmetric=True)[1]

    def error(side: float) -> float:
        return 300 * _error(bulk, -side, side, True) + _error(outlier, -side, side, True)

    assert error(2000) < error(1400)
    assert error(high) < 0.8 * error(2000)
    assert high < 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DATA)
def test_the_order_and_the_size_of_batches_make_no_difference(kind, name):
    values = _seen(name)
    together = _observed(kind, values.reshape(2, 3, 1000))
    apart = _observed(kind, *np.split(values[::-1], 15), np.zeros((0, 4), np.float32))
    for symmetric in (False, True):
        assert together.range(symmetric) == apart.range(symmetric)


def test_not_one_value_of_a_large_tensor_is_lost():
    values = np.zeros((3, 203_000), np.float32)  # 60.9 of them may be left out
    for middle in (1 << 16, 1 << 18, 1 << 19):  # where it may have been cut
        values[:] = 0
        values.flat[middle - 30 : middle + 31] = 5
        assert _observed("percentile", values).range(symmetric=False) == (0, 5)
    values.flat[middle] = 0
    assert _observed("percentile", values).range(symmetric=False)[1] < _SUBNORMAL


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, -0.0, 5.0, -3e38, 3.4e38, 1e-45])
def test_a_constant_has_a_range_with_zero_and_itself(kind, value):
    seer = _observed(kind, np.full(9, value, np.float32))
    exact = float(np.float32(value))
    assert seer.range(symmetric=False) == (min(exact, 0), max(exact, 0))
    assert seer.range(symmetric=True) == (-abs(exact), abs(exact))


@pytest.mark.parametrize("kind", [*KINDS, "mean"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name_and_leave_no_trace(kind, value):
    seer = ChannelMean("/block.3/add") if kind == "mean" else observer(kind, "/block.3/add")
    values = np.arange(-6, 6, dtype=np.float32).reshape(1, 3, 4)
    seer.observe(values)
    broken = 2 * values
    broken[0, 1, 2] = value
    broken[0, 2, 2] = -value
    with pytest.raises(ArtifactError, match=r"tensor '/block\.3/add' holds NaN or infinity"):
        seer.observe(broken)
    if kind == "mean":
        np.testing.assert_allclose(seer.mean(), values.mean(axis=(0, 1)))
    else:
        assert seer.range(symmetric=False) == _observed(kind, values).range(symmetric=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_without_values_has_no_range(kind):
    seer = _observed(kind, np.zeros((1, 0, 4), np.float32))
    with pytest.raises(ArtifactError, match="tensor 'x' held no value on any calibration image"):
        seer.range(symmetric=False)


@pytest.mark.parametrize("percent", [50, 0, 100.1, np.nan])
def test_a_percentile_that_is_none_is_refused(percent):
    with pytest.raises(InputError, match="must be above 50 and at most 100"):
        Percentile("x", percent)


def test_memory_does_not_grow_with_the_images():
    rng = _rng()
    tracemalloc.start()
    seers = [Mse("x"), Percentile("y")]
    for _ in range(20):
        batch = rng.standard_normal(50_000).astype(np.float32)
        batch *= np.float32(2) ** rng.integers(-126, 126, len(batch))  # every bin there is
        for seer in seers:
            seer.observe(batch)
    del batch
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < len(seers) * 1.1 * 2**20


def test_channel_means_are_exact_over_batches_of_any_size():
    batches = [_rng().normal(3e4, 1, (1, rows, 5)).astype(np.float32) for rows in (1, 400, 7)]
    seer = ChannelMean("x")
    for batch in batches:
        seer.observe(batch)
    wanted = np.concatenate(batches, axis=1).astype(np.float64).mean(axis=(0, 1))
    np.testing.assert_allclose(seer.mean(), wanted, rtol=1e-12)
    with pytest.raises(ArtifactError, match="held no value"):
        ChannelMean("x").mean()


@pytest.mark.parametrize(
    ("low", "high", "symmetric", "scale", "zero_point"),
    [
        (0, 255, False, 1, 0),
        (-255, 0, False, 1, 255),
        (-127, 128, False, 1, 127),
        (-1, 3, False, 4 / 255, 64),
        (2, 51, False, 0.2, 0),  # widened to hold zero
        (-127, 5, True, 1, 0),
        (-5, 254, True, 2, 0),
        (0, 0, False, 1, 0),
        (0, 0, True, 1, 0),
        (-1e-45, 1e-45, True, 1, 0),
        (-1e-37, 1e-37, False, 1, 0),  # its scale would be subnormal
        (-3e38, 3e38, False, 6e38 / 255, 128),
    ],
)
def test_scales_and_zero_points(low, high, symmetric, scale, zero_point):
    found = quantization(low, high, symmetric)
    assert found == (np.float32(scale), zero_point)
    assert (type(found[0]), type(found[1])) == (np.float32, int)


@given(floats, floats, st.booleans(), st.floats(0, 1))
def test_the_range_survives_8_bits_within_a_step_and_zero_exactly(one, other, symmetric, place):
    low, high = min(one, other, 0.0), max(one, other, 0.0)
    scale, zero_point = quantization(low, high, symmetric)
    first, last = (-127, 127) if symmetric else (0, 255)
    assert first <= zero_point <= last
    value = low + place * (high - low)
    whole = np.clip(np.rint(value / float(scale)) + zero_point, first, last)
    assert abs((whole - zero_point) * float(scale) - value) <= 0.51 * float(scale) + 1e-36
