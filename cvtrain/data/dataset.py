"""Rows of a table to samples: decode, pick the task's targets, augment, place.

Every random draw for a sample comes from (seed, epoch, row): the mosaic's partners and each
transform. So a sample is the same in any worker, on any rank and after any resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cvtrain.augment.geometry import (
    Box2Box,
    fit,
    map_boxes,
    map_points,
    pad_value,
    placement,
    put,
)
from cvtrain.augment.planes import Masks
from cvtrain.augment.policy import Augmentation
from cvtrain.augment.scene import Scene, box_areas
from cvtrain.data.collate import Sample
from cvtrain.data.decode import decode
from cvtrain.data.given_boxes import BoxSource, around, corners
from cvtrain.data.image_cache import RamCache
from cvtrain.data.mask_file import ClassOfValue, decode_mask
from cvtrain.data.masks import (
    labeled_boxes,
    planes_of,
    rle_areas,
    rles_of,
    semantic_mask,
    to_planes,
)
from cvtrain.data.table import CROWD, DIFFICULT, Blobs, Table
from cvtrain.data.worker import prepare_process
from cvtrain.errors import DataError, UsageError
from cvtrain.structures import IGNORE_INDEX, RLE, ImageInfo, Placement, Target


def input_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """``data.image_size`` -> height, width in pixels.

    Raises:
        UsageError: neither a whole number nor two of them.
    """
    size = [image_size] * 2 if isinstance(image_size, int) else image_size
    valid = isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2
    if not valid or not all(type(v) is int and v > 0 for v in size):
        raise UsageError(f"data.image_size={image_size}: give pixels, an int or [H, W]")
    return size[0], size[1]


class VisionDataset(Dataset[Sample]):
    """The samples of one split, for one task.

    Keys are (epoch, row); a plain row means epoch 0, (epoch, row, n) the n-th time in one epoch.
    With an ``augmentation`` (training) images are augmented and ``truth`` is None; without one they
    are letterboxed or stretched, and ``truth`` holds the annotations in pixels of the original.

    The table's arrays are all that is held: no Python object per image or box, so that forked
    workers share them.

    Args:
        table: checked by the gate.
        task: decides which fields of ``Target`` are filled. Localization takes the largest object
            that is not to be ignored.
        height, width: the network's input, pixels.
        resize: ``letterbox`` or ``stretch``.
        channels: of the images.
        augmentation: None for evaluation.
        seed: of the run.
        proposals: boxes for each image, for models that are given them; they go where the image
            goes, and end up in ``Sample.proposals``; where the augmentation cuts crops out, these
            are chosen from them instead. None: none.
        native: images that are not augmented are left as they are, in pixels of the original, and
            their target is their truth.
    """

    def __init__(
        self,
        table: Table,
        task: str,
        *,
        height: int,
        width: int,
        resize: str = "letterbox",
        channels: int = 3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        proposals: BoxSource | None = None,
        native: bool = False,
    ) -> None:
        prepare_process()
        self.proposals, self.native = proposals, native
        self.table, self.task = table, task
        self.height, self.width, self.resize = height, width, resize
        self.channels, self.seed = channels, seed
        self.augmentation = augmentation
        self.cache: RamCache | None = None
        self._class_of_value = ClassOfValue(table.class_values)
        self._known_values = np.union1d(table.class_values, table.void_values)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: int | tuple[int, ...]) -> Sample:
        epoch, row, *again = key if isinstance(key, tuple) else (0, key)
        if not 0 <= row < len(self):
            raise IndexError(row)
        if self.augmentation is None:
            scene = self.scene(row, dense=False)
            return self._whole(row, scene) if self.native else self._fitted(row, scene)
        scene = self.scene(row)
        return self._augmented(epoch, row, scene, self.augmentation, again)[0]

    def image(self, row: int) -> np.ndarray:
        """The upright original, ``(H, W, C)``; not to be written to.

        Raises:
            DataError: it cannot be read, or has another size than when the data were checked.
        """
        return self.load(row) if self.cache is None else self.cache[row]

    def load(self, row: int) -> np.ndarray:
        """``image`` from its file (or its drawer), past the cache."""
        file = self.table.files[row]
        if self.table.generator is not None:
            return self.table.generator(file)  # type: ignore[operator]
        image = decode(Path(self.table.root, file), self.channels)
        size = [int(v) for v in self.table.sizes[row]]
        if size != list(image.shape[:2]):
            raise DataError(
                f"{file}: is {image.shape[0]} x {image.shape[1]} now, was {size[0]} x {size[1]} "
                "when the data were checked; start again"
            )
        return image

    def scene(self, row: int, dense: bool = True) -> Scene:
        """The original with what the task is told of it; ``dense``: masks of objects among it."""
        table, rows = self.table, self.table.rows(row)
        image = self.image(row)
        if self.task in ("classification", "multilabel_classification", "semantic_segmentation"):
            rows = slice(0, 0)
        boxes = table.boxes[rows]
        areas = table.areas[rows]
        scene = Scene(
            image=image,
            boxes=boxes,
            labels=table.labels[rows],
            ignore=(table.flags[rows] & (CROWD | DIFFICULT)) != 0,
            areas=np.where(np.isnan(areas), box_areas(boxes), areas),
        )
        if self.task == "semantic_segmentation":
            scene.mask = self._mask(row)
            if self._crops:
                scene.objects = labeled_boxes(table, row)
        if self.task == "instance_segmentation" and dense:
            scene.masks = self._masks(row, rows, image.shape[0], image.shape[1])
        if self.task == "localization":
            scene = _largest(scene)
        if self.proposals is not None:
            boxes = self.proposals.boxes(table.files[row]).boxes
            if self._crops:
                scene.windows = boxes
            else:
                scene.keypoints = corners(boxes)
        return scene

    @property
    def _crops(self) -> bool:
        """Whether a sample is a crop, which takes the place of proposals."""
        return self.augmentation is not None and self.augmentation.crops is not None

    def _masks(self, row: int, rows: slice, height: int, width: int) -> Masks:
        segments = self._segments(row, rows)
        if segments is None:
            return Masks.empty(height, width)
        return to_planes(segments, rows, height, width)

    def _segments(self, row: int, rows: slice) -> Blobs | None:
        """The table's segments; None where there are neither these nor objects."""
        segments = self.table.segments
        if segments is None and rows.start != rows.stop:
            raise DataError(
                f"{self.table.files[row]}: objects without segments; use task=detection"
            )
        return segments

    def outlines(self, row: int) -> list[RLE]:
        """The masks of an image's objects in original pixels, as RLE; opens no image.

        Raises:
            DataError: objects without segments.
        """
        rows = self.table.rows(row)
        segments = self._segments(row, rows)
        height, width = (int(v) for v in self.table.sizes[row])
        return [] if segments is None else rles_of(segments, rows, height, width)

    def _mask(self, row: int) -> np.ndarray:
        """uint8 ``(H, W)`` classes, void where the file holds no class."""
        if self.table.masks is None:
            return semantic_mask(self.table, row)
        path = Path(self.table.root, self.table.masks[row])
        colors = self.table.mask_colors
        return self._class_of_value(decode_mask(path, colors, self._known_values))

    def described(self, row: int) -> Sample:
        """``self[row]`` without its image, whose file is not opened; for tasks of whole images."""
        height, width = (int(v) for v in self.table.sizes[row])
        nothing = np.zeros((0, 0, self.channels), np.uint8)
        none = np.zeros(0, np.int64)
        scene = Scene(nothing, np.zeros((0, 4)), none, none.astype(bool), np.zeros(0))
        target = self._target(row, scene)
        if self.augmentation is not None:
            return Sample(nothing, target, self._info(row, height, width, None))
        place = fit(height, width, self.height, self.width, self.resize)
        info = self._info(row, height, width, placement(place, height, width))
        return Sample(nothing, target, info, self._target(row, scene))

    def _whole(self, row: int, scene: Scene) -> Sample:
        """The original itself."""
        height, width = scene.image.shape[:2]
        info = self._info(row, height, width, Placement(1.0, 1.0, 0.0, 0.0, height, width))
        truth = self._truth(row, scene)
        points = scene.keypoints
        boxes = None if points is None else around(points, height, width)
        return Sample(scene.image, truth, info, truth, boxes)

    def _fitted(self, row: int, scene: Scene) -> Sample:
        height, width = scene.image.shape[:2]
        place = fit(height, width, self.height, self.width, self.resize)
        out = (self.height, self.width)
        mask = scene.mask
        if mask is not None:
            mask = put(mask, place, *out, IGNORE_INDEX, nearest=True)
        rles, masks = None, None
        if self.task == "instance_segmentation":
            rles = self.outlines(row)
            masks = _small_masks(rles, (height, width), place, out)
        where = placement(place, height, width)
        boxes = map_boxes(scene.boxes, place.matrix(height, width))
        image = put(scene.image, place, *out, pad_value(scene.image.dtype), nearest=False)
        areas = scene.areas * where.scale_x * where.scale_y
        moved = Scene(image, boxes, scene.labels, scene.ignore, areas, mask, masks)
        info = self._info(row, height, width, where)
        target, truth = self._target(row, moved), self._truth(row, scene)
        if rles is not None:
            truth.rles, truth.masks = rles, None
            assert truth.areas is not None
            own = torch.from_numpy(rle_areas(rles))
            truth.areas = own.where(self._unknown_areas(row), truth.areas)
        points = scene.keypoints
        if points is not None:
            points = points.copy()
            points[:, :2] = map_points(points[:, :2], place.matrix(height, width))
        return Sample(image, target, info, truth, self._boxes(points))

    def _unknown_areas(self, row: int) -> torch.Tensor:
        """``(N,)`` truth values: objects whose area the data set does not give."""
        return torch.from_numpy(np.isnan(self.table.areas[self.table.rows(row)]))

    def _boxes(self, points: np.ndarray | None) -> np.ndarray | None:
        """The proposals of a sample, from their corners in network pixels."""
        return None if points is None else around(points, self.height, self.width)

    def classes_of(self, row: int) -> set[int]:
        """The classes that a sample names where nothing augments it; opens no image."""
        if self.task == "semantic_segmentation":
            return {int(v) for v in np.unique(self._mask(row))} - {IGNORE_INDEX}
        rows = self.table.rows(row)
        if self.task == "classification":
            return {int(self._label(row))}
        if self.task == "multilabel_classification":
            return set(self.table.tags_of(row).tolist())
        counts = (self.table.flags[rows] & (CROWD | DIFFICULT)) == 0
        labels = self.table.labels[rows]
        if self.task == "localization":
            areas = np.where(counts, box_areas(self.table.boxes[rows]), -1.0)
            return {int(labels[int(np.argmax(areas))])}
        return {int(v) for v in labels[counts]}

    def mask_pixels(self, row: int) -> np.ndarray:
        """int64 ``(K,)``: the pixels of each class in a semantic mask; opens no image."""
        return np.bincount(self._mask(row).ravel(), minlength=256)[: len(self.table.classes)]

    def augmented(self, epoch: int, row: int) -> tuple[Sample, list[str]]:
        """A training sample, and what was done to it, in words.

        Raises:
            DataError: there is no augmentation, or the image cannot be read.
        """
        if self.augmentation is None:
            raise DataError("these samples are not augmented")
        return self._augmented(epoch, row, self.scene(row), self.augmentation)

    def _augmented(
        self,
        epoch: int,
        row: int,
        scene: Scene,
        augmentation: Augmentation,
        again: Sequence[int] = (),
    ) -> tuple[Sample, list[str]]:
        # Five numbers where it is drawn again: no batch's own draws come from these.
        stream = [self.seed, epoch, row, *again, 1] if again else [self.seed, epoch, row]
        generator = np.random.default_rng(stream)
        height, width = scene.image.shape[:2]
        moved, message = augmentation(
            scene, epoch, generator, lambda: self.scene(int(generator.integers(len(self))))
        )
        if moved is None or (self.task == "localization" and not len(moved.boxes)):
            return self._plain(row, scene), []
        info = self._info(row, height, width, None)
        boxes = self._boxes(moved.keypoints)
        return Sample(moved.image, self._target(row, moved), info, proposals=boxes), message

    def _plain(self, row: int, scene: Scene) -> Sample:
        sample = self._fitted(row, scene)
        return replace(sample, truth=None)

    def _info(self, row: int, height: int, width: int, where: Any) -> ImageInfo:
        file = self.table.files[row]
        return ImageInfo(row, self.table.image_id(row), file, height, width, where)

    def _target(self, row: int, scene: Scene) -> Target:
        if self.task == "classification":
            return Target(label=self._label(row))
        if self.task == "multilabel_classification":
            return Target(probs=self._presence(row))
        if self.task == "semantic_segmentation":
            assert scene.mask is not None
            return Target(mask=torch.from_numpy(scene.mask.astype(np.int64)))
        target = Target(
            boxes=torch.from_numpy(scene.boxes.astype(np.float32)),
            labels=torch.from_numpy(scene.labels.astype(np.int64)),
            ignore=torch.from_numpy(scene.ignore),
            areas=torch.from_numpy(scene.areas.astype(np.float64)),
        )
        if self.task == "localization":
            target.label = torch.tensor(int(scene.labels[0]))
        if scene.masks is not None:
            target.masks = torch.from_numpy(scene.masks.dense())
        return target

    def _truth(self, row: int, scene: Scene) -> Target:
        """What the metric is told: a class map may be large, and stays uint8."""
        if self.task != "semantic_segmentation":
            return self._target(row, scene)
        assert scene.mask is not None
        return Target(mask=torch.from_numpy(np.ascontiguousarray(scene.mask)))

    def _presence(self, row: int) -> torch.Tensor:
        """float32 ``(K,)``: 1 for each class that the image has."""
        if self.table.tags is None:
            raise DataError("the data set names no classes of an image; use task=detection")
        presence = torch.zeros(len(self.table.classes))
        presence[torch.from_numpy(self.table.tags_of(row))] = 1.0
        return presence

    def _label(self, row: int) -> torch.Tensor:
        if self.table.image_labels is None:
            raise DataError("the data set names no class of an image; use task=detection")
        return torch.tensor(int(self.table.image_labels[row]))


def _small_masks(
    rles: list[RLE], size: tuple[int, int], place: Box2Box, out: tuple[int, int]
) -> Masks:
    """Masks of an original of that size placed in the network's input."""
    masks = planes_of(rles, *size)
    moved = [put(plane, place, *out, 0, nearest=True) for plane in masks.planes]
    return masks.moved(np.stack(moved)) if moved else Masks.empty(*out)


def _largest(scene: Scene) -> Scene:
    """The scene with its largest object alone, one that counts if there is one."""
    if not len(scene.boxes):
        raise DataError("an image without objects has nothing to localize; set data.on_bad=drop")
    areas = np.where(scene.ignore, -1.0, box_areas(scene.boxes))
    k = np.array([int(np.argmax(areas))])
    return scene.moved(scene.image, scene.boxes[k], k, None, None)
