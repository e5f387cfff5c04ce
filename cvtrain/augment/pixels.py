"""Changes of pixel values that hold for 8 and 16 bits and any number of channels.

Levels are fractions of white (255 or 65535). Sizes are fractions of the image's shorter side, so
that a picture of 128 pixels and one of 640 are changed alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import albumentations as A
import cv2
import numpy as np

from cvtrain.augment.geometry import by_four
from cvtrain.augment.transforms import within
from cvtrain.errors import DataError, UsageError

_QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
"""A normal variable in 256 equally likely steps: a random byte looks one up."""


def white(image: np.ndarray, name: str) -> int:
    """The value of white in an image of 8 or 16 bits.

    Raises:
        DataError: an image of another type, with the name of the transform that met it.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"augment: {name} takes images of 8 or 16 bits, this one is {image.dtype}; leave it "
            "out (augment=geometric takes any type), or save the images with 16 bits"
        )
    return int(np.iinfo(image.dtype).max)


def curve(image: np.ndarray, function: Callable[[np.ndarray], np.ndarray], name: str) -> np.ndarray:
    """``(H, W, C)`` with every value ``v`` of 0..1 replaced by ``function(v)``, by a table."""
    top = white(image, name)
    levels = np.clip(function(np.linspace(0.0, 1.0, top + 1)), 0.0, 1.0)
    table = np.rint(levels * top).astype(image.dtype)
    if image.dtype == np.uint8:
        return cv2.LUT(image, table).reshape(image.shape)  # OpenCV drops a last axis of 1
    return table[image]


def span(name: str, value: Sequence[float], most: float = math.inf) -> tuple[float, float]:
    """Two numbers, 0 <= low <= high <= most.

    Raises:
        UsageError: anything else.
    """
    values = tuple(value) if isinstance(value, Sequence) else ()
    if len(values) != 2 or not 0 <= values[0] <= values[1] <= most:
        limit = "" if math.isinf(most) else f" <= {most:g}"
        raise UsageError(f"{name}={value}: give two numbers, 0 <= low <= high{limit}")
    return float(values[0]), float(values[1])


