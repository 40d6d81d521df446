"""What samples of latency say: percentiles, and how sure a median or a ratio of medians is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_P99 = 1000  # below it the 99th percentile rests on fewer than ten samples

_RESAMPLES = 2000
_ROUND_RESAMPLES = 10_000  # of rounds drawn one by one
_DRAWN = 1 << 22  # numbers that resampling holds at a time, 8 bytes each

Samples = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Summary:
    """n samples in the unit they came in. p99 is None where there are fewer than MIN_P99."""

    n: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float | None
    max: float


def summary(samples: Samples) -> Summary:
    """Of (n,) samples, at least one; percentiles between two samples are interpolated."""
    p50, p90, p95, p99 = (float(value) for value in np.percentile(samples, (50, 90, 95, 99)))
    count = len(samples)
    known = p99 if count >= MIN_P99 else None
    return Summary(count, float(samples.mean()), p50, p90, p95, known, float(samples.max()))


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long one takes as another, and the 95 % interval of that."""

    value: float
    low: float
    high: float


def ratio(samples: Samples, others: Samples) -> Ratio:
    """Median over rounds of one's time by the other's in the same round; both (rounds,).

    Not the ratio of the medians: what slows a round down slows both, and divided round by round it
    falls out. Between two processes of one model on a crowded machine, the interval of this was
    half as wide.
    """
    ratios = samples / others
    return Ratio(float(np.median(ratios)), *median_interval(ratios))


def ratio_interval(times: Samples) -> list[float]:
    """95 % bootstrap interval of the ratio of medians; times (rounds, 2), rounds resampled.

    For rounds far enough apart to be independent, such as those that open a session of their own.
    """
    drawn = np.random.default_rng(0).integers(len(times), size=(_ROUND_RESAMPLES, len(times)))
    medians = np.median(times[drawn], axis=1)
    return [float(edge) for edge in np.percentile(medians[:, 0] / medians[:, 1], (2.5, 97.5))]


def median_interval(samples: Samples) -> tuple[float, float]:
    """95 % interval of the median of (n,) samples in the order they were taken.

    By circular block bootstrap (Politis and Romano 1992), percentile method.
    """
    count, length = len(samples), block_length(samples)
    blocks = -(-count // length)
    rng = np.random.default_rng(0)
    medians = []
    at_once = max(1, _DRAWN // count)
    for first in range(0, _RESAMPLES, at_once):
        starts = rng.integers(count, size=(min(at_once, _RESAMPLES - first), blocks))
        places = (starts[:, :, None] + np.arange(length)).reshape(len(starts), -1) % count
        medians.append(np.median(samples[places[:, :count]], axis=1))
    low, high = np.percentile(np.concatenate(medians), (2.5, 97.5))
    return float(low), float(high)


def block_length(samples: Samples) -> int:
    """How many neighbours of (n,) samples have to be drawn together; 1 where they are independent.

    A slow moment of the machine lasts longer than a turn. Turns drawn one by one would count as
    many independent ones, and the interval would be too narrow.

    The automatic choice for circular blocks of Politis and White (2004), as corrected by Patton,
    Politis and White (2009), on the sides of the median that the samples lie on, since these are
    what moves a median.
    """
    sides = np.sign(samples - np.median(samples))
    count = len(sides)
    sides -= sides.mean()
    most = min(count // 3, int(3 * np.sqrt(count)))
    covariances = np.array([sides[: count - lag] @ sides[lag:] for lag in range(most + 1)]) / count
    last = _last_large(covariances, count)
    if last == 0:
        return 1
    lags = np.arange(1, min(2 * last, most) + 1)
    share = lags / (2 * last)
    kept = covariances[lags] * np.where(share <= 0.5, 1.0, 2 * (1 - share))  # flat-top window
    spectrum = covariances[0] + 2 * kept.sum()
    if spectrum <= 0:  # neighbours on opposite sides: blocks would only widen the interval
        return 1
    length = (1.5 * (2 * (kept * lags).sum() / spectrum) ** 2 * count) ** (1 / 3)
    return int(np.clip(np.ceil(length), 1, most))


def _last_large(covariances: Samples, count: int) -> int:
    """The last lag of a correlation that is not noise, with no long gap before it; 0 for none."""
    if len(covariances) < 2 or covariances[0] == 0.0:
        return 0
    limit = 2 * np.sqrt(np.log10(count) / count) * covariances[0]
    gap = max(5, int(np.ceil(np.sqrt(np.log10(count)))))
    last = 0
    for lag in range(1, len(covariances)):
        if abs(covariances[lag]) >= limit:
            last = lag
        elif lag - last >= gap:
            break
    return last
