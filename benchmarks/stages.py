"""Latency of the stages around the model: pixels to tensor, raw outputs to Detections.

Measured in a fresh process limited to one thread, since NumPy's matrix library fixes its thread
count when it is loaded. Runs are interleaved, so that a slow moment of the machine hits every
stage alike. Inputs are seeded noise; no stage's time depends on what a picture shows.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge import __version__
from rfdetr_edge.classes import coco_classes
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.postprocess import RawOutputs, postprocess
from rfdetr_edge.preprocess import preprocess
from rfdetr_edge.progress import Progress

WARM_UP = 20
MIN_P99 = 1000  # below it the 99th percentile rests on fewer than ten samples
_THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True, slots=True)
class Latency:
    """What one stage took, in milliseconds. p99 is None under MIN_P99 runs."""

    stage: str
    warm_up: int
    n: int
    median_ms: float
    p90_ms: float
    p99_ms: float | None


def measure_on_one_thread(runs: int) -> dict[str, Any]:
    """The report `{"environment": {...}, "stages": [...]}` of a fresh process on one thread."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.stages", str(runs)],
        env={**os.environ, **dict.fromkeys(_THREAD_LIMITS, "1")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(child.stdout)
    return report


def stages() -> dict[str, Callable[[], object]]:
    """Stage name -> one run of it."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    plain = InputSpec((384, 384), antialias=False)
    smooth = InputSpec((384, 384), antialias=True)
    dets = rng.random((1, 300, 4), dtype=np.float32)
    labels = rng.normal(-4.0, 2.0, (1, 300, 91)).astype(np.float32)
    classes = coco_classes()
    return {
        "preprocess 1920x1080 to 384x384": lambda: preprocess(frame, plain),
        "preprocess 1920x1080 to 384x384, antialias": lambda: preprocess(frame, smooth),
        "postprocess 300 queries x 91 classes": lambda: postprocess(
            RawOutputs(dets, labels),
            source_sizes=[(1080, 1920)],
            classes=classes,
            num_select=300,
            threshold=0.5,
        ),
    }


def measure(candidates: Mapping[str, Callable[[], object]], runs: int) -> list[Latency]:
    """Runs every stage WARM_UP + runs times, one after the other in turn."""
    samples = np.empty((WARM_UP + runs, len(candidates)))
    with Progress("benchmark", len(samples)) as progress:
        for row in samples:
            for column, run in enumerate(candidates.values()):
                start = time.perf_counter()
                run()
                row[column] = (time.perf_counter() - start) * 1000.0
            progress.advance()
    return [
        _summary(name, column) for name, column in zip(candidates, samples[WARM_UP:].T, strict=True)
    ]


def environment() -> dict[str, str]:
    """What a figure means nothing without."""
    return {
        "cpu": _cpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "rfdetr-edge": __version__,
        "numpy": np.__version__,
        "threads": os.environ.get("OMP_NUM_THREADS", "not limited"),
    }


def _summary(stage: str, milliseconds: NDArray[np.float64]) -> Latency:
    median, p90, p99 = (float(value) for value in np.percentile(milliseconds, (50, 90, 99)))
    count = len(milliseconds)
    return Latency(stage, WARM_UP, count, median, p90, p99 if count >= MIN_P99 else None)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    latencies = measure(stages(), int(sys.argv[1]))
    document = {"environment": environment(), "stages": [asdict(row) for row in latencies]}
    print(json.dumps(document))
