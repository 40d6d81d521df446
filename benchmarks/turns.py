"""Contenders take turns on the same images in the same order; a slow moment hits all alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from benchmarks.contender import Running, Turn
from benchmarks.meters import Moment, Rapl
from benchmarks.statistics import Samples

_INTERVAL = 1.0  # seconds between two looks at the machine


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """What was measured.

    turns: of each contender, one a round. joules: of each contender, all turns together; None where
    the machine does not tell. moments: the machine about once a second, the first and the last
    before and after all turns. spans: seconds of each round. cpu_seconds: taken by the benchmark
    and all contenders.
    """

    turns: Sequence[Sequence[Turn]]
    joules: Sequence[float] | None
    moments: Sequence[Moment]
    spans: Sequence[float]
    cpu_seconds: float

    def totals(self) -> Samples:
        """(rounds, contenders) in milliseconds."""
        return np.array([[turn.total_ms for turn in row] for row in self.turns]).T


def take_turns(
    running: Sequence[Running],
    images: Sequence[Path],
    numbers: range,
    *,
    warm_up: int,
    advance: Callable[[], None],
) -> Rounds:
    """Rounds in which every contender has one image; another one begins each round.

    numbers: of the rounds that count, which say the image and who begins. warm_up: rounds before
    them. advance: called after each round.
    """
    meter = Rapl()
    for number in range(numbers.start - warm_up, numbers.start):
        _round(running, images, number, meter)
        advance()
    rounds, spans = [], []
    used = _cpu_seconds(running)
    moments = [Moment.now()]
    looked = perf_counter()
    for number in numbers:
        begin = perf_counter()
        rounds.append(_round(running, images, number, meter))
        end = perf_counter()
        spans.append(end - begin)
        if end - looked > _INTERVAL:
            moments.append(Moment.now())
            looked = end
        advance()
    moments.append(Moment.now())
    columns = [[row[index] for row in rounds] for index in range(len(running))]
    return Rounds(
        turns=[[turn for turn, _ in column] for column in columns],
        joules=[sum(joules for _, joules in column) for column in columns] if meter else None,
        moments=moments,
        spans=spans,
        cpu_seconds=_cpu_seconds(running) - used,
    )


def joined(parts: Sequence[Rounds]) -> Rounds:
    """What the same contenders did one time after the other, as one run."""
    columns = zip(*(part.turns for part in parts), strict=True)
    joules = [part.joules for part in parts if part.joules is not None]
    return Rounds(
        turns=[list(chain.from_iterable(column)) for column in columns],
        joules=[sum(row) for row in zip(*joules, strict=True)] if joules else None,
        moments=list(chain.from_iterable(part.moments for part in parts)),
        spans=list(chain.from_iterable(part.spans for part in parts)),
        cpu_seconds=sum(part.cpu_seconds for part in parts),
    )


def _round(
    running: Sequence[Running], images: Sequence[Path], number: int, meter: Rapl
) -> list[tuple[Turn, float]]:
    """A turn and its joules of each contender."""
    image = images[number % len(images)]
    found: dict[int, tuple[Turn, float]] = {}
    for place in range(len(running)):
        index = (number + place) % len(running)
        before = meter.joules()
        turn = running[index].turn(image)
        found[index] = turn, meter.joules() - before
    return [found[index] for index in range(len(running))]


def _cpu_seconds(running: Sequence[Running]) -> float:
    """What all processes of the benchmark have taken so far."""
    return process_time() + sum(float(one.ask("usage")["cpu"]) for one in running)
