"""A camera that gives frames on a clock, whether or not the detector is ready for them.

Of the frames that wait the newest is taken and the older ones are dropped, so what is seen is as
fresh as the detector allows. No camera is needed: when a frame arrives follows from the clock.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

_SECOND = 1_000_000_000  # ns


@dataclass(frozen=True, slots=True)
class Watch:
    """What became of the frames.

    ages_ms: from a frame's arrival to its detections, of each frame that was taken.
    dropped: frames that a newer one overtook. missed: results older than one period.
    """

    ages_ms: tuple[float, ...]
    dropped: int
    missed: int


def watch(
    detect: Callable[[int], object],
    *,
    fps: float,
    frames: int,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> Watch:
    """Detects on the newest frame until `frames` have arrived.

    detect: given the number of a frame, from 0. clock: nanoseconds. sleep: takes seconds.
    """
    period = _SECOND / fps
    ages, dropped, following = [], 0, 0
    start = clock()
    while following < frames:
        newest = min(int((clock() - start) / period), frames - 1)
        if newest < following:
            sleep(max(0.0, start + following * period - clock()) / _SECOND)
            continue
        detect(newest)
        ages.append((clock() - start - newest * period) / 1e6)
        dropped += newest - following
        following = newest + 1
    missed = sum(age * 1e6 > period for age in ages)
    return Watch(tuple(ages), dropped, missed)
