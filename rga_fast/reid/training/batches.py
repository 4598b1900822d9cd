"""The batches of a run, and what of each this rank trains on."""

from __future__ import annotations

import numpy as np

from rga_fast.reid.config import Config
from rga_fast.reid.data.sampler import IdentitySampler, rank_positions
from rga_fast.reid.distributed import Ranks


def make_sampler(
    labels: np.ndarray, config: Config, ranks: Ranks
) -> tuple[IdentitySampler, np.ndarray]:
    """Batches of the images with `labels` (N,), and the positions in each that this rank trains on,
    slice by slice.

    Raises:
        ValueError: for too few identities, or if ranks and slices cannot share them.
    """
    P, K, parts = config.identities_per_batch, config.images_per_identity, config.accumulate
    sampler = IdentitySampler(labels, P, K, config.seed)
    positions = rank_positions(P, K, rank=ranks.rank, world=ranks.world, parts=parts)
    mined = P // parts // (1 if config.mine_across_ranks else ranks.world)
    if mined < 2 <= P:
        raise ValueError(
            f"config: accumulate = {parts} and {ranks.world} ranks leave {mined} identity to "
            "mine triplets from, and at least 2 are needed"
        )
    return sampler, positions
