"""How far predicted masks are from true ones: BCE and dice at random points, not at every cell.

The same two, with the same names, are the costs of matching (training.md sections 2 and 3).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.output import MaskFactors

Draw = Callable[..., Tensor]
"""Uniform numbers in 0-1, called as `torch.rand` is: `draw(*shape, device=device)`."""
_CELLS_PER_POINT = 16


def mask_costs(
    masks: Tensor | MaskFactors, truths: Sequence[Tensor], draw: Draw
) -> list[dict[str, Tensor]]:
    """Of each image: loss name -> (Q, n), every query against every target, at the same points.

    masks: logits (B, Q, h, w) or their factors. truths: (n, H, W) bool of each image.
    """
    maps = masks if isinstance(masks, Tensor) else masks.spatial
    points = draw(1, maps.shape[-2] * maps.shape[-1] // _CELLS_PER_POINT, 2, device=maps.device)
    logits = _at(maps, points)
    if isinstance(masks, MaskFactors):
        # Sampled before the product, so that no query's mask is made: both are linear.
        logits = masks.query @ logits + masks.bias
    costs = []
    for found, truth in zip(logits, truths, strict=True):
        wanted = _inside(truth, points)
        inside = found.sigmoid()
        ce = (F.softplus(found).sum(1)[:, None] - found @ wanted.T) / len(points[0])
        dice = _dice(inside @ wanted.T, inside.sum(1)[:, None] + wanted.sum(1))
        costs.append({"loss_mask_ce": ce, "loss_mask_dice": dice})
    return costs


def mask_losses(
    masks: Tensor | MaskFactors,
    truths: Sequence[Tensor],
    matches: Sequence[tuple[Tensor, Tensor]],
    draw: Draw,
) -> dict[str, Tensor]:
    """Loss name -> sum over the matched pairs, each at points of its own where it is uncertain.

    masks and truths are those of `mask_costs`; matches: (queries, targets) of each image.
    """
    logits = _matched(masks, matches)
    if not len(logits):
        return dict.fromkeys(("loss_mask_ce", "loss_mask_dice"), logits.sum())
    with torch.no_grad():
        points = _uncertain_points(logits, draw)
        parts = points.split([len(target) for _, target in matches])
        rows = zip(truths, matches, parts, strict=True)
        wanted = torch.cat([_inside(truth, part, target) for truth, (_, target), part in rows])
    found = _at(logits, points)[:, 0]  # (N, P)
    inside = found.sigmoid()
    ce = F.binary_cross_entropy_with_logits(found, wanted, reduction="none").mean(1)
    dice = _dice((inside * wanted).sum(1), inside.sum(1) + wanted.sum(1))
    return {"loss_mask_ce": ce.sum(), "loss_mask_dice": dice.sum()}


def _matched(masks: Tensor | MaskFactors, matches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(N, 1, h, w): dense logits of the matched queries alone, image after image."""
    queries = [query for query, _ in matches]
    if isinstance(masks, Tensor):
        parts = [mask[query] for mask, query in zip(masks, queries, strict=True)]
    else:
        # Channels last, as normalisation leaves them: transposing all cells is slow on a CPU.
        cells = masks.spatial.permute(0, 2, 3, 1).flatten(1, 2)
        rows = zip(cells, masks.query, masks.bias, queries, strict=True)
        flat = [factors[query] @ cell.T + bias[query] for cell, factors, bias, query in rows]
        parts = [part.unflatten(1, masks.spatial.shape[2:]) for part in flat]
    return torch.cat(parts)[:, None]


def _uncertain_points(logits: Tensor, draw: Draw) -> Tensor:
    """(N, P, 2): 3/4 lie where a mask's logit is nearest 0 of three times as many, others anywhere.

    Kirillov et al. 2020, PointRend.
    """
    pairs, _, height, width = logits.shape
    count = max(height, height * width // _CELLS_PER_POINT)
    points = draw(pairs, 3 * count, 2, device=logits.device)
    certainty = _at(logits, points)[:, 0].abs()
    kept = certainty.topk(count * 3 // 4, largest=False).indices
    anywhere = draw(pairs, count - kept.shape[1], 2, device=logits.device)
    return torch.cat([points.gather(1, kept[..., None].expand(-1, -1, 2)), anywhere], dim=1)


def _at(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (N, C, P) of maps (N, C, h, w) at x, y in 0-1: points (N or 1, P, 2)."""
    grid = (2 * points - 1).expand(len(maps), -1, -1)[:, None]
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0]


def _inside(truth: Tensor, points: Tensor, rows: Tensor | None = None) -> Tensor:
    """Whether points (n or 1, P, 2) lie in masks (n, H, W) bool, or in `rows` of them: (n, P)."""
    rows = torch.arange(len(truth), device=truth.device) if rows is None else rows
    height, width = truth.shape[-2:]
    x = (points[..., 0] * width).long().clamp(max=width - 1)
    y = (points[..., 1] * height).long().clamp(max=height - 1)
    return truth[rows[:, None], y, x].float()


def _dice(overlap: Tensor, areas: Tensor) -> Tensor:
    return 1 - (2 * overlap + 1) / (areas + 1)
