"""The rename table between our modules and the names inside checkpoint files.

Files carry upstream's names, tensor for tensor; this is the only place that knows both.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

_VIT = "backbone.0.encoder.encoder."
_PROJECTOR = "backbone.0.projector."

# (our name, name in the file); the first pattern that matches the start of a name wins.
# `{}` stands for one number, the same on both sides.
_TABLE = (
    ("encoder.patches.", _VIT + "embeddings.patch_embeddings.projection."),
    ("encoder.class_token", _VIT + "embeddings.cls_token"),
    ("encoder.mask_token", _VIT + "embeddings.mask_token"),
    ("encoder.positions", _VIT + "embeddings.position_embeddings"),
    ("encoder.blocks.{}.attention.output.", _VIT + "encoder.layer.{}.attention.output.dense."),
    ("encoder.blocks.{}.attention.", _VIT + "encoder.layer.{}.attention.attention."),
    ("encoder.blocks.{}.scale1", _VIT + "encoder.layer.{}.layer_scale1.lambda1"),
    ("encoder.blocks.{}.scale2", _VIT + "encoder.layer.{}.layer_scale2.lambda1"),
    ("encoder.blocks.{}.fc", _VIT + "encoder.layer.{}.mlp.fc"),
    ("encoder.blocks.{}.", _VIT + "encoder.layer.{}."),
    ("encoder.norm.", _VIT + "layernorm."),
    ("projector.levels.{}.fuse.chain.{}.conv{}.norm.", _PROJECTOR + "stages.{}.0.m.{}.cv{}.bn."),
    ("projector.levels.{}.fuse.chain.{}.conv{}.", _PROJECTOR + "stages.{}.0.m.{}.cv{}."),
    ("projector.levels.{}.fuse.conv{}.norm.", _PROJECTOR + "stages.{}.0.cv{}.bn."),
    ("projector.levels.{}.fuse.conv{}.", _PROJECTOR + "stages.{}.0.cv{}."),
    ("projector.levels.{}.norm.", _PROJECTOR + "stages.{}.1."),
    ("projector.levels.{}.resample.{}.norm.", _PROJECTOR + "stages_sampling.{}.{}.0.bn."),
    ("projector.levels.{}.resample.{}.", _PROJECTOR + "stages_sampling.{}.{}.0."),
    ("proposals.{}.transform.", "transformer.enc_output.{}."),
    ("proposals.{}.norm.", "transformer.enc_output_norm.{}."),
    ("proposals.{}.class_head.", "transformer.enc_out_class_embed.{}."),
    ("proposals.{}.box_head.", "transformer.enc_out_bbox_embed.{}."),
    ("query_features.", "query_feat."),
    ("query_boxes.", "refpoint_embed."),
    ("decoder.position_head.", "transformer.decoder.ref_point_head."),
    ("decoder.", "transformer.decoder."),
    ("class_head.", "class_embed."),
    ("box_head.", "bbox_embed."),
)


def _rule(start: str, other: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(start).replace(re.escape("{}"), r"(\d+)")
    numbers = iter(range(1, 10))
    return re.compile(pattern), re.sub(r"\{\}", lambda _: rf"\g<{next(numbers)}>", other)


_TO_FILE = tuple(_rule(ours, theirs) for ours, theirs in _TABLE)
_FROM_FILE = tuple(_rule(theirs, ours) for ours, theirs in _TABLE)


def _rename(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, replacement in rules:
        if match := pattern.match(name):
            return match.expand(replacement) + name[match.end() :]
    return None


def to_file_names(weights: Mapping[str, T]) -> dict[str, T]:
    """Our parameter names -> the names in checkpoint files. KeyError for a name without a rule."""
    renamed = {}
    for name, value in weights.items():
        file_name = _rename(name, _TO_FILE)
        if file_name is None:
            raise KeyError(f"no rule in the rename table for parameter {name!r}")
        renamed[file_name] = value
    return renamed


def from_file_names(weights: Mapping[str, T]) -> dict[str, T]:
    """The names in checkpoint files -> ours. Names without a rule are kept as they are."""
    return {_rename(name, _FROM_FILE) or name: value for name, value in weights.items()}
