"""Dense heads against the paper's own way of shifting, pooling and interleaving."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.layers.window_head import DenseHead, WindowGrid, from_window, overlap, to_window

GRIDS = [((1, 1), 3), ((2, 2), 3), ((2, 3), 2), ((3, 2), 1)]


def head(grid: tuple[int, int], pool: int) -> DenseHead:
    torch.manual_seed(0)
    return DenseHead(5, [7, 6], 4, grid, pool).eval()


def by_offsets(dense: DenseHead, maps: Tensor) -> Tensor:
    """Section 3.3: pool at each offset, slide the connected layers, interleave the outputs."""
    p, (rows, columns) = dense.pool, dense.extent
    count = (maps.shape[2] - rows + 1, maps.shape[3] - columns + 1)
    outputs = torch.full((len(maps), 4, *count), torch.nan)
    first, *rest = dense.layers
    for dy in range(min(p, count[0])):  # a small map has no window at the others
        for dx in range(min(p, count[1])):
            pooled = F.max_pool2d(maps[:, :, dy:, dx:], p)  # without overlap
            found = F.conv2d(pooled, first.weight, first.bias)
            for layer in rest:
                found = layer(found)
            outputs[:, :, dy::p, dx::p] = found
    return outputs


@pytest.mark.parametrize(("grid", "pool"), GRIDS)
@pytest.mark.parametrize("extra", [0, 1, 2, 5])
def test_it_is_the_papers_offset_pooling(grid: tuple[int, int], pool: int, extra: int) -> None:
    dense = head(grid, pool)
    maps = torch.randn(2, 5, dense.extent[0] + extra, dense.extent[1] + 2 * extra)
    expected = by_offsets(dense, maps)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(dense(maps), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("grid", "pool"), GRIDS)
def test_every_output_is_that_of_its_window_of_the_map(grid: tuple[int, int], pool: int) -> None:
    dense = head(grid, pool)
    rows, columns = dense.extent
    maps = torch.randn(2, 5, rows + 4, columns + 3)
    whole = dense(maps)
    assert whole.shape == (2, 4, 5, 4)
    for i in range(5):
        for j in range(4):
            window = maps[:, :, i : i + rows, j : j + columns]
            # As the paper trains it: pooled without overlap, then connected layers.
            x = F.max_pool2d(window, pool).flatten(1)
            for n, layer in enumerate(dense.layers):
                is_linear = isinstance(layer, torch.nn.Conv2d)
                x = F.linear(x, layer.weight.flatten(1), layer.bias) if is_linear else layer(x)
                assert n or x.shape == (2, 7)
            torch.testing.assert_close(whole[:, :, i, j], x, rtol=1e-5, atol=1e-5)


def test_windows_lie_row_by_row() -> None:
    grid = WindowGrid(stride=16, height=96, width=64)
    assert grid.boxes(2, 3).tolist() == [
        [0, 0, 64, 96],
        [16, 0, 80, 96],
        [32, 0, 96, 96],
        [0, 16, 64, 112],
        [16, 16, 80, 112],
        [32, 16, 96, 112],
    ]


def test_what_a_box_and_a_window_share() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 9]])
    windows = torch.tensor([[0.0, 0, 20, 20], [5, 0, 25, 20], [10, 10, 30, 30]])
    assert overlap(boxes, windows).tolist() == [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    assert overlap(windows, boxes).tolist() == [[1.0, 0.0], [0.5, 0.0], [0.0, 0.0]]


def test_edges_in_units_of_the_window() -> None:
    windows = torch.tensor([[10.0, 20, 30, 60]])
    box = torch.tensor([[10.0, 20, 20, 80]])
    assert to_window(box, windows).tolist() == [[0.0, 0.0, 0.5, 1.5]]
    assert from_window(to_window(box, windows), windows).tolist() == box.tolist()
