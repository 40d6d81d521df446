"""The batch size that a GPU holds, found by training steps on synthetic data (training.md 11)."""

import copy
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

import torch

from rfdetr_edge.errors import InputError
from trainer.config import TrainConfig
from trainer.losses import detection_losses, total_loss
from trainer.model.rfdetr import RFDETR
from trainer.targets import Target

_MOST = 128
_TARGETS = 100  # an image


class NeedsCuda(InputError, RuntimeError):
    """A RuntimeError too, as upstream documents it."""


def probe_batch_size(
    network: RFDETR,
    config: TrainConfig,
    *,
    device: torch.device,
    side: int,
    autocast: torch.dtype | None,
) -> tuple[int, int]:
    """(batch_size, grad_accum_steps) for `batch_size="auto"`. The network is not changed.

    side: the largest square of the run, in pixels. autocast: the type of mixed precision, None for
    float32. Raises NeedsCuda where the device is no CUDA one, InputError when not even one image
    fits.
    """
    if device.type != "cuda":
        raise NeedsCuda(
            f"batch_size='auto' measures a CUDA device's memory, and this run is on {device}; "
            "give a number"
        )
    probe, weights = copy.deepcopy(network).train(), config.coefficients

    def fits(count: int) -> bool:
        try:
            synthetic_step(probe.to(device), count, weights, side=side, autocast=autocast)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    fits(1)  # CUDA's libraries keep memory from their first step on
    largest = largest_that_fits(fits, _MOST)
    if not largest:
        raise InputError(
            f"batch_size='auto': not even one image of {side}x{side} fits in the memory of "
            f"{device}; free memory there, or choose a smaller resolution or variant"
        )
    return batch_plan(largest, config)


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest count from 1 to `most` that fits, 0 if none, by bisection."""
    return bisect_left(range(1, most + 1), True, key=lambda count: not fits(count))


def batch_plan(largest: int, config: TrainConfig) -> tuple[int, int]:
    """(batch_size, grad_accum_steps) when a step of `largest` images just fits a device.

    A tenth stays free, and three tenths of the rest for averaged weights. The steps accumulated
    make up `auto_batch_target_effective` images.
    """
    size = largest * 9 // 10
    size = max(size * 7 // 10 if config.use_ema else size, 1)
    return size, math.ceil(config.auto_batch_target_effective / size)


def synthetic_step(
    network: RFDETR,
    count: int,
    coefficients: Mapping[str, float],
    *,
    side: int,
    autocast: torch.dtype | None,
) -> None:
    """Takes the memory of a training step on `count` images, without the update.

    Forward, losses and gradients beside AdamW's two moments. Weights and `.grad` stay as they are.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    device = trained[0].device
    moments = [torch.zeros_like(parameter) for parameter in trained * 2]
    images = torch.randn(count, 3, side, side, device=device)
    boxes = torch.rand(_TARGETS, 4, device=device) * 0.2 + 0.4
    labels = torch.randint(network.slots, (_TARGETS,), device=device)
    masks: Any = [None] * count
    points = masks
    if network.variant.task == "segmentation":
        masks = torch.ones(count, _TARGETS, side, side, dtype=torch.bool, device=device)
    elif network.variant.task == "keypoint":
        points = torch.rand(count, _TARGETS, max(network.keypoint_counts), 3, device=device)
    rows = zip(masks, points, strict=True)
    targets = [Target(boxes, labels, 0, (1, 1), *row) for row in rows]
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        output = network(images)
    losses = detection_losses(
        output,
        targets,
        groups=network.variant.groups,
        keypoint_counts=network.keypoint_counts,
        coefficients=coefficients,
    )
    torch.autograd.grad(total_loss(losses, coefficients), trained, allow_unused=True)
    del moments  # not before the gradients
