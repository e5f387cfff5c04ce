"""Windows over images of any size, their maps blended, a strip of the whole map at a time.

The grid is a product of rows and columns, so that weights are, too: each tile's weight falls to
its edges as a squared sine over the pixels that it shares with its neighbors, and the weights of
all tiles at a pixel add up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

ALIGN = 32
"""Tiles begin at multiples of this, pixels: the grids of a network's coarser maps then lie in every
tile as they lie in the whole image (strides up to 32)."""

Around = tuple[int, int, int, int]
"""Pixels of the image cut with a tile at its left, right, top and bottom."""


@dataclass(frozen=True)
class Spans:
    """Tiles along one side of an image.

    Attributes:
        size: of the image, pixels.
        starts: of the tiles, ascending.
        length: of a tile, pixels; the last may reach beyond the image.
    """

    size: int
    starts: tuple[int, ...]
    length: int

    @classmethod
    def over(cls, size: int, tile: int, overlap: float, align: int = ALIGN) -> Spans:
        """Tiles that cover ``size`` pixels, neighbors sharing at least ``overlap`` of a tile.

        Args:
            size: pixels to cover.
            tile: pixels of a tile; an image that is smaller has one tile, of its own size.
            overlap: 0..1, below 1.
            align: tiles begin at its multiples, unless they are smaller than that; 1: anywhere,
                and none reaches beyond the image.
        """
        if size <= tile:
            return cls(size, (0,), size)
        if tile < align:
            align = 1
        step = max(align, int(tile * (1 - overlap)) // align * align)
        last = -(-(size - tile) // align) * align
        starts = [*range(0, last, step), last]
        return cls(size, tuple(starts), tile)

    def stop(self, index: int) -> int:
        """Where a tile ends inside the image."""
        return min(self.starts[index] + self.length, self.size)

    def weights(self) -> list[Tensor]:
        """Of each tile's pixels inside the image, float32; at each pixel they add up to 1."""
        total = torch.zeros(self.size, dtype=torch.float64)
        raw = []
        for k, start in enumerate(self.starts):
            weight = torch.ones(self.length, dtype=torch.float64)
            if k:
                ramp = _ramp(self.starts[k - 1] + self.length - start)
                weight[: len(ramp)] *= ramp
            if k + 1 < len(self.starts):
                ramp = _ramp(start + self.length - self.starts[k + 1])
                weight[self.length - len(ramp) :] *= ramp.flip(0)
            raw.append(weight[: self.stop(k) - start])
            total[start : self.stop(k)] += raw[-1]
        return [
            (weight / total[start : start + len(weight)]).float()
            for start, weight in zip(self.starts, raw, strict=True)
        ]


def _ramp(shared: int) -> Tensor:
    """float64 ``(shared,)`` from nearly 0 to nearly 1: a squared sine at pixel centers."""
    at = (torch.arange(shared, dtype=torch.float64) + 0.5) / max(1, shared)
    return torch.sin(at * (math.pi / 2)) ** 2


@dataclass(frozen=True)
class Window:
    """Which part of the image a tile is: rows ``top..bottom``, columns ``left..right``, pixels."""

    top: int
    bottom: int
    left: int
    right: int


See = Callable[[Tensor, Around, Sequence[Window]], Tensor]
"""Crops ``(n B, C, h, w)``, the pixels around them that no map is wanted of, and the n windows they
are (the B images of each together) -> maps ``(n B, K, h - around, w - around)``."""


