"""Parts of the image covered: cut-out (DeVries, Taylor 2017), grid dropout (Chen et al. 2020).

Only the image is covered; boxes, masks and keypoints stay where they are, for the object is still
there. One of which less than ``augment.min_visibility`` is left in view is dropped, as after a
crop; keypoints below a hole are marked hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import albumentations as A
import cv2
import numpy as np
from albumentations.core.bbox_utils import BboxProcessor
from albumentations.core.type_definitions import Targets

from cvtrain.augment.geometry import pad_value
from cvtrain.augment.pixels import span
from cvtrain.augment.scene import HIDDEN, VISIBLE
from cvtrain.augment.transforms import within
from cvtrain.errors import UsageError


class Holes(A.DualTransform):
    """Base of the transforms that cover rectangles with gray; any type and number of channels."""

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES, Targets.KEYPOINTS)

    @abstractmethod
    def holes(self, height: int, width: int) -> np.ndarray:
        """int64 ``(N, 4)`` xyxy pixels, inside the image."""

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        cover, holes = np.zeros((height, width), np.uint8), self.holes(height, width)
        for x0, y0, x1, y1 in holes:
            cover[y0:y1, x0:x1] = 1
        return {"cover": cover, "holes": holes}

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        out, gray = img.copy(), np.asarray(pad_value(img.dtype)).astype(img.dtype)
        for x0, y0, x1, y1 in params["holes"]:
            out[y0:y1, x0:x1] = gray
        return out

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return mask

    def apply_to_masks(self, masks: Any, *args: Any, **params: Any) -> Any:
        return masks

    def apply_to_bboxes(self, bboxes: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        processor = self.get_processor("bboxes")
        if not len(bboxes) or processor is None:
            return bboxes
        limit = cast("BboxProcessor", processor).params.min_visibility
        cover = params["cover"]
        height, width = cover.shape
        # Covered pixels above and left of each corner: a box's are four of them.
        sums = cv2.integral(cover)  # (H + 1, W + 1)
        pixels = np.clip(bboxes[:, :4], 0, 1) * [width, height, width, height]
        x0, y0 = np.floor(pixels[:, :2]).astype(int).T
        x1, y1 = np.ceil(pixels[:, 2:4]).astype(int).T
        area = np.maximum((x1 - x0) * (y1 - y0), 1)
        covered = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
        return bboxes[(1 - covered / area >= limit) & (covered < area)]

    def apply_to_keypoints(self, keypoints: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        if not len(keypoints) or keypoints.shape[1] < 6:  # x y z angle scale, visibility
            return keypoints
        cover, out = params["cover"], keypoints.copy()
        height, width = cover.shape
        columns = np.clip(np.rint(out[:, 0]).astype(int), 0, width - 1)
        rows = np.clip(np.rint(out[:, 1]).astype(int), 0, height - 1)
        below = (cover[rows, columns] != 0) & (out[:, 5] == VISIBLE)
        out[:, 5] = np.where(below, HIDDEN, out[:, 5])
        return out


class CutOut(Holes):
    """A few rectangles of gray at random places.

    Args:
        holes: fewest and most rectangles.
        size: shortest and longest side of one, fraction of the image's side.
        p: probability of any.
    """

    def __init__(
        self,
        holes: Sequence[int] = (1, 3),
        size: Sequence[float] = (0.1, 0.25),
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        low, high = span("CutOut holes", holes)
        self.count, self.size = (round(low), round(high)), span("CutOut size", size, 1.0)

    def holes(self, height: int, width: int) -> np.ndarray:
        draw, found = self.py_random, []
        for _ in range(draw.randint(*self.count)):
            h = min(height, max(1, round(draw.uniform(*self.size) * height)))
            w = min(width, max(1, round(draw.uniform(*self.size) * width)))
            y, x = draw.randint(0, height - h), draw.randint(0, width - w)
            found.append([x, y, x + w, y + h])
        return np.array(found, np.int64).reshape(-1, 4)


class GridDropout(Holes):
    """Squares of gray in a regular grid, shifted at random.

    Args:
        cells: fewest and most grid cells along the image's shorter side.
        ratio: side of a square, fraction of its cell's; it covers the square of it.
        p: probability of the grid.
    """

    def __init__(self, cells: Sequence[int] = (4, 8), ratio: float = 0.4, p: float = 1.0) -> None:
        super().__init__(p=p)
        low, high = span("GridDropout cells", cells)
        if low < 1:
            raise UsageError(f"GridDropout cells={list(cells)}: give two numbers from 1")
        within("GridDropout ratio", ratio, 0.0, 1.0)
        self.cells, self.ratio = (round(low), round(high)), ratio

    def holes(self, height: int, width: int) -> np.ndarray:
        cell = max(2, round(min(height, width) / self.py_random.randint(*self.cells)))
        side = round(cell * self.ratio)
        top, left = self.py_random.randrange(cell), self.py_random.randrange(cell)
        tops = np.arange(top - cell, height, cell)
        lefts = np.arange(left - cell, width, cell)
        y, x = (a.reshape(-1) for a in np.meshgrid(tops, lefts, indexing="ij"))
        corners = np.stack([x, y, x + side, y + side], axis=1)  # (N, 4)
        return np.clip(corners, 0, [width, height, width, height])
