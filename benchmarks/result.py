"""What a benchmark found, as values; its table, page and plot are made of them.

Times are milliseconds, memory and sizes megabytes, energy joules.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.contender import Start
from benchmarks.statistics import Ratio, Summary

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Camera:
    """At fps frames a second: age of a result since its frame arrived, and what became of frames.

    dropped: overtaken by a newer frame. missed: results older than one period.
    """

    fps: float
    arrived: int
    dropped: int
    missed: int
    age: Summary


@dataclass(frozen=True, slots=True)
class Accuracy:
    """AP of the artifact that was timed.

    kind: "bbox", or of another task "segm" or "keypoints". ap, ap50: 0 to 1. drop, low, high:
    points of 100 below the first model's AP, and the 95 % interval over the images; None for the
    first, and where the two are of different tasks. every: COCO's summary by kind, as `rfdetr-edge
    evaluate` has it.
    """

    kind: str
    images: int
    ap: float
    ap50: float
    drop: float | None
    low: float | None
    high: float | None
    every: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Samples:
    """Everything that was measured, in order. stages: by name; ages: of the camera's results."""

    total: Sequence[float]
    stages: Mapping[str, Sequence[float]]
    idle_cpu: Sequence[float]
    pipelined_fps: Sequence[float]
    ages: Sequence[float]


@dataclass(frozen=True, slots=True)
class Result:
    """One contender.

    about: what it says of itself, versions included. starts: each of a process of its own.
    latency: from an image file to detections; low, high: 95 % interval of its median, over the
    turns of this run, which says nothing of another hour of a busy machine.
    stages: in order; their sum is the latency. ratio: to the first; None for itself.
    pipelined_fps, camera, accuracy, mb: None where that was not measured; the rest, where the
    machine does not tell. detections: mean of an image. joules: of a turn, the whole processor.
    """

    name: str
    about: Mapping[str, Any]
    mb: float | None
    starts: Sequence[Start]
    latency: Summary
    low: float
    high: float
    stages: Mapping[str, Summary]
    ratio: Ratio | None
    pipelined_fps: float | None
    camera: Camera | None
    accuracy: Accuracy | None
    peak_mb: float | None
    steady_mb: float | None
    joules: float | None
    detections: float
    samples: Samples

    @property
    def fps(self) -> float:
        """Images a second, one after the other."""
        return 1e3 / self.latency.mean


@dataclass(frozen=True, slots=True)
class Report:
    """A whole benchmark.

    settings: how it was asked for. machine: see machine.py, and what its meters said. doubts: what
    makes the figures less than sure. overhead: milliseconds that a turn of nothing takes.
    """

    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    results: Sequence[Result]
    doubts: Sequence[str]
    overhead: float

    def with_accuracies(self, dataset: Path, accuracies: Sequence[Accuracy]) -> "Report":
        """A copy with the AP of each contender, in their order, and where it was measured."""
        pairs = zip(self.results, accuracies, strict=True)
        return replace(
            self,
            settings={**self.settings, "dataset": str(dataset)},
            results=[replace(one, accuracy=accuracy) for one, accuracy in pairs],
        )

    def to_json(self) -> str:
        """Everything, raw samples included; null for what is not known."""
        results = [{**asdict(one), "fps": one.fps} for one in self.results]
        document = {"schema": SCHEMA, **asdict(replace(self, results=[])), "results": results}
        return json.dumps(_without_nan(document), indent=1, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
