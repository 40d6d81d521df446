"""Keypoints in the manner of GroupPose: every query carries one token for each point of the schema.

The tokens of a query attend to each other and to the query, and look into a memory of their own
around the query's reference box. Inside the network the K points of all classes stand in a row;
the output is padded, class by class (`rfdetr_edge.keypoint_schema`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr_edge.keypoints import CHANNELS
from rfdetr_edge.variants import Variant
from trainer.model.attention import DeformableAttention, Memory, SelfAttention, flatten_levels
from trainer.model.layers import MLP, is_traced
from trainer.model.output import Prediction
from trainer.model.projector import Projector


class KeypointTokens(NamedTuple):
    """features: (B, Q, K, D). memory: what they look into."""

    features: Tensor
    memory: Memory


class KeypointQueries(nn.Module):
    """The tokens a query starts with: learned ones, modulated by the query (adaLN)."""

    def __init__(self, dim: int, points: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(points, dim))
        self.modulation = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, instances: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, K, D)."""
        scale, shift, gate = self.modulation(instances).unsqueeze(2).chunk(3, dim=-1)
        normed = F.layer_norm(self.queries, self.queries.shape[-1:])
        return self.out_proj((scale + 1) * normed + shift) * gate + self.queries

    def reset(self) -> None:
        """Start: tokens that differ from each other, and no modulation."""
        nn.init.normal_(self.queries)
        nn.init.zeros_(self.modulation[-1].weight)


