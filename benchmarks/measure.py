"""A whole benchmark: contenders side by side, one scenario after the other.

Two processes of one model differ for as long as they live, and the one that was started first was
the slower one more often: of 20 intervals of their ratio 14 held 1, and 20 with four processes of
each. So each contender has several one after the other, which share the rounds, and another
contender is started first each time.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contender import Contender, Running, Start
from benchmarks.machine import machine
from benchmarks.meters import NVIDIA_SMI, TEGRASTATS, logged, said
from benchmarks.overhead import overhead
from benchmarks.result import Camera, Report, Result, Samples
from benchmarks.statistics import median_interval, ratio, summary
from benchmarks.steadiness import doubts, gpu_doubts
from benchmarks.turns import Rounds, joined, take_turns
from rfdetr_edge.image_size import image_size

_WARM_UP = 10  # rounds of each process, and no more than are counted
_BLOCKS = 5  # of pipelined images, in turns as well
_BLOCK = 20  # images


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    images: files, gone through again and again. runs: rounds that count, and frames of the camera.
    fps: of the camera; None for no camera. starts: processes of each contender, each after the
    other, that share the rounds.
    """

    images: Sequence[Path]
    runs: int
    fps: float | None = None
    starts: int = 4  # of two contenders each is started first as often

    @property
    def warm_up(self) -> int:
        """Rounds of each process before those that count."""
        return min(_WARM_UP, -(-self.runs // self.starts))

    @property
    def shares(self) -> list[range]:
        """The numbers of the rounds that count, of each process."""
        edges = [self.runs * start // self.starts for start in range(self.starts + 1)]
        return [range(*pair) for pair in pairwise(edges)]

    @property
    def rounds(self) -> int:
        """All of them."""
        return self.starts * self.warm_up + self.runs


def measure(contenders: Sequence[Contender], plan: Plan, *, advance: Callable[[], None]) -> Report:
    """Runs every scenario; accuracy is left for others to fill in.

    advance: called after each round. Raises what `contender.Running` does, and InputError for
    images that cannot be read.
    """
    settings = _settings(plan)
    images = [path.resolve() for path in plan.images]
    facts = machine()
    parts: list[Rounds] = []
    starts: list[list[Start]] = []
    logs: list[tuple[str, str]] = []
    with ExitStack() as processes:
        for number, share in enumerate(plan.shares):
            processes.close()  # those before
            running = _started(contenders, number, images[0], processes)
            starts.append([one.start for one in running])
            with logged(TEGRASTATS) as tegra, logged(NVIDIA_SMI) as gpus:
                part = take_turns(running, images, share, warm_up=plan.warm_up, advance=advance)
                logs.append((tegra(), gpus()))
            parts.append(part)
        answers = _answers(running, list(zip(*starts, strict=True)), images, plan)
    rounds = joined(parts)
    facts |= said(rounds.moments, *map("".join, zip(*logs, strict=True)))
    results = [
        _result(one, plan, answer, number, rounds)
        for number, (one, answer) in enumerate(zip(contenders, answers, strict=True))
    ]
    noticed = doubts([one.name for one in contenders], parts)
    noticed += gpu_doubts(facts.get("gpu_meters", {}))
    return Report(settings, facts, results, noticed, overhead())


@dataclass(frozen=True, slots=True)
class _Answers:
    """What one contender gave beside its turns. camera: None where there was none."""

    starts: Sequence[Start]
    usage: Mapping[str, float]
    about: Mapping[str, Any]
    rates: Sequence[float]
    camera: Mapping[str, Any] | None


def _settings(plan: Plan) -> dict[str, Any]:
    sizes = {image_size(path) for path in plan.images}
    return {
        "runs": plan.runs,
        "processes": plan.starts,
        "warm_up": plan.warm_up,
        "images": len(plan.images),
        "image_sizes": [f"{width}x{height}" for height, width in sorted(sizes)],
        "camera_fps": plan.fps,
    }


def _started(
    contenders: Sequence[Contender], number: int, image: Path, stack: ExitStack
) -> list[Running]:
    """A process of each, in their order; started from that number on, around to that before it."""
    count = len(contenders)
    order = [(number + place) % count for place in range(count)]
    running = {index: stack.enter_context(Running(contenders[index], image)) for index in order}
    return [running[index] for index in range(count)]


def _answers(
    running: Sequence[Running],
    starts: Sequence[Sequence[Start]],
    images: Sequence[Path],
    plan: Plan,
) -> list[_Answers]:
    """Of each contender, when all turns are over."""
    usages = [one.ask("usage") for one in running]  # before scenarios that hold more images
    abouts = [one.ask("about") for one in running]
    rates = _pipelined(running, abouts, images, min(_BLOCK, plan.runs))
    cameras = [
        _camera(one, about, images, plan) for one, about in zip(running, abouts, strict=True)
    ]
    return list(map(_Answers, starts, usages, abouts, rates, cameras))


def _pipelined(
    running: Sequence[Running], abouts: Sequence[Any], images: Sequence[Path], size: int
) -> list[list[float]]:
    """Images a second of each block; none of a contender that cannot."""
    found: list[list[float]] = [[] for _ in running]
    for block in range(_BLOCKS):
        paths = [str(images[(block * size + place) % len(images)]) for place in range(size)]
        for one, about, rates in zip(running, abouts, found, strict=True):
            if "pipelined" in about["scenarios"]:
                rates.append(size / one.ask("pipelined", paths=paths)["ns"] * 1e9)
    return found


def _camera(
    one: Running, about: Mapping[str, Any], images: Sequence[Path], plan: Plan
) -> Mapping[str, Any] | None:
    if plan.fps is None or "camera" not in about["scenarios"]:
        return None
    paths = [str(path) for path in images]
    answer: Mapping[str, Any] = one.ask("camera", paths=paths, fps=plan.fps, frames=plan.runs)
    return answer


def _result(
    contender: Contender, plan: Plan, answers: _Answers, number: int, rounds: Rounds
) -> Result:
    """number: its place among all."""
    totals, turns = rounds.totals(), rounds.turns[number]
    own = totals[:, number]
    stages = {name: [turn.stages[name] for turn in turns] for name in turns[0].stages}
    low, high = median_interval(own)
    camera, ages = None, []
    if answers.camera is not None and plan.fps is not None:
        ages = answers.camera["ages_ms"]
        dropped, missed = answers.camera["dropped"], answers.camera["missed"]
        camera = Camera(plan.fps, plan.runs, dropped, missed, summary(np.array(ages)))
    return Result(
        name=contender.name,
        about=answers.about,
        mb=None if contender.file is None else contender.file.stat().st_size / 1e6,
        starts=answers.starts,
        latency=summary(own),
        low=low,
        high=high,
        stages={name: summary(np.array(times)) for name, times in stages.items()},
        ratio=None if number == 0 else ratio(own, totals[:, 0]),
        pipelined_fps=float(np.median(answers.rates)) if answers.rates else None,
        camera=camera,
        accuracy=None,
        peak_mb=answers.usage.get("peak_mb"),
        steady_mb=answers.usage.get("steady_mb"),
        joules=None if rounds.joules is None else rounds.joules[number] / plan.runs,
        detections=float(np.mean([turn.detections for turn in turns])),
        samples=Samples(
            total=own.tolist(),
            stages=stages,
            idle_cpu=[turn.idle_cpu_ms for turn in turns],
            pipelined_fps=answers.rates,
            ages=ages,
        ),
    )