class Blend:
    """The map of a batch of images, from tiles, asked for in strips from the top down.

    Args:
        images: ``(B, C, H, W)``.
        rows, columns: the grid.
        see: the network.
        context: pixels of the image cut with each tile on each side, as far as there are any.
        columns_wanted: first and last (exclusive) column of the map; None: all. Tiles that have
            none of them are not looked at.
        together: tiles of a row that the network sees at once.
    """

    def __init__(
        self,
        images: Tensor,
        rows: Spans,
        columns: Spans,
        see: See,
        context: int = 0,
        columns_wanted: tuple[int, int] | None = None,
        together: int = 1,
    ) -> None:
        self.images, self.see = images, see
        self.rows_grid, self.columns_grid = rows, columns
        self.context, self.together = context, max(1, together)
        self.left, self.right = columns_wanted or (0, columns.size)
        self.down = [w.to(images.device) for w in rows.weights()]
        self.across = [w.to(images.device) for w in columns.weights()]
        self.held: Tensor | None = None  # (B, K, rows, columns wanted)
        self.base = 0  # the row of the map that ``held`` begins with
        self.next = 0  # the row of tiles that comes next

    def rows(self, start: int, stop: int) -> Tensor:
        """``(B, K, stop - start, columns wanted)``; no row before ``start`` can be asked for again.

        Raises:
            ValueError: rows that were given up.
        """
        if start < self.base:
            raise ValueError(f"row {start} is gone: the strip begins at {self.base}")
        starts = self.rows_grid.starts
        while self.next < len(starts) and starts[self.next] < stop:
            if self.held is not None and start > self.base:
                self.held = self.held[:, :, start - self.base :].clone()
                self.base = start
            self._row_of_tiles(self.next)
            self.next += 1
        assert self.held is not None
        return self.held[:, :, start - self.base : stop - self.base]

    def _row_of_tiles(self, row: int) -> None:
        grid = self.columns_grid
        wanted = [
            c for c, x in enumerate(grid.starts) if x < self.right and grid.stop(c) > self.left
        ]
        for _, group in groupby(wanted, lambda c: self._shape(self._window(row, c))):
            alike = list(group)
            for first in range(0, len(alike), self.together):
                self._add(row, alike[first : first + self.together])

    def _window(self, row: int, column: int) -> Window:
        down, along = self.rows_grid, self.columns_grid
        return Window(down.starts[row], down.stop(row), along.starts[column], along.stop(column))

    def _around(self, window: Window) -> Around:
        """What there is of the context."""
        height, width = self.images.shape[-2:]
        return (
            min(self.context, window.left),
            min(self.context, width - window.right),
            min(self.context, window.top),
            min(self.context, height - window.bottom),
        )

    def _shape(self, window: Window) -> tuple[int, int, Around]:
        return (window.bottom - window.top, window.right - window.left, self._around(window))

    def _add(self, row: int, columns: Sequence[int]) -> None:
        """Look at tiles of one shape and add their maps, weighted."""
        windows = [self._window(row, c) for c in columns]
        around = self._around(windows[0])
        left, right, top, bottom = around
        crops = torch.cat(
            [
                self.images[..., w.top - top : w.bottom + bottom, w.left - left : w.right + right]
                for w in windows
            ]
        )  # (n B, C, h, w)
        maps = self.see(crops, around, windows).unflatten(0, (len(windows), -1))  # (n, B, K, h, w)
        self._grow(windows[0].bottom, maps[0])
        assert self.held is not None
        for column, window, message in zip(columns, windows, maps, strict=True):
            x0, x1 = max(window.left, self.left), min(window.right, self.right)
            inside = slice(x0 - window.left, x1 - window.left)
            y0 = max(window.top, self.base)
            weight = self.down[row][y0 - window.top :, None] * self.across[column][inside]
            part = message[:, :, y0 - window.top :, inside].float() * weight
            self.held[
                :, :, y0 - self.base : window.bottom - self.base, x0 - self.left : x1 - self.left
            ] += part

    def _grow(self, bottom: int, like: Tensor) -> None:
        """Make ``held`` reach down to ``bottom``."""
        batch, count = like.shape[:2]
        have = 0 if self.held is None else self.held.shape[2]
        more = bottom - self.base - have
        if more > 0:
            shape = (batch, count, more, self.right - self.left)
            zeros = torch.zeros(shape, dtype=torch.float32, device=like.device)
            self.held = zeros if self.held is None else torch.cat([self.held, zeros], dim=2)
