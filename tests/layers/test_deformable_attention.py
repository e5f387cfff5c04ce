"""Deformable attention against a reference in plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from cvtrain.layers.deformable_attention import DeformableAttention, sample_maps

SIZES = [(5, 4), (3, 2), (1, 1)]
CELLS = sum(rows * columns for rows, columns in SIZES)


def read(cells: torch.Tensor, rows: int, columns: int, x: float, y: float) -> torch.Tensor:
    """One bilinear sample of ``(rows * columns, D)``; x, y in shares; zeros outside."""
    px, py = x * columns - 0.5, y * rows - 0.5
    left, top = math.floor(px), math.floor(py)
    total = torch.zeros(cells.shape[1])
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < rows and 0 <= j < columns:
                total += cells[i * columns + j] * (1 - abs(py - i)) * (1 - abs(px - j))
    return total


def test_samples_are_those_of_plain_loops() -> None:
    generator = torch.Generator().manual_seed(2)
    batch, queries, heads, points, depth = 2, 3, 2, 2, 3
    values = torch.randn(batch, CELLS, heads * depth, generator=generator)
    shape = (batch, queries, heads, len(SIZES), points)
    places = torch.rand(*shape, 2, generator=generator) * 1.6 - 0.3  # some are outside
    weights = torch.rand(shape, generator=generator)
    found = sample_maps(values, SIZES, places, weights)
    want = torch.zeros(batch, queries, heads * depth)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                first = 0
                for level, (rows, columns) in enumerate(SIZES):
                    part = values[b, first : first + rows * columns, m * depth : (m + 1) * depth]
                    first += rows * columns
                    for k in range(points):
                        x, y = places[b, q, m, level, k].tolist()
                        sample = read(part, rows, columns, x, y)
                        want[b, q, m * depth : (m + 1) * depth] += (
                            weights[b, q, m, level, k] * sample
                        )
    torch.testing.assert_close(found, want)


def test_the_module_is_equation_3() -> None:
    torch.manual_seed(0)
    layer = DeformableAttention(8, heads=2, levels=3, points=4)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    query, memory = torch.randn(1, 2, 8), torch.randn(1, CELLS, 8)
    boxes = torch.tensor([[[0.4, 0.5, 0.3, 0.2], [0.9, 0.1, 0.5, 0.4]]])
    values = layer.values(memory)
    found = layer(query, boxes, values, SIZES)
    offsets = layer.offsets(query).view(2, 2, 3, 4, 2)
    weights = layer.weights(query).view(2, 2, 12).softmax(-1).view(2, 2, 3, 4)
    for q in range(2):
        summed = torch.zeros(8)
        for m in range(2):
            first = 0
            for level, (rows, columns) in enumerate(SIZES):
                part = values[0, first : first + rows * columns, 4 * m : 4 * m + 4]
                first += rows * columns
                for k in range(4):
                    x, y, w, h = boxes[0, q].tolist()
                    dx, dy = offsets[q, m, level, k].tolist()
                    sample = read(part, rows, columns, x + dx / 4 * w / 2, y + dy / 4 * h / 2)
                    summed[4 * m : 4 * m + 4] += weights[q, m, level, k] * sample
        torch.testing.assert_close(found[0, q], layer.join(summed), rtol=1e-4, atol=1e-4)


def test_points_begin_on_rays_within_the_box() -> None:
    layer = DeformableAttention(16, heads=8, levels=3, points=4)
    offsets = layer.offsets(torch.randn(1, 16)).view(8, 3, 4, 2)
    reach = offsets.abs().amax(dim=-1)  # in quarters of the way to the border
    torch.testing.assert_close(reach, torch.tensor([1.0, 2, 3, 4]).expand(8, 3, 4))
    angles = torch.atan2(offsets[..., 1], offsets[..., 0]).remainder(2 * math.pi)
    want = torch.arange(8) * math.pi / 4
    torch.testing.assert_close(angles, want[:, None, None].expand(8, 3, 4), atol=1e-5, rtol=0)
    assert not layer.weights(torch.randn(1, 16)).any()


def test_half_floats_read_in_float32() -> None:
    layer = DeformableAttention(8, heads=2, levels=3, points=4)
    query, memory = torch.randn(1, 300, 8), torch.randn(1, CELLS, 8)
    boxes = torch.rand(1, 300, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(query, boxes, layer.values(memory), SIZES)
    whole = layer(query, boxes, layer.values(memory), SIZES)
    torch.testing.assert_close(half.float(), whole, atol=0.05, rtol=0.05)


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="points=0 must be at least 1"):
        DeformableAttention(8, 2, 3, 0)
    with pytest.raises(ValueError, match="multiple of heads=3"):
        DeformableAttention(8, 3, 3, 4)
