"""The embedded data set: drawn scenes of circles, squares, triangles and stars, for every task.

Scene i of a split follows from (seed, split, i) alone, by integer arithmetic and bit-exact OpenCV
calls, so that every platform and worker draws the same bytes. What is annotated is what is seen:
an object covered in part keeps the mask, the tight box and the area of its visible pixels, as in
COCO. The image's class, for classification and localization, is that of its largest visible object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cvtrain.data.formats.base import Reader
from cvtrain.data.masks import from_mask, mask_box
from cvtrain.data.table import Blobs, Classes, Split, Strings, Table
from cvtrain.errors import UsageError

NAMES = ("circle", "square", "triangle", "star")
TREE = """
shape
  round
    circle
  polygon
    square
    triangle
    star
"""
"""What is one of what: a small example for ``model=yolo9000``, see data/tree_file.py."""
SPLITS = ("train", "val", "test")
MANY_OBJECTS = 3
"""Default ``max_objects`` of the tasks that can tell objects apart; the others get one."""

_SHIFT = 4  # polygon corners in 1/16 pixel
_TRIES = 60  # places tried for an object before the scene is begun anew
_SCENES = 20  # scenes begun before the settings are found impossible


class ShapesReader(Reader):
    """Reads nothing: draws the annotations of every scene, and leaves the pixels to ``Drawer``.

    Args:
        task: decides the default of ``max_objects``.
        num_train, num_val, num_test: scenes of each split; 0: no such split.
        min_objects, max_objects: objects in a scene; None: 3, but 1 for classification and
            localization.
        min_size, max_size: sides of an object's box, fraction of the scene's shorter side.
        min_visible: objects overlap; each keeps this fraction of its pixels in view, and a box of
            ``min_size`` around them.
        scene_size: pixels, an int or [H, W].
        channels: 3 (RGB) or 1 (gray).
        seed: another seed, other scenes.

    Raises:
        UsageError: a value out of range, or one that contradicts another.
    """

    layout = "nothing: the scenes are drawn"

    def __init__(
        self,
        task: str = "detection",
        num_train: int = 2000,
        num_val: int = 200,
        num_test: int = 200,
        min_objects: int = 1,
        max_objects: int | None = None,
        min_size: float = 0.2,
        max_size: float = 0.6,
        min_visible: float = 0.5,
        scene_size: int | Sequence[int] = 128,
        channels: int = 3,
        seed: int = 0,
    ) -> None:
        self.root = Path()
        self._done: dict[str, Split] = {}
        whole_image = task in ("classification", "localization")
        most = max_objects if max_objects is not None else (1 if whole_image else MANY_OBJECTS)
        if max_objects is None and isinstance(min_objects, int):
            most = max(most, min_objects)
        self.counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
        for split, count in self.counts.items():
            _integer(f"num_{split}", count, 0)
        _integer("min_objects", min_objects, 1 if whole_image else 0)
        _integer("max_objects", most, max(1, min_objects))
        _integer("scene_seed", seed, 0)
        for name, value in (("min_size", min_size), ("max_size", max_size)):
            _fraction(name, value)
        _fraction("min_visible", min_visible)
        if min_size > max_size:
            raise UsageError(f"data.min_size={min_size} is above data.max_size={max_size}")
        if channels not in (1, 3):
            raise UsageError(f"data.channels={channels}: shapes are drawn in 3 channels or 1")
        size = [scene_size] * 2 if isinstance(scene_size, int) else list(scene_size)
        if len(size) != 2 or not all(isinstance(v, int) and v >= 16 for v in size):
            raise UsageError(f"data.scene_size={scene_size}: give an int or [H, W], at least 16")
        self.objects = (min_objects, most)
        self.height, self.width = size
        short = min(size)
        self.sides = (max(3, math.ceil(min_size * short)), math.floor(max_size * short))
        if self.sides[0] > self.sides[1]:
            raise UsageError(
                f"data.max_size={max_size} is {self.sides[1]} pixels of {short}, too small to draw "
                f"(at least {self.sides[0]}); raise it or data.image_size"
            )
        self.min_visible, self.channels, self.seed = min_visible, channels, seed

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"label", "boxes", "segments", "mask"})

    def splits(self) -> list[str]:
        return [split for split in SPLITS if self.counts[split]]

    def _read(self, split: str) -> Split:
        count, stream = self.counts[split], SPLITS.index(split)
        starts = np.zeros(count + 1, np.int64)
        rows: list[np.ndarray] = []
        boxes: list[tuple[float, float, float, float]] = []
        areas: list[int] = []
        segments: list[bytes] = []
        image_labels = np.zeros(count, np.int64)
        for i in range(count):
            objects, masks = self._scene(np.random.default_rng([self.seed, stream, i]), split)
            rows.append(objects)
            seen = [int(m.sum()) for m in masks]
            boxes.extend(mask_box(m) for m in masks)
            areas.extend(seen)
            segments.extend(from_mask(m) for m in masks)
            starts[i + 1] = starts[i] + len(masks)
            image_labels[i] = objects[int(np.argmax(seen)), 0] if seen else 0
        objects = np.concatenate(rows) if rows else np.zeros((0, len(_COLUMNS)), np.int32)
        drawer = Drawer(
            (self.height, self.width), self.channels, (self.seed, stream), starts, objects
        )
        table = Table(
            root=str(self.root),
            classes=Classes.from_names(NAMES),
            files=Strings(f"{split}/{i:06d}.png" for i in range(count)),
            sizes=np.tile(np.array([[self.height, self.width]], np.int32), (count, 1)),
            starts=starts,
            boxes=np.array(boxes, np.float64).reshape(-1, 4),
            labels=objects[:, 0].astype(np.int64),
            flags=np.zeros(len(objects), np.uint8),
            areas=np.array(areas, np.float64),
            lines=np.zeros(len(objects), np.int64),
            segments=Blobs(segments),
            # A scene without objects has no class of its own.
            image_labels=image_labels if self.objects[0] > 0 else None,
            generator=drawer,
        )
        return Split(split, table)

    def _scene(self, rng: np.random.Generator, split: str) -> tuple[np.ndarray, list[np.ndarray]]:
        """Objects ``(n, 10)`` from back to front, and each one's visible mask, uint8 ``(H, W)``."""
        wanted = int(rng.integers(self.objects[0], self.objects[1] + 1))
        for _ in range(_SCENES):
            objects: list[np.ndarray] = []
            masks: list[np.ndarray] = []
            whole: list[int] = []
            while len(objects) < wanted:
                for _ in range(_TRIES):
                    row = self._object(rng)
                    mask = draw_mask(row, self.height, self.width)
                    # Objects lie on top of those before them.
                    left = [m & ~mask & 1 for m in masks]
                    if all(self._seen(m, n) for m, n in zip(left, whole, strict=True)):
                        break
                else:
                    break
                objects.append(row)
                masks = [*left, mask]
                whole.append(int(mask.sum()))
            if len(objects) == wanted:
                found = np.array(objects, np.int32).reshape(-1, len(_COLUMNS))
                return found, masks
        raise UsageError(
            f"data.max_objects={self.objects[1]}: {wanted} objects of data.min_size and above do "
            f"not fit a {split} scene with data.min_visible={self.min_visible}; lower one of them"
        )

    def _seen(self, mask: np.ndarray, whole: int) -> bool:
        if mask.sum() < self.min_visible * whole:
            return False
        x0, y0, x1, y1 = mask_box(mask)
        return min(x1 - x0, y1 - y0) >= self.sides[0]

    def _object(self, rng: np.random.Generator) -> np.ndarray:
        """One row of ``_COLUMNS``."""
        least, most = self.sides
        kind = int(rng.integers(len(NAMES)))
        width = int(rng.integers(least, most + 1))
        # The other side differs by up to a quarter: circles stay near circles.
        low, high = max(least, width * 4 // 5), min(most, width * 5 // 4)
        height = int(rng.integers(min(low, high), max(low, high) + 1))
        left = int(rng.integers(0, self.width - width + 1))
        top = int(rng.integers(0, self.height - height + 1))
        turn = int(rng.integers(len(_COSINES)))
        color = rng.integers(0, 256, 3)
        return np.array([kind, left, top, width, height, turn, *color, 0], np.int32)


_COLUMNS = ("kind", "left", "top", "width", "height", "turn", "red", "green", "blue", "spare")
_TURNS = 48
_COSINES = [round(math.cos(2 * math.pi * t / _TURNS) * 4096) for t in range(_TURNS)]
_SINES = [round(math.sin(2 * math.pi * t / _TURNS) * 4096) for t in range(_TURNS)]


class Drawer:
    """Draws the images of a split: ``drawer(file) -> (H, W, C)`` uint8 RGB.

    It goes by the file name, so that it holds for any selection of the table's rows.
    """

    def __init__(
        self,
        size: tuple[int, int],
        channels: int,
        key: tuple[int, int],
        starts: np.ndarray,
        objects: np.ndarray,
    ) -> None:
        self.size, self.channels, self.key = size, channels, key
        self.starts, self.objects = starts, objects

    def __call__(self, file: str) -> np.ndarray:
        i = int(Path(file).stem)
        rng = np.random.default_rng([*self.key, i, 1])  # the pixels' own stream
        image = _background(rng, *self.size)
        for row in self.objects[self.starts[i] : self.starts[i + 1]]:
            _paint(image, row, rng)
        image = cv2.GaussianBlur(image, (3, 3), 0)  # softens the stairs at the edges
        noise = int(rng.integers(8, 28))
        grain = rng.integers(0, 2 * noise + 1, image.shape, dtype=np.uint8)
        image = cv2.subtract(cv2.add(image, grain), np.full_like(image, noise))
        if self.channels == 1:
            return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]  # (H, W) -> (H, W, 1)
        return image


