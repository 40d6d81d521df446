"""Time and memory of a training step against upstream's: `python -m benchmarks.train_step`.

A step is network, criterion, backward pass, clipping and AdamW, of nano in float32 with the same
weights, images and targets in both; that the losses agree is part of the result. Two processes take
turns, never at once, so that a slow moment of the machine hits both alike.

Upstream lives in an environment of its own: bash benchmarks/baselines/peer_env.sh
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.exchange import Exchange
from benchmarks.stages import environment
from benchmarks.statistics import ratio_interval
from rfdetr_edge.errors import RFDETREdgeError

WARM_UP = 3
STEP = {"do": "step"}


def worker(python: Path, name: str, threads: int, weights: Path) -> Exchange:
    """A process that makes one training step when asked (benchmarks/baselines/worker.py)."""
    return Exchange(
        name,
        python,
        [f"benchmarks.baselines.{name}", str(threads), str(weights)],
        {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
    )


def compare(peer: Path, steps: int, threads: int) -> dict[str, Any]:
    """The report: environment, both sides, and the ratios ours to upstream's."""
    rounds = []
    with ExitStack() as processes, tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        ours = worker(Path(sys.executable), "ours", threads, weights)
        processes.callback(ours.end, at_once=False)
        our_start = ours.answer()
        upstream = worker(peer / "bin" / "python", "upstream", threads, weights)
        processes.callback(upstream.end, at_once=False)
        their_start = upstream.answer()
        for index in range(WARM_UP + steps):
            first, second = (ours, upstream) if index % 2 == 0 else (upstream, ours)
            answers = {side: side.ask(STEP) for side in (first, second)}
            rounds.append((answers[ours], answers[upstream]))
    sides = {
        "ours": _side(our_start, [mine for mine, _ in rounds]),
        "upstream": _side(their_start, [theirs for _, theirs in rounds]),
    }
    seconds = np.array([[side["seconds"] for side in pair] for pair in rounds[WARM_UP:]])
    return {
        "environment": {**environment(), "threads": threads},
        "warm_up": WARM_UP,
        "steps": steps,
        **sides,
        "time_ratio": float(np.divide(*np.median(seconds, axis=0))),
        "time_ratio_95": ratio_interval(seconds),
        "peak_ratio": _ratio(sides, "peak_mb"),
        "growth_ratio": _ratio(sides, "growth_mb"),
        "first_losses_differ": difference(*(side["losses"] for side in rounds[0])),
    }


def difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Largest relative difference of two sets of losses of the same names; NaN if one is."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"not the same losses: {sorted(ours)} and {sorted(theirs)}")
    return float(np.max([abs(ours[name] / theirs[name] - 1) for name in theirs]))


def _side(ready: dict[str, Any], answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counted = [answer["seconds"] for answer in answers[WARM_UP:]]
    peak = answers[-1]["peak_mb"]
    return {
        "torch": ready["torch"],
        "median_s": float(np.median(counted)),
        "seconds": counted,
        "peak_mb": peak,
        "growth_mb": peak - ready["imported_mb"],
        "total_losses": [sum(answer["losses"].values()) for answer in answers],
        "first_losses": answers[0]["losses"],
    }


def _ratio(sides: dict[str, Any], name: str) -> float:
    return float(sides["ours"][name] / sides["upstream"][name])


def main() -> None:
    """Measures, prints, and writes the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step")
    default = Path(tempfile.gettempdir()) / "rfdetr-peer"
    parser.add_argument("--peer", type=Path, default=default, help="folder made by peer_env.sh")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write everything here")
    arguments = parser.parse_args()
    try:
        report = compare(arguments.peer, arguments.steps, arguments.threads)
    except RFDETREdgeError as error:
        raise SystemExit(f"error: {error}") from None
    for name in ("ours", "upstream"):
        side = report[name]
        print(
            f"{name:<9} {side['median_s']:.3f} s a step, peak {side['peak_mb']:.0f} MB, "
            f"{side['growth_mb']:.0f} MB over its imports"
        )
    low, high = report["time_ratio_95"]
    print(f"time {report['time_ratio']:.3f} ({low:.3f} to {high:.3f}), ", end="")
    print(f"peak {report['peak_ratio']:.3f}, growth {report['growth_ratio']:.3f}, ", end="")
    print(f"losses of the first step differ by {report['first_losses_differ']:.1e}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
