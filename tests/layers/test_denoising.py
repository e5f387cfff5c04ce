"""Denoising queries: pairs, their noise, who sees whom."""

from __future__ import annotations

import pytest
import torch

from cvtrain.layers.boxes import corners
from cvtrain.layers.denoising import Denoising

SCALE = torch.tensor([200.0, 100.0, 200.0, 100.0])
OBJECTS = [
    torch.tensor([[80.0, 40, 120, 60], [100.0, 30, 140, 70]]),
    torch.zeros(0, 4),
    torch.tensor([[60.0, 40, 100, 50], [90.0, 45, 110, 55], [80.0, 30, 100, 60]]),
]
LABELS = [torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64), torch.tensor([2, 0, 1])]


def made(pairs: int = 7, **keywords: float) -> Denoising:
    torch.manual_seed(0)
    return Denoising(4, 3, pairs, **keywords)


def test_pairs_in_groups_of_each_image() -> None:
    noised = made()(OBJECTS, LABELS, SCALE)
    # 3 groups of 2 objects; none; 2 groups of 3: 12, 0 and 12 queries
    assert noised.queries.shape == (3, 12, 4)
    assert noised.real.sum(1).tolist() == [12, 0, 12]
    assert noised.owner[0].tolist() == [0, 1] * 3 + [-1] * 6
    assert noised.owner[2].tolist() == [0, 1, 2] * 2 + [-1] * 6
    torch.testing.assert_close(noised.share, torch.tensor([1 / 3, 1 / 7, 1 / 2]))
    assert noised.mask.any(-1).all()  # a softmax over nobody would be no number
    seen = noised.mask[0].int().sum(-1)
    assert seen.tolist() == [4] * 12  # its group: 2 pairs
    assert torch.equal(noised.mask[1], torch.eye(12, dtype=torch.bool))
    groups = noised.mask[2].int()
    assert torch.equal((groups @ groups > 0), noised.mask[2])  # seeing is an equivalence


def test_how_far_the_edges_are_moved() -> None:
    layer = made(60, label_noise=0.0)
    noised = layer(OBJECTS[:1], LABELS[:1], SCALE)
    edges = corners(noised.places.sigmoid() * SCALE)[0]
    boxes = OBJECTS[0].repeat(60, 1)
    half = ((boxes[:, 2:] - boxes[:, :2]) / 2).repeat(1, 2)
    positive = noised.owner[0] >= 0
    assert int(positive.sum()) == 60
    moved = (edges - boxes).abs() / half
    assert (moved[positive] <= 1 + 1e-3).all()
    assert (moved[~positive].amin(1) <= 2 + 1e-3).all()
    # A negative's edges go beyond half of a side, each in one of two directions; sorted after.
    assert (moved[~positive] >= 1 - 1e-3).all(1).float().mean() > 0.2
    assert edges.min() >= -1e-3
    assert (edges <= SCALE + 1e-3).all()
    calm = made(60, box_noise=0.0, label_noise=0.0)(OBJECTS[:1], LABELS[:1], SCALE)
    torch.testing.assert_close(corners(calm.places.sigmoid() * SCALE)[0], boxes, atol=1e-3, rtol=0)
    names = LABELS[0].repeat(60)
    torch.testing.assert_close(calm.queries[0], layer.labels(names))


def test_part_of_the_labels_is_drawn_anew() -> None:
    layer = made(3000, label_noise=0.6)
    noised = layer(OBJECTS[:1], LABELS[:1], SCALE)
    told = torch.cdist(noised.queries[0], layer.labels.weight).argmin(1)
    other = (told != LABELS[0].repeat(len(told) // 2)).float().mean()
    assert float(other) == pytest.approx(0.6 * 2 / 3, abs=0.03)  # a third draws the same again


def test_the_draws_are_the_global_generators_and_fixed_in_validation() -> None:
    layer = made()

    def places(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return layer(OBJECTS, LABELS, SCALE).places

    assert torch.equal(places(1), places(1))
    assert not torch.equal(places(1), places(2))
    layer.eval()
    state = torch.get_rng_state()
    assert torch.equal(layer(OBJECTS, LABELS, SCALE).places, layer(OBJECTS, LABELS, SCALE).places)
    assert torch.equal(torch.get_rng_state(), state)
    alone = layer(OBJECTS[2:], LABELS[2:], SCALE)  # an image's draws are its own
    assert torch.equal(alone.places[0], layer(OBJECTS, LABELS, SCALE).places[2])


def test_no_objects_and_more_than_there_is_room_for() -> None:
    layer = made()
    none = layer(OBJECTS[1:2] * 2, LABELS[1:2] * 2, SCALE)
    assert none.queries.shape == (2, 1, 4)
    assert not none.real.any()
    (none.queries.sum() * 0).backward()
    assert layer.labels.weight.grad is not None
    crowd = torch.rand(1000, 2) * 90
    crowd = torch.cat([crowd, crowd + 5], dim=1)
    noised = layer([crowd], [torch.zeros(1000, dtype=torch.int64)], SCALE)
    assert noised.queries.shape == (1, 14, 4)
    assert len(noised.owner[0, :7].unique()) == 7
    assert torch.isfinite(noised.places).all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"pairs": 0}, "denoising=0 must be at least 1"),
        ({"label_noise": 2.0}, "label_noise=2.0"),
        ({"box_noise": -1.0}, "box_noise=-1.0"),
    ],
)
def test_wrong_numbers(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Denoising(4, 3, **keywords)
