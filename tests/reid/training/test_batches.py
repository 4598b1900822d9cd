"""The batches of a run and the share of a rank, from the fields of its configuration."""

import numpy as np
import pytest

from rga_fast.reid.config import Config
from rga_fast.reid.data.sampler import IdentitySampler, rank_positions
from rga_fast.reid.distributed import Ranks
from rga_fast.reid.training.batches import make_sampler


def test_a_sampler_and_the_share_of_a_rank():
    config = Config(identities_per_batch=4, images_per_identity=2, seed=3, accumulate=2)
    labels = np.repeat(np.arange(9), 3)
    sampler, positions = make_sampler(labels, config, Ranks(1, 2))
    for batch, expected in zip(sampler, IdentitySampler(labels, 4, 2, 3), strict=True):
        assert np.array_equal(batch, expected)
    assert positions.tolist() == rank_positions(4, 2, rank=1, world=2, parts=2).tolist()
    with pytest.raises(ValueError, match="accumulate = 2 and 2 ranks leave 1 identity to mine"):
        make_sampler(labels, config.replace(mine_across_ranks=False), Ranks(1, 2))
