"""What the benchmark itself costs a turn: `python -m benchmarks.overhead`.

The whole loop, processes and messages included, around a contender that does nothing. None of that
is inside the times that a report gives, but it is the pause between two turns.
"""

from pathlib import Path

import numpy as np

from benchmarks.contender import Contender, Running
from benchmarks.turns import take_turns

NANO_MS = 170.0  # nano in FP32, on two cores: what the overhead must be small against

_TURNS = 200
_WARM_UP = 20


def overhead(turns: int = _TURNS) -> float:
    """Milliseconds of a turn of nothing, the median."""
    nowhere = Path()
    with Running(Contender("nothing", "benchmarks.nothing"), nowhere) as running:
        rounds = take_turns([running], [nowhere], range(turns), warm_up=_WARM_UP, advance=_silent)
    return float(np.median(rounds.spans)) * 1e3


def share(milliseconds: float) -> float:
    """Of the time that nano takes."""
    return milliseconds / NANO_MS


def _silent() -> None:
    """Nobody waits for these turns."""


if __name__ == "__main__":
    cost = overhead(1000)
    print(f"{cost:.3f} ms a turn, {share(cost):.2%} of nano's {NANO_MS:.0f} ms")
