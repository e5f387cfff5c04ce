"""Albumentations transforms of ours: placing in one resize or warp, and fast HSV jitter.

They are ordinary ``DualTransform`` and ``ImageOnlyTransform`` classes, for use in any
``albumentations.Compose``. The placing ones resize to the network's input in the same step; our
``Pipeline`` tells them its size (``bind``), and on their own they keep the image's size.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from cvtrain.augment.geometry import (
    Box2Box,
    fit,
    map_boxes,
    map_points,
    pad_value,
    put,
    warp,
)
from cvtrain.errors import UsageError


class Placing(A.DualTransform):
    """Base of the transforms that put an image into the network's input.

    A subclass draws a ``Box2Box`` or an affine matrix (``draw``); image, masks, boxes and keypoints
    then follow the same map. Boxes are not clipped here: ``Compose`` does it and needs the whole
    box to know how much of it stays visible. Masks are 0 where there is no image, as everywhere in
    albumentations; ``Pipeline`` makes that void.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES, Targets.KEYPOINTS)

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.out: tuple[int, int] | None = None
        self.resize = "stretch"

    def bind(self, height: int, width: int, resize: str) -> None:
        """Sets the network's input size, pixels, and how images are fitted to it."""
        self.out, self.resize = (height, width), resize

    @abstractmethod
    def draw(self, height: int, width: int) -> Box2Box | np.ndarray:
        """The map for an image of that size: without turn, or as a matrix ``(2, 3)``."""

    def should_apply(self, force_apply: bool = False) -> bool:
        """Always where bound: without it the image would not have the network's size."""
        return self.out is not None or super().should_apply(force_apply)

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        place = self.draw(height, width)
        matrix = place.matrix(height, width) if isinstance(place, Box2Box) else place
        return {"place": place, "matrix": matrix, "out": self.out or (height, width)}

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return self._move(img, pad_value(img.dtype), False, params)

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return self._move(mask, 0, True, params)

    def apply_to_masks(self, masks: Any, *args: Any, **params: Any) -> np.ndarray:
        return np.stack([self._move(np.asarray(m), 0, True, params) for m in masks])

    def apply_to_bboxes(self, bboxes: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        if not len(bboxes):
            return bboxes
        height, width = params["shape"][:2]
        out_height, out_width = params["out"]
        moved = bboxes.copy()  # (N, 4 + extras), fractions of the image
        pixels = moved[:, :4] * [width, height, width, height]
        moved[:, :4] = map_boxes(pixels, params["matrix"])
        moved[:, :4] /= [out_width, out_height, out_width, out_height]
        return moved

    def apply_to_keypoints(self, keypoints: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        if not len(keypoints):
            return keypoints
        matrix = params["matrix"]
        moved = keypoints.copy()  # (K, 5 + extras): x, y, z, angle, scale
        moved[:, :2] = map_points(moved[:, :2] + 0.5, matrix) - 0.5  # theirs lie on pixel centers
        mirrored = np.linalg.det(matrix[:, :2]) < 0
        turn = math.atan2(matrix[1, 0], matrix[0, 0])
        moved[:, 3] = (turn - moved[:, 3] if mirrored else turn + moved[:, 3]) % (2 * math.pi)
        moved[:, 4] *= math.sqrt(abs(np.linalg.det(matrix[:, :2])))
        return moved

    def _move(
        self, image: np.ndarray, fill: float, nearest: bool, params: dict[str, Any]
    ) -> np.ndarray:
        place, (height, width) = params["place"], params["out"]
        if isinstance(place, Box2Box):
            return put(image, place, height, width, fill, nearest)
        return warp(image, place, height, width, fill, nearest)


class Resize(Placing):
    """Fits the image to the network's input by ``data.resize``; nothing random."""

    def draw(self, height: int, width: int) -> Box2Box:
        out_height, out_width = self.out or (height, width)
        return fit(height, width, out_height, out_width, self.resize)


class Affine(Placing):
    """Resize, zoom, shift, turn, shear and mirror in one step.

    Args:
        scale: smallest and largest zoom around the center; 1 is the fitted image.
        translate: largest shift either way, fraction of the output's height and width.
        rotate: largest turn either way, degrees.
        shear: largest shear either way, degrees, along x and y.
        hflip: probability of a left-right mirror.
        vflip: probability of an upside-down mirror.
        p: probability that zoom, shift, turn and shear are drawn (the resize always happens).

    Raises:
        UsageError: a range that makes no sense.
    """

    def __init__(
        self,
        scale: Sequence[float] = (1.0, 1.0),
        translate: float = 0.0,
        rotate: float = 0.0,
        shear: float = 0.0,
        hflip: float = 0.0,
        vflip: float = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=1.0)
        self.scale = interval("Affine scale", scale)
        for name, value, most in (
            ("translate", translate, 1.0),
            ("rotate", rotate, 180.0),
            ("shear", shear, 80.0),
            ("hflip", hflip, 1.0),
            ("vflip", vflip, 1.0),
            ("p", p, 1.0),
        ):
            within(f"Affine {name}", value, 0.0, most)
        self.translate, self.rotate, self.shear = translate, rotate, shear
        self.hflip, self.vflip, self.probability = hflip, vflip, p

    def draw(self, height: int, width: int) -> Box2Box | np.ndarray:
        out_height, out_width = self.out or (height, width)
        uniform = self.py_random.uniform
        # All numbers are drawn for every image: changing one range leaves the others' draws.
        go = self.py_random.random() < self.probability
        zoom, down, right = uniform(*self.scale), uniform(-1, 1), uniform(-1, 1)
        angle, shear_x, shear_y = uniform(-1, 1), uniform(-1, 1), uniform(-1, 1)
        hflip = self.py_random.random() < self.hflip
        vflip = self.py_random.random() < self.vflip
        zoom, strength = (zoom, 1.0) if go else (1.0, 0.0)
        base = fit(height, width, out_height, out_width, self.resize)
        if zoom == 1.0 and not strength:
            return mirrored(base, hflip, vflip)
        h, w = max(1, round(base.height * zoom)), max(1, round(base.width * zoom))
        top = round((out_height - h) / 2 + down * self.translate * out_height)
        left = round((out_width - w) / 2 + right * self.translate * out_width)
        place = Box2Box(h, w, left, top, hflip, vflip)
        if not self.rotate and not self.shear:
            return place
        turn = turn_matrix(angle * self.rotate, shear_x * self.shear, shear_y * self.shear)
        center = np.array([left + w / 2, top + h / 2])
        return around(turn, center, place.matrix(height, width))


class ResizedCrop(Placing):
    """A random part of the image, stretched to the network's input, and mirrored.

    Args:
        scale: smallest and largest area of the crop, fraction of the image.
        ratio: smallest and largest width / height, relative to the output's.
        hflip: probability of a left-right mirror.
        vflip: probability of an upside-down mirror.
    """

    def __init__(
        self,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (0.75, 4 / 3),
        hflip: float = 0.0,
        vflip: float = 0.0,
    ) -> None:
        super().__init__(p=1.0)
        self.scale = interval("ResizedCrop scale", scale, most=1.0)
        self.ratio = interval("ResizedCrop ratio", ratio)
        within("ResizedCrop hflip", hflip, 0.0, 1.0)
        within("ResizedCrop vflip", vflip, 0.0, 1.0)
        self.hflip, self.vflip = hflip, vflip

    def draw(self, height: int, width: int) -> Box2Box:
        out_height, out_width = self.out or (height, width)
        draw = self.py_random
        area = draw.uniform(*self.scale) * height * width
        ratio = math.exp(draw.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
        ratio *= out_width / out_height
        # A crop that would not fit is cut to the image, as torchvision does after ten tries.
        w = min(width, max(1, round(math.sqrt(area * ratio))))
        h = min(height, max(1, round(math.sqrt(area / ratio))))
        top, left = draw.randint(0, height - h), draw.randint(0, width - w)
        hflip, vflip = draw.random() < self.hflip, draw.random() < self.vflip
        return Box2Box(out_height, out_width, 0, 0, hflip, vflip, crop=(top, left, h, w))


class HSV(A.ImageOnlyTransform):
    """Hue, saturation and exposure jitter in HSV, of color images of any depth.

    With V the largest channel of a pixel, a saturation factor s and an exposure factor e take each
    channel c to ``e (V - s (V - c))``: exactly HSV with S and V scaled, clipped once at the end
    (as darknet does), but without leaving RGB and without rounding in between. Only a turn of the
    hue goes through OpenCV's HSV. Images that are not RGB get the exposure alone.

    Args:
        hue: largest turn of the hue either way, degrees of 360.
        saturation: the factor is drawn from 1..saturation and inverted half of the time.
        exposure: the same for the value.
        p: probability of any change.
    """

    def __init__(
        self, hue: float = 0.0, saturation: float = 1.0, exposure: float = 1.0, p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        within("HSV hue", hue, 0.0, 180.0)
        within("HSV saturation", saturation, 1.0, math.inf)
        within("HSV exposure", exposure, 1.0, math.inf)
        self.hue, self.saturation, self.exposure = hue, saturation, exposure

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        hue = self.py_random.uniform(-self.hue, self.hue)
        saturation, exposure = self._factor(self.saturation), self._factor(self.exposure)
        return {"hue": hue, "saturation": saturation, "exposure": exposure}

    def _factor(self, largest: float) -> float:
        factor = self.py_random.uniform(1.0, largest)
        return factor if self.py_random.random() < 0.5 else 1.0 / factor

    def apply(
        self,
        img: np.ndarray,
        hue: float = 0.0,
        saturation: float = 1.0,
        exposure: float = 1.0,
        **params: Any,
    ) -> np.ndarray:
        if img.ndim != 3 or img.shape[2] != 3:
            scaled = cv2.addWeighted(img, exposure, img, 0.0, 0.0)
            return scaled.reshape(img.shape)  # OpenCV drops a last axis of 1
        if hue:
            img = turn_hue(img, hue)
        return scale_saturation_and_value(img, saturation, exposure)


def scale_saturation_and_value(image: np.ndarray, saturation: float, exposure: float) -> np.ndarray:
    """``(H, W, 3)`` RGB with S and V of HSV multiplied; same type, clipped once at the end."""
    out = np.empty_like(image)
    planes = [np.empty(image.shape[:2], image.dtype) for _ in range(3)]
    cv2.split(image, planes)
    value = cv2.max(cv2.max(planes[0], planes[1]), planes[2])
    keep, mix = exposure * saturation, exposure * (1.0 - saturation)
    for plane in planes:
        cv2.addWeighted(plane, keep, value, mix, 0.0, dst=plane)
    return cv2.merge(planes, out)


def turn_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """``(H, W, 3)`` RGB with the hue turned; 8 bits in steps of 1.4 degrees, others exactly."""
    if image.dtype == np.uint8:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        steps = round(degrees * 256 / 360)
        hue = np.empty(image.shape[:2], np.uint8)
        cv2.mixChannels([hsv], [hue], [0, 0])
        hue += np.uint8(steps % 256)  # wraps around, as hues do
        cv2.mixChannels([hue], [hsv], [0, 0])
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    white = float(np.iinfo(image.dtype).max) if image.dtype.kind in "iu" else 1.0
    hsv = cv2.cvtColor((image / white).astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + degrees) % 360.0
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * white
    return (np.rint(rgb) if image.dtype.kind in "iu" else rgb).astype(image.dtype)


def mirrored(place: Box2Box, hflip: bool, vflip: bool) -> Box2Box:
    """The same map with mirrors of the image."""
    return Box2Box(place.height, place.width, place.left, place.top, hflip, vflip)


def turn_matrix(angle: float, shear_x: float, shear_y: float) -> np.ndarray:
    """``(2, 2)``: a turn after a shear, all in degrees."""
    a, x, y = np.radians([angle, shear_x, shear_y])
    rotation = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return rotation @ np.array([[1.0, np.tan(x)], [np.tan(y), 1.0]])


def around(turn: np.ndarray, center: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``matrix (2, 3)``, then ``turn (2, 2)`` around ``center (2,)``."""
    out = np.empty((2, 3))
    out[:, :2] = turn @ matrix[:, :2]
    out[:, 2] = turn @ (matrix[:, 2] - center) + center
    return out


def interval(name: str, value: Sequence[float], most: float = math.inf) -> tuple[float, float]:
    """Two numbers above 0, the lower first; raise UsageError for anything else."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) != 2 or not 0 < values[0] <= values[1] <= most:
        limit = "" if math.isinf(most) else f" <= {most:g}"
        raise UsageError(f"{name}={value}: give two numbers, 0 < low <= high{limit}")
    return float(values[0]), float(values[1])


def within(name: str, value: float, least: float, most: float) -> None:
    """Raise UsageError unless ``least <= value <= most``."""
    if not isinstance(value, int | float) or not least <= value <= most:
        top = "" if math.isinf(most) else f" to {most:g}"
        start = f"{least:g}{top}" if top else f"at least {least:g}"
        raise UsageError(f"{name}={value}: give a number, {start}")
