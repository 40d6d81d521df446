"""Masks of a 1080p frame as RLE against whole frames: `python -m benchmarks.masks`.

300 maps on a grid of 108 x 108, 100 of them kept. Ours encodes the kept ones; the plain way resizes
every map to a frame by OpenCV. That is measured holding the 300 frames, and dropping each at once,
which leaves no result but is the least it can take.

Times are taken in turn in one process, so that a slow moment of the machine hits all alike, on one
thread; the peak of memory in a process of its own, over what it holds with its input made.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stages import environment
from benchmarks.statistics import ratio_interval
from rfdetr_edge._optional import opencv
from rfdetr_edge.masks import Masks

WARM_UP = 3
FRAME = (1080, 1920)
GRID = 108
QUERIES = 300
KEPT = slice(0, QUERIES, 3)


def blobs(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """(count, GRID, GRID) logits like those of instances: wobbly discs of 2 to 50 % of the grid.

    Sizes are spread evenly on a log scale. One map in ten has a stray positive cell elsewhere.
    """
    y, x = np.mgrid[:GRID, :GRID] / GRID
    maps = np.empty((count, GRID, GRID), np.float32)
    for index, logits in enumerate(maps):
        across = np.exp(rng.uniform(np.log(0.02), np.log(0.5)))
        stretch = np.exp(rng.uniform(-0.7, 0.7) / 2)
        dy, dx = y - rng.random(), x - rng.random()
        wobble = 1 + 0.2 * np.sin(rng.integers(2, 6) * np.arctan2(dy, dx) + rng.uniform(0, 6))
        radius = across / 2 * wobble
        distance = np.hypot(dy * stretch, dx / stretch) / radius
        logits[:] = np.clip(8 * (1 - distance) + rng.normal(0, 0.3, distance.shape), -12, 12)
        if index % 10 == 0:
            logits[tuple(rng.integers(GRID, size=2))] = 1
    return maps


def rle(logits: NDArray[np.float32]) -> object:
    """The kept masks by `Masks.to_rle`."""
    return Masks(logits[KEPT], FRAME).to_rle()


def frames(logits: NDArray[np.float32]) -> object:
    """Every mask as a whole frame."""
    return [frame > 0 for frame in _resized(logits)]


def dropped(logits: NDArray[np.float32]) -> object:
    """The same, each frame dropped at once."""
    for frame in _resized(logits):
        np.greater(frame, 0)
    return None


WAYS: Mapping[str, Callable[[NDArray[np.float32]], object]] = {
    "rle": rle,
    "frames": frames,
    "frames, dropped": dropped,
}


def measure(runs: int) -> dict[str, Any]:
    """The report: environment, milliseconds and peak of each way, and ratios to `rle`."""
    logits = blobs(np.random.default_rng(0), QUERIES)
    areas = Masks(logits[KEPT], FRAME).areas()
    seconds = np.empty((WARM_UP + runs, len(WAYS)))
    for row in seconds:
        for column, run in enumerate(WAYS.values()):
            start = time.perf_counter()
            run(logits)
            row[column] = time.perf_counter() - start
    seconds = seconds[WARM_UP:]
    return {
        "environment": {**environment(), "cores": os.cpu_count(), "opencv": opencv().__version__},
        "warm_up": WARM_UP,
        "runs": runs,
        "median_area": float(np.median(areas)),
        "largest_area": int(areas.max()),
        "ways": [
            {
                "way": name,
                "median_ms": 1000 * float(np.median(seconds[:, column])),
                "times_rle": float(np.divide(*np.median(seconds[:, [column, 0]], axis=0))),
                "times_rle_95": ratio_interval(seconds[:, [column, 0]]),
                "peak_mb": peak_mb(name),
                "milliseconds": (1000 * seconds[:, column]).tolist(),
            }
            for column, name in enumerate(WAYS)
        ],
    }


def peak_mb(way: str) -> float:
    """How far one run of a way lifts a fresh process over its memory before, in MB."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.masks", "--peak-of", way],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(child.stdout)


def _own_peak_mb(way: str) -> float:
    logits = blobs(np.random.default_rng(0), QUERIES)
    opencv()
    before = _status_kb("VmRSS")
    result = WAYS[way](logits)
    peak = _status_kb("VmHWM") - before
    del result
    return peak * 1024 / 1e6


def _resized(logits: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    cv2: Any = opencv()
    cv2.setNumThreads(1)  # ours uses one as well
    return (cv2.resize(one, FRAME[::-1]) for one in logits)


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}; peaks are measured on Linux only")


def main() -> None:
    """Measures, prints, and writes the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.masks")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", type=Path, help="also write everything here")
    parser.add_argument("--peak-of", choices=list(WAYS), help="print this alone")
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(_own_peak_mb(arguments.peak_of))
        return
    report = measure(arguments.runs)
    for row in report["ways"]:
        low, high = row["times_rle_95"]
        print(
            f"{row['way']:<16} {row['median_ms']:6.1f} ms, {row['times_rle']:5.1f} times rle "
            f"({low:.1f} to {high:.1f}), peak {row['peak_mb']:6.1f} MB over idle"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
