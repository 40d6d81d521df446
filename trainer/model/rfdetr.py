"""RF-DETR: encoder, projector, two-stage proposals, decoder, heads; the architecture on a page."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rfdetr_edge.variants import MASK_STRIDE, Variant
from trainer.model.attention import DeformableAttention, Memory, SelfAttention, flatten_levels
from trainer.model.decoder import Decoder
from trainer.model.encoder import Encoder
from trainer.model.keypoints import KeypointBranch
from trainer.model.layers import MLP, apply_deltas
from trainer.model.output import ModelOutput, Prediction
from trainer.model.projector import Projector
from trainer.model.proposals import ProposalGroup, anchor_boxes
from trainer.model.segmentation import SegmentationHead


class RFDETR(nn.Module):
    """The detection network of one variant.

    slots: columns of the class head (the classes and, for fine-tuned files, one background slot).
    keypoint_counts: the points of each class from slot 0, for a keypoint variant; none is its own.
    """

    def __init__(self, variant: Variant, slots: int, keypoint_counts: Sequence[int] = ()) -> None:
        super().__init__()
        dim = variant.hidden_dim
        self.variant = variant
        self.keypoint_counts = counts = tuple(keypoint_counts) or variant.keypoint_counts
        self.encoder = Encoder(variant)
        self.projector = Projector(variant.encoder.width, len(variant.taps), dim, variant.levels)
        self.proposals = nn.ModuleList(ProposalGroup(dim, slots) for _ in range(variant.groups))
        self.query_features = nn.Embedding(variant.num_queries * variant.groups, dim)
        self.query_boxes = nn.Embedding(variant.num_queries * variant.groups, 4)
        self.decoder = Decoder(variant, counts)
        self.class_head = nn.Linear(dim, slots)
        self.box_head = MLP(dim, dim, 4, 3)
        self.keypoints = KeypointBranch(variant, counts) if counts else None
        self._reset()
        # after the others, because it keeps the layers' own start
        masks = variant.task == "segmentation"
        self.mask_head = SegmentationHead(dim, variant.decoder_layers) if masks else None

    @property
    def slots(self) -> int:
        """Number of class slots."""
        return int(self.class_head.out_features)

    def forward(self, images: Tensor) -> ModelOutput:
        """images: (B, 3, H, W) normalised float, H and W multiples of `variant.block_size`."""
        encoded = self.encoder(images)
        maps = self.projector(encoded)
        memory = flatten_levels(maps)
        proposals, content = self._propose(memory)
        reference = self._reference(proposals.boxes.detach())
        queries = self.query_features.weight[: int(reference.shape[1])].unsqueeze(0)
        tokens = None if self.keypoints is None else self.keypoints.start(queries, encoded)
        queries = queries.expand(images.shape[0], -1, -1)
        states, points = self.decoder(queries, reference, memory, tokens)
        layers = [
            Prediction(apply_deltas(self.box_head(state), reference), self.class_head(state))
            for state in states
        ]
        if self.keypoints is not None:
            proposals = self.keypoints.propose(proposals, content)
            layers = [
                self.keypoints.place(layer, self.keypoints.head(at), reference)
                for layer, at in zip(layers, points, strict=True)
            ]
        if self.mask_head is not None:
            rows, columns = (int(side) // MASK_STRIDE for side in images.shape[-2:])
            masks = self.mask_head(maps[0], (rows, columns), [content, *states])
            proposals, *layers = (
                prediction._replace(masks=factors)
                for prediction, factors in zip([proposals, *layers], masks, strict=True)
            )
            if not self.training:
                layers[-1] = layers[-1]._replace(masks=masks[-1].dense())
        return ModelOutput(layers, proposals)

    def _propose(self, memory: Memory) -> tuple[Prediction, Tensor]:
        """The proposals of every group, and the memory (B, Q, D) they were chosen from."""
        cells = memory.cells
        anchors, valid = anchor_boxes(memory.grids)
        anchors = anchors.to(cells.device)
        if valid is not None:
            cells = cells * valid.to(cells.device)
        groups = self.proposals if self.training else self.proposals[:1]
        chosen = [group(cells, anchors, self.variant.num_queries) for group in groups]
        boxes, logits, content = (
            parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            for parts in zip(*chosen, strict=True)
        )
        return Prediction(boxes, logits), content

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
        heads = [self.box_head, *(group.box_head for group in self.proposals)]
        if self.keypoints is not None and self.decoder.keypoints is not None:
            heads += [self.keypoints.head, *self.keypoints.proposal_heads]
            nn.init.normal_(self.decoder.keypoints.positions, std=0.02)
            self.keypoints.queries.reset()
            self.keypoints.proposal_queries.reset()
        for head in heads:
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)
