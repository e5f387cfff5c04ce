"""The mask branch's layers: targets and loss against a slow reference, memory, empty inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.roi_heads import maskrcnn_loss
from torchvision.ops import masks_to_boxes

from cvtrain.layers.mask_head import MaskHead, MaskTargets, mask_loss, mask_targets
from cvtrain.layers.roi_head import Foreground, RandomRoIs, RoIStage
from cvtrain.structures import Target
from cvtrain.tasks.paste_masks import paste

HEIGHT, WIDTH = 24, 33


def regions(boxes: Tensor, objects: list[int], labels: list[int]) -> Foreground:
    whole = torch.int64
    which, kinds = torch.tensor(objects, dtype=whole), torch.tensor(labels, dtype=whole)
    return Foreground(boxes, kinds, which, torch.arange(len(boxes)))


def blobs(count: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Bool ``(count, height, width)``, half of the pixels set."""
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(1)) > 0.5


def scene() -> tuple[list[Foreground], list[Target]]:
    """Two images: whole numbers and others, the border, less than a pixel; nothing."""
    boxes = torch.tensor(
        [
            [2.0, 3.0, 10.0, 15.0],
            [0.3, 0.7, 31.9, 22.4],
            [20.5, 11.25, 33.0, 24.0],
            [7.2, 7.2, 7.5, 7.4],
            [32.6, 23.1, 33.0, 24.0],
        ]
    )
    masks = blobs(3)
    return (
        [
            regions(boxes, [0, 2, 1, 2, 0], [0, 1, 3, 1, 0]),
            regions(boxes[:0], [], []),
        ],
        [Target(masks=masks), Target()],
    )


def read_slowly(mask: Tensor, box: list[float], size: int, half_pixel: bool) -> list[list[float]]:
    """Means of points in each cell, as many as it has pixels; between pixels by interpolation."""
    height, width = mask.shape
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    if half_pixel:
        x1, y1 = x1 - 0.5, y1 - 0.5
    else:
        w, h = max(w, 1.0), max(h, 1.0)
    across, down = math.ceil(w / size), math.ceil(h / size)

    def at(y: float, x: float) -> float:
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        top, left = int(y), int(x)
        low, right = min(top + 1, height - 1), min(left + 1, width - 1)
        dy, dx = y - top, x - left
        above = (1 - dx) * float(mask[top, left]) + dx * float(mask[top, right])
        below = (1 - dx) * float(mask[low, left]) + dx * float(mask[low, right])
        return (1 - dy) * above + dy * below

    return [
        [
            sum(
                at(y1 + (i + (a + 0.5) / down) * h / size, x1 + (j + (b + 0.5) / across) * w / size)
                for a in range(down)
                for b in range(across)
            )
            / (down * across)
            for j in range(size)
        ]
        for i in range(size)
    ]


@pytest.mark.parametrize("half_pixel", [True, False])
def test_targets_and_loss_equal_a_slow_reference(half_pixel: bool) -> None:
    foreground, targets = scene()
    found = mask_targets(foreground, targets, 5, half_pixel)
    logits = torch.randn(5, 5, 5, generator=torch.Generator().manual_seed(2)) * 3
    total = 0.0
    for r, (box, i) in enumerate(
        zip(foreground[0].boxes.tolist(), foreground[0].objects.tolist(), strict=True)
    ):
        assert targets[0].masks is not None
        wanted = read_slowly(targets[0].masks[i], box, 5, half_pixel)
        torch.testing.assert_close(found.masks[r], torch.tensor(wanted), rtol=0, atol=1e-5)
        for y in range(5):
            for x in range(5):
                p = 1 / (1 + math.exp(-float(logits[r, y, x])))
                total -= wanted[y][x] * math.log(p) + (1 - wanted[y][x]) * math.log(1 - p)
    assert found.counts.all()
    assert float(mask_loss(logits, found)) == pytest.approx(total / (5 * 5 * 5), abs=1e-5)


