"""Reading and writing checkpoints: ours, upstream's published files, and legacy ones.

Keys written: `model` (tensors under upstream's names), `args` (class_names, notes), `model_name`,
`model_config`, and `rfdetr_edge` (what upstream's keys have no place for).
"""

import argparse
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rfdetr_edge.classes import COCO_NAMES, ClassTable, coco_classes, named_classes
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.files import replacing
from rfdetr_edge.variants import VARIANTS, Variant
from trainer.checkpoint_file import read_file
from trainer.checkpoint_names import from_file_names, to_file_names
from trainer.model.encoder import resize_position_table
from trainer.model.rfdetr import RFDETR

T = TypeVar("T")

# In the order of the search: the first that stands in the name wins (training.md section 10).
_NAMES_IN_FILES = (
    *("seg-", "keypoint", "2xlarge", "xxlarge", "xlarge"),
    *("large", "medium", "small", "nano", "base", "tiny"),
)
# Part of every file; means something on keypoint models alone.
_KEYPOINT_MASK = "_kp_active_mask"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A checkpoint in memory.

    model: on the CPU, in evaluation mode. resolution: side of the square input in pixels.
    antialias: the resize it was trained with, or is best evaluated with. notes: any JSON value.
    """

    model: RFDETR
    classes: ClassTable
    resolution: int
    antialias: bool
    sha256: str
    notes: Any

    @property
    def variant(self) -> Variant:
        """The row of the variant table."""
        return self.model.variant


def load_checkpoint(path: str | Path, *, variant: str | None = None) -> Checkpoint:
    """Opens a checkpoint and builds its model.

    variant: overrides what the file says of itself, for files that say nothing.
    Raises ArtifactError when the file is missing, no checkpoint, needs pickled code, or belongs to
    a variant or task this version does not know; InputError for an unknown `variant`.
    """
    path = Path(path)
    if variant is not None and variant not in VARIANTS:
        raise InputError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    data, sha256 = read_file(path)
    weights = _weights(data, path)
    chosen = VARIANTS[variant] if variant is not None else _find_variant(data, path)
    own = _as_dict(data.get("rfdetr_edge"))
    args = _as_dict(data.get("args"))
    resolution = _resolution(_as_dict(data.get("model_config")), args, chosen, path)
    model = build_model(chosen, weights, path=path, resolution=resolution)
    return Checkpoint(
        model=model.eval(),
        classes=_class_table(model.slots, args.get("class_names"), own.get("category_ids")),
        resolution=resolution,
        # Upstream evaluates with the antialiased resize; published accuracy is measured so.
        antialias=bool(own.get("antialias", True)),
        sha256=sha256,
        notes=args.get("notes"),
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under our names, to start a training from; errors as above."""
    return _weights(read_file(path)[0], path)


def build_model(
    variant: Variant,
    weights: Mapping[str, Tensor],
    *,
    path: Path,
    resolution: int | None = None,
    slots: int | None = None,
) -> RFDETR:
    """A model with the given weights (our names).

    slots: class slots of the model; None takes those of the weights. Another number truncates the
    class heads or tiles them, so that fine-tuning starts from what they know. The position table
    is resized to the resolution's grid where the variant's own follows the resolution.
    Raises ArtifactError when names or shapes do not fit the variant.
    """
    found = weights["class_head.weight"].shape[0]
    model = RFDETR(variant, slots or found)
    misfit = f"{path} does not fit variant {variant.name}"
    unknown = sorted(set(weights) - set(model.state_dict()) - {_KEYPOINT_MASK})
    missing = sorted(set(model.state_dict()) - set(weights))
    if unknown or missing:
        raise ArtifactError(
            f"{misfit}: {len(missing)} tensors are missing (first {missing[:1]}), {len(unknown)} "
            f"are unknown (first {unknown[:1]}); name the right one with --variant"
        )
    fitted = _fit_class_heads(dict(weights), slots or found)
    _fit_position_table(fitted, model, variant, resolution or variant.resolution)
    expected = model.state_dict()
    for name, tensor in expected.items():
        if fitted[name].shape != tensor.shape:
            raise ArtifactError(
                f"{misfit}: {name} has shape {tuple(fitted[name].shape)}, expected "
                f"{tuple(tensor.shape)}; name the right one with --variant"
            )
    model.load_state_dict({name: fitted[name] for name in expected})
    return model


