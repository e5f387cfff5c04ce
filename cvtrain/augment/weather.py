"""Weather: rain, fog, snow, the sun in the lens, shadows. For 8 and 16 bits and any channels.

Each lays a color over the image by a map of opacities. Maps that are smooth are made small and
enlarged, which is what makes them fast; streaks and flakes are drawn at twice the size and shrunk
on small images, so that they stay fine. All sizes are fractions of the shorter side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np

from cvtrain.augment.pixels import span, white

_FINE = 320
"""Streaks and flakes are drawn on a canvas of at least this shorter side, pixels."""
_COARSE = 64
"""Smooth maps are computed at about this longer side, pixels."""

Color = float | tuple[float, float, float]


def over(image: np.ndarray, color: Color, opacity: np.ndarray, name: str) -> np.ndarray:
    """A color laid over ``(H, W, C)``.

    Args:
        image: 8 or 16 bits.
        color: one level or RGB, fractions of white; images that are not RGB take its mean.
        opacity: float32 ``(H, W)``, 0..1.
        name: of the transform, for messages.
    """
    top = white(image, name)
    channels = image.shape[2] if image.ndim == 3 else 1
    levels = np.full(channels, np.mean(color)) if channels != 3 else np.broadcast_to(color, 3)
    rest = 1.0 - opacity
    if image.dtype == np.uint8 and channels <= 4:
        sheet = np.empty_like(image)
        sheet[:] = np.rint(levels * top).astype(np.uint8)
        return cv2.blendLinear(image, sheet, rest, opacity).reshape(image.shape)
    mixed = image.reshape(*image.shape[:2], channels) * rest[..., None]
    mixed += opacity[..., None] * (levels * top).astype(np.float32)
    return np.rint(mixed).astype(image.dtype).reshape(image.shape)


class Fog(A.ImageOnlyTransform):
    """Banks of fog, denser towards the horizon.

    Args:
        density: smallest and largest opacity of the densest part, 0..1.
        p: probability of fog.
    """

    def __init__(self, density: Sequence[float] = (0.4, 0.8), p: float = 1.0) -> None:
        super().__init__(p=p)
        self.density = span("Fog density", density, 1.0)

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        draw = self.py_random
        small = _coarse(height, width)
        banks = _clouds(self.random_generator, *small)
        horizon = draw.uniform(0.2, 0.5)
        y = (np.arange(small[0], dtype=np.float32) + 0.5) / small[0]
        far = np.clip((1 - y) / (1 - horizon), 0, 1)  # 1 above the horizon, 0 at the lower edge
        depth = (0.45 + 0.55 * far)[:, None]
        opacity = draw.uniform(*self.density) * depth * (0.5 + 0.5 * banks)
        return {"opacity": _enlarged(opacity, height, width), "level": draw.uniform(0.82, 0.92)}

    def apply(
        self, img: np.ndarray, opacity: Any = None, level: float = 0.9, **params: Any
    ) -> np.ndarray:
        return over(img, level, opacity, "Fog")


class Rain(A.ImageOnlyTransform):
    """Streaks near and far under a gray sky.

    Args:
        amount: least and most rain, 0..1: how many streaks, and how much of the light is gone.
        p: probability of rain.
    """

    def __init__(self, amount: Sequence[float] = (0.3, 1.0), p: float = 1.0) -> None:
        super().__init__(p=p)
        self.amount = span("Rain amount", amount, 1.0)

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        amount = self.py_random.uniform(*self.amount)
        slant = math.radians(self.py_random.uniform(-20.0, 20.0))
        h, w = _fine(height, width)
        crowd = amount * h * w / min(h, w) ** 2  # a wide image has more of them
        streaks: np.ndarray = np.zeros((h, w), np.uint8)
        self._draw(streaks, round(1400 * crowd), slant, (0.02, 0.06), 1, 150)
        near: np.ndarray = np.zeros((h, w), np.uint8)
        thick = max(1, round(min(h, w) / 240))
        self._draw(near, round(110 * crowd), slant, (0.08, 0.2), thick, 220)
        near = cv2.GaussianBlur(near, (0, 0), min(h, w) / 500)
        seen = cv2.max(streaks, near).astype(np.float32) * np.float32(0.55 / 255)
        return {"opacity": _shrunk(seen, height, width), "veil": 0.35 * amount}

    def _draw(
        self,
        canvas: np.ndarray,
        count: int,
        slant: float,
        lengths: tuple[float, float],
        thick: int,
        level: int,
    ) -> None:
        h, w = canvas.shape
        draw = self.random_generator.random((count, 4))
        start = draw[:, :2] * [w * 1.2, h * 1.2] - [w * 0.1, h * 0.1]
        reach = (lengths[0] + draw[:, 2:3] * (lengths[1] - lengths[0])) * min(h, w)
        angle = slant + (draw[:, 3:] - 0.5) * 0.06
        ends = start + reach * np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
        lines = np.rint(np.stack([start, ends], axis=1) * 16).astype(np.int32)  # (count, 2, xy)
        cv2.polylines(canvas, list(lines), False, level, thick, cv2.LINE_AA, shift=4)

    def apply(
        self, img: np.ndarray, opacity: Any = None, veil: float = 0.0, **params: Any
    ) -> np.ndarray:
        dim = np.full(img.shape[:2], veil, np.float32)
        return over(over(img, (0.36, 0.39, 0.43), dim, "Rain"), 0.86, opacity, "Rain")


class Snow(A.ImageOnlyTransform):
    """Flakes near and far in a white haze.

    Args:
        amount: least and most snow, 0..1: how many flakes, and how dense the haze.
        p: probability of snow.
    """

    def __init__(self, amount: Sequence[float] = (0.3, 1.0), p: float = 1.0) -> None:
        super().__init__(p=p)
        self.amount = span("Snow amount", amount, 1.0)

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        amount = self.py_random.uniform(*self.amount)
        h, w = _fine(height, width)
        crowd = amount * h * w / min(h, w) ** 2
        far: np.ndarray = np.zeros((h, w), np.uint8)
        self._draw(far, round(900 * crowd), (0.0012, 0.0035), 200)
        near: np.ndarray = np.zeros((h, w), np.uint8)
        self._draw(near, round(90 * crowd), (0.004, 0.011), 235)
        near = cv2.GaussianBlur(near, (0, 0), min(h, w) / 250)
        seen = cv2.max(far, near).astype(np.float32) / np.float32(255)
        haze = 0.3 * amount * (0.5 + 0.5 * _clouds(self.random_generator, *_coarse(height, width)))
        opacity = _shrunk(seen, height, width)
        return {"opacity": opacity, "haze": _enlarged(haze, height, width)}

    def _draw(self, canvas: np.ndarray, count: int, sizes: tuple[float, float], level: int) -> None:
        h, w = canvas.shape
        draw = self.random_generator.random((count, 3))
        places = np.rint(draw[:, :2] * [w, h] * 16).astype(int).tolist()
        radii = (sizes[0] + draw[:, 2] * (sizes[1] - sizes[0])) * min(h, w) * 16
        for (x, y), radius in zip(places, np.rint(radii).astype(int).tolist(), strict=True):
            cv2.circle(canvas, (x, y), max(8, radius), level, -1, cv2.LINE_AA, shift=4)

    def apply(
        self, img: np.ndarray, opacity: Any = None, haze: Any = None, **params: Any
    ) -> np.ndarray:
        return over(over(img, 0.93, haze, "Snow"), 0.98, opacity, "Snow")


class SunFlare(A.ImageOnlyTransform):
    """The sun in the upper part of the image, and its reflections in the lens.

    Args:
        strength: least and most light, 0..1.
        p: probability of a flare.
    """

    def __init__(self, strength: Sequence[float] = (0.4, 0.9), p: float = 1.0) -> None:
        super().__init__(p=p)
        self.strength = span("SunFlare strength", strength, 1.0)

    def get_params(self) -> dict[str, Any]:
        draw = self.py_random.uniform
        ghosts = [
            (draw(0.3, 1.9), draw(0.02, 0.07), draw(0.1, 0.25), self.py_random.randrange(3))
            for _ in range(5)
        ]
        return {
            "light": draw(*self.strength),
            "sun": (draw(0.1, 0.9), draw(0.02, 0.35)),
            "glow": draw(0.22, 0.4),
            "ghosts": ghosts,
        }

    def apply(
        self,
        img: np.ndarray,
        light: float = 0.0,
        sun: tuple[float, float] = (0.5, 0.2),
        glow: float = 0.3,
        ghosts: Sequence[tuple[float, float, float, int]] = (),
        **params: Any,
    ) -> np.ndarray:
        height, width = img.shape[:2]
        side, (h, w) = min(height, width), _coarse(height, width, 4)
        y = ((np.arange(h, dtype=np.float32) + 0.5) * height / h - sun[1] * height) / side
        x = ((np.arange(w, dtype=np.float32) + 0.5) * width / w - sun[0] * width) / side
        distance = np.sqrt(y[:, None] ** 2 + x[None] ** 2)  # (h, w) in shorter sides
        halo = 0.8 * np.exp(-((distance / glow) ** 2)) + 0.45 * np.exp(-distance / (2 * glow))
        core = np.exp(-((distance / (0.22 * glow)) ** 2))
        opacity = np.clip(light * halo + min(1.0, 2 * light) * core, 0, 1)
        out = over(img, (1.0, 0.96, 0.84), _enlarged(opacity, height, width), "SunFlare")
        tints = ((0.75, 1.0, 0.8), (1.0, 0.8, 0.6), (0.7, 0.85, 1.0))
        for along, radius, opaque, tint in ghosts:
            center = (sun[0] + along * (0.5 - sun[0]), sun[1] + along * (0.5 - sun[1]))
            out = _disk(out, center, radius, light * opaque, tints[tint])
        return out


class Shadow(A.ImageOnlyTransform):
    """The shadow of something outside the image, with soft edges.

    Args:
        darkness: least and most of the light that is gone in it, 0..1.
        count: fewest and most shadows.
        p: probability of any.
    """

    def __init__(
        self,
        darkness: Sequence[float] = (0.3, 0.6),
        count: Sequence[int] = (1, 2),
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.darkness = span("Shadow darkness", darkness, 1.0)
        low, high = span("Shadow count", count)
        self.count = (round(low), round(high))

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        h, w = _coarse(height, width, 4)
        draw = self.py_random
        cover = np.zeros((h, w), np.uint8)
        for _ in range(draw.randint(*self.count)):
            # A band across the image: two edges that need not be parallel.
            angle, offset = draw.uniform(-1.2, 1.2), draw.uniform(-0.35, 0.35)
            reach, breadth = 1.5 * max(h, w), draw.uniform(0.08, 0.22) * min(h, w)
            along = np.array([math.sin(angle), math.cos(angle)])
            across = np.array([along[1], -along[0]])
            middle = np.array([w / 2, h / 2]) + across * offset * max(h, w)
            wider = draw.uniform(0.6, 1.8)
            corners = [
                middle - along * reach - across * breadth,
                middle - along * reach + across * breadth,
                middle + along * reach + across * breadth * wider,
                middle + along * reach - across * breadth * wider,
            ]
            cv2.fillConvexPoly(cover, np.rint(corners).astype(np.int32), 255)
        soft = cv2.GaussianBlur(cover, (0, 0), min(h, w) * 0.012).astype(np.float32)
        opacity = soft * np.float32(draw.uniform(*self.darkness) / 255)
        return {"opacity": _enlarged(opacity, height, width)}

    def apply(self, img: np.ndarray, opacity: Any = None, **params: Any) -> np.ndarray:
        return over(img, 0.0, opacity, "Shadow")


def _coarse(height: int, width: int, factor: int = 1) -> tuple[int, int]:
    """The size of a smooth map: about ``_COARSE * factor`` pixels, never more than the image."""
    scale = min(1.0, _COARSE * factor / max(height, width))
    return max(2, round(height * scale)), max(2, round(width * scale))


def _fine(height: int, width: int) -> tuple[int, int]:
    """The size to draw streaks on: a whole multiple of the image's."""
    factor = max(1, -(-_FINE // min(height, width)))
    return height * factor, width * factor


def _enlarged(opacity: np.ndarray, height: int, width: int) -> np.ndarray:
    """A smooth map at the image's size, float32 in 0..1."""
    large = cv2.resize(opacity.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(large, 0.0, 1.0)


def _shrunk(opacity: np.ndarray, height: int, width: int) -> np.ndarray:
    if opacity.shape == (height, width):
        return opacity
    return cv2.resize(opacity, (width, height), interpolation=cv2.INTER_AREA)


def _clouds(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth noise at three scales, ``(height, width)`` float32 in 0..1."""
    total = np.zeros((height, width), np.float32)
    for cells, weight in ((3, 0.5), (6, 0.3), (12, 0.2)):
        rough = generator.random((cells, cells), dtype=np.float32)
        total += weight * cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def _disk(
    image: np.ndarray, center: tuple[float, float], radius: float, opacity: float, color: Color
) -> np.ndarray:
    """A disk with a soft edge laid over the image, which is changed in place."""
    height, width = image.shape[:2]
    r = radius * min(height, width)
    cx, cy = center[0] * width, center[1] * height
    x0, x1 = max(0, int(cx - r - 1)), min(width, int(cx + r + 2))
    y0, y1 = max(0, int(cy - r - 1)), min(height, int(cy + r + 2))
    if x0 >= x1 or y0 >= y1:
        return image
    y = (np.arange(y0, y1, dtype=np.float32) + 0.5 - cy)[:, None]
    x = (np.arange(x0, x1, dtype=np.float32) + 0.5 - cx)[None]
    edge = np.clip((r - np.sqrt(x * x + y * y)) / max(1.0, 0.15 * r), 0, 1)
    part = np.ascontiguousarray(image[y0:y1, x0:x1])
    image[y0:y1, x0:x1] = over(part, color, edge * np.float32(opacity), "SunFlare")
    return image
