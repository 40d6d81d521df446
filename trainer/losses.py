"""Losses of every layer and of the proposals: class, box L1 and GIoU, and those of the task.

All are sums divided by the number of targets (times groups, in training); training.md section 3.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from trainer.boxes import cxcywh_to_xyxy, iou_and_giou
from trainer.keypoint_losses import keypoint_losses
from trainer.mask_losses import Draw, mask_losses
from trainer.matcher import Match, match
from trainer.model.output import ModelOutput, Prediction
from trainer.ranks import place
from trainer.targets import Target

_ALPHA = 0.25

Cells = tuple[Tensor, Tensor, Tensor]
"""Image, query and class slot of every matched pair."""
ClassLoss = Callable[[Tensor, Cells, Tensor], Tensor]
"""(logits (B, Q, C), matched cells, their IoU) -> the loss of every cell (B, Q, C)."""


def ia_bce(logits: Tensor, cells: Cells, iou: Tensor) -> Tensor:
    """IoU-aware BCE: a matched cell aims at p^0.25 * IoU^0.75, all others at 0, weighted by p^2."""
    p = logits.sigmoid()
    goal = (p[cells].detach() ** 0.25 * iou**0.75).clamp(min=0.01)
    positive = torch.zeros_like(logits).index_put(cells, goal)
    negative = (p**2).index_put(cells, 1 - goal)
    return negative * logits - F.logsigmoid(logits) * (positive + negative)


def position_supervised(logits: Tensor, cells: Cells, iou: Tensor) -> Tensor:
    """BCE towards the IoU relative to the image's best, weighted by the squared distance to it."""
    quality = torch.zeros_like(logits).index_put(cells, iou)
    quality = quality / (quality.amax(dim=(1, 2), keepdim=True) + 1e-8)
    side = _ALPHA * (quality > 0) + (1 - _ALPHA) * (quality <= 0)
    distance = (quality - logits.sigmoid()).abs() ** 2
    return side * distance * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def varifocal(logits: Tensor, cells: Cells, iou: Tensor) -> Tensor:
    """BCE towards the IoU, weighted by it where matched and by 0.75 p^2 elsewhere."""
    quality = torch.zeros_like(logits).index_put(cells, iou)
    weight = torch.where(quality > 0, quality, (1 - _ALPHA) * logits.sigmoid() ** 2)
    return weight * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def focal(logits: Tensor, cells: Cells, iou: Tensor) -> Tensor:
    """Focal loss with alpha 0.25 and gamma 2 (Lin et al. 2017); the IoU plays no part."""
    goal = torch.zeros_like(logits).index_put(cells, torch.ones_like(iou))
    p = logits.sigmoid()
    miss = p * (1 - goal) + (1 - p) * goal
    side = _ALPHA * goal + (1 - _ALPHA) * (1 - goal)
    return side * miss**2 * F.binary_cross_entropy_with_logits(logits, goal, reduction="none")


