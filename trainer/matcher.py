"""Hungarian matching of queries to targets, group by group."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trainer.boxes import cxcywh_to_xyxy, iou_and_giou
from trainer.keypoint_losses import keypoint_costs
from trainer.mask_losses import Draw, mask_costs
from trainer.model.output import Prediction
from trainer.targets import Target

CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0
_ALPHA = 0.25


class Match(NamedTuple):
    """Matched rows of one image: `query[i]` (all groups counted through) belongs to `target[i]`."""

    query: Tensor
    target: Tensor


@torch.no_grad()
def match(
    prediction: Prediction,
    targets: Sequence[Target],
    groups: int,
    coefficients: Mapping[str, float],
    keypoint_counts: Sequence[int] = (),
    draw: Draw = torch.rand,
) -> list[Match]:
    """One Match per image: every group of queries is matched with all targets on its own.

    prediction: that of all groups, G * Q queries. Masks and keypoints cost what they lose, by the
    loss's coefficients; draw makes the masks' points. Pairs come group after group, by ascending
    query inside a group.
    """
    boxes, logits, masks, keypoints = prediction
    terms: list[dict[str, Tensor]] = [{} for _ in targets]
    if masks is not None:
        terms = mask_costs(masks, [t.masks for t in targets], draw)
    if keypoints is not None:
        terms = [
            keypoint_costs(found, t.keypoints, t.labels, t.boxes, keypoint_counts)
            for found, t in zip(keypoints, targets, strict=True)
        ]
    matches = []
    for target, found, scores, more in zip(targets, boxes, logits, terms, strict=True):
        cost = _box_cost(found, scores, target)
        for name, term in more.items():
            cost += coefficients[name] * term
        matches.append(_assign(cost, groups))
    return matches


def _assign(cost: Tensor, groups: int) -> Match:
    size = len(cost) // groups
    by_group = cost.cpu().numpy().reshape(groups, size, cost.shape[1])
    # where the network gave NaN or infinity: above every finite cost
    finite = np.isfinite(by_group)
    by_group = np.where(finite, by_group, 2 * np.abs(by_group[finite]).max(initial=0) + 1)
    pairs = [linear_sum_assignment(part) for part in by_group]
    query = np.concatenate([query + size * group for group, (query, _) in enumerate(pairs)])
    target = np.concatenate([target for _, target in pairs])
    return Match(*(torch.from_numpy(rows).to(cost.device) for rows in (query, target)))


def _box_cost(boxes_cxcywh: Tensor, logits: Tensor, target: Target) -> Tensor:
    """(Q, n): focal class cost, L1 and GIoU with the weights above (training.md section 2)."""
    x = logits[:, target.labels]
    p = x.sigmoid()
    positive = _ALPHA * (1 - p) ** 2 * -F.logsigmoid(x)
    negative = (1 - _ALPHA) * p**2 * -F.logsigmoid(-x)
    l1 = torch.cdist(boxes_cxcywh, target.boxes, p=1)
    _, giou = iou_and_giou(
        cxcywh_to_xyxy(boxes_cxcywh)[:, None], cxcywh_to_xyxy(target.boxes)[None]
    )
    return CLASS_COST * (positive - negative) + BOX_COST * l1 - GIOU_COST * giou
