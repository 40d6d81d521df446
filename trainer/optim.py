"""Optimizer and learning-rate schedule."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from trainer.config import TrainConfig

_LAST_FACTOR = 0.01


def build_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW with one rate; weight decay on matrices alone, not on biases, norms and scales."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
    )


def build_schedule(optimizer: AdamW, config: TrainConfig, total_steps: int) -> LambdaLR:
    """Linear warm-up, then a cosine down to 1 % at the last of `total_steps` optimizer steps."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return _LAST_FACTOR + (1 - _LAST_FACTOR) * cosine

    return LambdaLR(optimizer, factor)
