"""Matching: the cost by hand, the assignment against all permutations."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from cvtrain.layers.hungarian import Costs, assign

SCALE = torch.tensor([80.0, 40.0, 80.0, 40.0])


def test_the_cost_by_hand() -> None:
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    boxes = torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.2, 0.3, 0.1, 0.1]])
    objects = torch.tensor([[20.0, 10, 60, 30], [0.0, 0, 8, 8], [30.0, 5, 40, 20]])
    labels = torch.tensor([1, 0, 1])
    found = Costs()(logits, boxes, objects, labels, SCALE)
    assert found.shape == (2, 3)
    for q in range(2):
        for n in range(3):
            p = 1 / (1 + math.exp(-float(logits[q, labels[n]])))
            gained = 0.25 * (1 - p) ** 2 * -math.log(p)
            cost = 2 * (gained - 0.75 * p**2 * -math.log(1 - p))
            cx, cy, w, h = boxes[q].tolist()
            x0, y0, x1, y1 = objects[n].tolist()
            cost += 5 * (abs(cx - (x0 + x1) / 160) + abs(cy - (y0 + y1) / 80))
            cost += 5 * (abs(w - (x1 - x0) / 80) + abs(h - (y1 - y0) / 40))
            a = [(cx - w / 2) * 80, (cy - h / 2) * 40, (cx + w / 2) * 80, (cy + h / 2) * 40]
            shared = max(0, min(a[2], x1) - max(a[0], x0)) * max(0, min(a[3], y1) - max(a[1], y0))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (x1 - x0) * (y1 - y0) - shared
            hull = (max(a[2], x1) - min(a[0], x0)) * (max(a[3], y1) - min(a[1], y0))
            cost -= 2 * (shared / union - (hull - union) / hull)
            assert float(found[q, n]) == pytest.approx(cost, abs=1e-5)


@pytest.mark.parametrize(("queries", "objects"), [(5, 3), (3, 5), (4, 4)])
def test_no_assignment_is_cheaper(queries: int, objects: int) -> None:
    cost = torch.randn(2, queries, objects, generator=torch.Generator().manual_seed(4))
    ((first, second),) = assign([cost])
    for problem, (q, n) in zip(cost, (first, second), strict=True):
        assert len(q) == len(n) == min(queries, objects)
        assert len(set(q.tolist())) == len(set(n.tolist())) == len(q)
        few, many = sorted((queries, objects))
        table = problem if queries <= objects else problem.T  # (few, many)
        best = min(
            sum(float(table[i, j]) for i, j in enumerate(chosen))
            for chosen in permutations(range(many), few)
        )
        assert float(problem[q, n].sum()) == pytest.approx(best)


def test_images_without_objects_and_numbers_that_are_none() -> None:
    broken = torch.tensor([[[math.nan, 1.0], [0.5, math.inf], [2.0, 3.0]]])
    none, found = assign([torch.zeros(1, 3, 0), broken])
    assert [len(part) for part in none[0]] == [0, 0]
    assert found[0][0].tolist() == [0, 1]
    assert found[0][1].tolist() == [1, 0]
    empty = Costs()(
        torch.zeros(4, 2), torch.rand(4, 4), torch.zeros(0, 4), torch.zeros(0).long(), SCALE
    )
    assert empty.shape == (4, 0)


def test_a_thousand_objects_and_300_queries() -> None:
    cost = torch.rand(7, 300, 1000)
    for q, n in assign([cost])[0]:
        assert q.tolist() == list(range(300))
        assert len(n.unique()) == 300


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="alpha in"):
        Costs(alpha=2)