def test_loss_equals_torchvisions() -> None:
    foreground, targets = scene()
    everything = torch.randn(5, 4, 28, 28)  # a mask a class
    theirs = maskrcnn_loss(
        everything,
        [f.boxes for f in foreground],
        [targets[0].masks, blobs(0)],
        [torch.tensor([0, 3, 1]), torch.zeros(0, dtype=torch.int64)],
        [f.objects for f in foreground],
    )
    mine = everything[range(5), foreground[0].labels]
    found = mask_targets(foreground, targets, 28, half_pixel=False)
    torch.testing.assert_close(mask_loss(mine, found), theirs)


def test_a_mask_as_large_as_its_box_is_ones_up_to_the_edge() -> None:
    """And torchvision's lies half a pixel to the left and up."""
    masks = torch.zeros(1, 12, 12, dtype=torch.bool)
    masks[0, 4:8, 2:10] = True
    one = [regions(torch.tensor([[2.0, 4.0, 10.0, 8.0]]), [0], [0])]
    found = mask_targets(one, [Target(masks=masks)], 4).masks[0]
    # A cell is 2 x 1 pixels; points at the centers of pixels: nothing beyond the edge is mixed in.
    assert torch.equal(found, torch.ones(4, 4))
    moved = mask_targets(one, [Target(masks=masks)], 4, half_pixel=False).masks[0]
    assert torch.equal(moved[:-1, :-1], torch.ones(3, 3))
    assert torch.equal(moved[-1, :-1], torch.full((3,), 0.5))
    assert torch.equal(moved[:-1, -1], torch.full((3,), 0.75))


def test_what_is_taught_is_drawn_back_where_it_was() -> None:
    """Discs of 9 to 16 pixels, and what half a pixel takes from them."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    for diameter in (9, 12, 16):
        masks = ((x - 30) ** 2 + (y - 21) ** 2 <= (diameter / 2) ** 2)[None]
        box = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        overlap = {}
        for half_pixel in (True, False):
            one, target = [regions(box, [0], [0])], [Target(masks=masks)]
            grid = mask_targets(one, target, 28, half_pixel).masks[0].numpy()
            inside, top, left = paste(grid, box[0].double().numpy(), 64, 64)
            drawn = torch.zeros(64, 64, dtype=torch.bool)
            height, width = inside.shape
            drawn[top : top + height, left : left + width] = torch.from_numpy(inside)
            overlap[half_pixel] = float((drawn & masks[0]).sum() / (drawn | masks[0]).sum())
        assert overlap[True] > 0.98
        assert overlap[False] < 0.95


def test_boxes_beyond_the_mask_read_what_is_there() -> None:
    boxes = torch.tensor([[-5.0, -4.0, 12.0, 9.0], [33.0, 24.0, 40.0, 30.0]])
    [one], [target] = [regions(boxes, [0, 1], [0, 0])], [Target(masks=blobs(2))]
    found = mask_targets([one], [target], 4)
    assert target.masks is not None
    assert torch.isfinite(found.masks).all()
    assert 0 < found.masks[0].mean() < 1
    assert (found.masks >= 0).all()
    assert (found.masks <= 1).all()


def test_an_object_without_pixels_teaches_no_mask() -> None:
    boxes = torch.tensor([[2.0, 3.0, 10.0, 15.0], [20.0, 10.0, 21.0, 11.0]])
    masks = blobs(2)
    masks[1] = False
    foreground, targets = [regions(boxes, [0, 1], [0, 0])], [Target(masks=masks)]
    found = mask_targets(foreground, targets, 4)
    assert found.counts.tolist() == [True, False]
    logits = torch.randn(2, 4, 4, requires_grad=True)
    mask_loss(logits, found).backward()
    alone = mask_loss(logits[:1], MaskTargets(found.masks[:1], found.counts[:1]))
    torch.testing.assert_close(mask_loss(logits, found), alone)
    assert logits.grad is not None
    assert logits.grad[0].all()
    assert not logits.grad[1].any()


def test_objects_without_masks_are_an_error() -> None:
    one = regions(torch.tensor([[2.0, 3.0, 10.0, 15.0]]), [0], [0])
    with pytest.raises(ValueError, match="objects without masks"):
        mask_targets([one], [Target()], 4)


class Largest(TorchDispatchMode):
    """The largest tensor that is made while it watches, bytes; views of others are none."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor) and t._base is None:
                self.bytes = max(self.bytes, t.numel() * t.element_size())
        return out