def detection_losses(
    output: ModelOutput,
    targets: Sequence[Target],
    *,
    groups: int,
    class_loss: ClassLoss = ia_bce,
    sum_groups: bool = False,
    num_boxes: float | None = None,
    keypoint_counts: Sequence[int] = (),
    coefficients: Mapping[str, float],
    draw: Draw = torch.rand,
) -> dict[str, Tensor]:
    """Every loss by name: bare for the last layer, `_0`, `_1`, ... for earlier ones, `_enc`.

    groups: query groups in `output` (1 in evaluation). sum_groups leaves their number out of the
    divisor. num_boxes: targets to divide by; if not given, the mean over all processes of those in
    `targets`, for which every process must call. Losses are computed in float32 whatever precision
    the network ran in, and not yet weighted: coefficients are for the costs of matching.
    keypoint_counts: points of each class, where `output` has keypoints. draw: the random points of
    masks, for the matches of all layers before any loss.

    Beside them, to watch and not to minimise: class_error, the percentage of the last layer's
    matched queries whose best class is wrong (100 without targets), and cardinality_error of each
    layer, how far the queries with a confidence above 0.5 are from the targets in number.
    """
    if num_boxes is None:
        count = float(sum(len(target.labels) for target in targets))
        num_boxes = mean_over_ranks(count, output.final.logits.device)
    divisor = max(num_boxes * (1 if sum_groups else groups), 1.0)
    earlier = {f"_{index}": layer for index, layer in enumerate(output.layers[:-1])}
    named = {"": output.final, **earlier, "_enc": output.proposals}
    layers = [_in_float32(layer) for layer in named.values()]
    matched = [match(one, targets, groups, coefficients, keypoint_counts, draw) for one in layers]
    losses: dict[str, Tensor] = {}
    for suffix, layer, matches in zip(named, layers, matched, strict=True):
        values = _layer_losses(layer, targets, matches, class_loss, keypoint_counts, draw)
        losses |= {name + suffix: value / divisor for name, value in values.items()}
        class_error, losses[f"cardinality_error{suffix}"] = _errors(layer.logits, targets, matches)
        losses.setdefault("class_error", class_error)  # the last layer comes first
    return losses


def _in_float32(part: Any) -> Any:
    """A Prediction, and all tensors in it."""
    if isinstance(part, Tensor):
        return part.float()
    return None if part is None else type(part)(*map(_in_float32, part))


def mean_over_ranks(count: float, device: torch.device) -> float:
    """The mean of every process's count, so that two learn what one does from both batches."""
    _, ranks = place()
    if ranks == 1:
        return count
    total = torch.tensor(count, device=device)
    distributed.all_reduce(total)
    return float(total) / ranks


def total_loss(losses: Mapping[str, Tensor], coefficients: Mapping[str, float]) -> Tensor:
    """The weighted sum that is minimised; of losses of any layer, but of no errors."""
    terms = [
        weight * value
        for name, value in losses.items()
        for base, weight in coefficients.items()
        if name.startswith(base)
    ]
    return torch.stack(terms).sum()


@torch.no_grad()
def _errors(
    logits: Tensor, targets: Sequence[Target], matches: Sequence[Match]
) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([len(target.labels) for target in targets], device=logits.device)
    rows = zip(logits, targets, matches, strict=True)
    right = torch.cat([row[m.query].argmax(-1) == t.labels[m.target] for row, t, m in rows])
    cardinality_error = ((logits > 0).any(-1).sum(1) - counts).abs().float().mean()
    return 100 - 100 * right.sum() / max(len(right), 1), cardinality_error


def _layer_losses(
    prediction: Prediction,
    targets: Sequence[Target],
    matches: Sequence[Match],
    class_loss: ClassLoss,
    keypoint_counts: Sequence[int],
    draw: Draw,
) -> dict[str, Tensor]:
    rows = list(zip(targets, matches, strict=True))
    image = torch.cat([torch.full_like(m.query, i) for i, m in enumerate(matches)])
    query = torch.cat([m.query for m in matches])
    found = prediction.boxes[image, query]
    wanted = torch.cat([t.boxes[m.target] for t, m in rows])
    label = torch.cat([t.labels[m.target] for t, m in rows])
    iou, giou = iou_and_giou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    values = {
        "loss_ce": class_loss(prediction.logits, (image, query, label), iou.detach()).sum(),
        "loss_bbox": (found - wanted).abs().sum(),
        "loss_giou": (1 - giou).sum(),
    }
    if prediction.masks is not None:
        values |= mask_losses(prediction.masks, [t.masks for t in targets], matches, draw)
    if prediction.keypoints is not None:
        points = torch.cat([t.keypoints[m.target] for t, m in rows if t.keypoints is not None])
        keypoints = prediction.keypoints[image, query]
        values |= keypoint_losses(keypoints, points, label, wanted, keypoint_counts)
    return values
