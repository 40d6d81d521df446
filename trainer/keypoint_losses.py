"""How far predicted keypoints are from true ones: in place, in visibility and in likelihood.

The same four, with the same names, are the costs of matching (training.md sections 2 and 3).
Predictions are padded: class slot c owns columns from c * K on, counts[c] of them, of 8 channels:
x, y, findable and visible logits, log l11, l21, log l22, and one for the class head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST_AREA = torch.finfo(torch.float32).eps


def keypoint_costs(
    keypoints: Tensor, wanted: Tensor, labels: Tensor, boxes_cxcywh: Tensor, counts: Sequence[int]
) -> dict[str, Tensor]:
    """Loss name -> (Q, n), every query against every target of an image.

    keypoints (Q, len(counts) * K, 8); wanted (n, K, 3), labels (n,) and boxes (n, 4) are the
    targets', in 0-1. A class outside the schema has no points and costs nothing.
    """
    by_class = keypoints.unflatten(1, (len(counts), -1))
    found = by_class[:, labels.clamp(max=len(counts) - 1)]  # (Q, n, K, 8)
    return _terms(found, wanted, boxes_cxcywh, _owned(wanted, labels, counts))


def keypoint_losses(
    keypoints: Tensor, wanted: Tensor, labels: Tensor, boxes_cxcywh: Tensor, counts: Sequence[int]
) -> dict[str, Tensor]:
    """Loss name -> sum over N matched pairs; keypoints (N, len(counts) * K, 8), others as above.

    Points that are not finite are left out. All is 0 where a class is outside the schema.
    """
    by_class = keypoints.unflatten(1, (len(counts), -1))
    pairs = torch.arange(len(labels), device=labels.device)
    found = by_class[pairs, labels.clamp(max=len(counts) - 1)]  # (N, K, 8)
    finite = found.isfinite().all(-1)
    used = _owned(wanted, labels, counts) & finite & (labels < len(counts)).all()
    # 0 in their place, as a gradient of 0 times infinity is not a number
    terms = _terms(torch.where(finite[..., None], found, 0), wanted, boxes_cxcywh, used)
    return {name: value.sum() for name, value in terms.items()}


def _owned(wanted: Tensor, labels: Tensor, counts: Sequence[int]) -> Tensor:
    """(n, K) bool: which columns are points of the target's class."""
    count = torch.tensor([*counts, 0], device=labels.device)[labels.clamp(max=len(counts))]
    return torch.arange(wanted.shape[1], device=labels.device) < count[:, None]


def _terms(found: Tensor, wanted: Tensor, boxes_cxcywh: Tensor, used: Tensor) -> dict[str, Tensor]:
    """The four of (..., K, 8) against (n, K, 3) -> (..., n); used: (n, K) bool.

    nll is that of a normal distribution whose precision is L L^T over the area of the box, up to a
    constant: what L = [[l11, 0], [l21, l22]] does to the error, less the logs of its diagonal.
    """
    area = boxes_cxcywh[:, 2:].prod(1).clamp(min=_SMALLEST_AREA)
    labelled = used & (wanted[..., 2] > 0)
    dx, dy = (found[..., :2] - wanted[..., :2]).unbind(-1)
    findable, visible, log_l11, l21, log_l22 = found[..., 2:7].unbind(-1)
    squares = (log_l11.exp() * dx + l21 * dy) ** 2 + (log_l22.exp() * dy) ** 2
    nll = squares / (2 * area[:, None]) - log_l11 - log_l22
    return {
        "loss_keypoints_l1": _mean(dx.abs() + dy.abs(), labelled) / area.sqrt(),
        "loss_keypoints_findable": _mean(_bce(findable, wanted[..., 2] > 0), used),
        "loss_keypoints_visible": _mean(_bce(visible, wanted[..., 2] > 1), used),
        "loss_keypoints_nll": _mean(nll, labelled),
    }


def _bce(logits: Tensor, truth: Tensor) -> Tensor:
    return F.softplus(logits) - logits * truth


def _mean(values: Tensor, used: Tensor) -> Tensor:
    return torch.where(used, values, 0).sum(-1) / used.sum(-1).clamp(min=1)
