"""Percentiles by hand, and intervals that hold what they claim to hold."""

import numpy as np
import pytest

from benchmarks.statistics import (
    MIN_P99,
    block_length,
    median_interval,
    ratio,
    ratio_interval,
    summary,
)


def _waves(rng: np.random.Generator, count: int) -> np.ndarray:
    """Samples around 20 with neighbours alike: each is 0.9 of the one before, and something new."""
    new, samples = rng.normal(size=count + 100), np.zeros(count + 100)
    for place in range(1, len(samples)):
        samples[place] = 0.9 * samples[place - 1] + new[place]
    return 20 + samples[100:]


def test_a_summary_by_hand() -> None:
    found = summary(np.array([5.0, 1.0, 2.0, 3.0, 4.0]))
    assert (found.n, found.mean, found.p50, found.max) == (5, 3.0, 3.0, 5.0)
    assert (found.p90, found.p95) == (pytest.approx(4.6), pytest.approx(4.8))


def test_p99_needs_a_thousand_samples() -> None:
    samples = np.arange(1.0, MIN_P99 + 1)
    assert summary(samples[:-1]).p99 is None
    assert summary(samples).p99 == pytest.approx(990.01)


def test_a_ratio_is_of_the_same_round() -> None:
    rng = np.random.default_rng(3)
    slow_moments = rng.uniform(1, 5, 60)
    found = ratio(2 * slow_moments, slow_moments)
    assert (found.value, found.low, found.high) == (pytest.approx(2),) * 3
    apart = ratio(slow_moments * rng.uniform(1.9, 2.1, 60), slow_moments)
    assert apart.low < apart.value < apart.high
    assert apart.high - apart.low < 0.15


def test_an_interval_narrows_with_the_samples() -> None:
    samples = np.random.default_rng(4).normal(20, 1, 1000)
    few, many = median_interval(samples[:40]), median_interval(samples)
    assert few[0] < many[0] < 20 < many[1] < few[1]
    # the standard error of a normal's median is 1.2533 of the mean's
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 1.2533 / np.sqrt(1000), rel=0.2)


def test_neighbours_that_are_alike_are_drawn_together() -> None:
    rng = np.random.default_rng(5)
    assert block_length(rng.normal(size=400)) == 1
    waves = [_waves(rng, 400) for _ in range(25)]
    assert 5 < np.median([block_length(one) for one in waves]) < 60
    held = sum(low <= 20 <= high for low, high in map(median_interval, waves))
    shuffled = sum(
        low <= 20 <= high for low, high in (median_interval(rng.permutation(one)) for one in waves)
    )
    assert shuffled < 15 < 19 <= held  # of 25; drawn one by one they look more sure than they are


@pytest.mark.parametrize("samples", [[3.0], [3.0, 4.0], [5.0] * 50, [1.0, 9.0] * 30])
def test_any_samples_have_an_interval(samples: list[float]) -> None:
    low, high = median_interval(np.array(samples))
    assert min(samples) <= low <= np.median(samples) <= high <= max(samples)
    assert 1 <= block_length(np.array(samples)) <= len(samples)


def test_the_interval_is_of_the_ratio_of_medians() -> None:
    theirs = np.random.default_rng(3).uniform(1.0, 1.2, 200)
    low, high = ratio_interval(np.stack([2 * theirs, theirs], axis=1))
    assert low == pytest.approx(2) == high
    apart = np.random.default_rng(4).uniform(2.0, 2.4, 200)
    low, high = ratio_interval(np.stack([apart, theirs], axis=1))
    assert low < float(np.median(apart) / np.median(theirs)) < high
    assert high - low < 0.2
