"""The rename table between our modules and the names inside checkpoint files.

Files carry upstream's names, tensor for tensor; this is the only place that knows both.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

_VIT = "backbone.0.encoder.encoder."
_PROJECTORS = (
    ("projector.", "backbone.0.projector."),
    ("keypoints.projector.", "backbone.0.cross_attn_projector."),
)

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
    *(
        (ours + start, theirs + other)
        for ours, theirs in _PROJECTORS
        for start, other in (
            ("levels.{}.fuse.chain.{}.conv{}.norm.", "stages.{}.0.m.{}.cv{}.bn."),
            ("levels.{}.fuse.chain.{}.conv{}.", "stages.{}.0.m.{}.cv{}."),
            ("levels.{}.fuse.conv{}.norm.", "stages.{}.0.cv{}.bn."),
            ("levels.{}.fuse.conv{}.", "stages.{}.0.cv{}."),
            ("levels.{}.norm.", "stages.{}.1."),
            ("levels.{}.resample.{}.norm.", "stages_sampling.{}.{}.0.bn."),
            ("levels.{}.resample.{}.", "stages_sampling.{}.{}.0."),
        )
    ),
    ("proposals.{}.transform.", "transformer.enc_output.{}."),
    ("proposals.{}.norm.", "transformer.enc_output_norm.{}."),
    ("proposals.{}.class_head.", "transformer.enc_out_class_embed.{}."),
    ("proposals.{}.box_head.", "transformer.enc_out_bbox_embed.{}."),
    ("query_features.", "query_feat."),
    ("query_boxes.", "refpoint_embed."),
    *(
        ("decoder.keypoints.layers.{}." + start, "transformer.decoder.layers.{}." + other)
        for start, other in (
            ("self_attn.", "kp_inst_self_attn."),
            ("instance_scale", "instance_kp_layer_scale"),
            ("instance_norm.", "kp_inst_norm."),
            ("norm1.", "kp_norm."),
            ("cross_attn.", "kp_cross_attn."),
            ("norm2.", "kp_cross_attn_norm."),
            ("linear1.", "kp_linear1."),
            ("linear2.", "kp_linear3."),
            ("norm3.", "kp_norm5."),
        )
    ),
    ("decoder.keypoints.positions", "transformer.decoder.keypoint_pos_embed"),
    ("keypoints.queries.modulation.", "transformer.keypoint_query_initializer.adaLN_modulation."),
    ("keypoints.queries.", "transformer.keypoint_query_initializer."),
    (
        "keypoints.proposal_queries.modulation.",
        "transformer.keypoint_query_initializer_enc.adaLN_modulation.",
    ),
    ("keypoints.proposal_queries.", "transformer.keypoint_query_initializer_enc."),
    ("keypoints.proposal_heads.{}.", "transformer.enc_out_keypoint_embed.{}."),
    ("keypoints.head.", "keypoint_embed."),
    ("mask_head.blocks.{}.spread.", "segmentation_head.blocks.{}.dwconv."),
    ("mask_head.blocks.{}.mix.", "segmentation_head.blocks.{}.pwconv1."),
    ("mask_head.spatial_proj.", "segmentation_head.spatial_features_proj."),
    ("mask_head.query_block.norm.", "segmentation_head.query_features_block.norm_in."),
    ("mask_head.query_block.linear1.", "segmentation_head.query_features_block.layers.0."),
    ("mask_head.query_block.linear2.", "segmentation_head.query_features_block.layers.2."),
    ("mask_head.query_proj.", "segmentation_head.query_features_proj."),
    ("mask_head.", "segmentation_head."),
    ("decoder.position_head.", "transformer.decoder.ref_point_head."),
    ("decoder.", "transformer.decoder."),
    ("class_head.", "class_embed."),
    ("box_head.", "bbox_embed."),
)


def _rule(start: str, other: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(start).replace(re.escape("{}"), r"(\d+)")
    return re.compile(pattern), other.format(*(rf"\g<{number}>" for number in (1, 2, 3)))


_TO_FILE = [_rule(ours, theirs) for ours, theirs in _TABLE]
_FROM_FILE = [_rule(theirs, ours) for ours, theirs in _TABLE]


def _rename(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        if match := pattern.match(name):
            return match.expand(replacement) + name[match.end() :]
    return name


def to_file_names(weights: Mapping[str, T]) -> dict[str, T]:
    """Our parameter names -> the names in checkpoint files."""
    return {_rename(name, _TO_FILE): value for name, value in weights.items()}


def from_file_names(weights: Mapping[str, T]) -> dict[str, T]:
    """The names in checkpoint files -> ours. Names without a rule are kept as they are."""
    return {_rename(name, _FROM_FILE): value for name, value in weights.items()}
