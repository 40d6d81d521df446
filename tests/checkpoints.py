"""Checkpoints with the deterministic weights of tests/fill.py."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from fill import fill_state_dict

from rfdetr_edge.classes import named_classes
from rfdetr_edge.keypoint_schema import numbered_schema
from rfdetr_edge.variants import VARIANTS, Encoder, Task
from trainer.checkpoint import Checkpoint, file_weights
from trainer.checkpoint_names import from_file_names, to_file_names
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


def small_checkpoint(task: Task) -> Checkpoint:
    """A network of the same kind with one block and one decoder layer, for 64x64 pixels."""
    names = {"detection": "tiny", "segmentation": "seg-tiny", "keypoint": "keypoint-tiny"}
    sizes = {"encoder": Encoder(32, 2, 1), "taps": (1,), "hidden_dim": 32, "decoder_layers": 1}
    side = {"resolution": 64, "position_grid": 4, "num_queries": 10, "num_select": 10}
    variant = replace(VARIANTS[names[task]], **sizes, **side)
    counts = (3, 0, 2) if task == "keypoint" else ()
    model = RFDETR(variant, 4, counts).eval()
    shapes = {name: tensor.shape for name, tensor in to_file_names(model.state_dict()).items()}
    filled = from_file_names(fill_state_dict(shapes))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in filled.items()})
    return Checkpoint(
        model=model,
        classes=named_classes("background-last", ["a", "b", "c"]),
        schema=numbered_schema(counts) if counts else None,
        resolution=64,
        antialias=True,
        sha256="0" * 64,
        notes=None,
    )
