"""Two-stage query selection: the memory itself proposes where the queries start."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.model.layers import MLP, apply_deltas
from trainer.model.sampling import Grid

_FIRST_SIZE = 0.05
_MARGIN = 0.01


class ProposalGroup(nn.Module):
    """One query group's view of the memory, with heads of its own."""

    def __init__(self, dim: int, slots: int) -> None:
        super().__init__()
        self.transform = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, slots)
        self.box_head = MLP(dim, dim, 4, 3)

    def forward(
        self, memory: Tensor, anchors_cxcywh: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best `count` places by their highest class logit, in descending order.

        Returns their boxes (B, N, 4), logits (B, N, C) and memory (B, N, D).
        """
        memory = self.norm(self.transform(memory))
        logits = self.class_head(memory)
        index = logits.max(dim=-1).values.topk(min(count, int(memory.shape[1])), dim=1).indices
        chosen = _take(memory, index)
        anchors = _take(anchors_cxcywh.expand(memory.shape[0], -1, -1), index)
        return apply_deltas(self.box_head(chosen), anchors), _take(logits, index), chosen


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """rows (B, S, C) at index (B, N) -> (B, N, C)."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, int(rows.shape[-1])))


def anchor_boxes(grids: Sequence[Grid]) -> tuple[Tensor, Tensor | None]:
    """Anchors (1, S, 4) cxcywh in 0-1 and which of them count (1, S, 1), as float32; None for all.

    One anchor per cell, 0.05 wide at the first level and twice that at each further one. An anchor
    with any number outside (0.01, 0.99) is set to 0, and so must be its memory row.
    """
    levels = []
    for level, (rows, columns) in enumerate(grids):
        y = (torch.arange(rows, dtype=torch.float32) + 0.5) / rows
        x = (torch.arange(columns, dtype=torch.float32) + 0.5) / columns
        cy, cx = torch.meshgrid(y, x, indexing="ij")
        size = torch.full_like(cx, _FIRST_SIZE * 2.0**level)
        levels.append(torch.stack([cx, cy, size, size], dim=-1).flatten(0, 1))
    anchors = torch.cat(levels).unsqueeze(0)
    # The outermost centres are nearest to the margin. Plain numbers, as torch.export needs.
    if all(0.5 / side > _MARGIN for grid in grids for side in grid):
        return anchors, None
    valid = ((anchors > _MARGIN) & (anchors < 1 - _MARGIN)).all(-1, keepdim=True).float()
    return anchors * valid, valid
