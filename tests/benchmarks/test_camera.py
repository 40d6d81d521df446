"""A camera on a clock that the test turns."""

from collections.abc import Callable

import pytest

from benchmarks.camera import Watch, watch


class _Clock:
    """Time passes while something sleeps or is detected."""

    def __init__(self) -> None:
        self.now = 5_000_000

    def pass_by(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += round(seconds * 1e9) + 1  # as a real one, never quite in time


def _watched(seconds: Callable[[int], float], fps: float, frames: int) -> tuple[Watch, list[int]]:
    clock, seen = _Clock(), []

    def detect(number: int) -> None:
        seen.append(number)
        clock.pass_by(seconds(number))

    found = watch(detect, fps=fps, frames=frames, clock=lambda: clock.now, sleep=clock.pass_by)
    return found, seen


def test_a_fast_detector_sees_every_frame_fresh() -> None:
    found, seen = _watched(lambda _: 0.02, 10, 6)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert found.ages_ms == pytest.approx([20] * 6, abs=1e-3)
    assert (found.dropped, found.missed) == (0, 0)


def test_a_slow_detector_takes_the_newest_frame_and_drops_the_rest() -> None:
    found, seen = _watched(lambda _: 0.25, 10, 6)
    # done at 250 ms, when frame 2 has waited for 50; then at 500, as frame 5 arrives
    assert seen == [0, 2, 5]
    assert found.ages_ms == pytest.approx([250, 300, 250], abs=1e-3)
    assert (found.dropped, found.missed) == (3, 3)


def test_one_slow_frame_is_caught_up_with() -> None:
    found, seen = _watched(lambda number: 0.13 if number == 1 else 0.02, 10, 5)
    assert seen == [0, 1, 2, 3, 4]
    assert found.ages_ms == pytest.approx([20, 130, 50, 20, 20], abs=1e-3)
    assert (found.dropped, found.missed) == (0, 1)


def test_frames_that_arrive_while_the_last_is_detected_are_not_waited_for() -> None:
    found, seen = _watched(lambda _: 10.0, 30, 4)
    assert seen == [0, 3]
    assert found.dropped == 2


def test_the_real_clock() -> None:
    seen: list[int] = []
    found = watch(seen.append, fps=200, frames=5)
    assert len(found.ages_ms) == len(seen) == 5 - found.dropped
    assert min(found.ages_ms) >= 0
