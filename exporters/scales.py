"""Do the scales of an INT8 graph fit the images it will see?

Scales from images of another kind, or from noise, cut off what real images give. That need not show
in the detections of a few photos.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

# Of a tensor's values on one image: hardly any lie beyond scales from images of the same kind.
_MOST_CUT = 0.001
# Of the tensors: a few have rare peaks that calibration did not see.
_MOST_TENSORS = 0.15


class Scale(NamedTuple):
    """How a tensor is rounded: value / step + zero, from first to last."""

    step: float
    zero: int
    first: int
    last: int


def misfit(
    rounding: Mapping[str, Scale], images: Iterable[Mapping[str, NDArray[Any]]]
) -> str | None:
    """What is wrong with the scales of a graph; None if nothing.

    rounding: of the activations that it rounds, by the name of the tensor. images: the values of
    these tensors on each.
    """
    cut = dict.fromkeys(rounding, 0.0)  # share of the values, the most on an image
    for values in images:
        for name, scale in rounding.items():
            steps = values[name] / scale.step + scale.zero
            beyond = (steps < scale.first - 0.5) | (steps > scale.last + 0.5)
            cut[name] = max(cut[name], float(beyond.mean()))
    count = sum(share > _MOST_CUT for share in cut.values())
    if count <= _MOST_TENSORS * len(rounding):
        return None
    return (
        f"its scales do not fit these images: they cut off values of {count} of {len(rounding)} "
        "tensors; calibrate with images like those it will see"
    )