class KeypointLayer(nn.Module):
    """What follows a decoder layer: tokens and query attend together, then tokens to the memory."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        dim = variant.hidden_dim
        self.self_attn = SelfAttention(dim, variant.self_heads)
        self.instance_scale = nn.Parameter(torch.full((1,), 1e-6))
        self.instance_norm = nn.LayerNorm(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = DeformableAttention(
            dim, variant.cross_heads, len(variant.levels), variant.points
        )
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, 4 * dim)
        self.linear2 = nn.Linear(4 * dim, dim)
        self.norm3 = nn.LayerNorm(dim)

    def attend(
        self, queries: Tensor, points: Tensor, positions: Tensor, visible: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """queries (B, Q, D) and points (B, Q, K, D), after each query has attended with its points.

        positions: (1 + K, D), the query's first. visible: (1 + K, 1 + K) bool; None is all.
        """
        count, tokens, dim = (int(side) for side in points.shape[1:])
        points = points.reshape(-1, tokens, dim)
        joined = torch.cat([queries.reshape(-1, 1, dim), points], dim=1)  # (B * Q, 1 + K, D)
        attended = self.self_attn(joined, positions, visible)
        change = attended[:, 0].reshape(-1, count, dim) * self.instance_scale
        points = self.norm1(points + attended[:, 1:])
        return self.instance_norm(queries + change), points.reshape(-1, count, tokens, dim)

    def look(
        self, points: Tensor, position: Tensor, reference_cxcywh: Tensor, memory: Memory
    ) -> Tensor:
        """Points (B, Q, K, D) after attention into the memory and the feed-forward."""
        count, tokens, dim = (int(side) for side in points.shape[1:])
        query = (points + position.unsqueeze(2)).reshape(-1, count * tokens, dim)
        boxes = reference_cxcywh.unsqueeze(2).expand(-1, -1, tokens, -1)
        boxes = boxes.reshape(-1, count * tokens, 4)
        found = self.cross_attn(query, boxes, memory)
        # Not added to a reshaped copy of the points: LiteRT 2.3 would add the positions in place.
        points = self.norm2(points + found.reshape(-1, count, tokens, dim))
        return self.norm3(points + self.linear2(self.linear1(points).relu()))


class KeypointDecoder(nn.Module):
    """The keypoint half of the decoder: one layer for each of its own.

    counts: the points of each class. Points of different classes do not see each other.
    """

    def __init__(self, variant: Variant, counts: Sequence[int]) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(sum(counts), variant.hidden_dim))
        self.layers = nn.ModuleList(KeypointLayer(variant) for _ in range(variant.decoder_layers))
        several = sum(count > 0 for count in counts) > 1
        mask = ~between_classes(counts) if several else None
        self.register_buffer("visible", mask, persistent=False)

    def forward(
        self,
        index: int,
        queries: Tensor,
        tokens: KeypointTokens,
        position: Tensor,
        reference_cxcywh: Tensor,
    ) -> tuple[Tensor, KeypointTokens]:
        """Layer `index`: the queries (B, Q, D) and their tokens, both changed."""
        layer = self.layers[index]
        # the query itself has none
        positions = torch.cat([torch.zeros_like(self.positions[:1]), self.positions])
        queries, points = layer.attend(queries, tokens.features, positions, self.visible)
        points = layer.look(points, position, reference_cxcywh, tokens.memory)
        return queries, tokens._replace(features=points)


class KeypointBranch(nn.Module):
    """Where tokens come from and what they become; the decoder has the part between.

    counts: the points of each class; classes beyond them have none.
    """

    def __init__(self, variant: Variant, counts: Sequence[int]) -> None:
        super().__init__()
        dim, points = variant.hidden_dim, sum(counts)
        self.classes, self.widest = len(counts), max(counts)
        self.projector = Projector(variant.encoder.width, len(variant.taps), dim, variant.levels)
        self.queries = KeypointQueries(dim, points)
        self.head = MLP(dim, dim, CHANNELS, 3)
        self.proposal_queries = KeypointQueries(dim, points)
        self.proposal_heads = nn.ModuleList(
            MLP(dim, dim, CHANNELS, 3) for _ in range(variant.groups)
        )
        active = active_points(counts).flatten()
        source = torch.where(active, active.cumsum(0) - 1, points)  # the row after the points is 0
        full = min(counts) == self.widest
        self.register_buffer("padding", None if full else source, persistent=False)

    def start(self, queries: Tensor, maps: Sequence[Tensor]) -> KeypointTokens:
        """The tokens of queries (1, Q, D), with the encoder's maps as their memory."""
        memory = flatten_levels(self.projector(maps))
        features = self.queries(queries).expand(memory.cells.shape[0], -1, -1, -1)
        return KeypointTokens(features, memory)

    def propose(self, proposals: Prediction, content: Tensor) -> Prediction:
        """The proposals with keypoints; content (B, Q, D): the memory they were chosen from."""
        heads = self.proposal_heads if self.training else self.proposal_heads[:1]
        groups = self.proposal_queries(content).chunk(len(heads), dim=1)
        deltas = [head(points) for head, points in zip(heads, groups, strict=True)]
        # as in the decoder, boxes learn nothing from the points that are placed in them
        return self.place(proposals, torch.cat(deltas, dim=1), proposals.boxes.detach())

    def place(self, prediction: Prediction, deltas: Tensor, boxes_cxcywh: Tensor) -> Prediction:
        """The prediction with keypoints, whose share is added to the logits of their class.

        deltas (B, Q, K, 8): what a head gives; distances are in sizes of the boxes (B, Q, 4).
        """
        if not is_traced():
            deltas = deltas.nan_to_num(0, 0, 0)
        boxes = boxes_cxcywh.unsqueeze(2)
        centre = deltas[..., :2] * boxes[..., 2:] + boxes[..., :2]
        points = torch.cat([centre, deltas[..., 2:]], dim=-1)
        if self.padding is not None:
            points = torch.cat([points, torch.zeros_like(points[:, :, :1])], dim=2)
            points = points.index_select(2, self.padding)
        queries, slots = (int(side) for side in prediction.logits.shape[1:])
        share = points[..., -1].reshape(-1, queries, self.classes, self.widest).sum(dim=-1)
        logits, rest = prediction.logits.split([self.classes, slots - self.classes], dim=-1)
        logits = logits + share
        if slots > self.classes:  # converters stumble over an empty part
            logits = torch.cat([logits, rest], dim=-1)
        return prediction._replace(logits=logits, keypoints=points)


def active_points(counts: Sequence[int]) -> Tensor:
    """(classes, widest) bool: which columns of each class are points; the others are padding."""
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def between_classes(counts: Sequence[int]) -> Tensor:
    """(1 + K, 1 + K) bool: pairs of tokens of different classes. Token 0, the query, has none."""
    owner = torch.tensor([slot for slot, count in enumerate(counts) for _ in range(count)])
    return F.pad(owner[:, None] != owner, (1, 0, 1, 0))
