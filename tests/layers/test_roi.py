"""Features of regions: slow loops, levels of a pyramid, boxes that are hardly any."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from cvtrain.layers.roi import PSRoIPool, RoIPool, assign_levels


def slow_roi_pool(x: Tensor, box: Tensor, size: int, stride: int) -> Tensor:
    """Girshick 2015, section 2.1: ``(C, H, W)`` -> ``(C, size, size)``."""
    left, top, right, bottom = (math.floor(float(v) / stride + 0.5) for v in box)
    height, width = max(bottom - top + 1, 1), max(right - left + 1, 1)
    out = torch.zeros(len(x), size, size)
    for i in range(size):
        for j in range(size):
            rows = range(
                max(0, top + math.floor(i * height / size)),
                min(x.shape[1], top + math.ceil((i + 1) * height / size)),
            )
            columns = range(
                max(0, left + math.floor(j * width / size)),
                min(x.shape[2], left + math.ceil((j + 1) * width / size)),
            )
            if len(rows) and len(columns):
                out[:, i, j] = x[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].amax(
                    dim=(1, 2)
                )
    return out


def value(x: Tensor, row: float, column: float) -> Tensor:
    """``(C, H, W)`` read between its pixels -> ``(C,)``."""
    height, width = x.shape[1:]
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    r, c = int(row), int(column)
    below, right = min(r + 1, height - 1), min(c + 1, width - 1)
    a, b = row - r, column - c
    high = (1 - b) * x[:, r, c] + b * x[:, r, right]
    low = (1 - b) * x[:, below, c] + b * x[:, below, right]
    return (1 - a) * high + a * low


def slow_roi_align(x: Tensor, box: Tensor, size: int, stride: int, points: int) -> Tensor:
    """He et al. 2017, section 3: ``(C, H, W)`` -> ``(C, size, size)``."""
    left, top, right, bottom = (float(v) / stride for v in box)
    height, width = max(bottom - top, 1.0) / size, max(right - left, 1.0) / size
    out = torch.zeros(len(x), size, size)
    steps = [(k + 0.5) / points for k in range(points)]
    for i in range(size):
        for j in range(size):
            for a in steps:
                for b in steps:
                    out[:, i, j] += value(x, top + (i + a) * height, left + (j + b) * width)
    return out / points**2


BOXES = torch.tensor([[8.0, 8.0, 41.0, 57.0], [3.0, 20.0, 60.0, 33.0], [30.0, 30.0, 30.0, 44.0]])


@pytest.mark.parametrize("method", ["pool", "align"])
def test_one_map_equals_slow_loops(method: str) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = RoIPool([8], 3, method)([x], [BOXES[:1], BOXES])
    slow = {
        "pool": lambda m, b: slow_roi_pool(m, b, 3, 8),
        "align": lambda m, b: slow_roi_align(m, b, 3, 8, 2),
    }[method]
    expected = [slow(x[0], BOXES[0])] + [slow(x[1], b) for b in BOXES]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_pyramid_is_read_as_torchvision_does() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 4, 512 // s, 512 // s, generator=generator) for s in (4, 8, 16, 32)]
    corner = torch.rand(40, 2, generator=generator) * 200
    side = torch.linspace(2, 560, 40)[:, None] * torch.tensor([1.0, 0.8])
    boxes = [torch.cat([corner, corner + side], dim=1)[i::2] for i in range(2)]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = theirs({str(i): m for i, m in enumerate(maps)}, boxes, [(512, 512)] * 2)
    found = RoIPool([4, 8, 16, 32])(maps, boxes)
    torch.testing.assert_close(found, expected)
    assert len(assign_levels(torch.cat(boxes), [4, 8, 16, 32]).unique()) == 4


def test_levels_are_those_of_the_paper() -> None:
    sides = torch.tensor([0.0, 10.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 5000.0])
    boxes = torch.stack([torch.zeros(9), torch.zeros(9), sides, sides], dim=1)
    assert assign_levels(boxes, [4, 8, 16, 32]).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert assign_levels(boxes, [8, 16, 32, 64]).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 3]


def test_position_sensitive_cells_read_their_own_channels() -> None:
    x = torch.arange(2 * 9.0).view(1, 18, 1, 1).expand(1, 18, 8, 8).contiguous()
    for method in ("pool", "align"):
        found = PSRoIPool(8, 3, method)(x, [torch.tensor([[4.0, 4.0, 50.0, 60.0]])])
        torch.testing.assert_close(found, torch.arange(18.0).view(1, 2, 3, 3))


def test_position_sensitive_pooling_is_a_mean() -> None:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    found = PSRoIPool(8, 2, "pool")(x, [torch.tensor([[0.0, 8.0, 46.0, 53.0]])])
    for i in range(2):
        for j in range(2):
            cell = x[0, 2 * i + j, 1 + 3 * i : 4 + 3 * i, 3 * j : 3 + 3 * j]
            torch.testing.assert_close(found[0, 0, i, j], cell.mean())


@pytest.mark.parametrize(
    "pool", [RoIPool([8], 2, "pool"), RoIPool([4, 8], 2), PSRoIPool(8, 2), PSRoIPool(8, 2, "align")]
)
def test_no_boxes_half_floats_and_gradients(pool: torch.nn.Module) -> None:
    maps = [torch.randn(2, 4, 16 // k, 16 // k, dtype=torch.bfloat16) for k in (1, 2)]
    used = maps[1:] if getattr(pool, "strides", [8]) == [8] else maps
    for x in used:
        x.requires_grad_(True)
    given = used[0] if isinstance(pool, PSRoIPool) else used
    with torch.autocast("cpu", dtype=torch.bfloat16):
        none = pool(given, [torch.zeros(0, 4), torch.zeros(0, 4)])
        some = pool(given, [torch.zeros(0, 4), BOXES])
    assert none.shape[0] == 0
    assert some.dtype == torch.float32
    assert torch.isfinite(some).all()
    (none.sum() + some.sum()).backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in used)


def test_bad_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"roi method mean: expected align \| pool"):
        RoIPool([8], method="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="roi size=0"):
        PSRoIPool(8, 0)
