"""Charts of a report as SVG, without a library."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.result import Accuracy, Result
from benchmarks.statistics import Samples

_COLOURS = ("#4a7fb5", "#c9803a", "#4e9a60", "#b04a6e", "#7a64b0", "#8a7a3a")
_WIDTH, _HEIGHT = 760, 280  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 740, 12, 236  # of the area inside the axes
_POINTS = 300  # of a line; each of more is the median of its neighbours
_TICKS = 5


def colour(place: int) -> str:
    """Of the contender in this place."""
    return _COLOURS[place % len(_COLOURS)]


def turns_chart(results: Sequence[Result]) -> str:
    """Latency over the course of the benchmark: a level line is a steady machine."""
    lines = [_thinned(np.array(one.samples.total)) for one in results]
    rounds = max(len(one.samples.total) for one in results)
    highest = max(float(line.max()) for line in lines)
    axes = _Axes((0.0, float(rounds)), (0.0, highest * 1.05))
    parts = [axes.frame("turn", "ms")]
    for place, line in enumerate(lines):
        turns = np.linspace(0, rounds, len(line))
        points = " ".join(axes.point(x, y) for x, y in zip(turns, line, strict=True))
        parts.append(f"<polyline points='{points}' fill='none' stroke='{colour(place)}'/>")
    return _svg(parts)


def measured_ap(results: Sequence[Result]) -> list[tuple[int, Result, Accuracy]]:
    """Place, contender and AP of those whose AP is a number."""
    return [
        (place, one, one.accuracy)
        for place, one in enumerate(results)
        if one.accuracy is not None and not math.isnan(one.accuracy.ap)
    ]


def accuracy_chart(results: Sequence[Result]) -> str:
    """AP against median latency, each with its interval: up and to the left is better.

    Of what `measured_ap` gives, which must be something.
    """
    found = measured_ap(results)
    bars = [ap_interval(results, accuracy) for _, _, accuracy in found]
    axes = _Axes(
        (0.0, max(one.high for _, one, _ in found) * 1.3),
        _padded(min(low for low, _ in bars), max(high for _, high in bars)),
    )
    parts = [axes.frame("median ms, image file to detections", "AP")]
    for (place, one, accuracy), (low, high) in zip(found, bars, strict=True):
        middle, ap, paint = one.latency.p50, accuracy.ap, f"stroke='{colour(place)}'"
        for ends in (((one.low, ap), (one.high, ap)), ((middle, low), (middle, high))):
            points = " ".join(axes.point(*end) for end in ends)
            parts.append(f"<polyline points='{points}' {paint} stroke-width='1.5'/>")
        x, y = axes.point(middle, ap).split(",")
        parts.append(f"<circle cx='{x}' cy='{y}' r='4' fill='{colour(place)}'/>")
        parts.append(f"<text x='{x}' y='{y}' dx='8' dy='-6'>{html.escape(one.name)}</text>")
    return _svg(parts)


def ap_interval(results: Sequence[Result], accuracy: Accuracy) -> tuple[float, float]:
    """95 % interval of an AP, given that of the first; the first's own is the point itself."""
    first, ap = results[0].accuracy, accuracy.ap
    if first is None or accuracy.low is None or accuracy.high is None:
        return ap, ap
    return min(ap, first.ap - accuracy.high / 100), max(ap, first.ap - accuracy.low / 100)


@dataclass(frozen=True, slots=True)
class _Axes:
    """From values to pixels. x, y: the ranges of values."""

    x: tuple[float, float]
    y: tuple[float, float]

    def point(self, x: float, y: float) -> str:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return f"{_LEFT + across * (_RIGHT - _LEFT):.1f},{_BOTTOM - up * (_BOTTOM - _TOP):.1f}"

    def frame(self, x_label: str, y_label: str) -> str:
        """Axes, grid and labels."""
        parts = []
        for value in _ticks(*self.x):
            x = self.point(value, self.y[0]).split(",")[0]
            parts.append(f"<path d='M{x} {_TOP}V{_BOTTOM}' class='grid'/>")
            parts.append(f"<text x='{x}' y='{_BOTTOM + 16}' text-anchor='middle'>{value:g}</text>")
        for value in _ticks(*self.y):
            y = self.point(self.x[0], value).split(",")[1]
            parts.append(f"<path d='M{_LEFT} {y}H{_RIGHT}' class='grid'/>")
            parts.append(f"<text x='{_LEFT - 6}' y='{y}' dy='4' text-anchor='end'>{value:g}</text>")
        middle = (_LEFT + _RIGHT) / 2
        parts.append(f"<text x='{middle}' y='{_HEIGHT - 6}' text-anchor='middle'>{x_label}</text>")
        parts.append(f"<text x='4' y='{_TOP + 8}'>{y_label}</text>")
        return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers of the range, about as many as _TICKS."""
    rough = (high - low) / _TICKS
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(min((m * power for m in (1, 2, 5, 10)), key=lambda size: abs(size - rough)))
    first = int(np.ceil(low / step))
    last = int(np.floor(high / step))
    return [round(count * step, 10) for count in range(first, last + 1)]


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = max(0.15 * (high - low), 0.005)
    return low - margin, high + margin


def _thinned(samples: Samples) -> Samples:
    parts = np.array_split(samples, min(_POINTS, len(samples)))
    return np.array([np.median(part) for part in parts])


def _svg(parts: Sequence[str]) -> str:
    size = f"width='{_WIDTH}' height='{_HEIGHT}' viewBox='0 0 {_WIDTH} {_HEIGHT}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{''.join(parts)}</svg>"