class Tone(A.ImageOnlyTransform):
    """Brightness, contrast and gamma in one table of values.

    Args:
        brightness: largest shift either way, fraction of white.
        contrast: values move from or towards middle gray by a factor up to this, or 1 over it.
        gamma: values are raised to a power up to this, or 1 over it.
        p: probability of any change.
    """

    def __init__(
        self, brightness: float = 0.0, contrast: float = 1.0, gamma: float = 1.0, p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        within("Tone brightness", brightness, 0.0, 1.0)
        within("Tone contrast", contrast, 1.0, math.inf)
        within("Tone gamma", gamma, 1.0, math.inf)
        self.brightness, self.contrast, self.gamma = brightness, contrast, gamma

    def get_params(self) -> dict[str, Any]:
        draw = self.py_random.uniform
        return {
            "shift": draw(-self.brightness, self.brightness),
            "factor": math.exp(draw(-1, 1) * math.log(self.contrast)),
            "power": math.exp(draw(-1, 1) * math.log(self.gamma)),
        }

    def apply(
        self,
        img: np.ndarray,
        shift: float = 0.0,
        factor: float = 1.0,
        power: float = 1.0,
        **params: Any,
    ) -> np.ndarray:
        return curve(img, lambda v: (v**power - 0.5) * factor + 0.5 + shift, "Tone")


class WhiteBalance(A.ImageOnlyTransform):
    """Every channel brighter or darker by a factor of its own: another light, or another sensor.

    Args:
        amount: the factors are 1 up to this, or 1 over it.
        p: probability of any change.
    """

    def __init__(self, amount: float = 1.2, p: float = 1.0) -> None:
        super().__init__(p=p)
        within("WhiteBalance amount", amount, 1.0, math.inf)
        self.amount = amount

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        channels = data["image"].shape[2] if data["image"].ndim == 3 else 1
        reach = math.log(self.amount)
        return {
            "factors": [math.exp(self.py_random.uniform(-reach, reach)) for _ in range(channels)]
        }

    def apply(self, img: np.ndarray, factors: Sequence[float] = (), **params: Any) -> np.ndarray:
        out = np.empty_like(img)
        for c, factor in enumerate(factors):
            out[..., c] = _times(np.ascontiguousarray(img[..., c]), factor)
        return out


def _times(plane: np.ndarray, factor: float) -> np.ndarray:
    return curve(plane, lambda v: v * factor, "WhiteBalance")


class Gray(A.ImageOnlyTransform):
    """RGB without its colors, still in three channels; other images stay as they are.

    Args:
        p: probability of the change.
    """

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        if img.ndim != 3 or img.shape[2] != 3:
            return img
        return cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


class Noise(A.ImageOnlyTransform):
    """Normal noise, each channel and pixel of its own.

    Args:
        amount: smallest and largest standard deviation, fraction of white.
        p: probability of the noise.
    """

    def __init__(self, amount: Sequence[float] = (0.02, 0.1), p: float = 1.0) -> None:
        super().__init__(p=p)
        self.amount = span("Noise amount", amount, 1.0)

    def get_params(self) -> dict[str, Any]:
        return {
            "sigma": self.py_random.uniform(*self.amount),
            "seed": self.py_random.getrandbits(64),
        }

    def apply(
        self, img: np.ndarray, sigma: float = 0.0, seed: int = 0, **params: Any
    ) -> np.ndarray:
        top = white(img, "Noise")
        steps = np.rint(sigma * top * _QUANTILES)
        picks = np.frombuffer(np.random.default_rng(seed).bytes(img.size), np.uint8)
        if img.dtype == np.uint8:
            noise = steps.astype(np.int16)[picks].reshape(img.shape)
            return cv2.add(img, noise, dtype=cv2.CV_8U).reshape(img.shape)
        noisy = img.astype(np.int32) + steps.astype(np.int32)[picks].reshape(img.shape)
        return np.clip(noisy, 0, top).astype(img.dtype)


class Blur(A.ImageOnlyTransform):
    """Out of focus, or moved while the shutter was open. Images of any type.

    Args:
        size: smallest and largest standard deviation of the blur, fraction of the shorter side.
        motion: probability that it is along one direction (four deviations long).
        p: probability of a blur.
    """

    def __init__(
        self, size: Sequence[float] = (0.002, 0.01), motion: float = 0.5, p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.size = span("Blur size", size, 1.0)
        within("Blur motion", motion, 0.0, 1.0)
        self.motion = motion

    def get_params(self) -> dict[str, Any]:
        return {
            "size": self.py_random.uniform(*self.size),
            "moved": self.py_random.random() < self.motion,
            "angle": self.py_random.uniform(0.0, math.pi),
        }

    def apply(
        self,
        img: np.ndarray,
        size: float = 0.0,
        moved: bool = False,
        angle: float = 0.0,
        **params: Any,
    ) -> np.ndarray:
        sigma = size * min(img.shape[:2])
        if sigma < 0.3:  # pixels: less than this reaches no neighbor
            return img
        if not moved:
            return by_four(img, lambda part: cv2.GaussianBlur(part, (0, 0), sigma))
        kernel = _line(4 * sigma, angle)
        return by_four(img, lambda part: cv2.filter2D(part, -1, kernel))


def _line(length: float, angle: float) -> np.ndarray:
    """A line of that many pixels as a kernel of sum 1, its ends smooth."""
    side = 2 * math.ceil(length / 2) + 1
    kernel = np.zeros((side, side), np.uint8)
    middle, reach = side // 2 * 16, length / 2 * 16  # in sixteenths of a pixel, for `shift`
    dx, dy = round(reach * math.cos(angle)), round(reach * math.sin(angle))
    ends = ((middle - dx, middle - dy), (middle + dx, middle + dy))
    cv2.line(kernel, *ends, 255, 1, cv2.LINE_AA, shift=4)
    return kernel.astype(np.float32) / max(1.0, float(kernel.sum()))
