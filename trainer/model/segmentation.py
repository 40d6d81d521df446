"""The segmentation head: a mask is the product of fine image features and one vector a query."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.layers import ChannelNorm
from trainer.model.output import MaskFactors


class Refinement(nn.Module):
    """Depthwise 3x3 convolution, normalisation and one linear layer, as a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = ChannelNorm(dim)
        self.mix = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.norm(self.spread(x)).permute(0, 2, 3, 1))
        return x + F.gelu(mixed).permute(0, 3, 1, 2)


class QueryBlock(nn.Module):
    """Normalised two-layer network, as a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, 4 * dim)
        self.linear2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear2(F.gelu(self.linear1(self.norm(x))))


class SegmentationHead(nn.Module):
    """One refinement for each decoder layer; everything else is shared by all layers."""

    def __init__(self, dim: int, decoder_layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Refinement(dim) for _ in range(decoder_layers))
        self.spatial_proj = nn.Conv2d(dim, dim, 1)
        self.query_block = QueryBlock(dim)
        self.query_proj = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(1))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.zeros_(module.bias)

    def forward(
        self, features: Tensor, size: tuple[int, int], states: Sequence[Tensor]
    ) -> list[MaskFactors]:
        """Masks of the proposals, then those of every decoder layer.

        features: (B, D, h, w), resized to the mask grid `size`. states: (B, Q, D) of each.
        The proposals see the features before any refinement.
        """
        features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        masks = [self._factors(features, states[0])]
        for block, state in zip(self.blocks, states[1:], strict=True):
            features = block(features)
            masks.append(self._factors(features, state))
        return masks

    def _factors(self, features: Tensor, state: Tensor) -> MaskFactors:
        query = self.query_proj(self.query_block(state))
        # The cells' projection moved to the queries: linear, and there are far fewer of them.
        weight, bias = self.spatial_proj.weight.flatten(1), self.spatial_proj.bias
        return MaskFactors(features, query @ weight, query @ bias[:, None] + self.bias)
