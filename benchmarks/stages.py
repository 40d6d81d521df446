"""Latency of the stages around the model alone: `python -m benchmarks.stages`.

Pixels to tensor, and raw outputs to Detections, without artifact and photos. Measured in a fresh
process limited to one thread, since NumPy's matrix library fixes its thread count when it is
loaded. Runs are interleaved, so that a slow moment of the machine hits every stage alike. Inputs
are seeded noise; no stage's time depends on what a picture shows.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cli import positive
from benchmarks.statistics import Summary, summary
from benchmarks.table import aligned, digits
from rfdetr_edge import __version__
from rfdetr_edge.classes import coco_classes
from rfdetr_edge.heap import keep_freed_memory
from rfdetr_edge.machine import this_machine
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.postprocess import RawOutputs, postprocess
from rfdetr_edge.preprocess import preprocess
from rfdetr_edge.progress import Progress

WARM_UP = 20
_CHILD = "from benchmarks.stages import print_report; print_report()"
_THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def measure_on_one_thread(runs: int) -> dict[str, Any]:
    """`{"environment": {...}, "warm_up": n, "stages": {name: {...}}}` of a fresh process."""
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(runs)],
        cwd=Path(__file__).parent.parent,
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


def measure(candidates: Mapping[str, Callable[[], object]], runs: int) -> dict[str, Summary]:
    """Milliseconds of every stage; WARM_UP + runs times, one after the other in turn."""
    samples = np.empty((WARM_UP + runs, len(candidates)))
    with Progress("benchmark", len(samples)) as progress:
        for row in samples:
            for column, run in enumerate(candidates.values()):
                start = time.perf_counter()
                run()
                row[column] = (time.perf_counter() - start) * 1000.0
            progress.advance()
    columns = zip(candidates, samples[WARM_UP:].T, strict=True)
    return {name: summary(column) for name, column in columns}


def environment() -> dict[str, str]:
    """What a figure means nothing without."""
    return {
        "cpu": this_machine().cpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "rfdetr-edge": __version__,
        "numpy": np.__version__,
        "threads": os.environ.get("OMP_NUM_THREADS", "not limited"),
    }


def print_report() -> None:
    """Measures in this very process. argv: runs."""
    keep_freed_memory()  # as every `Detector` does
    found = measure(stages(), int(sys.argv[1]))
    latencies = {name: asdict(latency) for name, latency in found.items()}
    print(json.dumps({"environment": environment(), "warm_up": WARM_UP, "stages": latencies}))


def table(report: Mapping[str, Any]) -> str:
    """The report as text: the environment, then one line a stage; "-" where too few runs."""
    rows = [f"{name}: {value}" for name, value in report["environment"].items()]
    cells = [["stage", "n", "mean", "p50", "p90", "p95", "p99", "max"]]
    for name, latency in report["stages"].items():
        values = (latency[column] for column in cells[0][2:])
        cells.append([name, str(latency["n"]), *map(digits, values)])
    return "\n".join([*rows, "", aligned(cells)])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages")
    parser.add_argument("--runs", type=positive, default=1000, help="of each stage; p99 needs 1000")
    parser.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    arguments = parser.parse_args()
    report = measure_on_one_thread(arguments.runs)
    print(json.dumps(report) if arguments.json else table(report))


if __name__ == "__main__":
    main()