def test_masks_of_500_objects_are_not_copied() -> None:
    corner = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 220
    boxes = torch.cat([corner, corner + 30], dim=1)
    target = Target(masks=torch.zeros(500, 256, 256, dtype=torch.bool))
    foreground = [regions(boxes, list(range(500)), [0] * 500)]
    with Largest() as seen:
        found = mask_targets(foreground, [target], 28)
    result = found.masks.numel() * 4
    assert result == 500 * 28 * 28 * 4  # 1.6 MB; the masks 33 MB, as float 131 MB
    assert seen.bytes == result


@pytest.mark.parametrize("amp", [False, True])
def test_the_head_equals_its_layers_one_after_the_other(amp: bool) -> None:
    torch.manual_seed(0)
    head = MaskHead(6, 5, channels=8, convs=2)
    x, labels = torch.randn(3, 6, 7, 7), torch.tensor([4, 0, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        found = head(x, labels)
        y = head.convs[1](head.convs[0](x).relu()).relu()
        everything = head.logits(head.up(y).relu())
    assert found.dtype == torch.float32
    assert found.shape == (3, 14, 14)
    atol = 0.05 if amp else 1e-5
    wanted = everything[range(3), labels].float()
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)
    found.sum().backward()
    assert head.logits.weight.grad is not None
    rows = head.logits.weight.grad.flatten(1).any(dim=1)
    assert rows.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("amp", [False, True])
def test_no_regions_still_give_every_parameter_a_gradient(amp: bool) -> None:
    head = MaskHead(6, 5, channels=8)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        logits = head(torch.zeros(0, 6, 7, 7), torch.zeros(0, dtype=torch.int64))
        loss = mask_loss(logits, mask_targets([regions(torch.zeros(0, 4), [], [])], [Target()], 14))
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_numbers_out_of_range_are_refused() -> None:
    for keywords in ({"channels": 0}, {"convs": -1}):
        with pytest.raises(ValueError, match="must be at least 1, mask_convs="):
            MaskHead(4, 2, **keywords)


def test_foreground_names_the_object_among_the_ignored() -> None:
    """Rows are the target's own, ignored objects counted."""
    target = Target(
        boxes=torch.tensor([[0.0, 0, 64, 64], [5, 5, 25, 25], [40, 40, 60, 50]]),
        labels=torch.tensor([0, 1, 2]),
        ignore=torch.tensor([True, False, False]),
    )

    def classify(boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        count = sum(map(len, boxes))
        return torch.zeros(count, 4), torch.zeros(count, 3, 4)

    proposals = [torch.tensor([[70.0, 70.0, 90.0, 90.0]]), torch.tensor([[6.0, 5.0, 25.0, 25.0]])]
    stage = RoIStage(RandomRoIs(8, 1.0))
    terms, (empty, full) = stage.learn(classify, proposals, [Target(), target], True)
    assert len(empty.boxes) == 0
    assert full.boxes.tolist() == [[6, 5, 25, 25], [5, 5, 25, 25], [40, 40, 60, 50]]
    assert full.objects.tolist() == [1, 1, 2]
    assert full.labels.tolist() == [1, 1, 2]
    assert full.rows.tolist() == [1, 2, 3]
    assert terms["num_positives"] == 3
