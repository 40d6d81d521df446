"""Reading and writing checkpoints: ours, upstream's published files, and legacy ones.

The weights lie under `model` in a `.pth` and `state_dict` in Lightning's files; `describe` gives
the keys beside them. `rfdetr_edge` holds what upstream's keys have no place for.
"""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rfdetr_edge import __version__
from rfdetr_edge.classes import ClassTable
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.keypoint_schema import KeypointSchema
from rfdetr_edge.variants import VARIANTS, Task, Variant
from trainer.checkpoint_classes import find_classes, find_schema
from trainer.checkpoint_file import read_file, write_file
from trainer.checkpoint_names import from_file_names, to_file_names
from trainer.config import ModelConfig, TrainConfig, misfit
from trainer.model.encoder import resize_position_table
from trainer.model.keypoints import active_points, between_classes
from trainer.model.rfdetr import RFDETR

# In the order of the search: the first that stands in the name wins (training.md section 10). Those
# that are no variant's name end the search: "seg-huge" is not huge, and "xlarge" is not large.
# `mini` is not among them: "minimal" is no variant, and our checkpoints hold their model_name.
_SIZES = ("2xlarge", "xxlarge", "xlarge", "large", "medium", "small", "nano")
_NAMES_IN_FILES = (
    *(f"seg-{size}" for size in (*_SIZES, "preview", "tiny", "")),
    *("keypoint-preview", "keypoint-tiny", "keypoint", *_SIZES, "base", "tiny"),
)
_ACTIVE = "_kp_active_mask"
# One row for each keypoint.
_TOKENS = (
    "decoder.keypoints.positions",
    "keypoints.queries.queries",
    "keypoints.proposal_queries.queries",
)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A checkpoint in memory.

    model: on the CPU, in evaluation mode. resolution: side of the square input in pixels.
    antialias: the resize it was trained with, or is best evaluated with. notes: any JSON value.
    schema: of a keypoint model; None for the others.
    """

    model: RFDETR
    classes: ClassTable
    schema: KeypointSchema | None
    resolution: int
    antialias: bool
    sha256: str
    notes: Any

    @property
    def variant(self) -> Variant:
        """The row of the variant table."""
        return self.model.variant


def load_checkpoint(
    path: str | Path, *, variant: str | None = None, trust: bool = False
) -> Checkpoint:
    """Opens a checkpoint and builds its model.

    variant: overrides what the file says of itself, for files that say nothing.
    trust: also opens files that pickle objects, which can run any code when they are read.
    Of a last.ckpt of ours, the averaged weights are taken.
    Raises ArtifactError when the file is missing, no checkpoint, pickles objects without trust, or
    belongs to a variant or task this version does not know; InputError for an unknown `variant`.
    """
    path = Path(path)
    if variant is not None and variant not in VARIANTS:
        raise InputError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    data, sha256 = read_file(path, trust=trust)
    tensors = _tensors(data)
    weights = _weights(tensors, data, path)
    row = VARIANTS[variant] if variant is not None else _find_variant(data, path)
    args, settings, own = (_as_dict(data.get(k)) for k in ("args", "model_config", "rfdetr_edge"))
    resolution = settings.get("resolution") or args.get("resolution") or row.resolution
    schema, counts = None, row.keypoint_counts
    if row.task == "keypoint":
        schema = find_schema(own, args | settings, tensors.get(_ACTIVE), counts, path)
        counts, tokens = schema.counts, weights.get(_TOKENS[0])
        if tokens is not None and tokens.shape[:1] != (sum(counts),):
            raise ArtifactError(
                f"{path} says that its classes have {list(counts)} keypoints, and its weights are "
                f"for {tokens.shape[:1].numel()}"
            )
    model = build_model(row, weights, path=path, resolution=resolution, keypoint_counts=counts)
    return Checkpoint(
        model=model.eval(),
        classes=find_classes(args, own, model.slots, schema, path),
        schema=schema,
        resolution=resolution,
        # Upstream evaluates with the antialiased resize; published accuracy is measured so.
        antialias=own.get("antialias") is not False,
        sha256=sha256,
        notes=data.get("notes", args.get("notes")),
    )


def build_model(
    variant: Variant,
    weights: Mapping[str, Tensor],
    *,
    path: Path,
    resolution: int,
    slots: int | None = None,
    keypoint_counts: Sequence[int] = (),
) -> RFDETR:
    """A model with the given weights (our names), fitted to it where that makes sense.

    slots: of the class heads, which are truncated or tiled; None takes those of the weights.
    keypoint_counts: of each class of a keypoint variant; its tokens are truncated or tiled too.
    resolution: the position table is resized to its grid, unless the variant keeps its own.
    Spare queries and query groups are cut off. Raises ArtifactError for what does not fit.
    """
    problem = f"{path} does not fit variant {variant.name}, which --variant chooses"
    patches = weights.get("encoder.patches.weight")
    if patches is not None and patches.ndim == 4 and patches.shape[-1] != variant.patch_size:
        found = patches.shape[-1]
        raise ArtifactError(f"{problem}: patch_size is {found}, not {variant.patch_size}")
    if (task := _task(weights)) != variant.task:
        raise ArtifactError(f"{problem}: its task is {task}, not {variant.task}")
    if type(resolution) is not int:  # files hold anything
        raise ArtifactError(f"{problem}: its resolution is {resolution!r}")
    if not variant.accepts(resolution):
        raise ArtifactError(f"{problem}: {misfit(variant, resolution)}")
    fitted = dict(weights)
    _fit_queries(fitted, variant)
    slots = slots or fitted["class_head.weight"].shape[0]
    model = RFDETR(variant, slots, keypoint_counts)
    if len(model.keypoint_counts) > slots:
        raise ArtifactError(
            f"{problem}: {slots} class slots are too few for keypoints of "
            f"{len(model.keypoint_counts)} classes"
        )
    _fit_rows(fitted, slots, sum(model.keypoint_counts))
    if task == "keypoint" and not any(name.startswith("keypoints.projector.") for name in fitted):
        shared = [name for name in fitted if name.startswith("projector.")]
        fitted |= {f"keypoints.{name}": fitted[name] for name in shared}
    model.encoder.fix_grid(*[variant.position_grid_at(resolution)] * 2)
    _fit_position_table(fitted, model)
    shapes = {name: tuple(tensor.shape) for name, tensor in fitted.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = sorted(n for n in {*shapes, *wanted} if shapes.get(n) != wanted.get(n))
    if wrong:
        was, should = shapes.get(wrong[0], "missing"), wanted.get(wrong[0], "absent")
        raise ArtifactError(
            f"{problem}: {len(wrong)} tensors differ, first {wrong[0]}: {was}, should be {should}"
        )
    model.load_state_dict(fitted)
    return model


def save_checkpoint(
    path: Path,
    network: RFDETR,
    *,
    classes: ClassTable,
    model: ModelConfig,
    train: TrainConfig,
    schema: KeypointSchema | None = None,
    epoch: int | None = None,
    source: Literal["ema", "regular"] | None = None,
) -> None:
    """Writes weights in upstream's format; the file appears whole or not at all.

    schema: of a keypoint network. epoch: the one that ended with these weights, from 0.
    source: which weights they are.
    """
    weights = file_weights(network)
    content = {
        **describe(classes=classes, model=model, train=train, schema=schema),
        "model": weights,
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "epoch": epoch,
        "global_step": 0,
        "pytorch-lightning_version": version("pytorch-lightning"),
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "best_total_source": source,
    }
    write_file(path, content)


def file_weights(network: RFDETR) -> dict[str, Tensor]:
    """The tensors that upstream's files of this network hold, on the CPU."""
    weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    counts = network.keypoint_counts
    masks = {_ACTIVE: active_points(counts) if counts else torch.zeros(0, 0, dtype=torch.bool)}
    if counts:
        masks["transformer.decoder.keypoint_class_mask"] = between_classes(counts)
    return {**to_file_names(weights), **masks}


