"""The color spaces of selective search (Uijlings et al. 2013, section 3.2, table 1).

Each makes float32 ``(H, W, C)`` in 0..1 of an RGB image in 0..1, so that one threshold k of the
initial segmentation and one set of histogram bins mean the same in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from skimage.color import rgb2hsv, rgb2lab

from cvtrain.errors import DataError

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def unit_rgb(image: np.ndarray) -> np.ndarray:
    """float32 ``(H, W, 3)`` in 0..1 of an image ``(H, W, 1)`` or ``(H, W, 3)`` of any depth.

    Floats are taken to be in 0..1; gray becomes three equal channels.

    Raises:
        DataError: another number of channels, or no pixels.
    """
    if image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        shape = " x ".join(map(str, image.shape))
        raise DataError(
            f"selective search takes RGB or gray images, not {shape}; use data.channels=3"
        )
    if image.dtype.kind in "iu":
        unit = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    else:
        unit = np.clip(np.nan_to_num(image.astype(np.float32)), 0, 1)
    return np.repeat(unit, 3, axis=2) if unit.shape[2] == 1 else unit  # (H, W, 1) -> (H, W, 3)


def _intensity(rgb: np.ndarray) -> np.ndarray:
    return (rgb @ _LUMA)[:, :, None]  # (H, W, 3) -> (H, W, 1)


def _lab(rgb: np.ndarray) -> np.ndarray:
    scale = np.array([1 / 100, 1 / 255, 1 / 255], np.float32)
    shift = np.array([0, 128, 128], np.float32)
    return np.clip((rgb2lab(rgb).astype(np.float32) + shift) * scale, 0, 1)


def _shares(rgb: np.ndarray) -> np.ndarray:
    """Each channel's share of R + G + B; a third in black, which has no color."""
    total = rgb.sum(axis=2, keepdims=True)
    third = np.full_like(rgb, 1 / 3)
    return np.divide(rgb, total, out=third, where=total > 1e-6)


def _rgi(rgb: np.ndarray) -> np.ndarray:
    return np.concatenate([_shares(rgb)[:, :, :2], _intensity(rgb)], axis=2)


def _opponent(rgb: np.ndarray) -> np.ndarray:
    """Opponent colors divided by the intensity: O1 / O3 and O2 / O3, each brought to 0..1."""
    r, g, b = np.moveaxis(_shares(rgb), 2, 0)  # (H, W, 3) -> 3 x (H, W)
    first = (r - g) * math.sqrt(3 / 2)  # in -sqrt(3/2)..sqrt(3/2)
    second = (r + g - 2 * b) / math.sqrt(2)  # in -sqrt(2)..sqrt(1/2)
    return np.stack(
        [first / math.sqrt(6) + 0.5, (second + math.sqrt(2)) / (1.5 * math.sqrt(2))], axis=2
    ).astype(np.float32)


def _hue(rgb: np.ndarray) -> np.ndarray:
    return rgb2hsv(rgb)[:, :, :1].astype(np.float32)


SPACES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "RGB": lambda rgb: rgb,
    "I": _intensity,
    "Lab": _lab,
    "rgI": _rgi,
    "HSV": lambda rgb: rgb2hsv(rgb).astype(np.float32),
    "rgb": _shares,
    "C": _opponent,
    "H": _hue,
}
"""The paper's names: intensity I, normalized rgb, rg with intensity, opponent colors C, hue H."""


def convert(rgb: np.ndarray, space: str) -> np.ndarray:
    """float32 ``(H, W, 3)`` RGB in 0..1 -> float32 ``(H, W, C)`` in 0..1, C-contiguous."""
    return np.ascontiguousarray(SPACES[space](rgb), np.float32)
