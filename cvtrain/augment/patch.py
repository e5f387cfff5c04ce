"""SSD's sampling: the image put on a larger canvas, then a patch of it chosen by the objects.

Paper: Liu et al. 2016, "SSD", arXiv 1512.02325, section 2.2 (the patch) and 3.6 (the canvas).
Canvas, patch, mirror and resize are one map: the image is resized once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvtrain.augment.geometry import Box2Box
from cvtrain.augment.scene import box_areas
from cvtrain.augment.transforms import Placing, within
from cvtrain.errors import UsageError

TRIES = 50
"""Patches drawn at once, of which the first that will do is taken."""


class SampledPatch(Placing):
    """A random part of the image, or of a canvas around it, that suits its objects.

    Half of the time (``expand_p``) the image first goes somewhere on a gray canvas of 1 to
    ``expand`` times its height and width: objects become small. Then one of these is chosen, all
    equally likely: all of it; a patch whose IoU with some object is at least one of ``overlaps``; a
    patch whatever it overlaps. A patch holds the center of an object at least, and of the objects
    those stay whose center it holds. Where 50 draws find none, all of it is taken. With
    ``data.resize=letterbox`` a patch is widened to the aspect of the network's input.

    Args:
        overlaps: the least IoU of a patch with some object, one of them, 0..1.
        area: smallest and largest patch, fraction of the canvas' area.
        ratio: smallest and largest width / height of a patch, relative to the canvas'.
        expand: largest canvas, times the image's height and width; 1: none.
        expand_p: probability of a canvas.
        hflip: probability of a left-right mirror.

    Attributes:
        said: what the last call did, for captions.

    Raises:
        UsageError: a range that makes no sense.
    """

    def __init__(
        self,
        overlaps: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        area: Sequence[float] = (0.1, 1.0),
        ratio: Sequence[float] = (0.5, 2.0),
        expand: float = 4.0,
        expand_p: float = 0.5,
        hflip: float = 0.5,
    ) -> None:
        super().__init__(p=1.0)
        for overlap in overlaps:
            within("SampledPatch overlaps", overlap, 0.0, 1.0)
        self.area = _interval("SampledPatch area", area, 1.0)
        self.ratio = _interval("SampledPatch ratio", ratio, np.inf)
        if not self.ratio[0] <= 1 <= self.ratio[1]:
            raise UsageError(f"SampledPatch ratio={list(ratio)}: 1 must lie between the two")
        within("SampledPatch expand", expand, 1.0, 100.0)
        within("SampledPatch expand_p", expand_p, 0.0, 1.0)
        within("SampledPatch hflip", hflip, 0.0, 1.0)
        self.overlaps, self.expand = tuple(overlaps), expand
        self.expand_p, self.hflip = expand_p, hflip
        self.said = ""
        self._boxes = np.zeros((0, 4))
        self._region = np.zeros(4)

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        boxes = np.asarray(data.get("bboxes", ()), np.float64)
        scale = [width, height, width, height]
        self._boxes = boxes[:, :4] * scale if len(boxes) else np.zeros((0, 4))
        drawn = super().get_params_dependent_on_data(params, data)
        return {**drawn, "region": self._region}

    def draw(self, height: int, width: int) -> Box2Box:
        canvas = self._canvas(height, width)
        self._region = self._patch(canvas, height, width)
        hflip = self.py_random.random() < self.hflip
        return _placed(self._region, self.out or (height, width), height, width, hflip)

    def apply_to_bboxes(self, bboxes: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        if not len(bboxes):
            return bboxes
        height, width = params["shape"][:2]
        scale, region = np.array([width, height, width, height]), params["region"]
        pixels = bboxes[:, :4] * scale
        held = _held(pixels, region[None])[0]
        part = bboxes[held]
        # Cut here: to Compose the part that stays is the whole box, however small it is.
        low, high = np.tile(region[:2], 2), np.tile(region[2:], 2)
        part[:, :4] = np.clip(pixels[held], low, high) / scale
        return super().apply_to_bboxes(part, *args, **params)

    def _canvas(self, height: int, width: int) -> np.ndarray:
        """``(4,)`` xyxy in pixels of the image: around it, or it alone."""
        uniform = self.py_random.uniform
        go, times = self.py_random.random() < self.expand_p, uniform(1.0, self.expand)
        right, down = uniform(0.0, 1.0), uniform(0.0, 1.0)
        self.said = "whole image"
        if not go or self.expand == 1:
            return np.array([0, 0, width, height], np.float64)
        self.said = f"canvas {times:.1f}"
        w, h = round(width * times), round(height * times)
        left, top = -round(right * (w - width)), -round(down * (h - height))
        return np.array([left, top, left + w, top + h], np.float64)

    def _patch(self, canvas: np.ndarray, height: int, width: int) -> np.ndarray:
        """``(4,)`` xyxy: a part of the canvas, whole pixels, or all of it."""
        choice = self.py_random.randrange(len(self.overlaps) + 2)
        whole = self._widened(canvas[None])[0]
        if choice == 0:
            return whole
        least = 0.0 if choice == 1 else self.overlaps[choice - 2]
        patches = self._widened(self._candidates(canvas))
        good = (patches[:, :2] < [width, height]).all(axis=1) & (patches[:, 2:] > 0).all(axis=1)
        if len(self._boxes):
            good &= _held(self._boxes, patches).any(axis=1)
            good &= _iou(patches, self._boxes).max(axis=1) >= least
        if not good.any():
            return whole
        name = "any patch" if choice == 1 else f"patch of IoU {least:g}"
        self.said = name if self.said == "whole image" else f"{self.said}, {name}"
        return patches[int(good.argmax())]

    def _widened(self, patches: np.ndarray) -> np.ndarray:
        """``(P, 4)``, where a letterbox keeps the aspect with more of the image around them."""
        if self.resize == "stretch" or self.out is None:
            return patches
        aspect = self.out[1] / self.out[0]
        size = patches[:, 2:] - patches[:, :2]
        wanted = np.maximum(size, size[:, ::-1] * [aspect, 1 / aspect])
        low = np.floor(patches[:, :2] - (wanted - size) / 2)
        return np.concatenate([low, low + np.ceil(wanted)], axis=1)

    def _candidates(self, canvas: np.ndarray) -> np.ndarray:
        """``(TRIES, 4)`` xyxy: areas and ratios drawn evenly, ratios so that they fit."""
        uniform = self.random_generator.uniform
        area = uniform(*self.area, TRIES)
        low, high = np.maximum(self.ratio[0], area), np.minimum(self.ratio[1], 1 / area)
        ratio = np.exp(uniform(np.log(low), np.log(high)))
        width, height = canvas[2:] - canvas[:2]
        w = np.clip(np.rint(np.sqrt(area * ratio) * width), 1, width)
        h = np.clip(np.rint(np.sqrt(area / ratio) * height), 1, height)
        left = canvas[0] + np.rint(uniform(0, 1, TRIES) * (width - w))
        top = canvas[1] + np.rint(uniform(0, 1, TRIES) * (height - h))
        return np.stack([left, top, left + w, top + h], axis=1)


def _placed(
    region: np.ndarray, out: tuple[int, int], height: int, width: int, hflip: bool
) -> Box2Box:
    """The map that fills an input of ``out`` (height, width) with ``region (4,)`` of the image."""
    x0, y0, x1, y1 = region
    left, top, right, bottom = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
    down, across = out[0] / (y1 - y0), out[1] / (x1 - x0)
    start = (x1 - right if hflip else left - x0) * across
    crop = (int(top), int(left), int(bottom - top), int(right - left))
    return Box2Box(
        height=max(1, round(crop[2] * down)),
        width=max(1, round(crop[3] * across)),
        left=round(start),
        top=round((top - y0) * down),
        hflip=hflip,
        crop=crop,
    )


def _held(boxes: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Bool ``(P, N)``: whether the centers of ``(N, 4)`` lie in the patches ``(P, 4)``."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (center >= patches[:, None, :2]) & (center < patches[:, None, 2:])
    return inside.all(axis=2)


def _iou(patches: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """``(P, 4)`` and ``(N, 4)`` xyxy -> ``(P, N)``."""
    low = np.maximum(patches[:, None, :2], boxes[:, :2])
    high = np.minimum(patches[:, None, 2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    return shared / np.maximum(box_areas(patches)[:, None] + box_areas(boxes) - shared, 1e-9)


def _interval(name: str, value: Sequence[float], most: float) -> tuple[float, float]:
    values = tuple(value) if isinstance(value, Sequence) else ()
    if len(values) != 2 or not 0 < values[0] <= values[1] <= most:
        raise UsageError(f"{name}={value}: give two numbers, 0 < low <= high <= {most:g}")
    return float(values[0]), float(values[1])