def describe(
    *, classes: ClassTable, model: ModelConfig, train: TrainConfig, schema: KeypointSchema | None
) -> dict[str, Any]:
    """The keys that say what a file's weights are, in plain values; for Lightning's files too.

    args, model_name, model_config, rfdetr_version and notes are upstream's.
    """
    table = zip(classes.names, classes.category_ids, strict=True)
    names, count = [name for name, number in table if number is not None], len(classes) - 1
    return {
        "args": {**train.model_dump(mode="json"), "class_names": names, "num_classes": count},
        "model_name": model.row.api_name,
        "model_config": model_settings(model, classes),
        "rfdetr_version": f"rfdetr-edge {__version__}",
        "notes": train.notes,
        "rfdetr_edge": {
            "layout": classes.layout,
            "category_ids": [number for number in classes.category_ids if number is not None],
            "antialias": train.antialias,
            **({"keypoints": schema.to_dict()} if schema else {}),
        },
    }


def model_settings(model: ModelConfig, classes: ClassTable) -> dict[str, Any]:
    """What upstream and Roboflow read of a model's shape, under upstream's names."""
    return {
        **model.row.upstream_settings(),
        "num_classes": len(classes) - 1,
        "resolution": model.resolution,
        "positional_encoding_size": model.positional_encoding_size,
        "num_keypoints_per_class": model.num_keypoints_per_class,
        "postprocess_trace_alpha": model.postprocess_trace_alpha,
    }


