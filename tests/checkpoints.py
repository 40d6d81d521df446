"""Checkpoints with the deterministic weights of tests/fill.py."""

from collections.abc import Sequence
from pathlib import Path

import torch
from fill import fill_state_dict

from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint import file_weights
from trainer.model.rfdetr import RFDETR


def save_filled(
    path: Path,
    variant: str,
    slots: int,
    names: list[str] | None,
    keypoint_counts: Sequence[int] = (),
) -> Path:
    """A checkpoint of a variant in upstream's format, every weight from its name."""
    data = {
        "model": filled_weights(variant, slots, keypoint_counts),
        "args": {"class_names": names},
        "model_name": VARIANTS[variant].api_name,
    }
    torch.save(data, path)
    return path


def filled_weights(
    variant: str, slots: int, keypoint_counts: Sequence[int] = ()
) -> dict[str, torch.Tensor]:
    """All tensors of such a file, under upstream's names."""
    state = file_weights(RFDETR(VARIANTS[variant], slots, keypoint_counts))
    shapes = {name: tensor.shape for name, tensor in state.items() if tensor.is_floating_point()}
    filled = fill_state_dict(shapes, 0)
    return state | {name: torch.from_numpy(array) for name, array in filled.items()}
