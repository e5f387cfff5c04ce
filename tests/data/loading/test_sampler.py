"""The order of an epoch."""

from __future__ import annotations

import numpy as np
import pytest

from cvtrain.data.sampler import EpochSampler, SizeBatches, balanced


def rows(sampler):
    return [row for _, row in sampler]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 4, 21])
def test_validation_sees_every_row_once(length, world):
    ranks = [EpochSampler(length, rank=r, world=world) for r in range(world)]
    seen = [rows(s) for s in ranks]
    assert sorted(row for share in seen for row in share) == list(range(length))
    assert [len(s) for s in ranks] == [len(s) for s in seen]
    assert seen[0] == list(range(length))[::world]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, 4, 21])
def test_training_ranks_have_equal_shares_of_the_same_order(length, world):
    alone = EpochSampler(length, seed=3, shuffle=True, pad=True)
    ranks = [
        EpochSampler(length, seed=3, rank=r, world=world, shuffle=True, pad=True)
        for r in range(world)
    ]
    shares = [rows(s) for s in ranks]
    assert len({len(s) for s in shares}) == 1 == len({len(s) for s in ranks})
    assert len(shares[0]) == len(ranks[0])
    together = [row for step in zip(*shares, strict=True) for row in step]
    assert together[:length] == rows(alone)
    assert together[length:] == (rows(alone) * world)[: len(together) - length]


def test_epochs_differ_and_come_back():
    sampler = EpochSampler(50, seed=1, shuffle=True)
    first = list(sampler)
    assert list(sampler) == first
    assert {e for e, _ in first} == {0}
    sampler.set_epoch(4)
    fifth = list(sampler)
    assert {e for e, _ in fifth} == {4}
    assert rows(sampler) != [r for _, r in first]
    resumed = EpochSampler(50, seed=1, shuffle=True)
    resumed.set_epoch(4)
    assert list(resumed) == fifth
    told = EpochSampler(50, seed=1, shuffle=True, now=lambda: 4)
    assert list(told) == fifth
    told.set_epoch(0)
    assert list(told) == first
    other = EpochSampler(50, seed=2, shuffle=True)
    assert rows(other) != [r for _, r in first]


STRATA = np.array([0] * 15 + [2] * 4 + [-1] * 2)


def test_balanced_draws_every_class_equally_often():
    """21 draws of three classes: 7 each; all rows of a class before one of them again."""
    sampler = EpochSampler(21, seed=5, shuffle=True, pad=True, strata=STRATA)
    epochs = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn = [key[1] for key in sampler]
        assert len(drawn) == len(sampler) == 21
        assert [np.count_nonzero(STRATA[drawn] == v) for v in (0, 2, -1)] == [7, 7, 7]
        counts = np.bincount(drawn, minlength=21)
        assert counts[:15].max() == 1
        assert set(counts[15:19]) == {1, 2}
        assert set(counts[19:]) == {3, 4}
        epochs.append(tuple(drawn))
    assert len(set(epochs)) == 20
    assert {row for drawn in epochs for row in drawn} == set(range(21))


def test_a_rest_goes_to_any_class():
    draws = [balanced(np.array([0, 0, 0, 1, 2]), np.random.default_rng(n)) for n in range(60)]
    shares = np.array([np.bincount([min(max(r - 2, 0), 2) for r in d], minlength=3) for d in draws])
    assert (shares.sum(1) == 5).all()
    assert shares.min() == 1
    assert (shares.mean(0) > 1.5).all()
    assert not len(balanced(np.zeros(0, np.int64), np.random.default_rng(0)))


def test_a_row_drawn_again_has_a_key_of_its_own():
    sampler = EpochSampler(21, seed=5, shuffle=True, strata=STRATA)
    sampler.set_epoch(3)
    keys = list(sampler)
    assert len(set(keys)) == 21
    assert {key[0] for key in keys} == {3}
    again = sorted(key[2] for key in keys if key[1] == 19 and len(key) == 3)
    assert again == list(range(2, 2 + len(again)))
    assert len(again) in (2, 3)


@pytest.mark.parametrize("world", [2, 4])
def test_balanced_ranks_share_one_order_and_come_back(world):
    alone = EpochSampler(21, seed=3, shuffle=True, pad=True, strata=STRATA, now=lambda: 6)
    ranks = [
        EpochSampler(21, seed=3, rank=r, world=world, shuffle=True, pad=True, strata=STRATA)
        for r in range(world)
    ]
    for rank in ranks:
        rank.set_epoch(6)
    shares = [list(rank) for rank in ranks]
    together = [key for step in zip(*shares, strict=True) for key in step]
    assert [key[:2] for key in together[:21]] == [key[:2] for key in alone]
    assert len({len(s) for s in shares}) == 1


@pytest.mark.parametrize("world", [1, 2])
def test_batches_are_of_one_size_and_not_too_large(world):
    sizes = np.array([[4, 4]] * 5 + [[4, 5]] + [[40, 40]] * 2 + [[4, 4]] * 2)
    seen = []
    for rank in range(world):
        sampler = EpochSampler(len(sizes), rank=rank, world=world)
        batches = SizeBatches(sampler, sizes, batch_size=4, pixels=4 * 16)
        found = [[row for _, row in batch] for batch in batches]
        assert len(batches) == len(found)
        assert all(len({tuple(sizes[row]) for row in batch}) == 1 for batch in found)
        seen += [row for batch in found for row in batch]
        if world == 1:
            assert [len(batch) for batch in found] == [4, 1, 1, 1, 1, 2]
    assert sorted(seen) == list(range(10))
