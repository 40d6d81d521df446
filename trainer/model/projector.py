"""The projector: the encoder's four maps become one map per level of the decoder's memory."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.layers import ChannelNorm

_BOTTLENECKS = 3


class ConvNorm(nn.Module):
    """Convolution without bias, channel normalisation, activation."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        stride: int = 1,
        activation: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = ChannelNorm(out)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, without a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class C2f(nn.Module):
    """Cross-stage block: half of the channels runs through a chain whose every step is kept."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        half = out // 2
        self.conv1 = ConvNorm(channels, 2 * half, 1)
        self.conv2 = ConvNorm((2 + _BOTTLENECKS) * half, out, 1)
        self.chain = nn.ModuleList(Bottleneck(half) for _ in range(_BOTTLENECKS))

    def forward(self, x: Tensor) -> Tensor:
        steps = list(self.conv1(x).chunk(2, dim=1))
        for bottleneck in self.chain:
            steps.append(bottleneck(steps[-1]))
        return self.conv2(torch.cat(steps, dim=1))


class Level(nn.Module):
    """All taps resampled to one scale, concatenated, and fused to the decoder's width."""

    def __init__(self, width: int, taps: int, hidden_dim: int, level: float) -> None:
        super().__init__()
        self.resample = nn.ModuleList()
        for _ in range(taps):
            if level == 2.0:
                self.resample.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
            elif level == 0.5:
                self.resample.append(ConvNorm(width, width, 3, stride=2, activation=F.relu))
            else:
                self.resample.append(nn.Identity())
        self.fuse = C2f(taps * (width // 2 if level == 2.0 else width), hidden_dim)
        self.norm = ChannelNorm(hidden_dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        resampled = [layer(x) for layer, x in zip(self.resample, maps, strict=True)]
        return self.norm(self.fuse(torch.cat(resampled, dim=1)))


class Projector(nn.Module):
    """Encoder maps (B, width, h, w) to one (B, hidden_dim, h * scale, w * scale) per level."""

    def __init__(self, width: int, taps: int, hidden_dim: int, levels: Sequence[float]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Level(width, taps, hidden_dim, level) for level in levels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [level(maps) for level in self.levels]
