"""Masks of one image: kept as the model's small logit maps, brought to the image when asked for.

The rule: a map is resized to the image with bilinear weights, half-pixel centres, edges repeated,
no antialias, and a pixel belongs to the mask where the result is above 0. A weighted mean is above
0 only where one of the values it is made of is, so no pixel outside the rectangle of the positive
cells, grown by the reach of the weights, can belong to it. Only that rectangle is computed, one
mask after the other, with the same arithmetic for each pixel as for the whole image.

Knows nothing of boxes: a mask is not cut to its box.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge._optional import opencv
from rfdetr_edge.errors import InputError

Rows = int | slice | Sequence[int] | NDArray[np.bool_] | NDArray[np.intp]

# Pixels resized at once. A strip's values stay in the cache and in memory the process already
# holds; those of a whole image cost more in page faults than in arithmetic. The fastest of 2**12 to
# 2**17.
_STRIP = 2**15


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """The masks of one image, in the order of its detections.

    logits: (N, h, w) float32 on the model's mask grid. NaN counts as not positive.
    source_size: (height, width) of the source image in pixels, (H, W) below.

    `len(m)` counts masks; `m[rows]` selects them, as rows of Detections are selected. Raises
    InputError for logits of another shape or dtype, and for an image or a grid without pixels.
    """

    logits: NDArray[np.float32]
    source_size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.logits.ndim != 3 or 0 in self.logits.shape[1:] or self.logits.dtype != np.float32:
            raise InputError(
                "Masks.logits must have shape (masks, height, width), with at least one cell, and "
                f"dtype float32, not {self.logits.shape} and {self.logits.dtype}"
            )
        if min(self.source_size) < 1:
            raise InputError(
                f"Masks.source_size must be (height, width) in pixels, not {self.source_size}"
            )

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: Rows) -> "Masks":
        index: Any = [rows] if isinstance(rows, int | np.integer) else rows
        return Masks(self.logits[index], self.source_size)

    def crops(self) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """For each mask (top, left, crop): a (h, w) window of the image that holds all of it.

        The window may be larger than the mask; that of a mask without pixels may be (0, 0).
        """
        rows = _axis(self.logits.shape[1], self.source_size[0])
        columns = _axis(self.logits.shape[2], self.source_size[1])
        for logits in self.logits:
            positive = logits > 0
            tall = rows.reached_from(positive.any(axis=1))
            wide = columns.reached_from(positive.any(axis=0))
            yield tall.start, wide.start, _resized(logits, rows[tall], columns[wide])

    def to_bool(self) -> NDArray[np.bool_]:
        """(N, H, W) whole frames: N * H * W bytes. `crops`, `to_rle` and `to_polygons` need few."""
        frames = np.zeros((len(self), *self.source_size), np.bool_)
        for frame, (top, left, crop) in zip(frames, self.crops(), strict=True):
            frame[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        return frames

    def areas(self) -> NDArray[np.int64]:
        """(N,) pixels of each mask."""
        counts = (np.count_nonzero(crop) for _, _, crop in self.crops())
        return np.fromiter(counts, np.int64, len(self))

    def to_rle(self) -> list[dict[str, Any]]:
        """Each mask in COCO's compressed run-length code, `{"size": [H, W], "counts": text}`.

        Lossless, and equal to what `pycocotools.mask.encode` gives, with counts decoded to str.
        """
        height, width = self.source_size
        return [
            {"size": [height, width], "counts": _text(_runs(crop, top, left, self.source_size))}
            for top, left, crop in self.crops()
        ]

    def to_polygons(self) -> list[list[list[float]]]:
        """Each mask as COCO polygons: flat lists [x, y, x, y, ...] in pixels, one a connected part.

        The outlines run along the edges of the pixels, (0, 0) being the corner of the image, so
        that pycocotools draws a part without holes as it was. Holes are lost: they come filled.
        A mask without pixels has no polygons. Raises BackendUnavailable without OpenCV.
        """
        return [
            [np.add(outline, (left, top)).ravel().tolist() for outline in _outlines(crop)]
            for top, left, crop in self.crops()
        ]


@dataclass(frozen=True, slots=True)
class _Axis:
    """The resize of one axis: output i is near[i] * (1 - weight[i]) + far[i] * weight[i].

    near, far: (outputs,) positions of neighbouring cells, ascending.
    weight: (outputs,) float32, 0 to 1.
    """

    near: NDArray[np.intp]
    far: NDArray[np.intp]
    weight: NDArray[np.float32]

    def __getitem__(self, outputs: slice) -> "_Axis":
        return _Axis(self.near[outputs], self.far[outputs], self.weight[outputs])

    def reached_from(self, cells: NDArray[np.bool_]) -> slice:
        """The outputs from the first to the last that one of the given cells has a part in."""
        (given,) = np.nonzero(cells)
        if not len(given):
            return slice(0, 0)
        start = int(np.searchsorted(self.far, given[0], "left"))
        return slice(start, int(np.searchsorted(self.near, given[-1], "right")))

    def blend(self, cells: NDArray[np.float32], along: int, first: int = 0) -> NDArray[np.float32]:
        """Resizes one axis of a map, of which the cells before `first` are left out."""
        weight = self.weight if along else self.weight[:, None]
        blended = cells.take(self.near - first, along)
        blended *= 1 - weight
        far = cells.take(self.far - first, along)
        far *= weight
        blended += far
        return blended


def _axis(cells: int, pixels: int) -> _Axis:
    """Centres are rounded to float32 where PyTorch's `interpolate` rounds them."""
    scale = float(np.float32(cells) / np.float32(pixels))
    centres = (scale * (np.arange(pixels) + 0.5) - 0.5).astype(np.float32).clip(0, cells - 1)
    near = centres.astype(np.intp)
    return _Axis(near, np.minimum(near + 1, cells - 1), centres - near.astype(np.float32))


