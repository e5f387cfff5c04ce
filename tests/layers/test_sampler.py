"""Balanced samples, hard negatives against a loop, hard examples by hand."""

from __future__ import annotations

import pytest
import torch

from cvtrain.layers.sampler import hard_examples, hard_negatives, sample_balanced


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (100, 1000, (16, 48)),
        (5, 1000, (5, 59)),
        (0, 1000, (0, 64)),
        (100, 7, (16, 7)),
        (0, 0, (0, 0)),
    ],
)
def test_balanced_counts(positives: int, negatives: int, expected: tuple[int, int]) -> None:
    kind = torch.tensor([1] * positives + [0] * negatives + [-1] * 20)
    p, n = sample_balanced(kind == 1, kind == 0, 64, 0.25)
    assert (len(p), len(n)) == expected
    assert (kind[p] == 1).all()
    assert (kind[n] == 0).all()
    assert len(p.unique()) == len(p)
    assert len(n.unique()) == len(n)


def test_balanced_draws_follow_the_seed_and_cover_everything() -> None:
    negative = torch.ones(50, dtype=torch.bool)
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        _, n = sample_balanced(~negative, negative, 10, 0.5)
        torch.manual_seed(seed)
        assert torch.equal(sample_balanced(~negative, negative, 10, 0.5)[1], n)
        assert torch.equal(n, n.sort().values)
        seen |= set(n.tolist())
    assert seen == set(range(50))


def test_hard_negatives_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(4, 50, generator=generator)
    kind = torch.randint(-1, 2, (4, 50), generator=generator)
    kind[1] = kind[1].clamp(max=0)  # an image without positives
    kind[2, 5:] = 1  # one with few negatives
    for least in (0, 2):
        chosen = hard_negatives(loss, kind == 1, kind == 0, ratio=3.0, least=least)
        for row in range(4):
            count = max(least, 3 * int((kind[row] == 1).sum()))
            candidates = [i for i in range(50) if kind[row, i] == 0]
            candidates.sort(key=lambda i: -float(loss[row, i]))
            assert chosen[row].nonzero().flatten().tolist() == sorted(candidates[:count])
    assert hard_negatives(loss, kind > 5, kind > 5, least=3).sum() == 0


def test_hard_negatives_of_equal_losses_and_in_half_floats() -> None:
    loss = torch.ones(1, 6, dtype=torch.float16)
    positive = torch.tensor([[True, False, False, False, False, False]])
    assert hard_negatives(loss, positive, ~positive).tolist() == [
        [False, *[True] * 3, False, False]
    ]


def test_hard_examples_by_hand() -> None:
    loss = torch.tensor([0.1, 0.9, 0.8, 0.5])
    assert hard_examples(loss, 2).tolist() == [1, 2]
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 29, 29], [20, 20, 29, 28], [0, 20, 9, 29]])
    assert hard_examples(loss, 2, boxes).tolist() == [1, 3]
    assert hard_examples(loss, 9, boxes).tolist() == [1, 3, 0]
    assert hard_examples(loss[:0], 4, boxes[:0]).tolist() == []
