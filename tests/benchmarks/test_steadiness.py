"""What makes figures doubtful is said, and nothing else."""

import numpy as np
import pytest
from latency_reports import QUIET, rounds, turns

from benchmarks.meters import Load, Moment
from benchmarks.steadiness import doubts, drift
from benchmarks.turns import joined

LEVEL = [20.0, 21.0, 20.5] * 12


def _moment(busy: float = 0.0, stolen: float = 0.0, mhz: float = 3000.0, count: int = 0) -> Moment:
    return Moment(Load(busy, stolen), mhz, {}, count)


def test_a_steady_run_on_a_quiet_machine_is_not_doubted() -> None:
    assert doubts(["a", "b"], [rounds(turns(LEVEL), turns(LEVEL))]) == []
    busy = sum(LEVEL) / 1e3  # seconds: the turns' own
    moments = (_moment(100.0), _moment(100.0 + busy))
    assert doubts(["a"], [rounds(turns(LEVEL), moments=moments)]) == []


def test_drift_is_of_thirds() -> None:
    assert drift(np.array([10.0] * 10 + [99.0] * 10 + [12.0] * 10)) == pytest.approx(0.2)
    assert drift(np.array([10.0] * 29)) is None
    slower = [20.0] * 12 + [25.0] * 12 + [30.0] * 12
    faster = slower[::-1]
    assert doubts(["a", "b", "c"], [rounds(turns(slower), turns(faster), turns(LEVEL))]) == [
        "a: the last third took 50% more than the first",
        "b: the last third took 33% less than the first",
    ]


def test_a_contender_that_spins_is_named() -> None:
    spinning, resting = turns(LEVEL, idle_cpu=10.0), turns(LEVEL, idle_cpu=0.1)
    assert doubts(["a", "b"], [rounds(spinning, resting)]) == [
        "a: its threads took 49% of a core while others had their turns"
    ]
    assert doubts(["a"], [rounds(spinning)]) == []  # nobody to take it from


def test_work_of_others_is_named() -> None:
    own = sum(LEVEL) / 1e3
    moments = (_moment(10.0, 5.0), _moment(10.0 + 2.5 * own, 5.0 + 0.5 * own))
    assert doubts(["a"], [rounds(turns(LEVEL), moments=moments)]) == [
        "other processes took 1.50 cores meanwhile",
        "the host took 0.50 cores away from this virtual machine meanwhile",
    ]


def test_what_happens_between_the_parts_of_a_run_is_nobodys_fault() -> None:
    own = sum(LEVEL) / 1e3
    parts = [
        rounds(turns(LEVEL), moments=(_moment(start), _moment(start + own)))
        for start in (10.0, 90.0)
    ]
    assert doubts(["a"], parts) == []
    assert joined(parts).totals().shape == (2 * len(LEVEL), 1)
    assert len(joined(parts).moments) == 4


def test_heat_is_named() -> None:
    moments = [_moment(mhz=mhz, count=count) for mhz, count in ((3000, 4), (2500, 4), (2000, 6))]
    lines = doubts(["a"], [rounds(turns([1000.0]), moments=moments)])
    assert lines[-2:] == [
        "heat slowed the cores 2 times",
        "the cores ran at 3000 MHz at first, and at 2000 at last",
    ]
    assert doubts(["a"], [rounds(turns(LEVEL), moments=[QUIET] * 3)]) == []
