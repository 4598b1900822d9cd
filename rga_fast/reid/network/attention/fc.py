"""FC-S and FC-C: attention by fully connected layers, peers that the RGA paper (CVPR 2020, section
4.3) compares with.

The paper gives no formula: FC-S connects all positions, FC-C the channels of averaged maps. Open
are the widths, embeddings and normalisations. Here the features are embedded first as in RGA, by a
1x1 convolution to C/8 channels with normalisation and ReLU, and the ratio is 8, as everywhere in
the paper; that gives the 26.9 M parameters of FC-S and the 26.4 M of FC-C in Table 3. How FC-S//C
joins the two is not said; here as in our RGA-S//C, the mean of the two maps.
"""

from collections.abc import Callable

from torch import Tensor, nn

RATIO = 8


class FCSpatial(nn.Module):
    """`x * sigmoid(W2 relu(W1 v))`, `v` the mean over the channels of the embedded map, (B, n).

    (B, channels, *size) -> the same shape.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        n = size[0] * size[1]
        inner = max(1, n // RATIO)
        self.embed = _embedding(channels)
        self.connect = nn.Sequential(nn.Linear(n, inner), nn.ReLU(), nn.Linear(inner, n))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """(B, 1, *size), in (0, 1)."""
        v = self.embed(x).mean(dim=1).flatten(1)  # (B, n)
        return self.connect(v).sigmoid().view(-1, 1, *x.shape[2:])


class FCChannel(nn.Module):
    """`x * sigmoid(W v)`, `v` the mean over the positions of the embedded map, (B, C/8).

    (B, channels, H, W) -> the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = _embedding(channels)
        self.connect = nn.Linear(max(1, channels // RATIO), channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """(B, channels, 1, 1), in (0, 1)."""
        v = self.embed(x).mean(dim=(2, 3))  # (B, C/8)
        return self.connect(v).sigmoid()[:, :, None, None]


class FCParallel(nn.Module):
    """The mean of `FCSpatial` and `FCChannel`. (B, channels, *size) -> the same shape."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.spatial = FCSpatial(channels, size)
        self.channel = FCChannel(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (self.spatial(x) + self.channel(x)) / 2


SYSTEMS: dict[str, Callable[[int, tuple[int, int]], nn.Module]] = {
    "fc-s": FCSpatial,
    "fc-c": lambda channels, size: FCChannel(channels),
    "fc-s//c": FCParallel,
}


def _embedding(channels: int) -> nn.Sequential:
    inner = max(1, channels // RATIO)
    return nn.Sequential(
        nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()
    )