def _tensors(data: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of a `.pth`, a Lightning file, or a bare one, without its prefixes."""
    # what trainer/ema.py keeps in Lightning's files, whose own weights are the plain ones
    average = _as_dict(_as_dict(data.get("callbacks")).get("WeightAverage")).get("average")
    found = _as_dict(average) or _as_dict(data.get("model", data.get("state_dict", data)))
    return {
        str(name).replace("_orig_mod.", "").removeprefix("model.").removeprefix("network."): tensor
        for name, tensor in found.items()
        if isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_meta
    }


def _weights(tensors: dict[str, Tensor], data: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The parameters under our names."""
    # left over from training in the published keypoint file; nothing reads it
    idle = "keypoint_head.keypoint_proj."
    weights = from_file_names(
        {n: t for n, t in tensors.items() if t.is_floating_point() and not n.startswith(idle)}
    )
    head = weights.get("class_head.weight")
    if head is None or head.ndim != 2 or not head.numel():
        keys = ", ".join(map(str, [*data][:9]))
        raise ArtifactError(
            f"{path} holds no RF-DETR weights: no class_embed.weight that is a matrix of plain "
            f"floats; its keys are {keys}"
        )
    return weights


def _task(weights: Mapping[str, Tensor]) -> Task:
    """By the parts that only the networks of a task have."""
    parts = {name.split(".")[0] for name in weights}
    if "mask_head" in parts:
        return "segmentation"
    return "keypoint" if "keypoints" in parts else "detection"


def _find_variant(data: dict[str, Any], path: Path) -> Variant:
    """By the exact `model_name`, else by `args.pretrain_weights`, else by the file's name."""
    model_name, args = data.get("model_name"), data.get("args")
    by_name = {variant.api_name: variant for variant in VARIANTS.values()}
    if found := by_name.get(str(model_name).strip()):
        return found
    hint = str(_as_dict(args).get("pretrain_weights")).strip().lower()
    text = path.name.lower() if hint in ("", "none", "null") else hint
    name = next((part for part in _NAMES_IN_FILES if part in text), "").replace("xx", "2x")
    if args is None or name not in VARIANTS:
        reason = "it has no args" if args is None else f"{text!r} names none that is known"
        raise ArtifactError(
            f"{path} does not say which variant it is: its model_name is {model_name!r}, and "
            f"{reason}. Name one of {', '.join(VARIANTS)} (--variant)"
        )
    return VARIANTS[name]


def _as_dict(args: object) -> dict[str, Any]:
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return dict(args) if isinstance(args, dict) else {}


def _fit_queries(weights: dict[str, Tensor], variant: Variant) -> None:
    """Cuts spare queries off each group: rows are groups x queries, so no flat slice would do."""
    pattern = re.compile(r"(?:keypoints\.proposal_heads|proposals)\.(\d+)\.")
    heads = {name: int(found[1]) for name in weights if (found := pattern.match(name))}
    groups = len(set(heads.values()))
    for name in ("query_features.weight", "query_boxes.weight"):
        rows = weights[name].shape[:1].numel() if name in weights else 0
        if groups >= variant.groups and rows >= groups * variant.num_queries and not rows % groups:
            split = weights[name].unflatten(0, (groups, -1))
            weights[name] = split[: variant.groups, : variant.num_queries].flatten(0, 1)
    for name, group in heads.items():
        if group >= variant.groups:
            del weights[name]


def _fit_rows(weights: dict[str, Tensor], slots: int, points: int) -> None:
    """Cuts or tiles what has one row for each class slot or each keypoint."""
    for name, tensor in weights.items():
        rows = slots if "class_head." in name else points if name in _TOKENS else 0
        if rows and tensor.ndim and len(tensor):
            weights[name] = tensor[torch.arange(rows) % len(tensor)]


def _fit_position_table(weights: dict[str, Tensor], model: RFDETR) -> None:
    table, width = weights.get("encoder.positions", torch.empty(0)), model.variant.encoder.width
    old = math.isqrt(table.numel() // width)
    if (old, old) != model.encoder.grid and table.shape == (1, 1 + old**2, width):
        weights["encoder.positions"] = resize_position_table(table, (old, old), model.encoder.grid)
