"""Attention of the decoder: ordinary between queries, deformable into the memory."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.layers import attend, merge_heads, split_heads
from trainer.model.sampling import Grid, Sampling, gathered


class Memory(NamedTuple):
    """What queries look into: cells (B, S, D), row by row, level after level; each level's grid."""

    cells: Tensor
    grids: list[Grid]


def flatten_levels(maps: Sequence[Tensor]) -> Memory:
    """The memory that maps (B, D, h, w) make, one a level."""
    grids = [(int(level.shape[2]), int(level.shape[3])) for level in maps]
    cells = [
        level.reshape(-1, int(level.shape[1]), rows * columns).transpose(1, 2)
        for level, (rows, columns) in zip(maps, grids, strict=True)
    ]
    return Memory(cells[0] if len(cells) == 1 else torch.cat(cells, dim=1), grids)


class SelfAttention(nn.Module):
    """Multi-head attention with one packed projection for query, key and value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, position: Tensor, visible: Tensor | None = None) -> Tensor:
        """x, position: (B, Q, D). Positions enter query and key, not value.

        visible: (Q, Q) bool, which others each one attends to; None is all.
        """
        dim = int(x.shape[-1])
        weight, bias = self.in_proj_weight, self.in_proj_bias
        both = F.linear(x + position, weight[: 2 * dim], bias[: 2 * dim])
        value = F.linear(x, weight[2 * dim :], bias[2 * dim :])
        query, key, value = (split_heads(x, self.heads) for x in (*both.chunk(2, dim=-1), value))
        return self.out_proj(merge_heads(attend(query, key, value, visible)))


class DeformableAttention(nn.Module):
    """Each query samples a few learned points around its reference box in every level.

    The channel layout of `sampling_offsets` is ((head * L + level) * P + point) * 2 + xy, that of
    `attention_weights` (head * L + level) * P + point (architecture.md section 5).

    sampling: how memory is read at the points, to be set where another way suits a device better.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling: Sampling = gathered
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, reference_cxcywh: Tensor, memory: Memory) -> Tensor:
        """query (B, Q, D), reference (B, Q, 4) in 0-1. Outside the memory there are zeros."""
        count, dim = int(query.shape[1]), int(query.shape[2])
        # Heads, levels and points stay merged: the delegates of TFLite take tensors up to rank 4.
        places = self.levels * self.points
        offsets = self.sampling_offsets(query).reshape(-1, count, self.heads * places, 2)
        weights = self.attention_weights(query).reshape(-1, count, self.heads, places)
        weights = weights.softmax(dim=-1).transpose(1, 2).reshape(-1, count, places)
        reference = reference_cxcywh.unsqueeze(2)
        points = reference[..., :2] + offsets * (0.5 / self.points) * reference[..., 2:]
        points = (2 * points - 1).reshape(-1, count, self.heads, places * 2).transpose(1, 2)
        points = points.reshape(-1, count, places, 2)  # (B * M, Q, L * P, 2)
        value = self.value_proj(memory.cells).transpose(1, 2)  # (B, D, S)
        value = value.reshape(-1, dim // self.heads, int(memory.cells.shape[1]))  # (B * M, d, S)
        mixed = self.sampling(value, memory.grids, points, weights)  # (B * M, d, Q)
        return self.output_proj(mixed.reshape(-1, dim, count).transpose(1, 2))

    def reset(self) -> None:
        """Start: points of head m along direction 2*pi*m/M, farther out by point; equal weights."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angles.cos(), angles.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        reach = torch.arange(1.0, self.points + 1)[:, None]
        bias = (direction[:, None, None] * reach).expand(-1, self.levels, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
