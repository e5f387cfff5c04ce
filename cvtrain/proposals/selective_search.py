"""Selective search: boxes of the regions of many hierarchical groupings of one image.

Uijlings, van de Sande, Gevers, Smeulders, "Selective Search for Object Recognition", IJCV 2013.
From the paper. What it leaves open, or we do otherwise:

- The smallest initial region has k pixels (the paper gives none; its authors' code takes k).
- Texture bins reach to the image's own largest derivative in each channel (a fixed range, of 0.4 of
  white, lost 0.014 of mean best overlap on 40 photographs).
- The random factors of the ranking come from (seed, pixels), so that an image has the same boxes in
  every process and on every day.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from cvtrain.errors import UsageError
from cvtrain.proposals.color import SPACES, convert, unit_rgb
from cvtrain.proposals.grouping import SIMILARITIES, group
from cvtrain.proposals.regions import describe, features, segment

VERSION = 1
"""Raised whenever other boxes come out, so that cached ones are not taken for them."""


@dataclass(frozen=True)
class Mode:
    """The diversification of one row of the paper's table 5.

    Attributes:
        colors: names of ``SPACES``.
        similarities: each a sum of ``SIMILARITIES``.
        thresholds: k of the initial segmentation.
    """

    colors: tuple[str, ...]
    similarities: tuple[str, ...]
    thresholds: tuple[float, ...]


MODES = {
    "single": Mode(("HSV",), ("CTSF",), (100,)),
    "fast": Mode(("HSV", "Lab"), ("CTSF", "TSF"), (50, 100)),
    "quality": Mode(
        ("HSV", "Lab", "rgI", "H", "I"), ("CTSF", "TSF", "F", "S"), (50, 100, 150, 300)
    ),
}
"""1, 8 and 80 groupings (the paper, on VOC 2007: 362, 2,147 and 10,108 boxes per image)."""


@dataclass(frozen=True)
class Settings:
    """What the boxes of an image depend on, beside its pixels.

    Attributes:
        colors, similarities, thresholds: as in ``Mode``.
        sigma: of the smoothing before the segmentation, pixels (paper: 0.8).
        min_size: of an initial region, pixels; None: k.
        min_side: boxes with a shorter side are left out, pixels of the image (R-CNN's code: 20).
        max_side: images with a longer side are shrunk to it first, pixels; None: none is (R-CNN's
            code works at a width of 500).
        max_boxes: the best are kept.
        seed: of the ranking.
    """

    colors: tuple[str, ...]
    similarities: tuple[str, ...]
    thresholds: tuple[float, ...]
    sigma: float = 0.8
    min_size: int | None = None
    min_side: float = 0.0
    max_side: int | None = None
    max_boxes: int = 2000
    seed: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Boxes:
    """Proposals of one image, best first.

    Attributes:
        boxes: float32 ``(P, 4)`` xyxy, pixels of the upright original; P is at least 1.
        scores: float32 ``(P,)`` in 0..1, falling.
        total: how many there were before the best were kept.
        seconds: of processor time they took; 0 where they come from a file.
    """

    boxes: np.ndarray
    scores: np.ndarray
    total: int
    seconds: float = 0.0


def settings(
    mode: str = "fast",
    *,
    colors: Sequence[str] | None = None,
    similarities: Sequence[str] | None = None,
    thresholds: Sequence[float] | None = None,
    **others: Any,
) -> Settings:
    """The settings of a mode; what is given by name replaces the mode's own.

    Raises:
        UsageError: an unknown mode, color space or similarity.
    """
    if mode not in MODES:
        raise UsageError(f"proposals.mode={mode}: choose one of {', '.join(MODES)}")
    base = MODES[mode]
    chosen = Settings(
        tuple(base.colors if colors is None else colors),
        tuple(base.similarities if similarities is None else similarities),
        tuple(float(k) for k in (base.thresholds if thresholds is None else thresholds)),
        **others,
    )
    for name in chosen.colors:
        if name not in SPACES:
            raise UsageError(f"proposals.colors={name}: choose from {', '.join(SPACES)}")
    for name in chosen.similarities:
        if not name or set(name) - set(SIMILARITIES) or len(set(name)) != len(name):
            raise UsageError(
                f"proposals.similarities={name}: put together letters of {SIMILARITIES} (color, "
                "texture, size, fill), e.g. CTSF"
            )
    if not chosen.thresholds or min(chosen.thresholds) <= 0:
        raise UsageError("proposals.thresholds: give numbers above 0, e.g. [50, 100]")
    if not chosen.colors or not chosen.similarities:
        raise UsageError("proposals.colors and proposals.similarities: give at least one of each")
    return chosen


def selective_search(image: np.ndarray, chosen: Settings) -> Boxes:
    """The proposals of an image.

    Args:
        image: ``(H, W, 3)`` RGB or ``(H, W, 1)`` gray, of any depth.
        chosen: see ``settings``.

    Returns:
        At least one box: an image of one color gives the box around it.

    Raises:
        DataError: another number of channels.
    """
    height, width = image.shape[:2]
    small = _shrunk(image, chosen.max_side)
    hierarchies = groupings(unit_rgb(small), chosen)
    scale = np.array([width / small.shape[1], height / small.shape[0]] * 2)
    limit = np.array([width, height] * 2, np.float64)
    order, values = rank(hierarchies, _generator(image, chosen.seed), small.shape)
    boxes = np.minimum(order * scale, limit)
    sides = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    keep = np.flatnonzero(sides >= chosen.min_side)
    if not len(keep):
        boxes, values, keep = limit[None] * [0, 0, 1, 1], np.zeros(1), np.array([0])
    best = keep[: chosen.max_boxes]
    return Boxes(
        boxes=boxes[best].astype(np.float32),
        scores=(1 / (1 + values[best])).astype(np.float32),
        total=len(keep),
    )


def groupings(rgb: np.ndarray, chosen: Settings) -> list[np.ndarray]:
    """int64 ``(2 R - 1, 4)`` boxes of each hierarchy; colors outermost, measures innermost."""
    found = []
    for space in chosen.colors:
        pixels = features(convert(rgb, space), chosen.sigma)
        for k in chosen.thresholds:
            least = round(k) if chosen.min_size is None else chosen.min_size
            regions = describe(segment(pixels.image, k, least), pixels)
            found += [group(regions, measures) for measures in chosen.similarities]
    return found


def rank(
    hierarchies: Sequence[np.ndarray], generator: np.random.Generator, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """All boxes once, best first: section 3.3 of the paper.

    A region's place i in its hierarchy, 1 for the whole image, times a random number in 0..1: small
    is good. Of equal boxes the best counts.

    Args:
        hierarchies: boxes in the order of ``group``.
        generator: of the random numbers.
        shape: height, width of the image.

    Returns:
        int64 ``(P, 4)`` boxes and float64 ``(P,)`` values, rising.
    """
    boxes = np.concatenate(hierarchies)
    places = np.concatenate([np.arange(len(h), 0, -1) for h in hierarchies])
    values = places * generator.random(len(places))
    order = np.argsort(values, kind="stable")
    boxes, values = boxes[order], values[order]
    high, wide = shape[0] + 1, shape[1] + 1
    key = ((boxes[:, 0] * high + boxes[:, 1]) * wide + boxes[:, 2]) * high + boxes[:, 3]
    first = np.sort(np.unique(key, return_index=True)[1])
    return boxes[first], values[first]


def _shrunk(image: np.ndarray, max_side: int | None) -> np.ndarray:
    height, width = image.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return image
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small.reshape(size[1], size[0], image.shape[2])  # gray: (H, W) -> (H, W, 1)


def _generator(image: np.ndarray, seed: int) -> np.random.Generator:
    """A stream of its own for each seed and image."""
    hashed = hashlib.blake2b(f"{image.dtype.str} {image.shape}".encode(), digest_size=16)
    hashed.update(np.ascontiguousarray(image).data)
    words = np.frombuffer(hashed.digest(), np.uint32)
    return np.random.default_rng([seed, *words.tolist()])