def save_checkpoint(
    path: Path,
    model: RFDETR,
    *,
    classes: ClassTable,
    resolution: int,
    antialias: bool,
    notes: Any = None,
) -> None:
    """Writes a stripped checkpoint in upstream's format; the file appears whole or not at all."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    names = list(classes.foreground())
    data = {
        "model": {**to_file_names(weights), _KEYPOINT_MASK: torch.zeros(0, 0, dtype=torch.bool)},
        "args": {"class_names": names, "notes": notes},
        "model_name": model.variant.api_name,
        "model_config": {"num_classes": len(names), "resolution": resolution},
        "rfdetr_edge": {
            "category_ids": list(classes.foreground().values()),
            "antialias": antialias,
        },
    }
    # torch turns a full disk into a RuntimeError that does not say so
    content = io.BytesIO()
    torch.save(data, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _weights(data: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict under our names, out of a `.pth`, a Lightning file, or a bare state dict."""
    found = data.get("model", data.get("state_dict", data))
    if not isinstance(found, dict) or not found:
        raise ArtifactError(f"{path} holds no weights: it has the keys {', '.join(map(str, data))}")
    plain = {
        str(name).removeprefix("model.").replace("_orig_mod.", ""): tensor
        for name, tensor in found.items()
        if isinstance(tensor, Tensor)
    }
    odd = [name for name, tensor in plain.items() if not _is_plain(tensor)]
    if odd:
        raise ArtifactError(f"{path}: {odd[0]} is quantised, sparse or complex; save plain floats")
    weights = from_file_names(plain)
    head = weights.get("class_head.weight")
    if head is None or head.ndim != 2 or not head.numel():
        raise ArtifactError(
            f"{path} holds no RF-DETR weights: it lacks the matrix class_embed.weight"
        )
    if any(name.startswith(("segmentation_head.", "keypoint_embed.")) for name in plain):
        raise ArtifactError(
            f"{path} is a segmentation or keypoint checkpoint; this version reads detection ones"
        )
    return weights


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout is torch.strided and not tensor.is_meta
    return dense and not tensor.is_quantized and not tensor.is_complex()


def _find_variant(data: dict[str, Any], path: Path) -> Variant:
    """By `model_name`, else by `args.pretrain_weights`, else by the file's name."""
    by_api_name = {variant.api_name: variant for variant in VARIANTS.values()}
    model_name = data.get("model_name")
    if model_name is not None:
        if str(model_name) in by_api_name:
            return by_api_name[str(model_name)]
        raise ArtifactError(
            f"{path} says it is a {model_name}; this version reads {', '.join(by_api_name)}"
        )
    hint = str(_as_dict(data.get("args")).get("pretrain_weights") or "").lower()
    text = path.name.lower() if hint in ("", "none", "null") else hint
    name = next((part for part in _NAMES_IN_FILES if part in text), None)
    if name is None or name not in VARIANTS:
        raise ArtifactError(
            f"{path} does not say which variant it is, and {text!r} names none of "
            f"{', '.join(VARIANTS)}; name it with --variant"
        )
    return VARIANTS[name]


def _resolution(
    settings: dict[str, Any], args: dict[str, Any], variant: Variant, path: Path
) -> int:
    """What the file says, else the variant's own."""
    side = settings.get("resolution") or args.get("resolution") or variant.resolution
    if type(side) is not int or not variant.accepts(side):
        raise ArtifactError(
            f"{path} says its resolution is {side!r}, which is no multiple of "
            f"{variant.block_size}, as variant {variant.name} needs it"
        )
    return side


def _as_dict(args: object) -> dict[str, Any]:
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return dict(args) if isinstance(args, dict) else {}


def _class_table(slots: int, class_names: object, category_ids: object) -> ClassTable:
    """COCO's for 91 slots with COCO's names or none; else the names and a background slot.

    Names that do not fit the slots are replaced by numbers.
    """
    names, ids = _list_of(str, class_names), _list_of(int, category_ids)
    if slots == 91 and (not names or tuple(names) == COCO_NAMES):
        return coco_classes()
    if not names or len(names) != slots - 1:
        names, ids = [f"class_{slot}" for slot in range(slots - 1)], []
    return named_classes("background-last", names, ids or None)


def _list_of(kind: type[T], values: object) -> list[T]:
    """The values where they are a list of one kind, as what a file says of itself should be."""
    if isinstance(values, list | tuple) and all(type(value) is kind for value in values):
        return list(values)
    return []


def _fit_class_heads(weights: dict[str, Tensor], slots: int) -> dict[str, Tensor]:
    for name, tensor in weights.items():
        if "class_head." in name and tensor.numel() and tensor.ndim and tensor.shape[0] != slots:
            copies = -(-slots // tensor.shape[0])
            weights[name] = tensor.repeat(copies, *[1] * (tensor.ndim - 1))[:slots]
    return weights


def _fit_position_table(
    weights: dict[str, Tensor], model: RFDETR, variant: Variant, resolution: int
) -> None:
    side = variant.position_grid_at(resolution)
    model.encoder.fix_grid(side, side)
    table = weights["encoder.positions"]
    old = math.isqrt(table.numel() // variant.encoder.width)
    if old != side and table.shape == (1, 1 + old**2, variant.encoder.width):
        weights["encoder.positions"] = resize_position_table(table, (old, old), (side, side))
