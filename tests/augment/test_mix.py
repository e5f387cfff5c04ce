"""Mixup and CutMix: pixels and shares agree; draws follow from the place in the run alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvtrain.augment.mix import BatchMix, build_mix
from cvtrain.structures import Batch, Target


def batch(size=6, dtype=torch.uint8, side=40, classes=6):
    """Image k is of value 40 k (times the type's white over 255) and of class k."""
    factor = {torch.uint8: 1, torch.uint16: 257, torch.float32: 1 / 255}[dtype]
    images = torch.stack([torch.full((3, side, side), 40.0 * k * factor) for k in range(size)])
    targets = [Target(label=torch.tensor(k % classes)) for k in range(size)]
    return Batch(images.to(dtype), targets, [])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_mixup_blends_pixels_by_the_shares_of_the_classes(dtype):
    mix, data = BatchMix(6, mixup=1.0, mixup_alpha=1.0, seed=3), batch(dtype=dtype)
    before, shares = data.images.clone(), set()
    for index in range(6):
        out = mix(data, 0, index)
        assert out.images.dtype == dtype
        white = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1.0}[dtype]
        for k, (image, target) in enumerate(zip(out.images, out.targets, strict=True)):
            assert target.probs.shape == (6,)
            assert float(target.probs.sum()) == pytest.approx(1.0)
            assert (target.probs > 0).sum() == 2  # never with itself
            expected = float(sum(40 * c * p for c, p in enumerate(target.probs)))
            assert float(image.float().mean() * 255 / white) == pytest.approx(expected, abs=0.6)
            assert int(target.label) == k
        shares.add(round(float(out.targets[0].probs[0]), 4))
    assert len(shares) == 6
    assert torch.equal(data.images, before)  # neither images nor targets of the batch are changed
    assert all(t.probs is None for t in data.targets)


def test_cutmix_counts_pixels():
    mix, data = BatchMix(6, cutmix=1.0, seed=1), batch()
    seen = set()
    for index in range(10):
        out = mix(data, 2, index)
        for k, (image, target) in enumerate(zip(out.images, out.targets, strict=True)):
            values, counts = torch.unique(image[0], return_counts=True)
            found = dict(zip((values // 40).tolist(), counts.tolist(), strict=True))
            assert set(found) - {k} == {int(j) for j in target.probs.nonzero()} - {k}
            for label, count in found.items():
                assert float(target.probs[label]) == pytest.approx(count / 1600, abs=1e-6)
            rows = (image[0] != 40 * k).any(dim=1).nonzero()
            if len(rows):  # a rectangle
                columns = (image[0] != 40 * k).any(dim=0).nonzero()
                inside = (image[0] != 40 * k).sum()
                assert int(inside) == len(rows) * len(columns)
        seen.add(round(float(out.targets[0].probs[0]), 3))
    assert len(seen) > 6


def test_shares_are_drawn_from_the_beta_of_alpha():
    data = batch(2)
    for alpha in (0.2, 2.0):
        mix = BatchMix(6, mixup=1.0, mixup_alpha=alpha)
        shares = np.array([float(mix(data, 0, i).targets[0].probs[0]) for i in range(400)])
        assert shares.mean() == pytest.approx(0.5, abs=0.06)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_the_shares_of_the_batches():
    mix, data = BatchMix(6, mixup=0.3, cutmix=0.2), batch(4)
    kinds = {"plain": 0, "blended": 0, "cut": 0}
    for index in range(300):
        out = mix(data, 0, index)
        if out is data:
            kinds["plain"] += 1
        elif len(torch.unique(out.images[0])) == 1 and out.targets[0].probs[0] not in (0, 1):
            kinds["blended"] += 1
        else:
            kinds["cut"] += 1
    assert kinds["plain"] / 300 == pytest.approx(0.5, abs=0.1)
    assert kinds["blended"] / 300 == pytest.approx(0.3, abs=0.1)


def test_draws_follow_from_seed_epoch_batch_and_rank():
    def drawn(seed=0, rank=0, epoch=0, index=0):
        return BatchMix(6, mixup=1.0, seed=seed, rank=rank)(batch(), epoch, index).images

    one = drawn()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (the global one, on purpose)
    assert torch.equal(one, drawn())
    for other in ({"seed": 1}, {"rank": 1}, {"epoch": 1}, {"index": 1}):
        assert not torch.equal(one, drawn(**other))


def test_it_stops_where_it_closes():
    mix, data = BatchMix(6, mixup=1.0, closes=2), batch()
    assert mix(data, 1, 0) is not data
    assert mix(data, 2, 0) is data


def test_several_labels_an_image_are_mixed_too():
    targets = [Target(probs=torch.tensor([1.0, 1.0, 0.0])), Target(probs=torch.zeros(3))]
    data = Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), targets, [])
    out = BatchMix(3, mixup=1.0, seed=2)(data, 0, 0)
    share = float(out.targets[0].probs[0])
    assert out.targets[0].probs.tolist() == pytest.approx([share, share, 0.0])
    assert out.targets[1].probs.tolist() == pytest.approx([1 - share, 1 - share, 0.0])


def test_one_image_stays_itself():
    out = BatchMix(6, mixup=1.0)(batch(1), 0, 0)
    assert out.targets[0].probs.tolist() == pytest.approx([1.0, 0, 0, 0, 0, 0])


def test_nothing_is_built_where_nothing_is_asked_for():
    assert build_mix({"mosaic": 0.5}, 3, epochs=5) is None
    assert build_mix(None, 3, epochs=5) is None
    mix = build_mix({"cutmix": 0.5, "mixup_alpha": None, "close_epoch": 0.5}, 3, epochs=10)
    assert mix.closes == 5
    assert mix.cutmix == 0.5


def test_mixup_puts_the_objects_of_both_images_together():
    data = batch(4)
    for k, target in enumerate(data.targets):
        target.label = None
        target.boxes = torch.full((k, 4), float(k))  # none in the first image
        target.labels = torch.full((k,), k)
        target.ignore = torch.zeros(k, dtype=torch.bool)
        target.areas = torch.full((k,), 9.0, dtype=torch.float64)
    faint = 0
    for index in range(8):
        out = BatchMix(6, mixup=1.0, mixup_alpha=0.3)(data, 0, index)
        for k, (image, target) in enumerate(zip(out.images, out.targets, strict=True)):
            others = {int(v) for v in target.labels} - {k}
            assert len(others) <= 1
            other = others.pop() if others else 0
            assert target.labels.tolist() == [k] * k + [other] * other
            assert target.boxes[:, 0].tolist() == target.labels.tolist()
            assert target.boxes.shape == (k + other, 4)
            assert len(target.areas) == k + other
            share = abs(float(image.float().mean()) / 40 - other) / max(1, abs(k - other))
            for label, ignored in zip(target.labels.tolist(), target.ignore.tolist(), strict=True):
                part = share if label == k else 1 - share
                assert abs(part - 0.1) < 0.02 or ignored == (part < 0.1)
            faint += int(target.ignore.any())
    assert faint
    assert not data.targets[3].ignore.any()


def test_mixup_takes_the_proposals_of_both_images_by_turns():
    data = batch(2)
    for target in data.targets:
        target.boxes, target.labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    data.proposals = [
        torch.arange(n).float()[:, None].expand(n, 4) + at for n, at in ((1, 0), (3, 10))
    ]
    out = BatchMix(6, mixup=1.0)(data, 0, 0)
    assert [p[:, 0].tolist() for p in out.proposals] == [[0, 10, 11, 12], [10, 0, 11, 12]]
