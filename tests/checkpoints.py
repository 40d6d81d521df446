"""Checkpoints with the deterministic weights of tests/fill.py."""

from pathlib import Path

import torch
from fill import fill_state_dict

from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint_names import to_file_names
from trainer.model.rfdetr import RFDETR


def save_filled(path: Path, variant: str, slots: int, names: list[str] | None) -> Path:
    """A checkpoint of a variant in upstream's format, every weight from its name."""
    state = to_file_names(RFDETR(VARIANTS[variant], slots).state_dict())
    weights = fill_state_dict({name: list(tensor.shape) for name, tensor in state.items()}, 0)
    data = {
        "model": {name: torch.from_numpy(array) for name, array in weights.items()},
        "args": {"class_names": names},
        "model_name": VARIANTS[variant].api_name,
    }
    torch.save(data, path)
    return path
