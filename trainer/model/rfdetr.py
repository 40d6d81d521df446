"""RF-DETR: encoder, projector, two-stage proposals, decoder, heads; the architecture on a page."""

import math

import torch
from torch import Tensor, nn

from rfdetr_edge.variants import Variant
from trainer.model.attention import DeformableAttention, SelfAttention
from trainer.model.decoder import Decoder
from trainer.model.encoder import Encoder
from trainer.model.layers import MLP, apply_deltas
from trainer.model.output import ModelOutput, Prediction
from trainer.model.projector import Projector
from trainer.model.proposals import ProposalGroup, anchor_boxes


class RFDETR(nn.Module):
    """The detection network of one variant.

    slots: columns of the class head (the classes and, for fine-tuned files, one background slot).
    """

    def __init__(self, variant: Variant, slots: int) -> None:
        super().__init__()
        dim = variant.hidden_dim
        self.variant = variant
        self.encoder = Encoder(variant)
        self.projector = Projector(variant.encoder.width, len(variant.taps), dim, variant.levels)
        self.proposals = nn.ModuleList(ProposalGroup(dim, slots) for _ in range(variant.groups))
        self.query_features = nn.Embedding(variant.num_queries * variant.groups, dim)
        self.query_boxes = nn.Embedding(variant.num_queries * variant.groups, 4)
        self.decoder = Decoder(variant)
        self.class_head = nn.Linear(dim, slots)
        self.box_head = MLP(dim, dim, 4, 3)
        self._reset()

    @property
    def slots(self) -> int:
        """Number of class slots."""
        return int(self.class_head.out_features)

    def forward(self, images: Tensor) -> ModelOutput:
        """images: (B, 3, H, W) normalised float, H and W multiples of `variant.block_size`."""
        maps = self.projector(self.encoder(images))
        grids = [(int(m.shape[-2]), int(m.shape[-1])) for m in maps]
        levels = [
            m.reshape(-1, self.variant.hidden_dim, rows * columns).transpose(1, 2)
            for m, (rows, columns) in zip(maps, grids, strict=True)
        ]
        memory = levels[0] if len(levels) == 1 else torch.cat(levels, dim=1)  # (B, S, D)
        proposals = self._propose(memory, grids)
        reference = self._reference(proposals.boxes.detach())
        count = int(reference.shape[1])
        queries = self.query_features.weight[:count].expand(images.shape[0], -1, -1)
        layers = [
            Prediction(apply_deltas(self.box_head(state), reference), self.class_head(state))
            for state in self.decoder(queries, reference, memory, grids)
        ]
        return ModelOutput(layers, proposals)

    def _propose(self, memory: Tensor, grids: list[tuple[int, int]]) -> Prediction:
        anchors, valid = (part.to(memory.device) for part in anchor_boxes(grids))
        if not bool(valid.all()):
            memory = memory * valid
        groups = self.proposals if self.training else self.proposals[:1]
        chosen: list[Prediction] = [
            group(memory, anchors, self.variant.num_queries) for group in groups
        ]
        if len(chosen) == 1:
            return chosen[0]
        return Prediction(*(torch.cat(parts, dim=1) for parts in zip(*chosen, strict=True)))

    def _reference(self, proposed_cxcywh: Tensor) -> Tensor:
        """Learned offsets applied to the proposals, query by query; spare queries keep theirs."""
        queries = self.variant.num_queries
        groups = self.variant.groups if self.training else 1
        learned = self.query_boxes.weight[: queries * groups]
        found = int(proposed_cxcywh.shape[1]) // groups
        if found == queries:
            return apply_deltas(learned, proposed_cxcywh)
        # Fewer memory cells than queries: the left-over rows of each group are used unchanged.
        learned = learned.unflatten(0, (groups, queries))
        proposed = proposed_cxcywh.reshape(-1, groups, found, 4)
        moved = apply_deltas(learned[:, :found], proposed)
        spare = learned[:, found:].expand(proposed_cxcywh.shape[0], -1, -1, -1)
        return torch.cat([moved, spare], dim=2).flatten(1, 2)

    def _reset(self) -> None:
        """Weights of a training from scratch (architecture.md section 10)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, SelfAttention):
                nn.init.xavier_uniform_(module.in_proj_weight)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset()
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for table in (self.encoder.class_token, self.encoder.positions):
            nn.init.trunc_normal_(table, std=0.02)
        nn.init.normal_(self.query_features.weight)
        nn.init.zeros_(self.query_boxes.weight)
        prior = -math.log(99.0)
        for head in (self.class_head, *(group.class_head for group in self.proposals)):
            nn.init.constant_(head.bias, prior)
        for head in (self.box_head, *(group.box_head for group in self.proposals)):
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)
