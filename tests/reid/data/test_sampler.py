"""The identity sampler: what an epoch holds, and that nothing but seed and epoch decides it."""

from collections import Counter

import numpy as np
import pytest

from rga_fast.reid.data.sampler import IdentitySampler, rank_positions


def labels_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    """`sizes[i]` images of identity i, shuffled."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(labels)


def epoch_of(sampler: IdentitySampler, epoch: int = 0) -> np.ndarray:
    sampler.set_epoch(epoch)
    return np.stack(list(sampler))


def test_batches_hold_p_identities_with_k_images_side_by_side():
    labels = labels_of([6] * 20)
    batches = epoch_of(IdentitySampler(labels, 5, 3))
    assert batches.shape == (4, 15)
    assert batches.dtype == np.int64
    identities = labels[batches].reshape(4, 5, 3)
    assert (identities == identities[:, :, :1]).all()
    assert sorted(identities[:, :, 0].ravel()) == list(range(20))  # each once per epoch


@pytest.mark.parametrize(("count", "batches"), [(16, 1), (31, 1), (32, 2), (751, 46)])
def test_length_is_exact_and_the_last_incomplete_batch_dropped(count, batches):
    sampler = IdentitySampler(labels_of([5] * count))
    assert len(sampler) == batches == len(list(sampler))


def test_dropped_identities_change_from_epoch_to_epoch():
    labels = labels_of([4] * 9)
    sampler = IdentitySampler(labels, 8, 2)
    left_out = [set(range(9)) - set(labels[epoch_of(sampler, epoch)[0]]) for epoch in range(200)]
    assert all(len(out) == 1 for out in left_out)
    assert set().union(*left_out) == set(range(9))


def test_repetition_only_where_an_identity_has_too_few_images():
    labels = labels_of([1, 2, 3, 4, 9])
    sampler = IdentitySampler(labels, 5, 4)
    seen: dict[int, set[int]] = {identity: set() for identity in range(5)}
    for epoch in range(100):
        for images in epoch_of(sampler, epoch)[0].reshape(5, 4):
            identity = labels[images[0]]
            seen[identity] |= set(images.tolist())
            assert len(set(images.tolist())) <= (labels == identity).sum()
            if (labels == identity).sum() >= 4:
                assert len(set(images.tolist())) == 4
    assert [len(images) for images in seen.values()] == [
        1,
        2,
        3,
        4,
        9,
    ]  # all of them get their turn


def test_images_of_an_identity_are_drawn_evenly():
    sampler = IdentitySampler(np.array([0] * 8 + [1] * 8), 2, 4)
    epochs = 400
    drawn = Counter(np.concatenate([epoch_of(sampler, epoch)[0] for epoch in range(epochs)]))
    sigma = np.sqrt(epochs * 0.25)
    assert all(abs(drawn[image] - epochs / 2) < 4 * sigma for image in range(16))


def test_seed_and_epoch_decide_everything():
    labels = labels_of([6] * 20)
    sampler = IdentitySampler(labels, 5, 3, seed=1)
    epochs = [epoch_of(sampler, epoch) for epoch in range(3)]
    assert np.array_equal(epoch_of(sampler, 1), epochs[1])  # again, after others
    assert np.array_equal(epoch_of(IdentitySampler(labels, 5, 3, seed=1), 2), epochs[2])  # resumed
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], epoch_of(IdentitySampler(labels, 5, 3, seed=2), 0))


def test_labels_may_have_gaps():
    labels = np.array([900, 3, 900, 3, 41, 41])
    batch = epoch_of(IdentitySampler(labels, 3, 2))[0]
    assert sorted(batch.tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identities_per_batch": 5}, "takes 5 identities, but the training images show only 4"),
        ({"identities_per_batch": 0}, "identities_per_batch must be at least 1, got 0"),
        ({"images_per_identity": 0}, "images_per_identity must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        IdentitySampler(labels_of([3] * 4), **{"identities_per_batch": 2, **arguments})


def test_negative_epoch():
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        IdentitySampler(labels_of([3] * 4), 2).set_epoch(-1)


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_ranks_and_slices_share_a_batch_without_overlap(world, parts):
    """Every image once, no identity in two pieces, and a slice is one piece of the batch."""
    pieces = [
        rank_positions(12, 2, rank=rank, world=world, parts=parts).reshape(parts, -1)
        for rank in range(world)
    ]
    together = np.stack(pieces)  # (world, parts, images)
    assert sorted(together.ravel()) == list(range(24))
    identities = [set(piece // 2) for piece in together.reshape(world * parts, -1)]
    assert sum(map(len, identities)) == 12
    for part in range(parts):
        assert sorted(together[:, part].ravel()) == list(
            range(24 // parts * part, 24 // parts * (part + 1))
        )


def test_identities_that_cannot_be_shared():
    with pytest.raises(ValueError, match="divisible by accumulate x ranks = 3 x 2, got 16"):
        rank_positions(16, 4, world=2, parts=3)
