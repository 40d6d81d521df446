"""A report as tables of text; for a terminal, and for the page to set in its own way."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.result import Report, Result
from benchmarks.statistics import Ratio, Summary, ratio

_UNKNOWN = "-"
_MODEL = "infer"  # the stage that is the model's alone

Table = Sequence[Sequence[str]]
"""Rows of cells; the first row names the columns."""
Columns = Mapping[str, Callable[[Result], str]]


def text(report: Report) -> str:
    """The whole report, and at its end what makes it doubtful."""
    parts = ["\n".join(f"{name}: {fact}" for name, fact in facts(report))]
    parts += [f"{title}\n{aligned(rows)}" for title, rows in tables(report).items()]
    if report.doubts:
        parts.append("\n".join(f"warning: {line}" for line in report.doubts))
    return "\n\n".join(parts)


def facts(report: Report) -> list[tuple[str, str]]:
    """Name and text of what the figures mean nothing without."""
    given = {**report.machine, **report.settings}
    rows = [(name.replace("_", " "), _fact(value)) for name, value in given.items()]
    same: dict[str, list[str]] = {}
    for one in report.results:
        versions = ", ".join(f"{name} {version}" for name, version in one.about["versions"].items())
        same.setdefault(f"{one.about.get('settings')}; {versions}", []).append(one.name)
    rows += [(", ".join(names), fact) for fact, names in same.items()]
    return [*rows, ("a turn of nothing", f"{report.overhead:.3f} ms")]


def tables(report: Report) -> dict[str, Table]:
    """By title; only of what was measured."""
    results = report.results
    found = {
        "Image file to detections, ms": _table(results, _LATENCY),
        "Stages, median ms": _table(results, _stages(results)),
        "Start, ms, and memory": _table(results, _START),
    }
    if any(one.camera for one in results):
        title = f"Camera at {report.settings['camera_fps']:g} frames a second, age in ms"
        found[title] = _table(results, _CAMERA)
    if any(one.accuracy for one in results):
        found["Accuracy"] = _table(results, _ACCURACY)
    return found


def aligned(rows: Table) -> str:
    """Columns as wide as they need to be, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def digits(value: float | None) -> str:
    """Four digits or so; "-" for what is not known."""
    if value is None:
        return _UNKNOWN
    return f"{value:.{1 if value >= 100 else 2 if value >= 10 else 3}f}"


def _table(results: Sequence[Result], columns: Columns) -> Table:
    rows = [[one.name, *(cell(one) for cell in columns.values())] for one in results]
    return [["model", *columns], *rows]


def _percentiles(prefix: str, of: Callable[[Result], Summary | None]) -> Columns:
    """p50 to max of a summary."""

    def column(pick: Callable[[Summary], float | None]) -> Callable[[Result], str]:
        def cell(one: Result) -> str:
            found = of(one)
            return digits(None if found is None else pick(found))

        return cell

    picks: Mapping[str, Callable[[Summary], float | None]] = {
        "p50": lambda found: found.p50,
        "p90": lambda found: found.p90,
        "p95": lambda found: found.p95,
        "p99": lambda found: found.p99,
        "max": lambda found: found.max,
    }
    return {prefix + name: column(pick) for name, pick in picks.items()}


def _ratio(name: str, of: Callable[[Result], Ratio | None]) -> Columns:
    """A ratio to the first contender, and its interval."""

    def value(one: Result) -> str:
        found = of(one)
        return _UNKNOWN if found is None else f"{found.value:.3f}"

    def interval(one: Result) -> str:
        found = of(one)
        return _UNKNOWN if found is None else f"{found.low:.3f} to {found.high:.3f}"

    return {name: value, "95 %": interval}


_LATENCY: Columns = {
    "precision": lambda one: one.about.get("precision") or _UNKNOWN,
    "n": lambda one: str(one.latency.n),
    "mean": lambda one: digits(one.latency.mean),
    **_percentiles("", lambda one: one.latency),
    **_ratio("ratio", lambda one: one.ratio),
    "images/s": lambda one: digits(one.fps),
    "pipelined": lambda one: digits(one.pipelined_fps),
}


def _stages(results: Sequence[Result]) -> Columns:
    def column(name: str) -> Callable[[Result], str]:
        return lambda one: digits(one.stages[name].p50 if name in one.stages else None)

    columns = {name: column(name) for one in results for name in one.stages}
    first = results[0]
    if _MODEL not in first.stages:
        return columns

    base = np.array(first.samples.stages[_MODEL])
    ratios = {
        one.name: ratio(np.array(one.samples.stages[_MODEL]), base)
        for one in results[1:]
        if _MODEL in one.stages
    }
    return {**columns, **_ratio(f"{_MODEL}: ratio", lambda one: ratios.get(one.name))}


def _median(of: Callable[[Any], float]) -> Callable[[Result], str]:
    return lambda one: digits(float(np.median([of(start) for start in one.starts])))


_START: Columns = {
    "cold": _median(lambda start: start.cold_ms),
    "import": _median(lambda start: start.import_ms),
    "load": _median(lambda start: start.load_ms),
    "first image": _median(lambda start: start.first_ms),
    "file MB": lambda one: digits(one.mb),
    "peak MB": lambda one: digits(one.peak_mb),
    "steady MB": lambda one: digits(one.steady_mb),
    "J/image": lambda one: digits(one.joules),
}
_CAMERA: Columns = {
    "frames": lambda one: str(one.camera.arrived) if one.camera else _UNKNOWN,
    "dropped": lambda one: str(one.camera.dropped) if one.camera else _UNKNOWN,
    "missed": lambda one: str(one.camera.missed) if one.camera else _UNKNOWN,
    **_percentiles("age ", lambda one: one.camera.age if one.camera else None),
}


def _points(one: Result) -> str:
    found = one.accuracy
    if found is None or found.drop is None:
        return _UNKNOWN
    return f"{found.drop:.2f} ({found.low:.2f} to {found.high:.2f})"


_ACCURACY: Columns = {
    "AP of": lambda one: one.accuracy.kind if one.accuracy else _UNKNOWN,
    "images": lambda one: str(one.accuracy.images) if one.accuracy else _UNKNOWN,
    "AP": lambda one: f"{one.accuracy.ap:.4f}" if one.accuracy else _UNKNOWN,
    "AP50": lambda one: f"{one.accuracy.ap50:.4f}" if one.accuracy else _UNKNOWN,
    "points lost (95 %)": _points,
}


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
