"""Weights of RGA for maps of another size.

The relations of a node are a vector over all nodes, so weights fit one size. `resize_relations`
makes those of another size from them:

- **Positions** are resampled. The new weights compute on a map x what the old ones compute on x
  resampled to the old size: `W_new x = W_old (S x)`, so `W_new = W_old S`. The rows of S sum to 1,
  so a sum over positions keeps its scale, and the running statistics after it stay right. (With
  weights interpolated like an image, four times the positions would give four times the sum.)
- **Units**, whose number follows that of the positions, are in no order that could be resampled.
  Additional ones are copies, which share what their originals contributed, and are perturbed a
  little, since equal units would stay equal in training (Chen et al., Net2Net, ICLR 2016). Of too
  many, those that contribute most stay; the mean of what the others contributed is made up for.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rga_fast import validation

Size = tuple[int, int]
PERTURBATION = 0.01  # of the weights of a copy, relative to their root mean square
_KEY = re.compile(r"(.*?)(?:theta|phi|gx|gg|W)_(spatial|channel)\.0\.weight")


def resize_relations(
    state_dict: Mapping[str, Tensor],
    old_size: Size,
    new_size: Size,
    *,
    spatial_ratio: int = 8,
    down_ratio: int = 8,
) -> dict[str, Tensor]:
    """The weights of every `RGA` in a `state_dict`, made for maps of another size.

    What depends on the number of positions changes: the relations of the spatial branch (rows,
    columns and units), the embeddings of the channel branch. Everything else is returned as it is,
    and so is a module whose map keeps its size.

    Args:
        state_dict: of an `RGA`, or of a network with several under any prefixes, with the published
            names.
        old_size, new_size: (H, W) of the maps; or, for a network, of its images: the maps of a
            module are recognised as the images divided by 1, 2, 4, 8, ... and rounded up.
        spatial_ratio, down_ratio: with which the modules were made, see `RGA`.

    Returns:
        A new dictionary; tensors that change are new, of the same dtype and device.

    Raises:
        ValueError: for sizes or ratios that do not fit the weights.
    """
    for name, size in (("old_size", old_size), ("new_size", new_size)):
        if len(size) != 2:
            raise ValueError(f"resize_relations: {name} must be (H, W), got {size!r}")
        for side in size:
            validation.check_positive("resize_relations", f"each side of {name}", side)
    state = dict(state_dict)
    found = (_KEY.fullmatch(key) for key in state_dict)
    for prefix, view in dict.fromkeys(match.groups() for match in found if match):
        if view == "spatial":
            _resize_spatial(state, prefix, old_size, new_size, spatial_ratio, down_ratio)
        else:
            _resize_channel(state, prefix, old_size, new_size, spatial_ratio)
    return state


@dataclass(frozen=True)
class _Layer:
    """A convolution and the normalisation after it, in a `state_dict`."""

    state: dict[str, Tensor]
    name: str
    convolution: int = 0

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self._key(name)]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.state[self._key(name)] = value.to(self[name].dtype)

    def _key(self, name: str) -> str:
        """ "matrix" is the weight of the convolution, the others are of the normalisation."""
        if name == "matrix":
            return f"{self.name}.{self.convolution}.weight"
        return f"{self.name}.{self.convolution + 1}.{name}"

    @property
    def exists(self) -> bool:
        return self._key("matrix") in self.state

    def rectified_mean(self) -> Tensor:
        """The mean of each unit after its activation, where it is normal before: its
        normalisation's bias is then the mean, its weight the deviation."""
        mean, deviation = self["bias"].double(), self["weight"].double().abs()
        ratio = mean / deviation.clamp_min(1e-12)
        density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
        return mean * torch.special.ndtr(ratio) + deviation * density

    def take(self, units: Tensor, factor: Tensor | float = 1.0) -> None:
        """The units of these numbers; a number that came before is a perturbed copy. What they
        give is multiplied by `factor`, which is positive, (units,) or one for all."""
        matrix = self["matrix"][units]
        scale = matrix.flatten(1).square().mean(dim=1).sqrt()[:, None, None, None]
        noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
        copied = _copied(units)[:, None, None, None].to(scale)
        self["matrix"] = matrix + PERTURBATION * copied * scale * noise.to(scale)
        for name in ("running_mean", "running_var"):
            self[name] = self[name][units]
        for name in ("weight", "bias"):
            self[name] = self[name][units] * factor


