"""Hungarian matching of queries to targets, group by group."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trainer.boxes import cxcywh_to_xyxy, iou_and_giou
from trainer.model.output import Prediction
from trainer.targets import Target

CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0
_ALPHA = 0.25


class Match(NamedTuple):
    """Matched rows of one image: `query[i]` (all groups counted through) belongs to `target[i]`."""

    query: Tensor
    target: Tensor


@torch.no_grad()
def match(prediction: Prediction, targets: Sequence[Target], groups: int) -> list[Match]:
    """One Match per image: every group of queries is matched with all targets on its own.

    prediction: boxes (B, G * Q, 4) cxcywh, logits (B, G * Q, C). Pairs come group after group,
    by ascending query inside a group.
    """
    device = prediction.boxes.device
    matches = []
    for boxes, logits, target in zip(*prediction, targets, strict=True):
        cost = _cost(boxes.float(), logits.float(), target).cpu().numpy()
        per_group = len(cost) // groups
        queries, rows = [], []
        for first in range(0, len(cost), per_group):
            query, row = linear_sum_assignment(cost[first : first + per_group])
            queries.append(torch.from_numpy(query + first))
            rows.append(torch.from_numpy(row))
        matches.append(Match(torch.cat(queries).to(device), torch.cat(rows).to(device)))
    return matches


def _cost(boxes_cxcywh: Tensor, logits: Tensor, target: Target) -> Tensor:
    """(Q, n): focal class cost, L1 and GIoU with the weights above (training.md section 2)."""
    x = logits[:, target.labels]
    p = x.sigmoid()
    positive = _ALPHA * (1 - p) ** 2 * -F.logsigmoid(x)
    negative = (1 - _ALPHA) * p**2 * -F.logsigmoid(-x)
    l1 = torch.cdist(boxes_cxcywh, target.boxes, p=1)
    _, giou = iou_and_giou(
        cxcywh_to_xyxy(boxes_cxcywh)[:, None], cxcywh_to_xyxy(target.boxes)[None]
    )
    cost = CLASS_COST * (positive - negative) + BOX_COST * l1 - GIOU_COST * giou
    return _replace_non_finite(cost)


def _replace_non_finite(cost: Tensor) -> Tensor:
    """Puts a value above every finite one where the network gave NaN or infinity."""
    finite = cost.isfinite()
    if finite.all():
        return cost
    known = cost[finite]
    worst = known.max() + known.abs().max() + 1 if len(known) else cost.new_tensor(0.0)
    return torch.where(finite, cost, worst)
