"""SE (Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018).

What the RGA paper leaves open: where SE sits, and its ratio. The 27.6 M parameters in its Table 3
are those of SE with ratio 16 in each of the 16 residual blocks, as in Hu's SE-ResNet-50. Here SE
follows the stages, as every other system does, so that only the attention differs: 25.8 M with the
same ratio.
"""

from collections.abc import Callable

from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """`x * sigmoid(W2 relu(W1 avg(x)))`, averaged over positions (eq. 2 and 3), with biases.

    (B, channels, H, W) -> the same shape.
    """

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        inner = max(1, channels // ratio)
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """(B, channels, 1, 1), in (0, 1)."""
        squeezed = x.mean((2, 3), keepdim=True)
        return self.expand(self.reduce(squeezed).relu()).sigmoid()


SYSTEMS: dict[str, Callable[[int, tuple[int, int]], nn.Module]] = {
    "se": lambda channels, size: SqueezeExcitation(channels),
}
