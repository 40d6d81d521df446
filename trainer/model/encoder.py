"""Windowed DINOv2: a vision transformer whose blocks attend inside windows, some of them globally.

Knows nothing of detection: images in, four feature maps of the patch grid out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr_edge.variants import Variant
from trainer.model.layers import attend, merge_heads, split_heads

_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self attention with separate query, key and value projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            split_heads(project(x), self.heads) for project in (self.query, self.key, self.value)
        )
        return self.output(merge_heads(attend(query, key, value)))


class Block(nn.Module):
    """Pre-norm transformer block with layer scale."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attention = Attention(width, heads)
        self.scale1 = nn.Parameter(torch.ones(width))
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.scale2 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, windows: int, drop: float) -> Tensor:
        """x: (B * windows, T, C). With windows > 1 those of an image attend together.

        drop: probability that a row of x skips a branch (stochastic depth, Huang et al. 2016).
        """
        tokens, width = int(x.shape[1]), int(x.shape[2])
        joined = self.norm1(x).reshape(-1, windows * tokens, width)
        attended = self.scale1 * self.attention(joined).reshape(-1, tokens, width)
        x = x + _drop_rows(attended, drop)
        return x + _drop_rows(self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x)))), drop)


def _drop_rows(branch: Tensor, drop: float) -> Tensor:
    if not drop:
        return branch
    kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= drop
    return branch * kept.to(branch.dtype) / (1 - drop)


class Encoder(nn.Module):
    """Images (B, 3, H, W) to four maps (B, width, H / patch, W / patch).

    drop_path: in training, how likely the last block's branches are skipped; earlier ones less.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width = variant.encoder.width
        self.drop_path = 0.0
        self.patch_size = variant.patch_size
        self.windows = variant.windows
        self.taps = variant.taps
        self.grid = (variant.position_grid, variant.position_grid)
        self.patches = nn.Conv2d(3, width, variant.patch_size, stride=variant.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        # Part of every checkpoint, never used in the forward pass.
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + variant.position_grid**2, width))
        self.blocks = nn.ModuleList(
            Block(width, variant.encoder.heads) for _ in range(variant.encoder.depth)
        )
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, images: Tensor) -> list[Tensor]:
        rows, columns = (int(side) // self.patch_size for side in images.shape[-2:])
        x = self._embed(images, rows, columns)
        per_image = self.windows**2
        maps = []
        # What comes after the last tap is not used by anything.
        for index, block in enumerate(self.blocks[: self.taps[-1]]):
            drop = self.drop_path * index / (len(self.blocks) - 1) if self.training else 0.0
            x = block(x, per_image if index in self.taps else 1, drop)
            if index + 1 in self.taps:
                maps.append(x)
        return [self._to_map(self.norm(tokens), rows, columns) for tokens in maps]

    def position_table(self, rows: int, columns: int) -> Tensor:
        """Position embeddings (1, 1 + rows * columns, width) of a patch grid, class slot first.

        Another grid than the table's own is resized in float32 by antialiased bicubic
        interpolation (architecture.md section 2.3).
        """
        if (rows, columns) == self.grid:
            return self.positions
        return resize_position_table(self.positions, self.grid, (rows, columns))

    def fix_grid(self, rows: int, columns: int) -> None:
        """Replaces the table by the one of another grid, so that nothing is resized in forward."""
        self.positions = nn.Parameter(self.position_table(rows, columns).detach().clone())
        self.grid = (rows, columns)

    def _embed(self, images: Tensor, rows: int, columns: int) -> Tensor:
        """Tokens (B * windows^2, 1 + patches a window, width), each window with its class token."""
        table = self.position_table(rows, columns)
        n, width = self.windows, int(table.shape[-1])
        patches = self.patches(images).reshape(-1, width, rows * columns).transpose(1, 2)
        # A window's columns and channels lie side by side and move as one axis: rank 4.
        patches = (
            (patches + table[:, 1:])
            .reshape(-1, rows // n, n, columns // n * width)
            .transpose(1, 2)
            .reshape(-1, (rows // n) * (columns // n), width)
        )
        class_token = (self.class_token + table[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat([class_token, patches], dim=1)

    def _to_map(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        n, width = self.windows, int(tokens.shape[-1])
        return (
            tokens[:, 1:]
            .reshape(-1, n, rows // n, columns // n * width)
            .transpose(1, 2)  # B * window row, row, window column, column * C
            .reshape(-1, rows * columns, width)
            .transpose(1, 2)
            .reshape(-1, width, rows, columns)
            .contiguous()  # pixel by pixel inside a channel, for the convolutions that follow
        )


def resize_position_table(
    table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """(1, 1 + rows * columns, width) of one patch grid as that of another; class slot unchanged."""
    patches = table[:, 1:].float().transpose(1, 2).unflatten(2, grid)
    patches = F.interpolate(patches, new_grid, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
