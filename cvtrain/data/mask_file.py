"""What the pixels of a mask file say: values or colors; the same for reader, gate and loader."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cvtrain.data.formats.files import FORMATS
from cvtrain.errors import DataError

VOID = 255
"""The class of pixels that belong to none: ``structures.IGNORE_INDEX``, which needs torch."""


_APART = 48
"""Values of a JPEG that are at least so far apart can be told from one another."""

_CLOSE = 16
FAR = _APART // 2
"""A pixel of a JPEG that is further than this from every level was saved as none of them."""


def is_lossy(image: Image.Image) -> bool:
    """Whether the file's values are not exactly those that were saved."""
    return image.format in ("JPEG", "MPO")


def apart(known: np.ndarray, colors: bool = False) -> bool:
    """Whether the values ``(K,)`` of classes and void can be told apart in a JPEG."""
    if colors:
        rgb = _channels(np.unique(known))
        gaps = np.abs(rgb[:, None] - rgb[None]).max(2)  # (K, K)
        gaps = gaps[~np.eye(len(rgb), dtype=bool)]
    else:
        gaps = np.diff(np.unique(known))
    return not len(gaps) or int(gaps.min()) >= _APART


def nearest(values: np.ndarray, known: np.ndarray, colors: bool = False) -> np.ndarray:
    """Of each value of any shape the nearest of the known ones ``(K,)``, which are ``apart``."""
    known = np.unique(known)
    if not colors:
        return known[np.searchsorted((known[1:] + known[:-1]) / 2, values)]
    seen, back = np.unique(values, return_inverse=True)
    rgb = _channels(known)
    best = [int(((rgb - own) ** 2).sum(1).argmin()) for own in _channels(seen)]
    return known[best][back.reshape(values.shape)]


def distances(values: np.ndarray, known: np.ndarray, colors: bool = False) -> np.ndarray:
    """Of each value ``(V,)`` how far the nearest known one is, in the channel where most."""
    found = nearest(values, known, colors)
    if not colors:
        return np.abs(found - values)
    return np.abs(_channels(found) - _channels(values)).max(1)


def levels_of(counts: np.ndarray) -> list[int] | None:
    """The values that JPEG masks were saved with, where there are few of them.

    A level is a peak: a third of the pixels within 24 of it, or more, lie within 4 (of evenly
    spread values a fifth would). Fewer pixels lie far from all levels than at any one of them.
    Within 3 of 0 or 255 a level is these.

    Args:
        counts: ``(256,)`` pixels of each value, of all masks together.

    Returns:
        Rising; None where the pixels crowd around no few values that are ``apart``.
    """
    near, wide = (np.convolve(counts, np.ones(n), "same") for n in (9, 2 * FAR + 1))
    floor = max(20.0, counts.sum() * 1e-4)
    found: list[int] = []
    for value in np.argsort(-near, kind="stable").tolist():
        alone = all(abs(value - other) > 32 for other in found)
        if alone and near[value] > max(floor, wide[value] / 3):
            around = np.arange(max(0, value - 8), min(256, value + 9))
            found.append(round(float(np.average(around, weights=counts[around]))))
    levels = np.array(sorted({0 if v <= 3 else 255 if v >= 252 else v for v in found}), np.int64)
    if not apart(levels) or (len(levels) < 2 and np.count_nonzero(counts) > 1):
        return None
    close = distances(np.arange(256), levels) <= _CLOSE
    least = min(counts[abs(np.arange(256) - level) <= _CLOSE].sum() for level in levels)
    return levels.tolist() if counts[~close].sum() <= least else None


def _channels(values: np.ndarray) -> np.ndarray:
    """Packed colors ``(V,)`` -> int64 ``(V, 3)``."""
    values = np.asarray(values, np.int64)
    return np.stack([values >> 16 & 255, values >> 8 & 255, values & 255], 1)


def palette_colors(image: Image.Image, values: np.ndarray) -> np.ndarray | None:
    """int64 ``(V,)`` packed colors of a palette file's indices; None without a color.

    A palette of grays in their order, index i being i, i, i, says nothing of its own.
    """
    palette = image.getpalette("RGB") if image.mode in ("P", "PA") else None
    if not palette or not len(values):
        return None
    table = np.zeros(256, np.int64)
    rgb = np.array(palette, np.int64).reshape(-1, 3)[:256]
    table[: len(rgb)] = rgb[:, 0] << 16 | rgb[:, 1] << 8 | rgb[:, 2]
    values = np.asarray(values, np.int64)
    found = table[values]
    return None if ((found == values * 0x010101) | (values == VOID)).all() else found


def mask_pixels(image: Image.Image, colors: bool = False) -> np.ndarray | None:
    """``(H, W)`` whole numbers of an open image, None where it has none of that kind.

    Args:
        image: of any mode, not turned by its EXIF here.
        colors: packed colors ``R << 16 | G << 8 | B``, int32, alpha left out, those of a palette
            file by its palette. False: values; of a palette file the indices, of a file in colors
            that are all grays one channel, of one bit a pixel 0 and 255.
    """
    if colors:
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
            return None
        rgb = np.asarray(image.convert("RGB"), np.int32)  # (H, W, 3)
        return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    array = np.asarray(image)
    if array.ndim == 3:
        channels = array[..., : 3 if array.shape[2] >= 3 else 1]  # without alpha
        if (channels != channels[..., :1]).any():
            return None
        array = channels[..., 0]  # (H, W, C) -> (H, W)
    if array.dtype == bool:  # one bit a pixel is black and white
        return array.astype(np.uint8) * np.uint8(VOID)
    return array if array.dtype.kind in "iu" else None


def decode_mask(path: Path, colors: bool = False, known: np.ndarray | None = None) -> np.ndarray:
    """``mask_pixels`` of a file, upright as its image is.

    Args:
        path: of the file.
        colors: as for ``mask_pixels``.
        known: the values of classes and void, to which those of a JPEG are set where they can be
            told apart. None: values stay as they are.

    Raises:
        DataError: unreadable, or not of that kind.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            lossy = known is not None and is_lossy(image)
            pixels = mask_pixels(ImageOps.exif_transpose(image), colors)
    except Exception as e:  # Pillow's plugins raise every kind of error on broken files
        raise DataError(f"{path}: the mask cannot be read ({e}); run `cvtrain check`") from e
    if pixels is None:
        fix = "save it as 8-bit RGB" if colors else "write class indices, or set data.palette=FILE"
        raise DataError(f"{path}: a mask {'without' if colors else 'in'} colors; {fix}")
    if lossy and known is not None and len(known) and apart(known, colors):
        return nearest(pixels, known, colors)
    return pixels


class ClassOfValue:
    """Looks up the class of each pixel.

    Args:
        values: int64 ``(K,)`` of each class; other values are void.
    """

    def __init__(self, values: np.ndarray) -> None:
        values = np.asarray(values, np.int64)[:VOID]
        order = np.argsort(values, kind="stable")
        self._values, self._classes = values[order], order.astype(np.uint8)
        self._small = np.full(256, VOID, np.uint8)
        small = np.flatnonzero((values >= 0) & (values < 256))
        self._small[values[small]] = small.astype(np.uint8)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 ``(H, W)`` classes of ``(H, W)`` values."""
        if pixels.dtype == np.uint8:
            return self._small[pixels]
        if not len(self._values):
            return np.full(pixels.shape, VOID, np.uint8)
        at = np.minimum(np.searchsorted(self._values, pixels), len(self._values) - 1)
        return np.where(self._values[at] == pixels, self._classes[at], np.uint8(VOID))