def _resize_spatial(
    state: dict[str, Tensor],
    prefix: str,
    old_size: Size,
    new_size: Size,
    spatial_ratio: int,
    down_ratio: int,
) -> None:
    relation = _Layer(state, f"{prefix}gg_spatial")
    if not relation.exists:  # the ablation without relations
        return
    hidden, logit = (_Layer(state, f"{prefix}W_spatial", place) for place in (0, 3))
    m, n = len(relation["matrix"]), relation["matrix"].shape[1] // 2
    inputs = hidden["matrix"].shape[1]
    skip = inputs - m  # the appearance of the node comes first
    old, new = _map_sizes(relation.name, n, old_size, new_size)
    _check_width(relation.name, m, n, "spatial_ratio", spatial_ratio)
    _check_width(hidden.name, len(hidden["matrix"]), inputs, "down_ratio", down_ratio)
    if old == new:
        return
    relation["matrix"] = _resampled(relation["matrix"], old, new)  # row and column
    units = max(1, new[0] * new[1] // spatial_ratio)
    _resize_units(relation, hidden, skip, units)
    _resize_units(hidden, logit, 0, max(1, (skip + units) // down_ratio))


def _resize_units(layer: _Layer, following: _Layer, skip: int, count: int) -> None:
    """`layer` with `count` units, the layer `following` with as many inputs after `skip` others."""
    first, columns = following["matrix"].split([skip, len(layer["matrix"])], dim=1)
    mean = layer.rectified_mean().to(columns.device)
    deviation = layer["weight"].double().abs()
    units = _chosen(count, columns.flatten(1).double().norm(dim=0) * deviation)
    contributed = (columns.flatten(1).double() * mean).sum(dim=1)
    columns = columns[:, units] * _share(units)[:, None, None].to(columns)
    layer.take(units)
    following["matrix"] = torch.cat([first, columns], dim=1)
    remaining = (columns.flatten(1).double() * mean[units]).sum(dim=1)
    following["running_mean"] = following["running_mean"] + (remaining - contributed)


def _resize_channel(
    state: dict[str, Tensor], prefix: str, old_size: Size, new_size: Size, spatial_ratio: int
) -> None:
    theta, phi, psi, relation = (
        _Layer(state, f"{prefix}{name}_channel") for name in ("theta", "phi", "gx", "gg")
    )
    embeddings = [layer for layer in (theta, phi, psi) if layer.exists]
    if not embeddings:
        raise ValueError(
            f"resize_relations: {prefix}*_channel: without an embedding, the weights do not show "
            "the size of the maps, on which the scale of the relations depends"
        )
    c, n = embeddings[0]["matrix"].shape[:2]
    old, new = _map_sizes(embeddings[0].name, n, old_size, new_size)
    _check_width(embeddings[0].name, c, n, "spatial_ratio", spatial_ratio)
    if old == new:
        return
    for layer in embeddings:
        layer["matrix"] = _resampled(layer["matrix"], old, new)
    count = max(1, new[0] * new[1] // spatial_ratio)
    if theta.exists:
        related = [theta, phi] if phi.exists else [theta]
        product = theta.rectified_mean() * related[-1].rectified_mean()
        units = _chosen(count, product)
        factor = _share(units) * _made_up(product, units)  # of the sum over the units
        for layer in related:
            layer.take(units, factor.sqrt().to(layer["weight"]))
    elif relation.exists:  # sums over positions
        relation["matrix"] = relation["matrix"] * (n / (new[0] * new[1]))
    if psi.exists:
        means = psi.rectified_mean()
        units = _chosen(count, means)
        factor = _share(units) * _made_up(means, units) * (count / c)  # of their mean
        psi.take(units, factor.to(psi["weight"]))


def _chosen(count: int, contribution: Tensor) -> Tensor:
    """(count,): the numbers of units: all, and all again; or those that contribute most."""
    have = len(contribution)
    if count >= have:
        return torch.arange(count, device=contribution.device) % have
    return contribution.argsort(descending=True, stable=True)[:count].sort().values


def _copied(units: Tensor) -> Tensor:
    """(units,): whether the number came before."""
    numbers = units.tolist()
    return torch.tensor([number in numbers[:place] for place, number in enumerate(numbers)])


def _share(units: Tensor) -> Tensor:
    """(units,) float64: 1 / how often the number is in `units`."""
    return 1 / torch.bincount(units)[units].double()


def _made_up(contribution: Tensor, units: Tensor) -> Tensor:
    """All that is contributed, relative to what `units` contribute; 1 where that is nothing."""
    part = contribution[units.unique()].sum()
    return torch.where(part > 0, contribution.sum() / part, 1.0)


def _resampled(matrix: Tensor, old: Size, new: Size) -> Tensor:
    """(m, k * n, 1, 1) -> (m, k * n', 1, 1): weights over positions, for maps of the new size."""
    weights = matrix.reshape(len(matrix), -1, *old).double()
    rows, columns = (_resampling(a, b).to(matrix.device) for a, b in zip(old, new, strict=True))
    weights = torch.einsum("mkhw,hH,wW->mkHW", weights, rows, columns)
    return weights.reshape(len(matrix), -1, 1, 1).to(matrix.dtype)


def _resampling(old: int, new: int) -> Tensor:
    """(old, new): S, which resamples a line of `new` values to `old` ones, with antialiasing."""
    lines = torch.eye(new, dtype=torch.float64)[None, None]  # a column of it is a line
    return F.interpolate(
        lines, size=(old, new), mode="bilinear", antialias=True, align_corners=False
    )[0, 0]


def _map_sizes(name: str, n: int, old_size: Size, new_size: Size) -> tuple[Size, Size]:
    """Old and new size of the maps with `n` positions, of images or maps of the given sizes."""
    found = set()
    for power in range(max(old_size).bit_length() + 1):
        old, new = (
            (math.ceil(size[0] / 2**power), math.ceil(size[1] / 2**power))
            for size in (old_size, new_size)
        )
        if old[0] * old[1] == n:
            found.add((old, new))
    if len(found) != 1:
        what = "several" if found else "no"
        raise ValueError(
            f"resize_relations: {name} has weights for {n} positions, which are {what} maps of "
            f"old_size {old_size[0]}x{old_size[1]} divided by a power of 2"
        )
    return found.pop()


def _check_width(name: str, units: int, inputs: int, ratio: str, value: int) -> None:
    if units != max(1, inputs // value):
        raise ValueError(
            f"resize_relations: {name} has {units} units for {inputs} inputs, expected "
            f"{max(1, inputs // value)} with {ratio}={value}"
        )