def draw_mask(row: np.ndarray, height: int, width: int) -> np.ndarray:
    """The whole object, unoccluded: uint8 ``(height, width)`` of 0 and 1; fills its box exactly."""
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [_outline(row)], 1, lineType=cv2.LINE_8, shift=_SHIFT)
    return mask


def _outline(row: np.ndarray) -> np.ndarray:
    """Corners ``(n, 1, 2)`` int32 in 1/16 pixel, stretched to the object's box."""
    kind, left, top, width, height, turn = (int(v) for v in row[:6])
    name = NAMES[kind]
    # Steps around the circle (of _TURNS) and the radius there, in 1/4096.
    if name == "circle":
        corners = [(t, 4096) for t in range(_TURNS)]
    elif name == "star":
        radii = (4096, 1720)
        corners = [((t * _TURNS // 10 + turn) % _TURNS, radii[t % 2]) for t in range(10)]
    else:
        sides = 4 if name == "square" else 3
        start = _TURNS // 8 if name == "square" else 3 * _TURNS // 4
        tilt = turn % 5 - 2  # up to 15 degrees: a square stays a square, not a diamond
        corners = [((start + tilt + t * _TURNS // sides) % _TURNS, 4096) for t in range(sides)]
    xs = [radius * _COSINES[t] for t, radius in corners]
    ys = [radius * _SINES[t] for t, radius in corners]
    points = [
        [
            _stretch(x, min(xs), max(xs), left, width),
            _stretch(y, min(ys), max(ys), top, height),
        ]
        for x, y in zip(xs, ys, strict=True)
    ]
    return np.array(points, np.int32).reshape(-1, 1, 2)  # (n, 2) -> (n, 1, 2)


def _stretch(value: int, least: int, most: int, start: int, length: int) -> int:
    """least..most -> the centers of the pixels start..start + length - 1, in 1/16 pixel."""
    return (start << _SHIFT) + (value - least) * ((length - 1) << _SHIFT) // (most - least)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Soft blotches, and in half of the scenes stripes: uint8 ``(H, W, 3)``."""
    coarse = rng.integers(40, 216, (int(rng.integers(2, 6)), int(rng.integers(2, 6)), 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    fine = rng.integers(0, 48, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    image = cv2.add(image, cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR_EXACT))
    if rng.integers(2):
        _stripes(image, rng, int(rng.integers(10, 40)))
    return image


def _paint(image: np.ndarray, row: np.ndarray, rng: np.random.Generator) -> None:
    """Draws one object, textured, in a color that stands off from what lies behind it."""
    height, width = image.shape[:2]
    left, top, w, h = (int(v) for v in row[1:5])
    part = image[top : top + h, left : left + w]
    mask = draw_mask(row, height, width)[top : top + h, left : left + w].astype(bool)
    behind = part[mask].mean(axis=0).astype(np.int64)
    color = row[6:9].astype(np.int64)
    if int(np.abs(color - behind).sum()) < 150:  # too alike: the opposite of what lies behind
        color = (behind + 128 + (color - 128) // 4) % 256
    fill = np.empty_like(part)
    fill[:] = color.astype(np.uint8)
    _stripes(fill, rng, int(rng.integers(0, 36)))
    part[mask] = fill[mask]


def _stripes(image: np.ndarray, rng: np.random.Generator, strength: int) -> None:
    """Brightens every other diagonal band, in place."""
    height, width = image.shape[:2]
    slope, band = rng.integers(-2, 3, 2), int(rng.integers(4, 13))
    lines = (np.arange(height)[:, None] * slope[0] + np.arange(width)[None] * slope[1]) // band % 2
    cv2.add(image, (lines[:, :, None] * strength).astype(np.uint8).repeat(3, 2), dst=image)


def _integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"data.{name}={value}: give a whole number, at least {least}")


def _fraction(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise UsageError(f"data.{name}={value}: give a fraction above 0, at most 1")
