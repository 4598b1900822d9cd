"""CBAM (Woo et al., ECCV 2018): channel attention from two poolings, spatial from a 7x7 filter.

What the RGA paper leaves open, and what is taken here: the ratio (8, as everywhere in it, instead
of CBAM's 16: it gives the 26.4 M parameters of CBAM-C in Table 3), and the 26.1 M of CBAM-S, a
million more than the baseline. The published 7x7 filter over two pooled maps has 98 weights a
stage, so CBAM-S has 25.1 M here.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """`x * sigmoid(W1 relu(W0 avg(x)) + W1 relu(W0 max(x)))`, pooled over positions (eq. 2).

    (B, channels, H, W) -> the same shape. No biases, as published.
    """

    def __init__(self, channels: int, ratio: int = 8) -> None:
        super().__init__()
        inner = max(1, channels // ratio)
        self.reduce = nn.Conv2d(channels, inner, 1, bias=False)
        self.expand = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """(B, channels, 1, 1), in (0, 1)."""
        pooled = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        hidden = [self.reduce(p).relu() for p in pooled]
        return self.expand(hidden[0] + hidden[1]).sigmoid()  # W1 is linear: once is enough


class SpatialAttention(nn.Module):
    """`x * sigmoid(bn(conv7x7([avg(x), max(x)])))`, pooled over channels (eq. 3).

    (B, C, H, W) -> the same shape. The normalisation is not in the equation but in the authors'
    code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Sequential(
            nn.Conv2d(2, 1, 7, padding=3, bias=False),
            nn.BatchNorm2d(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """(B, 1, H, W), in (0, 1)."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return self.filter(pooled).sigmoid()


SYSTEMS: dict[str, Callable[[int, tuple[int, int]], nn.Module]] = {
    "cbam-s": lambda channels, size: SpatialAttention(),
    "cbam-c": lambda channels, size: ChannelAttention(channels),
    "cbam-cs": lambda channels, size: nn.Sequential(ChannelAttention(channels), SpatialAttention()),
}
