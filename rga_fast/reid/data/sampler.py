"""Batches of P identities with K images each, for batch-hard mining."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class IdentitySampler:
    """Yields batches of image indices: P identities with K consecutive images each.

    The published rule: every identity once per epoch in random order, the last incomplete batch
    dropped; K images without repetition if an identity has that many, else with repetition. The
    order depends on the seed and `set_epoch` only, so that a resumed run continues with the same
    batches. As a batch holds its identities one after the other, equal slices of it share no
    identity.

    `labels` (N,) are integers, gaps allowed. A batch is int64 (P * K,).
    ValueError: P or K below 1, a negative seed or epoch, or fewer than P identities.
    """

    def __init__(
        self,
        labels: np.ndarray,
        identities_per_batch: int = 16,
        images_per_identity: int = 4,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("identities_per_batch", identities_per_batch, 1),
            ("images_per_identity", images_per_identity, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"IdentitySampler: {name} must be at least {least}, got {value}")
        labels = np.asarray(labels)
        order = np.argsort(labels, kind="stable")
        counts = np.unique(labels, return_counts=True)[1]
        if len(counts) < identities_per_batch:
            raise ValueError(
                f"IdentitySampler: a batch takes {identities_per_batch} identities, but the "
                f"training images show only {len(counts)}; lower identities_per_batch"
            )
        self.identities_per_batch = identities_per_batch
        self.images_per_identity = images_per_identity
        self.seed = seed
        self.epoch = 0
        self._images = np.split(order, np.cumsum(counts)[:-1])  # per identity

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch (from 0) of the next iteration."""
        if epoch < 0:
            raise ValueError(f"IdentitySampler: epoch must be at least 0, got {epoch}")
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._images) // self.identities_per_batch

    def __iter__(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)))
        identities = rng.permutation(len(self._images))
        K = self.images_per_identity
        for batch in range(len(self)):
            first = batch * self.identities_per_batch
            chosen = identities[first : first + self.identities_per_batch]
            pools = [self._images[identity] for identity in chosen]
            picks = [rng.choice(pool, K, replace=len(pool) < K) for pool in pools]
            yield np.concatenate(picks)


def rank_positions(
    identities: int, images: int, *, rank: int = 0, world: int = 1, parts: int = 1
) -> np.ndarray:
    """The rows of a batch of `identities` x `images` that a rank trains on: int64, ascending.

    The batch is processed in `parts` slices one after the other, each split over `world` ranks. No
    two of these pieces share an identity.

    Raises:
        ValueError: if the identities cannot be divided evenly.
    """
    if identities % (parts * world):
        raise ValueError(
            f"identities_per_batch must be divisible by accumulate x ranks = {parts} x {world}, "
            f"got {identities}"
        )
    pieces = np.arange(identities * images).reshape(parts, world, -1)
    return pieces[:, rank].ravel()
