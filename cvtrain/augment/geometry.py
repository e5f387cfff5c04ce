"""Placing an image in the network's input: letterbox, stretch, zoom, shift, mirror and warp.

Coordinates are continuous: pixel column i covers [i, i + 1), so a box around the whole image is
``[0, 0, W, H]`` and a mirror takes x to ``W - x``. Everything is an affine map ``(2, 3)`` float64
from original to network pixels. Maps without turn or shear are drawn so that size and corner of
the placed image are whole pixels; they are done by ``cv2.resize``, a third of the cost of a warp.
numpy and OpenCV alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from cvtrain.structures import Placement

PAD = 114
"""The gray around a letterboxed image, for 8 bits (other depths: the same fraction of white)."""

RESIZES = ("letterbox", "stretch")

_AREA_BELOW = 0.5
"""Scales below this average over the pixels they merge; bilinear would skip some and alias."""


@dataclass(frozen=True)
class Box2Box:
    """A map without turn: the image at ``(height, width)`` pixels, mirrored, put at (left, top).

    ``left`` and ``top`` may be negative and the placed image may reach beyond the canvas. With
    ``crop`` (top, left, height, width in original pixels) only that part of the image is placed.
    """

    height: int
    width: int
    left: int
    top: int
    hflip: bool = False
    vflip: bool = False
    crop: tuple[int, int, int, int] | None = None

    def matrix(self, height: int, width: int) -> np.ndarray:
        """The ``(2, 3)`` map for an original of that size."""
        y, x, h, w = self.crop or (0, 0, height, width)
        sx, sy = self.width / w, self.height / h
        right, bottom = self.left + self.width, self.top + self.height
        mx = [-sx, 0.0, right + sx * x] if self.hflip else [sx, 0.0, self.left - sx * x]
        my = [0.0, -sy, bottom + sy * y] if self.vflip else [0.0, sy, self.top - sy * y]
        return np.array([mx, my], np.float64)


def fit(height: int, width: int, out_height: int, out_width: int, resize: str) -> Box2Box:
    """Letterbox (aspect kept, centered) or stretch of ``(height, width)`` into the input."""
    if resize == "stretch":
        return Box2Box(out_height, out_width, 0, 0)
    scale = min(out_height / height, out_width / width)
    h = min(out_height, max(1, round(height * scale)))
    w = min(out_width, max(1, round(width * scale)))
    return Box2Box(h, w, (out_width - w) // 2, (out_height - h) // 2)


def placement(place: Box2Box, height: int, width: int) -> Placement:
    """What undoes ``place`` on predictions, for an original of ``(height, width)``; no mirrors."""
    return Placement(
        scale_x=place.width / width,
        scale_y=place.height / height,
        shift_x=float(place.left),
        shift_y=float(place.top),
        height=height,
        width=width,
    )


def pad_value(dtype: np.dtype) -> float:
    """``PAD`` for an image of that type; 0 for floats, whose range nobody knows."""
    if dtype.kind == "f":
        return 0.0
    return float(PAD * (np.iinfo(dtype).max // 255))


def widen(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The image in a wider type, white on white: 255 of 8 bits is 65535 of 16 and 1.0 of 32."""
    if image.dtype == dtype or image.dtype.kind not in "iu":
        return image
    white = np.iinfo(image.dtype).max
    if dtype.kind == "f":
        return image.astype(dtype) / dtype.type(white)
    return image.astype(dtype) * dtype.type(np.iinfo(dtype).max // white)


def put(
    image: np.ndarray, place: Box2Box, out_height: int, out_width: int, fill: float, nearest: bool
) -> np.ndarray:
    """Resizes, mirrors and pastes ``(H, W[, C])`` on a canvas ``(out_height, out_width[, C])``."""
    if place.crop is not None:
        y, x, h, w = place.crop
        image = np.ascontiguousarray(image[y : y + h, x : x + w])
    y0, y1 = max(0, place.top), min(out_height, place.top + place.height)
    x0, x1 = max(0, place.left), min(out_width, place.left + place.width)
    whole = (y0, x0, y1, x1) == (0, 0, out_height, out_width)
    shape = (out_height, out_width, *image.shape[2:])
    if y0 >= y1 or x0 >= x1:
        return np.full(shape, fill, image.dtype)
    resized = _resize(image, place.height, place.width, nearest)
    if place.hflip or place.vflip:
        code = 0 if not place.hflip else (-1 if place.vflip else 1)
        flipped = cv2.flip(resized, code)
        resized = flipped.reshape(resized.shape)
    part = resized[y0 - place.top : y1 - place.top, x0 - place.left : x1 - place.left]
    if whole:
        return np.ascontiguousarray(part)
    canvas = np.full(shape, fill, image.dtype)
    canvas[y0:y1, x0:x1] = part
    return canvas


def _resize(image: np.ndarray, height: int, width: int, nearest: bool) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    if nearest:
        method = cv2.INTER_NEAREST_EXACT
    elif height < image.shape[0] * _AREA_BELOW or width < image.shape[1] * _AREA_BELOW:
        method = cv2.INTER_AREA
    else:
        method = cv2.INTER_LINEAR
    size = (width, height)
    return by_four(image, lambda part: cv2.resize(part, size, interpolation=method))


def by_four(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """``change`` on four channels at a time, more than which OpenCV does not always take."""
    if image.ndim == 2 or image.shape[2] <= 4:
        out = change(image)
        return out.reshape(*out.shape[:2], *image.shape[2:])  # OpenCV drops a last axis of 1
    parts = [np.ascontiguousarray(image[..., i : i + 4]) for i in range(0, image.shape[2], 4)]
    return np.dstack([change(part) for part in parts])


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    out_height: int,
    out_width: int,
    fill: float,
    nearest: bool,
) -> np.ndarray:
    """Warps ``(H, W[, C])`` by any affine map onto ``(out_height, out_width[, C])``."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if not nearest and scale < _AREA_BELOW:  # shrink first, by averaging; the warp does the rest
        h, w = image.shape[:2]
        small = _resize(image, max(1, round(h * scale)), max(1, round(w * scale)), nearest=False)
        back = np.diag([w / small.shape[1], h / small.shape[0], 1.0])
        image, matrix = small, matrix @ back
    # OpenCV's coordinates lie on pixel centers: half a pixel off ours, on both sides.
    centered = matrix.copy()
    centered[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    method = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return by_four(
        image,
        lambda part: cv2.warpAffine(
            part,
            centered,
            (out_width, out_height),
            flags=method,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(fill, fill, fill, fill),
        ),
    )


def map_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``(N, 4)`` xyxy through a map: the upright box around the four mapped corners, unclipped."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)  # (N, 4) -> (N, 4 corners, xy)
    mapped = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([mapped.min(axis=1), mapped.max(axis=1)], axis=1)  # -> (N, 4)


def map_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``(..., 2)`` x, y through a map."""
    return points @ matrix[:, :2].T + matrix[:, 2]
