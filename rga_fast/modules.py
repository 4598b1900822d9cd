"""The attention as a module."""

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from rga_fast import dispatch, exactness, functional, reference, validation
from rga_fast.reference import Branch

VARIANTS = {
    "s": ("spatial",),
    "c": ("channel",),
    "sc": ("spatial", "channel"),
    "cs": ("channel", "spatial"),
    "s//c": ("spatial", "channel"),
}
EMBEDDINGS = ("asymmetric", "symmetric", "none")


class RGA(nn.Module):
    """Relation-aware global attention (Zhang et al., CVPR 2020, section 3) on a feature map.

    (B, channels, H, W) -> the same shape, dtype and layout. The `state_dict` has the keys and
    shapes of the published `RGA_Module`, so its weights load.

    Args:
        channels: C of the maps.
        size: (H, W) of the maps, or their number of positions H * W. The relations of a node are a
            vector over all nodes, so a module serves one size.
        variant: "s" (spatial), "c" (channel), "sc" and "cs" (one after the other), or "s//c" (side
            by side; the paper does not say how the two are fused: here the mean of the two maps).
        spatial_ratio, channel_ratio: by how much positions and channels are reduced when they are
            embedded. down_ratio: the same for the perceptron's hidden layer. A width is at least 1.
        relations, appearance: whether an attention value sees the node's relations, its features.
        embedding: "asymmetric" (theta and phi), "symmetric" (theta is phi) or "none" (both are the
            nodes themselves): Table 4 of the paper.
        zero_init_gate: the last normalisation of each branch begins with weight 0 instead of 1, as
            published: every attention value begins at 1/2, and the normalisations after it take
            the factor out, so that a network begins as without attention. From random weights
            the published start, which multiplies by noise, trains far slower (docs/results.md).
        impl: "auto" takes the fastest implementation for the input at hand, see `rga_fast.choose`.
        device, dtype: of the parameters, as for every torch module.

    Raises:
        ValueError: for an unknown or impossible option; in `forward`, for a map of another size,
            dtype or device than the module's.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int] | int,
        variant: str = "sc",
        *,
        spatial_ratio: int = 8,
        channel_ratio: int = 8,
        down_ratio: int = 8,
        relations: bool = True,
        appearance: bool = True,
        embedding: str = "asymmetric",
        zero_init_gate: bool = False,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.size = _checked_size(size)
        for name, value in [
            ("channels", channels),
            ("spatial_ratio", spatial_ratio),
            ("channel_ratio", channel_ratio),
            ("down_ratio", down_ratio),
        ]:
            validation.check_positive("RGA", name, value)
        validation.check_choice("RGA", "variant", variant, tuple(VARIANTS))
        validation.check_choice("RGA", "embedding", embedding, EMBEDDINGS)
        validation.check_choice("RGA", "impl", impl, dispatch.ARGUMENTS)
        if not (relations or appearance):
            raise ValueError("RGA: at least one of relations and appearance must be True")
        self.channels, self.variant, self.impl = channels, variant, impl

        positions = self.size if isinstance(self.size, int) else self.size[0] * self.size[1]
        inner_channels = max(1, channels // channel_ratio)
        inner_positions = max(1, positions // spatial_ratio)
        factory = {"device": device, "dtype": dtype}
        for view in VARIANTS[variant]:
            if view == "spatial":
                d, n, c, m = channels, positions, inner_channels, inner_positions
            else:
                d, n, c, m = positions, channels, inner_positions, inner_channels
            embedded = relations and embedding != "none"
            layers = {
                "gx": _layer(d, c, factory) if appearance else None,
                "gg": _layer(2 * n, m, factory) if relations else None,
                "W": _perceptron(relations * m + appearance, down_ratio, zero_init_gate, factory),
                "theta": _layer(d, c, factory) if embedded else None,
                "phi": _layer(d, c, factory) if embedded and embedding == "asymmetric" else None,
            }
            for name, layer in layers.items():
                setattr(self, f"{name}_{view}", layer)

    def branch(self, view: str) -> Branch:
        """The layers of the branch "spatial" or "channel"."""
        if view not in VARIANTS[self.variant]:
            raise ValueError(f"RGA: variant {self.variant!r} has no {view!r} branch")
        theta, phi, psi, relation, weight = (
            getattr(self, f"{name}_{view}") for name in ("theta", "phi", "gx", "gg", "W")
        )
        return Branch(view, theta, phi, psi, relation, weight)

    def choose(self, x: Tensor) -> dispatch.Choice:
        """The implementation that `forward` takes for `x`, and why.

        Raises:
            RuntimeError, NotImplementedError: as `rga_fast.choose`.
        """
        return dispatch.choose(self.impl, x, *self._branches())

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return self._traced(x)
        validation.check_map(x, self.channels, self.size)
        branches = self._branches()
        chosen = dispatch.choose(self.impl, x, *branches).impl
        if chosen != "reference" or exactness.problem(branches[0]) is None:
            # Other layers may keep their weights elsewhere until they run. Parametrised ones are
            # not read here: to read is to compute.
            weight = branches[0].perceptron[0]._parameters.get("weight")
            if weight is not None:
                validation.check_alike("RGA", "x", x, "the module's weights", weight)
        if self.variant == "s//c":
            spatial, channel = (functional.in_turn(x, [b], chosen) for b in branches)
            return (spatial + channel) / 2
        return functional.in_turn(x, branches, chosen)

    def _branches(self) -> list[Branch]:
        return [self.branch(view) for view in VARIANTS[self.variant]]

    def _traced(self, x: fx.Proxy) -> Any:
        """Symbolic tracing: the module is one node; where it is the root, its layers are nodes."""
        tracer = cast(fx.Tracer, x.tracer)
        if path := tracer.path_of_module(self):
            return tracer.create_proxy("call_module", path, (x,), {})
        outs: list[Any] = [x]
        for branch in self._branches():
            outs.append(reference.attention(outs[0 if self.variant == "s//c" else -1], branch))
        return (outs[1] + outs[2]) / 2 if self.variant == "s//c" else outs[-1]

    @torch.no_grad()
    def attention_values(self, x: Tensor) -> dict[str, Tensor]:
        """The attention values by which each branch multiplies a map, to be looked at.

        The running statistics are used, as in evaluation, and nothing is tracked or recorded.

        Args:
            x: (B, channels, H, W), as for `forward`.

        Returns:
            By branch, in (0, 1): "spatial" (B, 1, H, W), "channel" (B, channels, 1, 1). A branch
            that follows another sees the map that this one has multiplied.
        """
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        values = {}
        try:
            for view in VARIANTS[self.variant]:
                values[view] = functional.attention_values(x, self.branch(view))
                if self.variant != "s//c":
                    x = x * values[view]
        finally:
            for module, mode in modes:
                module.training = mode
        return values

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.size}, variant={self.variant!r}, impl={self.impl!r}"


def _checked_size(size: tuple[int, int] | int) -> tuple[int, int] | int:
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    if isinstance(size, (tuple, list)) and len(size) == 2:
        for value in size:
            validation.check_positive("RGA", "each side of size", value)
        return (int(size[0]), int(size[1]))
    raise ValueError(f"RGA: size must be (H, W) or their product H * W, got {size!r}")


def _layer(inputs: int, outputs: int, factory: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False, **factory),
        nn.BatchNorm2d(outputs, **factory),
        nn.ReLU(),
    )


def _perceptron(inputs: int, ratio: int, zero_init: bool, factory: dict[str, Any]) -> nn.Sequential:
    hidden = max(1, inputs // ratio)
    norm = nn.BatchNorm2d(1, **factory)
    if zero_init:
        nn.init.zeros_(norm.weight)
    return _layer(inputs, hidden, factory).extend(
        [nn.Conv2d(hidden, 1, 1, bias=False, **factory), norm]
    )
