"""Windows of several sizes and shapes, all of one size to the network: a pyramid of warped images.

A window of the side s and the ratio r = height / width is a square of fixed size in an image that
is resized by other factors across and down. So each (s, r) is an image of its own, a level, and its
windows are a square grid on it, which a network may be slid over as a convolution, or be shown one
by one. Levels are resized to a whole number of steps: the first window begins at one edge of the
image, the last ends at the other. A window never sticks out; one that would be larger than the
image spans it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.layers.window_head import WindowGrid


@dataclass(frozen=True)
class Level:
    """One size and shape of windows: the image resized, and the grid of windows on it.

    Attributes:
        height, width: of the resized image, pixels.
        rows, columns: of windows.
    """

    height: int
    width: int
    rows: int
    columns: int

    @property
    def count(self) -> int:
        """Windows."""
        return self.rows * self.columns


class WindowPyramid:
    """Levels of an image, where their windows lie, and what is in them.

    Args:
        window: side of a window as the network sees it, pixels.
        step: from one window to the next, both ways, pixels of the level.
        sides: of the windows (roots of their areas), shares of the image's shorter side.
        ratios: height / width of the windows in the image.

    Raises:
        ValueError: a number that is not above 0, or a list without any.
    """

    def __init__(
        self, window: int, step: int, sides: Sequence[float], ratios: Sequence[float]
    ) -> None:
        if not sides or not ratios or min(*sides, *ratios) <= 0:
            raise ValueError(f"sides={list(sides)} ratios={list(ratios)}: give numbers above 0")
        self.window, self.step = window, step
        self.sides = [float(s) for s in sides]
        self.ratios = [float(r) for r in ratios]
        self.grid = WindowGrid(step, window, window)

    def levels(self, height: int, width: int) -> list[Level]:
        """Those of an image of that size, each once."""
        found = []
        for side in self.sides:
            for ratio in self.ratios:
                pixels = side * min(height, width)
                rows = self._steps(height, pixels * math.sqrt(ratio))
                columns = self._steps(width, pixels / math.sqrt(ratio))
                size = [self.window + self.step * (n - 1) for n in (rows, columns)]
                found.append(Level(size[0], size[1], rows, columns))
        return list(dict.fromkeys(found))

    def _steps(self, side: int, window: float) -> int:
        """Windows of that many pixels along a side of the image."""
        return 1 + max(0, round((side * self.window / window - self.window) / self.step))

    def boxes(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """float32 ``(V, 4)`` xyxy pixels of the image: level after level, row by row."""
        parts = []
        for level in self.levels(height, width):
            boxes = self.grid.boxes(level.rows, level.columns, device)
            back = boxes.new_tensor([width / level.width, height / level.height] * 2)
            parts.append(boxes * back)
        return torch.cat(parts)

    def resized(self, x: Tensor) -> list[Tensor]:
        """Images ``(B, C, H, W)``, floats -> ``(B, C, height, width)`` of each level."""
        return [
            F.interpolate(
                x,
                size=(level.height, level.width),
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
            for level in self.levels(x.shape[-2], x.shape[-1])
        ]

    def all_crops(self, x: Tensor) -> Tensor:
        """Every window of one level: ``(B, C, height, width)`` -> ``(B, rows, columns, C, w, w)``.

        A view: nothing is copied.
        """
        windows = x.unfold(2, self.window, self.step).unfold(3, self.window, self.step)
        return windows.permute(0, 2, 3, 1, 4, 5)  # (B, C, rows, columns, w, w) before

    def crops(self, resized: Sequence[Tensor], images: Tensor, windows: Tensor) -> Tensor:
        """Some windows, ``(N, C, w, w)``, in the order in which they are asked for.

        Args:
            resized: of ``resized``.
            images: int64 ``(N,)`` places in the batch.
            windows: int64 ``(N,)`` places in ``boxes``.
        """
        found, order, first = [], [], 0
        for x in resized:
            views = self.all_crops(x)
            rows, columns = views.shape[1:3]
            mine = ((windows >= first) & (windows < first + rows * columns)).nonzero().flatten()
            place = windows[mine] - first
            found.append(views[images[mine], place // columns, place % columns])
            order.append(mine)
            first += rows * columns
        return torch.cat(found)[torch.cat(order).argsort()]
