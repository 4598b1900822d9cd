"""Which layers a branch has, and where they stand in its lists of weights and normalisations."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Stages(NamedTuple):
    """The layers whose batch statistics are taken together, as slices of a branch's layers."""

    embed: slice
    relate: slice
    hidden: slice
    logit: slice


class Sizes(NamedTuple):
    """Rows of a branch's tensors, by the letters of rga_fast/fused/ops.py."""

    r: int
    m: int
    q: int
    k: int
    p: int
    psi_rows: int


class Structure(NamedTuple):
    """The layers of a branch, always in the order theta, phi, psi, relation, W_1, W_2; absent ones
    are left out. The fields are the last arguments of the operators for whole branches."""

    embeddings: int  # of theta and phi: 2, 1 (theta is phi) or 0 (both are the nodes)
    relations: bool
    appearance: bool

    @property
    def layers(self) -> int:
        return self.embeddings + self.appearance + self.relations + 2

    @property
    def stages(self) -> Stages:
        e = self.embeddings + self.appearance
        z = e + self.relations
        return Stages(slice(0, e), slice(e, z), slice(z, z + 1), slice(z + 1, z + 2))

    def sizes(self, weights: Sequence[Tensor], d: int) -> Sizes:
        """From the weights of all layers, for nodes with `d` features."""
        rows = [len(weight) for weight in weights]
        psi_rows = self.psi_rows(weights)
        r = sum(rows[self.stages.embed])
        return Sizes(
            r=r,
            m=rows[-3] if self.relations else 0,
            q=r - psi_rows if self.embeddings else d,
            k=rows[-2],
            p=int(self.appearance),
            psi_rows=psi_rows,
        )

    def psi_rows(self, weights: Sequence[Tensor]) -> int:
        return len(weights[self.embeddings]) if self.appearance else 0

    def stacked(self, weights: Sequence[Tensor], V: Tensor) -> Tensor:
        """`weight_e` (r, d): the weights of the embeddings, one below the other."""
        own = tuple(weights[self.stages.embed])
        if not own:
            return weights[-1].new_empty(0, V.shape[1])
        return own[0] if len(own) == 1 else torch.cat(own)

    def relation_weight(self, weights: Sequence[Tensor], V: Tensor) -> Tensor:
        """`weight_z` (m, 2n), without rows where nothing is related."""
        return weights[-3] if self.relations else weights[-1].new_empty(0, 2 * V.shape[2])
