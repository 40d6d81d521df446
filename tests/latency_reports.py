"""Reports of benchmarks made by hand, for the tests of what is made of them."""

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.contender import Start, Turn
from benchmarks.meters import Moment
from benchmarks.result import Accuracy, Camera, Report, Result, Samples
from benchmarks.statistics import median_interval, ratio, summary
from benchmarks.turns import Rounds

QUIET = Moment(load=None, mhz=None, celsius={}, throttles=None)
STAGES = {"decode": 0.1, "preprocess": 0.1, "infer": 0.75, "postprocess": 0.05}  # of the total


def turns(totals: Sequence[float], idle_cpu: float = 0.0) -> list[Turn]:
    """Turns of these milliseconds, each with its CPU time while others had theirs."""
    return [
        Turn(total, {name: total * share for name, share in STAGES.items()}, 7, idle_cpu)
        for total in totals
    ]


def rounds(*columns: list[Turn], moments: Sequence[Moment] = (QUIET, QUIET)) -> Rounds:
    """One column a contender; a round takes what its turns take, all of it CPU time of ours."""
    spans = [sum(turn.total_ms for turn in row) / 1e3 for row in zip(*columns, strict=True)]
    return Rounds(columns, None, moments, spans, cpu_seconds=sum(spans))


def result(
    name: str,
    totals: Sequence[float],
    *,
    first: Result | None = None,
    accuracy: Accuracy | None = None,
    camera: Camera | None = None,
) -> Result:
    """A contender with these samples; `first`: the one that it is compared with."""
    times = np.array(totals)
    stages = {stage: times * share for stage, share in STAGES.items()}
    low, high = median_interval(times)
    return Result(
        name=name,
        about={"precision": "fp32", "versions": {"python": "3.11.7"}, "settings": "threads 1"},
        mb=15.8,
        starts=[Start(200.0, 80.0, 40.0, 350.0), Start(210.0, 90.0, 41.0, 370.0)],
        latency=summary(times),
        low=low,
        high=high,
        stages={stage: summary(column) for stage, column in stages.items()},
        ratio=None if first is None else ratio(times, np.array(first.samples.total)),
        pipelined_fps=55.0,
        camera=camera,
        accuracy=accuracy,
        peak_mb=140.0,
        steady_mb=130.0,
        joules=None,
        detections=7.0,
        samples=Samples(
            total=list(totals),
            stages={stage: column.tolist() for stage, column in stages.items()},
            idle_cpu=[0.0] * len(times),
            pipelined_fps=[54.0, 55.0, 56.0],
            ages=[],
        ),
    )


def accuracy(ap: float, lost: tuple[float, float, float] | None = None) -> Accuracy:
    """lost: points below the first, and their interval."""
    drop, low, high = lost or (None, None, None)
    every = {"bbox": {"ap": ap, "ap50": ap, "per_class": {"RBC": ap, "never seen": math.nan}}}
    return Accuracy("bbox", 12, ap, ap, drop, low, high, every)


def report(results: Sequence[Result], doubts: Sequence[str] = ()) -> Report:
    """On a machine of which little is known."""
    settings = {"runs": 40, "warm_up": 20, "images": 3, "camera_fps": 10.0}
    machine = {"cpu": "Some <CPU>", "affinity": [0, 1], "memory_mb": 24105.5}
    return Report(settings, machine, results, doubts, overhead=0.125)
