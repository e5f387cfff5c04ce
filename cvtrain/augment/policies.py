"""RandAugment (Cubuk et al. 2019) and TrivialAugment (Mueller and Hutter 2021): ops drawn anew.

arXiv 1909.13719 and 2103.10158. Both draw from the same fourteen operations of AutoAugment; boxes,
masks and keypoints follow the geometric ones. Deviations: shifts are fractions of the image, as the
papers' pixels belong to one size; the geometric ops are done first, in one warp together with the
resize (and the mirror and the shift that both papers train with anyway), so that an image is
resampled once, and only then the others, in the order drawn.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from cvtrain.augment.geometry import Box2Box, by_four, fit
from cvtrain.augment.pixels import curve, white
from cvtrain.augment.transforms import Placing, around, mirrored, within

GEOMETRIC = ("shear x", "shear y", "translate x", "translate y", "rotate")
ENHANCING = ("brightness", "color", "contrast", "sharpness")
OPS = ("identity", *GEOMETRIC, *ENHANCING, "posterize", "solarize", "autocontrast", "equalize")
"""The papers' fourteen operations."""

LEVELS = 30
"""Magnitudes are 0..30, as in both papers' code."""


@dataclass(frozen=True)
class Ranges:
    """What the operations do at full magnitude.

    Attributes:
        shear: of a pixel a pixel.
        translate: fraction of the input's side.
        rotate: degrees.
        enhance: the factor of brightness, color, contrast and sharpness is 1 plus or minus this.
        bits: of 8, what posterize keeps.
    """

    shear: float
    translate: float
    rotate: float
    enhance: float
    bits: int


class Policy(Placing):
    """Base of the two: draws ``[(op, magnitude), ...]``; also mirrors and shifts every image.

    Args:
        ranges: at full magnitude.
        shift: largest shift either way, fraction of the input's height and width.
        hflip: probability of a left-right mirror.

    Attributes:
        said: the operations of the last call, for captions.
    """

    def __init__(self, ranges: Ranges, shift: float, hflip: float) -> None:
        super().__init__(p=1.0)
        name = type(self).__name__
        within(f"{name} shift", shift, 0.0, 1.0)
        within(f"{name} hflip", hflip, 0.0, 1.0)
        self.ranges, self.shift, self.hflip = ranges, shift, hflip
        self.said = ""
        self._drawn: list[tuple[str, float]] = []

    @abstractmethod
    def choose(self) -> list[tuple[str, float]]:
        """Operations of ``OPS``, each with a magnitude 0..1."""

    def draw(self, height: int, width: int) -> Box2Box | np.ndarray:
        out_height, out_width = self.out or (height, width)
        uniform = self.py_random.uniform
        down, right = uniform(-self.shift, self.shift), uniform(-self.shift, self.shift)
        hflip = self.py_random.random() < self.hflip
        self._drawn = [(op, self._signed(op, m)) for op, m in self.choose()]
        self.said = ", ".join(op for op, _ in self._drawn)
        base = fit(height, width, out_height, out_width, self.resize)
        top, left = base.top + round(down * out_height), base.left + round(right * out_width)
        place = mirrored(Box2Box(base.height, base.width, left, top), hflip, False)
        moves = [(op, v) for op, v in self._drawn if op in GEOMETRIC]
        if not moves:
            return place
        matrix, center = place.matrix(height, width), np.array([out_width / 2, out_height / 2])
        for op, value in moves:
            if op.startswith("translate"):
                matrix = matrix.copy()
                axis, side = (0, out_width) if op == "translate x" else (1, out_height)
                matrix[axis, 2] += value * side
            else:
                matrix = around(_linear(op, value), center, matrix)
        return matrix

    def _signed(self, op: str, magnitude: float) -> float:
        """The operation's value at a magnitude of 0..1; its sign is drawn where it has two."""
        most = {
            "shear x": self.ranges.shear,
            "shear y": self.ranges.shear,
            "translate x": self.ranges.translate,
            "translate y": self.ranges.translate,
            "rotate": self.ranges.rotate,
            **dict.fromkeys(ENHANCING, self.ranges.enhance),
        }
        if op in most:
            return magnitude * most[op] * (1 if self.py_random.random() < 0.5 else -1)
        if op == "posterize":
            return 8 - round(magnitude * (8 - self.ranges.bits))
        return 1 - magnitude  # the threshold of solarize; the others have none

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        placed = super().get_params_dependent_on_data(params, data)
        return {**placed, "ops": [(op, v) for op, v in self._drawn if op in _PIXEL_OPS]}

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        out = super().apply(img, *args, **params)
        if params["ops"]:
            white(out, type(self).__name__)
        for op, value in params["ops"]:
            out = _PIXEL_OPS[op](out, value)
        return out


