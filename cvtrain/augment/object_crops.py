"""Crops around objects in two stages, the easy ones first: how a DeconvNet is trained.

Noh, Hong, Han 2015, arXiv 1505.04366, section 4.2. In the first stage a crop is 1.2 times the box
of an object, which so is in the middle, and pixels of other classes count as background. In the
second it is 1.2 times a proposal that overlaps with an object (IoU of 0.5 and more), with all
classes. Which stage it is follows from the epoch alone.

Objects are those of the data set where it has boxes or segments, else the connected parts of each
class but the background. In data without a background there is nothing to make of other classes:
there a crop keeps them in either stage. Where there are no proposals, or none that overlaps, a
window is drawn around the object. An object is drawn first and then one of its windows, so that
those with many proposals are not seen more often; the paper takes all proposals alike and repeats
rare classes. At the border of the image a crop ends with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from cvtrain.augment.config import closing_epoch
from cvtrain.augment.scene import Scene, box_areas
from cvtrain.structures import IGNORE_INDEX

LEAST = 0.005
"""Objects whose boxes are smaller, in shares of the image, are cropped only if all are."""
DRAWS = 20
"""Windows drawn around an object until one overlaps enough; then it is the object's own box."""
SHIFT, ZOOM = 0.3, 1.5
"""How far a drawn window may lie off, in sides of the box, and how many times its sides."""


@dataclass(frozen=True)
class ObjectCrops:
    """Cuts a crop out of a scene with a semantic mask.

    Attributes:
        first: the epochs of the first stage, the first ones; None: all.
        context: sides of a crop in units of the box's or the proposal's, at least 1.
        min_iou: of a proposal with the object, in the second stage.
        background: class of what is no object; None: all classes are objects'.
    """

    first: int | None
    context: float = 1.2
    min_iou: float = 0.5
    background: int | None = None

    def __call__(
        self, scene: Scene, epoch: int, generator: np.random.Generator
    ) -> tuple[Scene, str]:
        """The crop, and what was done in words; a scene without objects stays whole.

        Args:
            scene: with a mask; ``objects`` and ``windows`` are used where they are there.
            epoch: from 0.
            generator: all draws are its.
        """
        assert scene.mask is not None
        objects = self._objects(scene)
        if not len(objects):
            return scene, "no object"
        chosen = objects[int(generator.integers(len(objects)))]
        box, label = chosen[:4], int(chosen[4])
        if self.first is None or epoch < self.first:
            return self._cut(scene, box, label), "centered object"
        window, message = self._window(scene, box, generator)
        return self._cut(scene, window, None), message

    def _objects(self, scene: Scene) -> np.ndarray:
        """float64 ``(N, 5)``: boxes and classes, tiny ones left out."""
        assert scene.mask is not None
        objects = scene.objects
        if objects is None or not len(objects):
            objects = connected(scene.mask, self.background)
        height, width = scene.mask.shape
        large = box_areas(objects) >= LEAST * height * width
        return objects[large] if large.any() else objects

    def _window(
        self, scene: Scene, box: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, str]:
        """One of the proposals that overlap with a box, or a drawn window that does."""
        if scene.windows is not None:
            near = scene.windows[ious(scene.windows, box) >= self.min_iou]
            if len(near):
                return near[int(generator.integers(len(near)))].astype(np.float64), "proposal"
        sides, center = box[2:] - box[:2], (box[2:] + box[:2]) / 2
        for _ in range(DRAWS):
            shift = generator.uniform(-SHIFT, SHIFT, 2)
            half = sides * ZOOM ** generator.uniform(-1, 1, 2) / 2
            middle = center + shift * sides
            window = np.concatenate([middle - half, middle + half])
            if ious(window[None], box)[0] >= self.min_iou:
                return window, "drawn window"
        return box, "drawn window"

    def _cut(self, scene: Scene, box: np.ndarray, label: int | None) -> Scene:
        """The crop around a box; with a ``label``, other classes become background."""
        assert scene.mask is not None
        height, width = scene.mask.shape
        border = (box[2:] - box[:2]) * (self.context - 1) / 2
        x0, y0 = np.floor(np.maximum(box[:2] - border, 0)).astype(int)
        x1, y1 = np.ceil(np.minimum(box[2:] + border, [width, height])).astype(int)
        mask = scene.mask[y0:y1, x0:x1].copy()
        if label is not None and self.background is not None:
            mask[(mask != label) & (mask != IGNORE_INDEX)] = self.background
        image = np.ascontiguousarray(scene.image[y0:y1, x0:x1])
        return replace(scene, image=image, mask=mask, objects=None, windows=None)


def connected(mask: np.ndarray, background: int | None) -> np.ndarray:
    """Boxes and classes of the connected parts of each class: ``(H, W)`` -> float64 ``(N, 5)``.

    Pixels that touch at a corner are connected; void ones and the background belong to no part.
    """
    found = []
    for label in np.unique(mask):
        if label in (IGNORE_INDEX, background):
            continue
        _, _, stats, _ = cv2.connectedComponentsWithStats((mask == label).astype(np.uint8))
        for x, y, w, h, _ in stats[1:]:  # the first is what is outside
            found.append([x, y, x + w, y + h, label])
    return np.array(found, np.float64).reshape(-1, 5)


def ious(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """float64 ``(N,)``: of boxes ``(N, 4)`` with one, xyxy."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    return common / np.maximum(box_areas(boxes) + box_areas(box[None]) - common, 1e-9)


def crops_of(
    node: Mapping[str, Any] | None, epochs: int | None, class_names: Sequence[str]
) -> ObjectCrops | None:
    """The crops of a settled ``augment.object_crops``; None: there are none.

    Args:
        node: its value.
        epochs: of the whole run.
        class_names: of the data, among which the background is looked for.

    Raises:
        UsageError: the first stage is a part of a run whose epochs are not known.
    """
    if node is None:
        return None
    return ObjectCrops(
        closing_epoch(node["first_stage_epochs"], epochs, "object_crops.first_stage_epochs"),
        context=float(node["context"]),
        min_iou=float(node["min_iou"]),
        background=background_class(class_names),
    )


def background_class(names: Sequence[str]) -> int | None:
    """The class that is called background; None: there is none."""
    return next((i for i, name in enumerate(names) if name.lower() == "background"), None)
