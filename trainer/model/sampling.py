"""Reading a memory between its cells: bilinear interpolation, zero outside, summed with weights.

Two ways to compute the same function. Both take value (N, d, S), the cells of all levels row by
row; the levels' grids; points (N, Q, L * P, 2) as (x, y) from -1 to 1 between the outer edges of
the grid, level after level; and weights (N, Q, L * P). Both give (N, d, Q).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]
Sampling = Callable[[Tensor, Sequence[Grid], Tensor, Tensor], Tensor]


def gathered(value: Tensor, grids: Sequence[Grid], points: Tensor, weights: Tensor) -> Tensor:
    """Picks the four cells around each point. The fastest in torch and in ONNX."""
    size = int(value.shape[1])
    sampled = []
    for (rows, columns), cells, level in _levels(grids, int(points.shape[2])):
        maps = value[:, :, cells].reshape(-1, size, rows, columns)
        sampled.append(F.grid_sample(maps, points[:, :, level], align_corners=False))
    joined = sampled[0] if len(sampled) == 1 else torch.cat(sampled, dim=-1)
    return (joined * weights[:, None]).sum(-1)


def multiplied(value: Tensor, grids: Sequence[Grid], points: Tensor, weights: Tensor) -> Tensor:
    """A matrix product with the share of every cell: no index, rank 4 at most.

    Interpolated at x, cell j has the share max(0, 1 - |x - j|), the tent function, and a cell of a
    grid the product of those of its row and its column. TFLite's kernels and delegates are much
    faster at this than at gathering; it grows with queries times cells.
    """
    mixed = []
    for (rows, columns), cells, level in _levels(grids, int(points.shape[2])):
        across = _tents(points[:, :, level, 0], columns)  # (N, Q, P, columns)
        down = _tents(points[:, :, level, 1], rows) * weights[:, :, level].unsqueeze(-1)
        shares = down.transpose(2, 3) @ across  # (N, Q, rows, columns), summed over points
        flat = shares.reshape(-1, int(points.shape[1]), rows * columns)
        mixed.append(flat @ value[:, :, cells].transpose(1, 2))
    return sum(mixed[1:], start=mixed[0]).transpose(1, 2)


def _levels(grids: Sequence[Grid], places: int) -> Iterator[tuple[Grid, slice, slice]]:
    """Each level's grid, its cells among all cells, and its points among all points."""
    points = places // len(grids)
    start = 0
    for level, (rows, columns) in enumerate(grids):
        stop = start + rows * columns
        yield (rows, columns), slice(start, stop), slice(level * points, (level + 1) * points)
        start = stop


def _tents(places: Tensor, count: int) -> Tensor:
    """(...) from -1 to 1 -> (..., count): the shares of cells in a row of `count`."""
    cells = torch.arange(count, dtype=places.dtype, device=places.device)
    at = (places + 1) * (count / 2) - 0.5
    return (1 - (at.unsqueeze(-1) - cells).abs()).relu()
