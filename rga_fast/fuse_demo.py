"""A network with the published attention before and after `rga_fast.fuse`: python -m
rga_fast.fuse_demo

Both compute the same; the differences, times and memory are printed.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import rga_fast
from rga_fast import reference


class RelationAttention(nn.Module):
    """Relation-aware global attention with the layers of the published module, by their names, and
    its affinity matrix: what many projects hold in a file of their own."""

    def __init__(
        self,
        channels: int,
        positions: int,
        branches: Sequence[str] = ("spatial", "channel"),
        *,
        channel_ratio: int = 8,
        spatial_ratio: int = 8,
        down_ratio: int = 8,
    ) -> None:
        super().__init__()
        self.branches = tuple(branches)
        c, m = max(1, channels // channel_ratio), max(1, positions // spatial_ratio)
        sizes = {"spatial": (channels, positions, c, m), "channel": (positions, channels, m, c)}
        for view in branches:
            d, _, inner, _ = sizes[view]
            setattr(self, f"gx_{view}", _embedding(d, inner))
        for view in branches:
            _, n, _, relations = sizes[view]
            setattr(self, f"gg_{view}", _embedding(2 * n, relations))
        for view in branches:
            width = 1 + sizes[view][3]
            hidden = max(1, width // down_ratio)
            last = (nn.Conv2d(hidden, 1, 1, bias=False), nn.BatchNorm2d(1))
            setattr(self, f"W_{view}", nn.Sequential(*_embedding(width, hidden), *last))
        for view in branches:
            d, _, inner, _ = sizes[view]
            setattr(self, f"theta_{view}", _embedding(d, inner))
            setattr(self, f"phi_{view}", _embedding(d, inner))

    def forward(self, x: Tensor) -> Tensor:
        for view in self.branches:
            x = self.attend(x, view)
        return x

    def attend(self, x: Tensor, view: str) -> Tensor:
        layers = [getattr(self, f"{name}_{view}") for name in ("theta", "phi", "gx", "gg", "W")]
        return reference.attention(x, reference.Branch(view, *layers))


class Network(nn.Module):
    """Four stages as those of ResNet-50 hand over their maps, with attention after each: at a width
    of 256, (256, H/4, W/4), (512, H/8, W/8), then 1024 and 2048 channels of (H/16, W/16)."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        channels = [width, 2 * width, 4 * width, 8 * width]
        strides, scales = [4, 2, 2, 1], [4, 8, 16, 16]
        positions = [(height // scale) * (height // 2 // scale) for scale in scales]
        inputs = [3, *channels[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, s, s, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o, s in zip(inputs, channels, strides, strict=True)
        )
        self.attention = nn.ModuleList(map(RelationAttention, channels, positions))

    def forward(self, x: Tensor) -> Tensor:
        for stage, attention in zip(self.stages, self.attention, strict=True):
            x = attention(stage(x))
        return x.mean((2, 3))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what `fuse` replaces, how far the numbers differ, times and memory."""
    parser = argparse.ArgumentParser(prog="python -m rga_fast.fuse_demo", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=8, help="of a batch (8)")
    parser.add_argument("--height", type=int, default=256, help="of an image (256)")
    parser.add_argument("--width", type=int, default=256, help="channels after stage 1 (256)")
    parser.add_argument("--rounds", type=int, default=5, help="of timing (5)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    before = Network(options.width, options.height).to(options.device)
    after = rga_fast.fuse(copy.deepcopy(before))
    shape = (options.images, 3, options.height, options.height // 2)
    x = torch.randn(shape, device=options.device)

    print("\nthe same numbers: largest difference, relative to the largest value")
    names = [[name for name, _ in model.named_parameters()] for model in (before, after)]
    found, expected = _results(after, x[:2]), _results(before, x[:2])
    for what, value in expected.items():
        print(f"  {what:<28} {_difference(found[what], value):.1e}")
    print(f"  parameters in the same order: {'yes' if names[0] == names[1] else 'no'}")

    print(f"\n{tuple(shape)} on {options.device}        before      after")
    rows = {"evaluation, ms": _evaluate, "training step, ms": _step}
    for label, call in rows.items():
        a, b = _times(call, before, after, x, options.rounds)
        print(f"  {label:<28} {a:9.1f}  {b:9.1f}   {a / b:.1f}x")
    a, b = (_saved(model, x) / 1e6 for model in (before, after))
    print(f"  {'saved for backward, MB':<28} {a:9.1f}  {b:9.1f}   {a / b:.1f}x")


def _embedding(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _results(model: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """Of two images in float64, where rounding cannot move an activation past zero."""
    model, x = copy.deepcopy(model).double(), x.double()
    out = model.train()(x)
    gradients = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    statistics = [b.clone() for b in model.buffers() if b.is_floating_point()]
    with torch.no_grad():
        evaluated = model.eval()(x)
    return {
        "output in training": [out.detach()],
        "gradients": list(gradients),
        "running statistics": statistics,
        "output in evaluation": [evaluated],
    }


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    largest = max(float(b.abs().max()) for b in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / largest


def _evaluate(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model.eval()(x)


def _step(model: nn.Module, x: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    model.train()(x).square().mean().backward()


def _times(call, before: nn.Module, after: nn.Module, x: Tensor, rounds: int) -> list[float]:
    """Medians in ms, both timed in turn."""
    taken: list[list[float]] = [[], []]
    for i in range(rounds + 1):
        for model, own in zip((before, after), taken, strict=True):
            start = time.perf_counter()
            call(model, x)
            if x.is_cuda:
                torch.cuda.synchronize()
            if i:  # the first round is a warm-up
                own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in taken]


def _saved(model: nn.Module, x: Tensor) -> int:
    """Bytes that a training step keeps for its backward pass, parameters apart."""
    sizes = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(x)
    return sum(sizes.values())


if __name__ == "__main__":
    main()
