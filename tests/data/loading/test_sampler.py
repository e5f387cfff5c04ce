"""The order of an epoch."""

from __future__ import annotations

import pytest

from cvtrain.data.sampler import EpochSampler


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
