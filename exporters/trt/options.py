"""What can be chosen about an engine besides its precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rfdetr_edge.errors import InputError

Batch: TypeAlias = tuple[int, int, int]
"""Smallest, best and largest number of images of a run."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """batch: None for that of a graph whose batch is fixed.

    workspace: MiB that a layer may use to work in, None for all that the GPU has.
    timing_cache: a file that keeps what was timed from one build to the next.
    Raises InputError for numbers that make no sense.
    """

    batch: Batch | None = None
    workspace: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and not 0 < self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise InputError(
                f"--batch must be min,opt,max in rising order, from 1, not {_text(self.batch)}"
            )
        if self.workspace is not None and self.workspace < 1:
            raise InputError(f"--workspace must be at least 1 MiB, not {self.workspace}")

    def fitting_batch(self, size: int) -> Batch:
        """The batch for a graph of this many images, -1 where that is open.

        Raises InputError where they do not fit each other.
        """
        if size < 0:
            if self.batch is None:
                raise InputError("the batch of this graph is open: say --batch min,opt,max")
            return self.batch
        fixed = (size, size, size)
        if self.batch not in (None, fixed):
            raise InputError(
                f"the batch of this graph is fixed at {size}, and cannot be {_text(self.batch)}; "
                "leave --batch out, or export the checkpoint anew"
            )
        return fixed


def _text(batch: Batch | None) -> str:
    return ",".join(map(str, batch or ()))
