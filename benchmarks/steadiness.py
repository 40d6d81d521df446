"""What makes figures doubtful: a machine that got slower, or that others worked on meanwhile."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.meters import Moment
from benchmarks.statistics import Samples
from benchmarks.turns import Rounds, joined

_DRIFT = 0.05  # of the median, between the first and the last third
_LEAST = 30  # samples that a drift is seen in
_OTHERS = 0.05  # cores that other processes may take
_IDLE = 0.02  # of the time of others' turns, CPU that a contender may take meanwhile
_SLOWER = 0.97  # of the frequency at the start


def drift(samples: Samples) -> float | None:
    """By how much the median of the last third is above that of the first, as a share of it.

    None of fewer than 30 samples.
    """
    if len(samples) < _LEAST:
        return None
    third = len(samples) // 3
    first, last = np.median(samples[:third]), np.median(samples[-third:])
    return float(last / first - 1)


def doubts(names: Sequence[str], parts: Sequence[Rounds]) -> list[str]:
    """A line on each thing that was noticed; none of a steady run on a quiet machine.

    parts: of the run, one after the other; what others do between them does not count.
    """
    rounds = joined(parts)
    return [
        *_drifts(names, rounds),
        *_idle(names, rounds),
        *_others(parts),
        *_heat(rounds.moments),
    ]


def gpu_doubts(meters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line on each GPU that was slowed; meters: as `meters.gpu_meters` has them."""
    return [
        f"heat or power slowed GPU {index}" for index, row in meters.items() if row.get("slowed")
    ]


def _drifts(names: Sequence[str], rounds: Rounds) -> list[str]:
    found = zip(names, map(drift, rounds.totals().T), strict=True)
    return [
        f"{name}: the last third took {abs(change):.0%} {'more' if change > 0 else 'less'} than "
        "the first"
        for name, change in found
        if change is not None and abs(change) > _DRIFT
    ]


def _idle(names: Sequence[str], rounds: Rounds) -> list[str]:
    totals = rounds.totals().sum(axis=0)
    lines = []
    for name, row, own in zip(names, rounds.turns, totals.tolist(), strict=True):
        others = totals.sum() - own
        share = sum(turn.idle_cpu_ms for turn in row) / others if others else 0.0
        if share > _IDLE:
            lines.append(
                f"{name}: its threads took {share:.0%} of a core while others had their turns"
            )
    return lines


def _others(parts: Sequence[Rounds]) -> list[str]:
    seconds = busy = stolen = 0.0
    for part in parts:
        first, last = part.moments[0].load, part.moments[-1].load
        if first is None or last is None:
            return []
        seconds += sum(part.spans)
        busy += last.busy - first.busy - part.cpu_seconds
        stolen += last.stolen - first.stolen
    busy, stolen = busy / seconds, stolen / seconds
    lines = []
    if busy > _OTHERS:
        lines.append(f"other processes took {busy:.2f} cores meanwhile")
    if stolen > _OTHERS:
        lines.append(f"the host took {stolen:.2f} cores away from this virtual machine meanwhile")
    return lines


def _heat(moments: Sequence[Moment]) -> list[str]:
    lines = []
    counts = [one.throttles for one in moments if one.throttles is not None]
    if counts and counts[-1] > counts[0]:
        lines.append(f"heat slowed the cores {counts[-1] - counts[0]} times")
    frequencies = [one.mhz for one in moments if one.mhz is not None]
    third = len(frequencies) // 3
    if third:
        first, last = np.mean(frequencies[:third]), np.mean(frequencies[-third:])
        if last < _SLOWER * first:
            lines.append(f"the cores ran at {first:.0f} MHz at first, and at {last:.0f} at last")
    return lines
