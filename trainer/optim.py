"""Parameter groups, optimizer and learning-rate schedule, as training.md section 4 gives them.

The encoder learns slower than the rest, and its early blocks slower than its late ones, so that
fine-tuning keeps what pre-training found.
"""

import math
import re

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from trainer.config import TrainConfig
from trainer.model.rfdetr import RFDETR

_LR_DROP = 100
_DROP_FACTOR = 0.1
_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")
_EMBEDDINGS = ("encoder.patches.", "encoder.class_token", "encoder.mask_token", "encoder.positions")


def rate_and_decay(name: str, last_tap: int, config: TrainConfig) -> tuple[float, float]:
    """Learning rate and weight decay of one parameter, by its name in the network.

    decoder: lr * component_decay. encoder: lr_encoder * layer_decay^(n + 1 - layer) *
    component_decay^2 with n = last_tap + 1 and layer 0 for the embeddings, block index + 1 for
    blocks, n + 1 for the last norm; embeddings, norms and biases of the encoder do not decay, layer
    scales do. Everything else: lr, all of it decaying.
    """
    if name.startswith("decoder."):
        return config.lr * config.lr_component_decay, config.weight_decay
    if not name.startswith("encoder."):
        return config.lr, config.weight_decay
    embedding = name.startswith(_EMBEDDINGS)
    block = _BLOCK.match(name)
    depth = last_tap + 2
    layer = 0 if embedding else int(block[1]) + 1 if block else depth
    rate = config.lr_encoder * config.lr_vit_layer_decay ** (depth - layer)
    free = embedding or "norm" in name or name.endswith("bias")
    return rate * config.lr_component_decay**2, 0.0 if free else config.weight_decay


def build_optimizer(network: RFDETR, config: TrainConfig) -> AdamW:
    """AdamW over the trainable parameters; those of one rate and decay share a group.

    Not the fused kernel, which upstream takes on GPUs: Lightning refuses to clip its gradients.
    """
    groups: dict[tuple[float, float], list[object]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key = rate_and_decay(name, network.variant.taps[-1], config)
            groups.setdefault(key, []).append(parameter)
    return AdamW(
        [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()],
        lr=config.lr,
    )


def rate_factor(step: int, steps_per_epoch: float, config: TrainConfig) -> float:
    """What the rates of every group are multiplied with at an optimizer step (from 0)."""
    warmup = int(steps_per_epoch * config.warmup_epochs)
    if step < warmup:
        return step / warmup
    if config.lr_scheduler == "step":
        drop = config.lr_scheduler_kwargs.get("lr_drop", _LR_DROP)
        return _DROP_FACTOR if step >= drop * steps_per_epoch else 1.0
    least = config.lr_scheduler_kwargs.get("min_factor", 0.0)
    progress = (step - warmup) / max(steps_per_epoch * config.epochs - warmup, 1)
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def build_schedule(optimizer: AdamW, config: TrainConfig, total_steps: int) -> LambdaLR:
    """The schedule of a run of `total_steps` optimizer steps, to be stepped after each of them."""
    per_epoch = total_steps / config.epochs
    return LambdaLR(optimizer, lambda step: rate_factor(step, per_epoch, config))
