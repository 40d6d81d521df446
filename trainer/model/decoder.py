"""The decoder: queries look at each other and into the memory around fixed reference boxes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rfdetr_edge.variants import Variant
from trainer.model.attention import DeformableAttention, Memory, SelfAttention
from trainer.model.keypoints import KeypointDecoder, KeypointTokens
from trainer.model.layers import MLP


class DecoderLayer(nn.Module):
    """Post-norm layer: self attention, deformable cross attention, feed-forward."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        dim = variant.hidden_dim
        self.groups = variant.groups
        self.self_attn = SelfAttention(dim, variant.self_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = DeformableAttention(
            dim, variant.cross_heads, len(variant.levels), variant.points
        )
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, variant.feedforward)
        self.linear2 = nn.Linear(variant.feedforward, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, queries: Tensor, position: Tensor, reference_cxcywh: Tensor, memory: Memory
    ) -> Tensor:
        queries = self.norm1(queries + self._attend_in_groups(queries, position))
        attended = self.cross_attn(queries + position, reference_cxcywh, memory)
        queries = self.norm2(queries + attended)
        return self.norm3(queries + self.linear2(self.linear1(queries).relu()))

    def _attend_in_groups(self, queries: Tensor, position: Tensor) -> Tensor:
        if not self.training:
            return self.self_attn(queries, position)
        # Queries see their own group alone: groups go to the batch axis and come back.
        shape = queries.shape
        stacked = [x.reshape(shape[0] * self.groups, -1, shape[2]) for x in (queries, position)]
        return self.self_attn(*stacked).reshape(shape)


class Decoder(nn.Module):
    """All layers; keypoint_counts: the points of each class, if queries carry keypoints."""

    def __init__(self, variant: Variant, keypoint_counts: Sequence[int] = ()) -> None:
        super().__init__()
        dim = variant.hidden_dim
        self.layers = nn.ModuleList(DecoderLayer(variant) for _ in range(variant.decoder_layers))
        self.norm = nn.LayerNorm(dim)
        self.position_head = MLP(2 * dim, dim, dim, 2)
        self.keypoints = KeypointDecoder(variant, keypoint_counts) if keypoint_counts else None

    def forward(
        self,
        queries: Tensor,
        reference_cxcywh: Tensor,
        memory: Memory,
        tokens: KeypointTokens | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The normalised queries (B, Q, D) after every layer, and their keypoint tokens if any."""
        position = self.position_head(sine_embedding(reference_cxcywh, int(queries.shape[-1]) // 2))
        states, points = [], []
        for index, layer in enumerate(self.layers):
            queries = layer(queries, position, reference_cxcywh, memory)
            if self.keypoints is not None and tokens is not None:
                queries, tokens = self.keypoints(index, queries, tokens, position, reference_cxcywh)
                points.append(tokens.features)
            states.append(self.norm(queries))
        return states, points


def sine_embedding(boxes_cxcywh: Tensor, width: int) -> Tensor:
    """Boxes (B, Q, 4) as sines and cosines (B, Q, 4 * width), blocks in the order y, x, w, h.

    Element 2j of a block is sin(2*pi*v / t), element 2j + 1 cos(2*pi*v / t), with
    t = 10000^(2j / width) (architecture.md section 5).
    """
    exponent = torch.arange(width // 2, dtype=torch.float32, device=boxes_cxcywh.device)
    period = 10000.0 ** (2 * exponent / width)
    blocks = []
    for coordinate in (1, 0, 2, 3):
        angle = boxes_cxcywh[..., coordinate, None] * (2 * math.pi) / period
        blocks.append(torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2))
    return torch.cat(blocks, dim=-1)
