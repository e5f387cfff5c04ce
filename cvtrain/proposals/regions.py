"""Initial regions and what is known of each: size, box, colors, texture, neighbors.

Segmentation: Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004,
by scikit-image. Features: Uijlings et al. 2013, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.segmentation import felzenszwalb

COLOR_BINS = 25
"""Bins a channel (paper: 25, n = 75 with three channels)."""
TEXTURE_BINS = 10
"""Bins a direction and channel (paper: 10, n = 240 with eight directions and three channels)."""
DIRECTIONS = 4
"""Axes along which the derivative is taken; its two signs make eight directions of them."""
_SIGNED = 2 * TEXTURE_BINS - 1


@dataclass(frozen=True)
class Features:
    """What the pixels of one color space fall into, whatever the segmentation.

    Attributes:
        image: float32 ``(H, W, C)``, smoothed for the segmentation.
        colors: int64 ``(C, H * W)`` in 0..COLOR_BINS - 1.
        textures: int64 ``(C * DIRECTIONS, H * W)`` in 0..2 * TEXTURE_BINS - 2; the middle one holds
            what is near 0 in both directions of an axis.
    """

    image: np.ndarray
    colors: np.ndarray
    textures: np.ndarray


@dataclass(frozen=True)
class Regions:
    """The R initial regions of one segmentation.

    Attributes:
        sizes: int64 ``(R,)`` pixels.
        boxes: int64 ``(R, 4)`` xyxy.
        colors: float64 ``(R, 25 * C)`` histograms, each of sum 1.
        textures: float64 ``(R, 80 * C)`` histograms, each of sum 1.
        pairs: int64 ``(E, 2)`` neighbors, the smaller number first, sorted.
        area: pixels of the image.
    """

    sizes: np.ndarray
    boxes: np.ndarray
    colors: np.ndarray
    textures: np.ndarray
    pairs: np.ndarray
    area: int


def features(image: np.ndarray, sigma: float) -> Features:
    """Bins of every pixel of ``(H, W, C)`` float32 in 0..1.

    Texture: Gaussian derivatives of sigma 1 along four axes. The positive part of each counts for
    one direction, the negative for the opposite one. The bins reach from 0 to the largest
    derivative of the channel, as the paper leaves their range open.

    Args:
        image: in one color space.
        sigma: of the smoothing before the segmentation, pixels (paper: 0.8).
    """
    planes = np.ascontiguousarray(np.moveaxis(image, 2, 0))  # (H, W, C) -> (C, H, W)
    flat = planes.reshape(len(planes), -1)  # (C, H, W) -> (C, H * W)
    colors = np.minimum((flat * COLOR_BINS).astype(np.int64), COLOR_BINS - 1)
    textures = np.concatenate([_directions(plane) for plane in planes])
    smooth = ndimage.gaussian_filter(image, (sigma, sigma, 0)) if sigma > 0 else image
    return Features(smooth, colors, textures)


def _directions(plane: np.ndarray) -> np.ndarray:
    """int64 ``(DIRECTIONS, H * W)`` signed bins of one channel ``(H, W)``."""
    down = ndimage.gaussian_filter(plane, 1.0, order=(1, 0)).ravel()
    right = ndimage.gaussian_filter(plane, 1.0, order=(0, 1)).ravel()
    half = np.float32(np.sqrt(0.5))
    axes = np.stack([right, down, (right + down) * half, (right - down) * half])
    most = max(float(axes.max()), -float(axes.min()))
    # Noise of float32 in a flat channel is no texture.
    scale = np.float32(TEXTURE_BINS / most) if most > 1e-5 else np.float32(0)
    bins = (axes * scale).astype(np.int64)  # towards 0: -(TEXTURE_BINS - 1)..TEXTURE_BINS - 1
    return np.clip(bins, 1 - TEXTURE_BINS, TEXTURE_BINS - 1) + (TEXTURE_BINS - 1)


def segment(smooth: np.ndarray, k: float, min_size: int) -> np.ndarray:
    """Labels 0..R - 1, int64 ``(H, W)``, of a smoothed image ``(H, W, C)`` in 0..1.

    Args:
        smooth: the image.
        k: the threshold's constant, for values of 0..255 as in the paper: larger, larger regions.
        min_size: smaller regions join a neighbor, pixels.
    """
    return np.asarray(felzenszwalb(smooth, scale=k, sigma=0, min_size=min_size), np.int64)


def describe(labels: np.ndarray, found: Features) -> Regions:
    """The regions of a segmentation ``(H, W)`` with labels 0..R - 1, all in use."""
    flat = labels.ravel()
    sizes = np.bincount(flat)
    count = len(sizes)
    slices = ndimage.find_objects(labels + 1)
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices], np.int64)
    base = flat * COLOR_BINS
    colors = np.stack(
        [np.bincount(base + bins, minlength=count * COLOR_BINS) for bins in found.colors]
    )
    colors = colors.reshape(-1, count, COLOR_BINS)  # (C, R * 25) -> (C, R, 25)
    colors = colors.transpose(1, 0, 2).reshape(count, -1)  # (C, R, 25) -> (R, 25 * C)
    base = flat * _SIGNED
    signed = np.stack(
        [np.bincount(base + bins, minlength=count * _SIGNED) for bins in found.textures]
    )
    signed = signed.reshape(-1, count, _SIGNED)  # (C * 4, R * 19) -> (C * 4, R, 19)
    middle = TEXTURE_BINS - 1
    ahead = signed[:, :, middle:].copy()
    behind = signed[:, :, middle::-1].copy()
    # The first bin also holds the pixels whose derivative points the other way: its part is 0.
    ahead[:, :, 0] += behind[:, :, 1:].sum(axis=2)
    behind[:, :, 0] += signed[:, :, middle + 1 :].sum(axis=2)
    textures = np.concatenate([ahead, behind], axis=2).transpose(1, 0, 2)
    textures = textures.reshape(count, -1)  # (R, C * 4, 20) -> (R, 80 * C)
    return Regions(
        sizes=sizes,
        boxes=boxes,
        colors=_shares(colors),
        textures=_shares(textures),
        pairs=neighbors(labels, count),
        area=labels.size,
    )


def _shares(counts: np.ndarray) -> np.ndarray:
    """``(R, n)`` counts -> float64 ``(R, n)``, rows of sum 1."""
    return counts / counts.sum(axis=1, keepdims=True)


def neighbors(labels: np.ndarray, count: int) -> np.ndarray:
    """int64 ``(E, 2)``: regions that touch, corners included, each pair once."""
    keys = []
    for a, b in (
        (labels[:, :-1], labels[:, 1:]),
        (labels[:-1], labels[1:]),
        (labels[:-1, :-1], labels[1:, 1:]),
        (labels[:-1, 1:], labels[1:, :-1]),
    ):
        differ = a != b
        left, right = a[differ], b[differ]
        keys.append(np.minimum(left, right) * count + np.maximum(left, right))
    unique = np.unique(np.concatenate(keys))
    return np.stack([unique // count, unique % count], axis=1)  # (E,) -> (E, 2)
