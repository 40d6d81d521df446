"""Attention of the decoder: ordinary between queries, deformable into the memory."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.layers import attend, merge_heads, split_heads

Grid = tuple[int, int]


class SelfAttention(nn.Module):
    """Multi-head attention with one packed projection for query, key and value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x, position: (B, Q, D). Positions enter query and key, not value."""
        dim = int(x.shape[-1])
        query_key = F.linear(
            x + position, self.in_proj_weight[: 2 * dim], self.in_proj_bias[: 2 * dim]
        )
        value = F.linear(x, self.in_proj_weight[2 * dim :], self.in_proj_bias[2 * dim :])
        query, key = query_key.chunk(2, dim=-1)
        heads = (split_heads(part, self.heads) for part in (query, key, value))
        out: Tensor = self.out_proj(merge_heads(attend(*heads)))
        return out


class DeformableAttention(nn.Module):
    """Each query samples a few learned points around its reference box in every level.

    The channel layout of `sampling_offsets` is ((head * L + level) * P + point) * 2 + xy, that of
    `attention_weights` (head * L + level) * P + point (architecture.md section 5).
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(
        self, query: Tensor, reference_cxcywh: Tensor, memory: Tensor, grids: Sequence[Grid]
    ) -> Tensor:
        """query (B, Q, D), reference (B, Q, 4) in 0-1, memory (B, S, D) of levels `grids`."""
        count, dim = int(query.shape[1]), int(query.shape[2])
        # Levels and points stay merged: tensors of rank 5, which every converter takes.
        offsets = self.sampling_offsets(query).reshape(
            -1, count, self.heads, self.levels * self.points, 2
        )
        weights = self.attention_weights(query).reshape(
            -1, count, self.heads, self.levels * self.points
        )
        spread = (count, self.levels * self.points)
        weights = weights.softmax(dim=-1).transpose(1, 2).reshape(-1, *spread)  # (B * M, Q, L * P)
        reference = reference_cxcywh[:, :, None, None, :]
        points = reference[..., :2] + offsets * (0.5 / self.points) * reference[..., 2:]
        points = (2 * points - 1).transpose(1, 2).reshape(-1, *spread, 2)  # (B * M, Q, L * P, 2)
        size = dim // self.heads
        value = self.value_proj(memory).transpose(1, 2)  # (B, D, S)
        value = value.reshape(-1, size, int(memory.shape[1]))  # (B * M, d, S)
        sampled = []
        start = 0
        for level, (rows, columns) in enumerate(grids):
            stop = start + rows * columns
            sampled.append(
                F.grid_sample(
                    value[:, :, start:stop].reshape(-1, size, rows, columns),
                    points[:, :, level * self.points : (level + 1) * self.points],
                    mode="bilinear",
                    padding_mode="zeros",
                    align_corners=False,
                )
            )
            start = stop
        joined = sampled[0] if len(sampled) == 1 else torch.cat(sampled, dim=-1)
        mixed = (joined * weights[:, None]).sum(-1)  # (B * M, d, Q)
        mixed = mixed.reshape(-1, dim, count).transpose(1, 2)
        out: Tensor = self.output_proj(mixed)
        return out

    def reset(self) -> None:
        """Start: points of head m along direction 2*pi*m/M, farther out by point; equal weights."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angles.cos(), angles.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        reach = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = direction[:, None, None, :] * reach[None, None, :, None]
        bias = bias.expand(-1, self.levels, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