def _resized(logits: NDArray[np.float32], rows: _Axis, columns: _Axis) -> NDArray[np.bool_]:
    """Where the resized map is above 0, (rows, columns)."""
    inside = np.empty((len(rows.near), len(columns.near)), np.bool_)
    if not inside.size:
        return inside
    first = int(rows.near[0])
    with np.errstate(invalid="ignore"):  # an infinite logit times a weight of 0
        lines = columns.blend(logits[first : rows.far[-1] + 1], along=1)
        height = max(1, _STRIP // inside.shape[1])
        for start in range(0, len(inside), height):
            strip = slice(start, start + height)
            np.greater(rows[strip].blend(lines, along=0, first=first), 0, out=inside[strip])
    return inside


def _runs(crop: NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> NDArray[np.int64]:
    """Lengths of the runs of equal pixels, down one column after the other, zeros first."""
    height, width = size
    flips = np.zeros((crop.shape[0] + 1, crop.shape[1]), np.bool_)  # above and below each pixel
    flips[:-1] = crop
    flips[1:] ^= crop
    row, column = np.divmod(np.flatnonzero(flips), crop.shape[1])
    starts, times = np.unique((left + column) * height + top + row, return_counts=True)
    # two flips in one place: a run that goes on from the foot of a column to the next one's head
    starts = starts[(times == 1) & (starts < height * width)]
    runs: NDArray[np.int64] = np.diff(starts, prepend=0, append=height * width)
    return runs


def _text(runs: NDArray[np.int64]) -> str:
    """COCO's code of run lengths: from the fourth on less the run two before; five bits a
    character from the lowest on, 32 set where more follow, 48 added; the last one holds the sign.
    """
    values = runs.copy()
    values[3:] -= runs[1:-2]
    longest = int(np.abs(values).max()).bit_length() // 5 + 1  # characters
    shifts = 5 * np.arange(longest)
    rest = values[:, None] >> (shifts + 4)
    more = (rest != 0) & (rest != -1)
    characters = (values[:, None] >> shifts & 31) + 32 * more + 48
    used = np.ones_like(more)
    used[:, 1:] = more[:, :-1]
    return bytes(characters[used].tolist()).decode("ascii")


def _outlines(crop: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The outer outline of each connected part, (corners, 2) x and y along the pixels' edges."""
    cv2: Any = opencv()
    # OpenCV goes through the middle of the outer pixels. With each pixel doubled to 2 x 2, those
    # on its left and upper half lie next to one edge, the others next to the opposite one.
    doubled = crop.repeat(2, axis=0).repeat(2, axis=1).view(np.uint8)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for contour in contours:
        corners = (contour[:, 0] + 1) // 2
        moved = (corners != np.roll(corners, 1, axis=0)).any(axis=1)
        outlines.append(corners[moved].astype(np.float64))
    return outlines
