"""SimOTA against a slow plain version that looks at every place of the image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cvtrain.layers.simota import OUTSIDE, Grid, Objects, around_centers, simota


def places_of(grid: Grid) -> list[tuple[float, float, int]]:
    """Center x, y and stride of every place."""
    found = []
    for (rows, columns), s in zip(grid.sizes, grid.strides, strict=True):
        found += [((c + 0.5) * s, (r + 0.5) * s, s) for r in range(rows) for c in range(columns)]
    return found


def iou_of(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height + 1e-7)


def slow(
    logits: Tensor, objectness: Tensor, boxes: Tensor, truth: Tensor, labels: Any, grid: Grid
) -> dict[int, int]:
    """Place -> object, of one image."""
    chosen: dict[int, tuple[float, int]] = {}
    for n, box in enumerate(truth.tolist()):
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        costs, ious = [], []
        for a, (px, py, stride) in enumerate(places_of(grid)):
            if max(abs(px - x), abs(py - y)) >= 2.5 * stride:
                continue
            iou = iou_of(boxes[a].tolist(), box)
            there = 1 / (1 + math.exp(-float(objectness[a])))
            cost = -3 * math.log(iou + 1e-8)
            for k, logit in enumerate(logits[a].tolist()):
                score = math.sqrt(there / (1 + math.exp(-logit)))
                cost -= math.log(score if k == int(labels[n]) else 1 - score)
            if not (box[0] < px < box[2] and box[1] < py < box[3]):
                cost += OUTSIDE
            costs.append((cost, a))
            ious.append(iou)
        k = max(1, int(sum(sorted(ious, reverse=True)[:10])))
        for cost, a in sorted(costs)[:k]:
            if a not in chosen or cost < chosen[a][0]:
                chosen[a] = (cost, n)
    return {a: n for a, (_, n) in chosen.items()}


def guesses(boxes: Tensor, grid: Grid, spread: float, seed: int) -> Tensor:
    """``(A, 4)`` predictions, each near one of the boxes, so that overlaps are of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(grid.counts)
    near = boxes[torch.randint(len(boxes), (total,), generator=generator)]
    noise = torch.randn(total, 4, generator=generator) * spread
    low, high = (near + noise)[:, :2], (near + noise)[:, 2:]
    return torch.cat([torch.minimum(low, high - 1), high], dim=1)


@pytest.mark.parametrize("spread", [2.0, 12.0])
def test_equals_the_slow_version(random_boxes: Callable[..., Tensor], spread: float) -> None:
    grid = Grid([(12, 16), (6, 8), (3, 4)], [8, 16, 32])
    generator = torch.Generator().manual_seed(1)
    total = sum(grid.counts)
    logits = torch.randn(3, total, 4, generator=generator)
    objectness = torch.randn(3, total, generator=generator)
    truth = [random_boxes(9, 96.0, seed=2), random_boxes(0), random_boxes(30, 96.0, seed=3)]
    labels = [torch.randint(4, (len(t),), generator=generator) for t in truth]
    boxes = torch.stack(
        [guesses(truth[0] if i < 2 else truth[2], grid, spread, i) for i in (0, 1, 2)]
    )
    counts = torch.tensor([len(t) for t in truth])
    objects = Objects(
        torch.arange(3).repeat_interleave(counts), torch.cat(truth), torch.cat(labels)
    )
    positive, owner = simota(logits, objectness, boxes, objects, grid)
    got = dict(zip(positive.tolist(), owner.tolist(), strict=True))
    want, first = {}, 0
    for i in range(3):
        found = slow(logits[i], objectness[i], boxes[i], truth[i], labels[i], grid)
        want |= {i * total + a: first + n for a, n in found.items()}
        first += len(truth[i])
    assert got == want
    assert len(want) > 30
    assert positive.tolist() == sorted(want)


@pytest.mark.parametrize("radius", [0.6, 1.0, 1.5, 2.4, 2.5, 3.2])
def test_the_places_around_a_center_are_all_of_them(
    random_boxes: Callable[..., Tensor], radius: float
) -> None:
    grid = Grid([(5, 9), (3, 5)], [8, 16])
    boxes = torch.cat([random_boxes(20, 40.0), torch.tensor([[8.0, 8.0, 24.0, 24.0]])])
    place, near, inside = around_centers(boxes, grid, radius)
    for n, box in enumerate(boxes.tolist()):
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        want = {
            a: box[0] < px < box[2] and box[1] < py < box[3]
            for a, (px, py, s) in enumerate(places_of(grid))
            if max(abs(px - x), abs(py - y)) < radius * s
        }
        rows = near[n]
        found = zip(place[n][rows].tolist(), inside[n][rows].tolist(), strict=True)
        assert dict(found) == want
        assert int(rows.sum()) == len(want) >= 1  # none twice


def test_an_object_has_as_many_places_as_it_has_good_boxes() -> None:
    """k is the sum of the ten highest IoUs: ten perfect boxes give ten, none gives one."""
    grid = Grid([(8, 8)], [8])
    objects = Objects(torch.tensor([0]), torch.tensor([[12.0, 12, 52, 52]]), torch.tensor([0]))
    calm = torch.zeros(1, 64, 1), torch.zeros(1, 64)
    perfect = objects.boxes.expand(1, 64, 4)
    assert len(simota(*calm, perfect, objects, grid)[0]) in (9, 10)  # 10 x (1 - 1e-10)
    nowhere = torch.tensor([0.0, 0, 1, 1]).expand(1, 64, 4)
    assert len(simota(*calm, nowhere, objects, grid)[0]) == 1


def test_a_small_object_has_a_place_even_where_none_lies_in_it() -> None:
    grid = Grid([(4, 4)], [32])
    objects = Objects(torch.tensor([0]), torch.tensor([[60.0, 61, 63, 63]]), torch.tensor([0]))
    boxes = torch.tensor([0.0, 0, 9, 9]).expand(1, 16, 4)
    positive, owner = simota(torch.zeros(1, 16, 1), torch.zeros(1, 16), boxes, objects, grid)
    assert len(positive) == len(owner) == 1


def test_of_two_equal_objects_the_first_has_the_place() -> None:
    grid = Grid([(2, 2)], [32])
    box = torch.tensor([[20.0, 20, 44, 44]])
    objects = Objects(torch.tensor([0, 0]), box.repeat(2, 1), torch.tensor([0, 0]))
    logits, objectness = torch.zeros(1, 4, 1), torch.zeros(1, 4)
    _, owner = simota(logits, objectness, box.expand(1, 4, 4), objects, grid)
    assert set(owner.tolist()) == {0}


def test_nothing_to_assign() -> None:
    grid = Grid([(2, 2)], [32])
    none = torch.zeros(0, dtype=torch.int64)
    objects = Objects(none, torch.zeros(0, 4), none)
    boxes = torch.zeros(2, 4, 4)
    positive, owner = simota(torch.zeros(2, 4, 3), torch.zeros(2, 4), boxes, objects, grid)
    assert positive.shape == owner.shape == (0,)


def test_predictions_that_are_certain_cost_no_infinity() -> None:
    grid = Grid([(2, 2)], [32])
    box = torch.tensor([[20.0, 20, 44, 44]])
    objects = Objects(torch.tensor([0]), box, torch.tensor([0]))
    sure = torch.tensor([200.0, -200.0]).repeat(1, 4, 1)
    for logits in (sure, -sure):
        there = torch.full((1, 4), 200.0)
        positive, _ = simota(logits, there, box.expand(1, 4, 4), objects, grid)
        assert 1 <= len(positive) <= 4
