"""Elastic deformation, as U-Net was trained with (Ronneberger et al. 2015, arXiv 1505.04597, 3.1).

"Random displacement vectors on a coarse 3 by 3 grid. The displacements are sampled from a Gaussian
distribution with 10 pixels standard deviation. Per-pixel displacements are then computed using
bicubic interpolation."

Where the paper is silent or we deviate:

- The standard deviation is a fraction of the shorter side, so that images of 64 pixels are not torn
  apart; 0.02 is the paper's 10 of 512 pixels.
- The grid's outer points lie on the image's border. Bicubic is cubic convolution (Keys 1981, doi
  10.1109/TASSP.1981.1163711, a = -1/2, with his rule beyond the border).
- The displacement says where a pixel is fetched from. What comes from outside the image is padding,
  as everywhere: gray, and void in masks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from cvtrain.augment.geometry import by_four, pad_value
from cvtrain.augment.transforms import within
from cvtrain.errors import UsageError

MOST = 0.1
"""The largest standard deviation: beyond it a 3 x 3 grid soon folds the image over."""
STEPS = 20
"""Of the search for where a point goes; by default each at least halves the error."""
SIDE = 9
"""Points on each side of a box that are followed."""


class Elastic(A.DualTransform):
    """A smooth random deformation of the image; masks, boxes and keypoints follow.

    Masks go by the nearest pixel. A box becomes the upright one around its deformed outline.

    Args:
        std: standard deviation of the displacements, fraction of the image's shorter side, 0..0.1.
        grid: points of the coarse grid along each side, 3 or more.
        p: probability.

    Raises:
        UsageError: a number out of range.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES, Targets.KEYPOINTS)

    def __init__(self, std: float = 0.02, grid: int = 3, p: float = 1.0) -> None:
        super().__init__(p=p)
        within("Elastic std", std, 0.0, MOST)
        if not isinstance(grid, int) or grid < 3:
            raise UsageError(f"Elastic grid={grid}: give a whole number, at least 3")
        self.std, self.grid = std, grid

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        shape = (2, self.grid, self.grid)
        coarse = self.random_generator.normal(0.0, self.std * min(height, width), shape)
        return {"coarse": coarse, "maps": fetched_from(coarse, height, width)}

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return _fetched(img, params["maps"], pad_value(img.dtype), cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return _fetched(mask, params["maps"], 0.0, cv2.INTER_NEAREST)

    def apply_to_masks(self, masks: Any, *args: Any, **params: Any) -> np.ndarray:
        return np.stack([self.apply_to_mask(np.asarray(m), **params) for m in masks])

    def apply_to_bboxes(self, bboxes: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        if not len(bboxes):
            return bboxes
        height, width = params["shape"][:2]
        moved = bboxes.copy()  # (N, 4 + extras), fractions of the image
        share = np.linspace(0.0, 1.0, SIDE)
        zero, one = np.zeros(SIDE), np.ones(SIDE)
        along = np.concatenate([share, share, zero, one])  # (4 SIDE,): top, bottom, left, right
        down = np.concatenate([zero, one, share, share])
        x = moved[:, :1] + (moved[:, 2:3] - moved[:, :1]) * along  # (N, 4 SIDE)
        y = moved[:, 1:2] + (moved[:, 3:4] - moved[:, 1:2]) * down
        points = np.stack([x * width, y * height], axis=-1)  # (N, 4 SIDE, 2)
        points = goes_to(points, params["coarse"], height, width) / [width, height]
        moved[:, :2], moved[:, 2:4] = points.min(axis=1), points.max(axis=1)
        return moved

    def apply_to_keypoints(self, keypoints: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        if not len(keypoints):
            return keypoints
        height, width = params["shape"][:2]
        moved = keypoints.copy()  # (K, 5 + extras); x and y lie on pixel centers
        moved[:, :2] = goes_to(moved[:, :2] + 0.5, params["coarse"], height, width) - 0.5
        return moved


def fetched_from(coarse: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel comes from: OpenCV's float32 maps ``(H, W)`` of x and y, on pixel centers.

    Args:
        coarse: ``(2, G, G)`` displacements along x and y at the points of the grid, pixels.
        height: of the image.
        width: the same.
    """
    rows, columns = _pixels(coarse.shape[1], height), _pixels(coarse.shape[2], width)
    across = columns.T.astype(np.float32)
    # (H, W) each. OpenCV's product: for one so large numpy's library starts threads, which wait for
    # each other in loader processes (12 ms in place of 0.1 on two busy cores).
    none = np.empty((0, 0), np.float32)  # nothing is added to the product
    x, y = (cv2.gemm((rows @ plane).astype(np.float32), across, 1.0, none, 0.0) for plane in coarse)
    columns_at, rows_at = (np.arange(n, dtype=np.float32) for n in (width, height))
    return np.add(x, columns_at), np.add(y, rows_at[:, None])


def goes_to(points: np.ndarray, coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Where points ``(..., 2)`` x, y of the image (continuous pixels) are after the deformation.

    The place q of a point p fulfils q + d(q) = p, d the displacement: found by repetition, which
    converges as long as d changes by less than a pixel a pixel.
    """
    shape = points.shape
    points = points.reshape(-1, 2)
    at = points.copy()
    for _ in range(STEPS):
        columns = weights(coarse.shape[2], at[:, 0] / width)
        rows = weights(coarse.shape[1], at[:, 1] / height)
        at = points - np.einsum("pi,kij,pj->pk", rows, coarse, columns)
    return at.reshape(shape)


@lru_cache(maxsize=16)
def _pixels(grid: int, length: int) -> np.ndarray:
    """``weights`` of the centers of the pixels of a side."""
    return weights(grid, (np.arange(length) + 0.5) / length)


def weights(grid: int, share: np.ndarray) -> np.ndarray:
    """What each of ``grid`` values on 0..1 counts at places ``(P,)``: ``(P, G)``, by cubic rule.

    Outside 0..1 the border's value counts.
    """
    at = np.clip(share, 0.0, 1.0) * (grid - 1)
    cell = np.minimum(at.astype(np.int64), grid - 2)
    t = at - cell
    taps = np.stack(
        [
            ((-0.5 * t + 1.0) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1.0,
            ((-1.5 * t + 2.0) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        ],
        axis=1,
    )  # (P, 4): the values at cell - 1 .. cell + 2
    wide = np.zeros((len(at), grid + 2))
    np.put_along_axis(wide, cell[:, None] + np.arange(4), taps, axis=1)
    beyond = np.zeros((grid + 2, grid))  # Keys' rule: the third difference is 0 at the border
    beyond[1:-1] = np.eye(grid)
    beyond[0, :3] = beyond[-1, -3:][::-1] = [3.0, -3.0, 1.0]
    return wide @ beyond


def _fetched(
    image: np.ndarray, maps: tuple[np.ndarray, np.ndarray], fill: float, method: int
) -> np.ndarray:
    """``(H, W[, C])``, each pixel from where the maps say."""
    return by_four(
        image,
        lambda part: cv2.remap(
            part,
            maps[0],
            maps[1],
            method,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(fill, fill, fill, fill),
        ),
    )
