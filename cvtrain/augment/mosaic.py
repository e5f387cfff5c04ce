"""Mosaic (Bochkovskiy et al. 2020, YOLOv4, arXiv 2004.10934): four images in one.

The canvas is the network's input. The four images meet at a random point, each fitted to the
canvas, zoomed, and cut at its quadrant. Which images, which point and which zoom are drawn from
the generator of the sample, so that workers, ranks and resumes agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvtrain.augment.geometry import Box2Box, fit, map_boxes, map_points, pad_value, put, widen
from cvtrain.augment.planes import Masks
from cvtrain.augment.scene import UNSEEN, Scene, box_areas, joined_keypoints
from cvtrain.structures import IGNORE_INDEX

ZOOM = (0.5, 1.0)
"""Each image is drawn at this factor of its fitted size."""


def mosaic(
    scenes: Sequence[Scene],
    generator: np.random.Generator,
    height: int,
    width: int,
    *,
    resize: str = "letterbox",
    min_visibility: float = 0.1,
    min_area: float = 1.0,
) -> Scene:
    """Puts four scenes into one of ``(height, width)``.

    Boxes are cut at their quadrant; those of which less than ``min_visibility`` remains, or fewer
    than ``min_area`` square pixels, are dropped, with their masks.
    """
    first = scenes[0]
    channels, dtype = first.image.shape[2], np.result_type(*(s.image.dtype for s in scenes))
    image = np.full((height, width, channels), pad_value(dtype), dtype)
    mask = None if first.mask is None else np.full((height, width), IGNORE_INDEX, np.uint8)
    cy = round(height * generator.uniform(0.3, 0.7))
    cx = round(width * generator.uniform(0.3, 0.7))
    parts: list[Scene] = []
    for k, scene in enumerate(scenes):
        below, right = divmod(k, 2)  # 0 1 above, 2 3 below the meeting point
        y0, y1 = (cy, height) if below else (0, cy)
        x0, x1 = (cx, width) if right else (0, cx)
        zoom = generator.uniform(*ZOOM)
        base = fit(scene.image.shape[0], scene.image.shape[1], height, width, resize)
        h, w = max(1, round(base.height * zoom)), max(1, round(base.width * zoom))
        # The image's inner corner touches the meeting point: (top, left) in quadrant pixels.
        place = Box2Box(h, w, (0 if right else x1 - x0 - w), (0 if below else y1 - y0 - h))
        tile = _tile(scene, place, (y0, x0, y1, x1), (height, width), min_visibility, min_area)
        image[y0:y1, x0:x1] = widen(tile.image, dtype)
        if mask is not None and tile.mask is not None:
            mask[y0:y1, x0:x1] = tile.mask
        parts.append(tile)
    masks = None
    if first.masks is not None:
        masks = Masks.joined([p.masks for p in parts if p.masks is not None])
    return Scene(
        image=image,
        boxes=np.concatenate([p.boxes for p in parts]),
        labels=np.concatenate([p.labels for p in parts]),
        ignore=np.concatenate([p.ignore for p in parts]),
        areas=np.concatenate([p.areas for p in parts]),
        mask=mask,
        masks=masks,
        keypoints=joined_keypoints(parts),
    )


def _tile(
    scene: Scene,
    place: Box2Box,
    quadrant: tuple[int, int, int, int],
    canvas: tuple[int, int],
    min_visibility: float,
    min_area: float,
) -> Scene:
    """One quadrant: image and mask of its size, boxes and instance masks on the whole canvas."""
    y0, x0, y1, x1 = quadrant
    qh, qw = y1 - y0, x1 - x0
    image = put(scene.image, place, qh, qw, pad_value(scene.image.dtype), nearest=False)
    mask = scene.mask
    if mask is not None:
        mask = put(mask, place, qh, qw, IGNORE_INDEX, nearest=True)
    whole = map_boxes(scene.boxes, place.matrix(*scene.image.shape[:2]))
    boxes = np.clip(whole, 0, [qw, qh, qw, qh])
    area = box_areas(boxes)
    seen = (area >= min_area) & (area >= min_visibility * box_areas(whole)) & (area > 0)
    kept = np.flatnonzero(seen)
    masks = None
    if scene.masks is not None:
        few = scene.masks.take(kept)
        planes = np.zeros((len(few.planes), *canvas), np.uint8)
        for plane, moved in zip(few.planes, planes, strict=True):
            moved[y0:y1, x0:x1] = put(plane, place, qh, qw, 0, nearest=True)
        masks = few.moved(planes)
        alive = masks.areas > 0
        kept, masks = kept[alive], masks.take(alive)
    points = scene.keypoints
    if points is not None:
        points = points.copy()
        points[..., :2] = map_points(points[..., :2], place.matrix(*scene.image.shape[:2]))
        inside = (points[..., :2] >= 0).all(axis=-1) & (points[..., :2] <= [qw, qh]).all(axis=-1)
        points[..., 2] = np.where(inside, points[..., 2], UNSEEN)
        points[..., :2] += [x0, y0]
    out = scene.moved(image, boxes[kept] + [x0, y0, x0, y0], kept, mask, masks)
    if points is not None:  # on the canvas, where the quadrant's own size says nothing
        out.keypoints = points[kept] if points.ndim == 3 else points
    return out
