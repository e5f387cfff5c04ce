"""Switches: each value goes back to where its maximum was, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cvtrain.layers.unpool import pool_with_switches, unpool


def slow(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pooled, and unpooled again, of one map ``(H, W)``: a loop over its cells."""
    height, width = x.shape
    pooled, back = np.zeros((height // 2, width // 2), x.dtype), np.zeros_like(x)
    for i in range(height // 2):
        for j in range(width // 2):
            cell = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            y, z = divmod(int(cell.argmax()), 2)  # the first of equal ones
            pooled[i, j] = back[2 * i + y, 2 * j + z] = cell.max()
    return pooled, back


@pytest.mark.parametrize("size", [(2, 2), (6, 8), (5, 7), (9, 4), (3, 2)])
def test_values_go_back_to_their_places(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    pooled, switches = pool_with_switches(x)
    back = unpool(pooled, switches, size)
    for b in range(2):
        for c in range(3):
            want_pooled, want_back = slow(x[b, c].numpy())
            assert np.array_equal(pooled[b, c].numpy(), want_pooled)
            assert np.array_equal(back[b, c].numpy(), want_back)
    kept = back != 0
    assert torch.equal(back[kept], x[kept])
    assert int(kept.sum()) == pooled.numel()


def test_of_equal_values_one_place_is_taken() -> None:
    for x in (torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 3.0)):
        pooled, switches = pool_with_switches(x)
        assert switches.flatten().tolist() == [0, 2, 8, 10]
        back = unpool(torch.ones_like(pooled), switches, (4, 4))
        assert int(back.sum()) == 4


def test_an_odd_last_row_and_column_come_back_empty() -> None:
    x = torch.arange(15.0).view(1, 1, 3, 5)
    pooled, switches = pool_with_switches(x)
    assert pooled.flatten().tolist() == [6, 8]
    back = unpool(pooled, switches, (3, 5))
    assert back[0, 0].tolist() == [[0, 0, 0, 0, 0], [0, 6, 0, 8, 0], [0, 0, 0, 0, 0]]


def test_it_is_torchs_unpooling_and_its_gradient() -> None:
    x = torch.randn(2, 3, 8, 6, requires_grad=True)
    pooled, switches = pool_with_switches(x)
    other = torch.randn_like(pooled).requires_grad_()
    ours = unpool(other, switches, (8, 6))
    torch.testing.assert_close(ours, F.max_unpool2d(other, switches, 2, output_size=(8, 6)))
    seen = torch.randn_like(ours)
    (gradient,) = torch.autograd.grad((ours * seen).sum(), other)
    assert torch.equal(gradient, seen.flatten(2).gather(2, switches.flatten(2)).view_as(other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_keeps_the_type(dtype: torch.dtype) -> None:
    pooled, switches = pool_with_switches(torch.randn(1, 2, 4, 4).to(dtype))
    assert unpool(pooled, switches, (4, 4)).dtype == dtype
