"""NL (Wang et al., Non-local Neural Networks, CVPR 2018) and its simplified form SNL (Cao et al.,
GCNet, ICCV workshops 2019), neither with a matrix of all pairs of positions in memory.

What the RGA paper leaves open: NL's pairwise function (here the embedded Gaussian, Wang's default),
its inner width (here C/4, which gives the 30.6 M parameters of Table 3; Wang's C/2 would give
36.2 M), and how both start (here as the identity: Wang's last normalisation has zero weights,
section 4.1; SNL's last convolution is zero likewise). Table 3 has no SNL; here it has 30.6 M, too.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class NonLocal(nn.Module):
    """`x_i + bn(W sum_j softmax_j(theta_i . phi_j) g_j)`, over the positions (eq. 4 and 6).

    (B, channels, H, W) -> the same shape. The softmax and the sum are torch's attention with a
    scale of 1, so the n x n affinities exist in tiles only.
    """

    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__()
        inner = max(1, channels // ratio)
        self.embed = nn.Conv2d(channels, 3 * inner, 1)  # theta, phi and g in one product
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        # Fused attention wants four dimensions, with the features contiguous.
        embedded = self.embed(x).flatten(2).transpose(1, 2).contiguous()  # (B, n, 3c)
        theta, phi, g = embedded.unsqueeze(1).chunk(3, dim=-1)  # (B, 1, n, c)
        y = scaled_dot_product_attention(theta, phi, g, scale=1.0)
        return x + self.W(y.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class SimplifiedNonLocal(nn.Module):
    """`x_i + W_v sum_j softmax_j(w_k . x_j) x_j`: one weighted mean for all positions (eq. 3).

    (B, channels, H, W) -> the same shape. A bias of `w_k` would cancel in the softmax.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, 1, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        mean = x.flatten(2) @ weights.transpose(1, 2)  # (B, C, 1)
        return x + self.value(mean.unsqueeze(-1))

    def weights(self, x: Tensor) -> Tensor:
        """(B, 1, n): of the positions in the mean, with the sum 1."""
        return self.key(x).flatten(2).softmax(dim=-1)


SYSTEMS: dict[str, Callable[[int, tuple[int, int]], nn.Module]] = {
    "nl": lambda channels, size: NonLocal(channels),
    "snl": lambda channels, size: SimplifiedNonLocal(channels),
}