class RandAugment(Policy):
    """``num_ops`` operations a sample, all at one magnitude.

    Args:
        num_ops: operations drawn, with replacement; the paper's N, 1 to 3.
        magnitude: 0..30; the paper's M.
        shift: largest shift either way of every image, fraction of the input.
        hflip: probability of a left-right mirror.
    """

    def __init__(
        self, num_ops: int = 2, magnitude: float = 9, shift: float = 0.125, hflip: float = 0.5
    ) -> None:
        super().__init__(Ranges(0.3, 0.45, 30.0, 0.9, 4), shift, hflip)
        within("RandAugment num_ops", num_ops, 0, 14)
        within("RandAugment magnitude", magnitude, 0, LEVELS)
        self.num_ops, self.magnitude = num_ops, magnitude

    def choose(self) -> list[tuple[str, float]]:
        ops = self.py_random.choices(OPS, k=self.num_ops)
        return [(op, self.magnitude / LEVELS) for op in ops]


class TrivialAugment(Policy):
    """One operation a sample, its magnitude uniform in 0..30, in the wide ranges of the paper.

    Args:
        shift: largest shift either way of every image, fraction of the input.
        hflip: probability of a left-right mirror.
    """

    def __init__(self, shift: float = 0.125, hflip: float = 0.5) -> None:
        # The paper shifts by up to 32 pixels, a seventh of ImageNet's 224.
        super().__init__(Ranges(0.99, 32 / 224, 135.0, 0.99, 2), shift, hflip)

    def choose(self) -> list[tuple[str, float]]:
        return [(self.py_random.choice(OPS), self.py_random.randint(0, LEVELS) / LEVELS)]


def _linear(op: str, value: float) -> np.ndarray:
    """``(2, 2)`` of a turn in degrees or a shear."""
    if op == "rotate":
        a = math.radians(value)
        return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    shear = np.eye(2)
    shear[(0, 1) if op == "shear x" else (1, 0)] = value
    return shear


def _brightness(image: np.ndarray, change: float) -> np.ndarray:
    return curve(image, lambda v: v * (1 + change), "brightness")


def _contrast(image: np.ndarray, change: float) -> np.ndarray:
    rgb = image.ndim == 3 and image.shape[2] == 3
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if rgb else image
    mean = float(gray.mean()) / white(image, "contrast")
    return curve(image, lambda v: mean + (v - mean) * (1 + change), "contrast")


def _color(image: np.ndarray, change: float) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3:
        return image
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, 1 + change, gray, -change, 0.0)


def _sharpness(image: np.ndarray, change: float) -> np.ndarray:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = by_four(image, lambda part: cv2.filter2D(part, -1, kernel))
    mixed = cv2.addWeighted(
        image.reshape(len(image), -1), 1 + change, smooth.reshape(len(image), -1), -change, 0.0
    )  # as (H, W * C): OpenCV does not take any number of channels
    return mixed.reshape(image.shape)


def _posterize(image: np.ndarray, bits: float) -> np.ndarray:
    depth = image.dtype.itemsize * 8
    kept = white(image, "posterize") >> (depth - int(bits)) << (depth - int(bits))
    return image & image.dtype.type(kept)


def _solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    return curve(image, lambda v: np.where(v >= threshold, 1 - v, v), "solarize")


def _autocontrast(image: np.ndarray, _: float) -> np.ndarray:
    def stretch(plane: np.ndarray) -> np.ndarray:
        top = white(plane, "autocontrast")
        low, high = float(plane.min()) / top, float(plane.max()) / top
        if high <= low:
            return plane
        return curve(plane, lambda v: (v - low) / (high - low), "autocontrast")

    return _by_plane(image, stretch)


def _equalize(image: np.ndarray, _: float) -> np.ndarray:
    def flatten(plane: np.ndarray) -> np.ndarray:
        counts = np.bincount(plane.reshape(-1), minlength=white(plane, "equalize") + 1)
        below = np.cumsum(counts)
        first = counts[np.flatnonzero(counts)[0]]
        spread = max(1, int(below[-1] - first))
        return curve(plane, lambda v: np.clip((below - first) / spread, 0, 1), "equalize")

    return _by_plane(image, flatten)


def _by_plane(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    planes: Sequence[np.ndarray] = [
        change(np.ascontiguousarray(image[..., c])) for c in range(image.shape[-1])
    ]
    return np.stack(planes, axis=-1)


_PIXEL_OPS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "color": _color,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
