"""Box arithmetic on torch tensors, for matching and losses alone."""

import torch
from torch import Tensor

_FLOOR = 1e-7


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """(..., 4) centre boxes to corner boxes; negative sizes count as zero."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:].clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).prod(-1)


def iou_and_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of broadcast corner boxes (..., 4) -> two (...).

    GIoU = IoU - (enclosing - union) / enclosing (Rezatofighi et al. 2019); both denominators have
    a floor of 1e-7 (training.md section 2).
    """
    top_left = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    bottom_right = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = _area(a_xyxy) + _area(b_xyxy) - intersection
    iou = intersection / union.clamp(min=_FLOOR)
    hull_top_left = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_bottom_right = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (hull_bottom_right - hull_top_left).prod(-1)
    return iou, iou - (hull - union) / hull.clamp(min=_FLOOR)
