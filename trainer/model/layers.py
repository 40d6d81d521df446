"""Small pieces that several parts of the network share.

Here and in its neighbours, sizes other than the batch are taken as `int(x.shape[i])`. They are
integers anyway; when the network is traced for export it makes them constants of the graph instead
of arithmetic inside it, which TensorRT refuses for level shapes and every runtime would pay for.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_traced() -> bool:
    """Whether the network is being written down for another runtime: to ONNX or by torch.export."""
    return bool(torch.jit.is_tracing() or torch.compiler.is_compiling())


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over (..., tokens, head size); no dropout.

    visible: (query tokens, key tokens) bool, which of them a token attends to; None is all.

    The fused kernel saves memory. Not so on a CPU in bfloat16, where its backward pass takes many
    times as long, and not when traced, so that it exports to plain MatMul and Softmax nodes.
    """
    fused_pays = query.is_cuda or query.dtype is torch.float32
    if fused_pays and not is_traced():
        return F.scaled_dot_product_attention(query, key, value, visible)
    scores = (query * int(query.shape[-1]) ** -0.5) @ key.transpose(-2, -1)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores.softmax(dim=-1) @ value


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, C) -> (B, heads, T, C / heads)."""
    tokens, channels = int(x.shape[1]), int(x.shape[2])
    return x.reshape(-1, tokens, heads, channels // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, T, d) -> (B, T, heads * d)."""
    heads, tokens, size = (int(side) for side in x.shape[1:])
    return x.transpose(1, 2).reshape(-1, tokens, heads * size)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        widths = [width, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of an NCHW map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def apply_deltas(deltas: Tensor, anchors_cxcywh: Tensor) -> Tensor:
    """Boxes from predicted deltas: centres move in units of the anchor's size, sizes scale by exp.

    Both (..., 4); the result is cxcywh, unbounded (architecture.md sections 4 and 6).
    """
    centre = deltas[..., :2] * anchors_cxcywh[..., 2:] + anchors_cxcywh[..., :2]
    size = deltas[..., 2:].exp() * anchors_cxcywh[..., 2:]
    return torch.cat([centre, size], dim=-1)
