"""What the pixels of a mask file say: values or colours; the same for reader, gate and loader."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cvtrain.data.formats.files import FORMATS
from cvtrain.errors import DataError

VOID = 255
"""The class of pixels that belong to none; ``cvtrain.types.IGNORE_INDEX``, which needs torch."""


def mask_pixels(image: Image.Image, colours: bool = False) -> np.ndarray | None:
    """``(H, W)`` whole numbers of an open image, None where it has none of that kind.

    Args:
        image: of any mode, not turned by its EXIF here.
        colours: packed colours ``R << 16 | G << 8 | B``, int32, alpha left out, those of a palette
            file by its palette. False: values; of a palette file the indices, of a file in colours
            that are all grays one channel, of one bit a pixel 0 and 255.
    """
    if colours:
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


def decode_mask(path: Path, colours: bool = False) -> np.ndarray:
    """``mask_pixels`` of a file, upright as its image is.

    Raises:
        DataError: unreadable, or not of that kind.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            pixels = mask_pixels(ImageOps.exif_transpose(image), colours)
    except Exception as e:  # Pillow's plugins raise every kind of error on broken files
        raise DataError(f"{path}: the mask cannot be read ({e}); run `cvtrain check`") from e
    if pixels is None:
        fix = "save it as 8-bit RGB" if colours else "write class indices, or set data.palette=FILE"
        raise DataError(f"{path}: a mask {'without' if colours else 'in'} colours; {fix}")
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
