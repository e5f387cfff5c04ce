"""Direct location prediction: boxes of grid cells and anchors (Redmon & Farhadi 2016, section 2).

A box's center stays in its cell: the cell's corner plus the sigmoids of two numbers; its sides are
those of an anchor times the exponentials of two more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = math.log(1000.0)
"""Exponents are cut there, so that no side is infinite: a thousand times the anchor."""


def grid_boxes(codes: Tensor, anchors: Tensor, cell: tuple[float, float]) -> Tensor:
    """Boxes from what a network says of them.

    Args:
        codes: float ``(B, h, w, A, 4)``: t_x, t_y, t_w, t_h.
        anchors: ``(A, 2)`` widths and heights, pixels.
        cell: height, width of a cell, pixels.

    Returns:
        ``(B, h, w, A, 4)`` xyxy pixels, not clipped.
    """
    rows, columns = codes.shape[1:3]
    y = torch.arange(rows, device=codes.device, dtype=codes.dtype)[:, None, None]  # (h, 1, 1)
    x = torch.arange(columns, device=codes.device, dtype=codes.dtype)[None, :, None]  # (1, w, 1)
    inside = codes[..., :2].sigmoid()
    center_x = (x + inside[..., 0]) * cell[1]  # (B, h, w, A)
    center_y = (y + inside[..., 1]) * cell[0]
    half = anchors * codes[..., 2:4].clamp(max=LARGEST).exp() / 2  # (B, h, w, A, 2)
    return torch.stack(
        [
            center_x - half[..., 0],
            center_y - half[..., 1],
            center_x + half[..., 0],
            center_y + half[..., 1],
        ],
        dim=-1,
    )
