"""What the weights of a file are, whatever its format, and what is wrong with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.metadata import Precision

# Precisions whose weights are stored alike.
_STORED_ALIKE: tuple[tuple[Precision, ...], ...] = (
    ("fp32",),
    ("fp16",),
    ("int8", "int8-dynamic", "int8-weight-only"),
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the matrix products and convolutions of a file work with.

    weights: how many numbers of their weights work in each precision: how they are stored and, of 8
        bits, what they are multiplied by.
    faults: what no trained network has, one line each: weights of a layer that are all zero, NaN
        or infinite.
    """

    weights: Mapping[Precision, int]
    faults: tuple[str, ...]

    @property
    def precision(self) -> Precision:
        """That of most of the weights that are stored as most are."""

        def count(kind: Precision) -> int:
            return self.weights.get(kind, 0)

        return max(max(_STORED_ALIKE, key=lambda kinds: sum(map(count, kinds))), key=count)


def fault_of(values: NDArray[Any]) -> str | None:
    """What is wrong with a layer's weights; None if nothing."""
    if not np.isfinite(values).all():
        return "NaN or infinite"
    return None if values.any() else "all zero"
