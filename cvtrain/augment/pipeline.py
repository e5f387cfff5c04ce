"""From the config's list of transforms to one call on a scene, with draws of its own."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import albumentations as A
import numpy as np

from cvtrain.augment.scene import Scene
from cvtrain.augment.transforms import Placing, Resize
from cvtrain.errors import CvtrainError, DataError, UsageError

KEYS = frozenset({"name", "transforms", "mosaic", "min_visibility", "min_area"})
"""The keys of an ``augment`` node."""


class Pipeline:
    """Augments a scene and puts it into the network's input; the draws are the caller's.

    Transforms run in the order of the list, in one ``albumentations.Compose``. A transform of ours
    that places the image (``Affine``, ``ResizedCrop``, ``Resize``) resizes to the network's input
    on the way; without one, a ``Resize`` goes last.

    Args:
        transforms: albumentations transforms.
        height, width: the network's input, pixels.
        resize: ``letterbox`` or ``stretch``.
        targets: what there is beside images, of ``boxes``, ``mask``, ``masks``.
        min_visibility: boxes of which a transform leaves less than this fraction are dropped.
        min_area: boxes smaller than this are dropped, square network pixels.
        name: the augmentation's name, for messages.

    Raises:
        UsageError: a transform that moves pixels but not the targets.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        *,
        height: int,
        width: int,
        resize: str,
        targets: Collection[str] = (),
        min_visibility: float = 0.1,
        min_area: float = 1.0,
        name: str = "",
    ) -> None:
        transforms = list(transforms)
        _check_targets(transforms, targets, name)
        if not any(isinstance(t, Placing) for t in transforms):
            transforms.append(Resize())
        for transform in _flat(transforms):
            if isinstance(transform, Placing):
                transform.bind(height, width, resize)
        self.size, self.name, self._boxes = (height, width), name, "boxes" in targets
        # Processors hang on the transforms (some ask for boxes): the plain one comes first, so that
        # those of the second stay; without boxes no transform uses them.
        self._plain = A.Compose(transforms)
        self._with_boxes = A.Compose(
            transforms,
            bbox_params=A.BboxParams(
                format="pascal_voc",
                min_area=min_area,
                min_visibility=min_visibility,
                clip=True,
                filter_invalid_bboxes=True,
            ),
        )

    def __call__(self, scene: Scene, generator: np.random.Generator) -> Scene:
        """The augmented scene, ``height x width``; some boxes may be gone, with their masks.

        Raises:
            DataError: a transform failed on this image, or left it at another size.
        """
        count = len(scene.boxes)
        # Some transforms ask for boxes: a detector's pipeline gets them where there are none too.
        boxes = self._boxes or count > 0
        compose = self._with_boxes if boxes else self._plain
        compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        data: dict[str, Any] = {"image": scene.image}
        if scene.mask is not None:
            data["mask"] = scene.mask + np.uint8(1)  # 0 is void in there: what transforms fill with
        if boxes:
            rows = np.arange(count, dtype=np.float64)[:, None]
            data["bboxes"] = np.concatenate([scene.boxes, rows], axis=1)  # (N, 4) -> (N, 5)
            if scene.masks is not None and count:
                data["masks"] = scene.masks
        try:
            out = compose(**data)
        except CvtrainError:
            raise
        except Exception as e:  # any transform of any package, on any image
            depth = f"{scene.image.dtype} {'x'.join(map(str, scene.image.shape))}"
            raise DataError(f"augment={self.name} failed on a {depth} image: {_line(e)}") from e
        if out["image"].shape[:2] != self.size:
            got, want = out["image"].shape[:2], self.size
            raise DataError(
                f"augment={self.name} gives {got[0]} x {got[1]} images, the network takes "
                f"{want[0]} x {want[1]}; end its list with _target_: cvtrain.augment.Resize"
            )
        return self._collect(scene, out, count)

    def _collect(self, scene: Scene, out: dict[str, Any], count: int) -> Scene:
        mask = None if scene.mask is None else out["mask"] - np.uint8(1)
        masks = scene.masks
        boxes = np.asarray(out["bboxes"]) if count else np.zeros((0, 5))
        kept = boxes[:, 4].astype(np.int64) if len(boxes) else np.zeros(0, np.int64)
        boxes = boxes[:, :4] if len(boxes) else np.zeros((0, 4))
        if masks is not None:
            if count:
                masks = np.asarray(out["masks"])[kept]
            else:
                masks = np.zeros((0, *self.size), np.uint8)
            seen = masks.any(axis=(1, 2))  # a corner of the box may be left without the object
            boxes, kept, masks = boxes[seen], kept[seen], masks[seen]
            boxes = _tighten(boxes, masks)
        return scene.moved(np.ascontiguousarray(out["image"]), boxes, kept, mask, masks)


def _tighten(boxes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Cuts boxes to their masks, with a pixel of slack: a turned box is larger than its object."""
    boxes = boxes.copy()
    for box, mask in zip(boxes, masks, strict=True):
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box[:2] = np.maximum(box[:2], [xs[0] - 1, ys[0] - 1])
        box[2:] = np.minimum(box[2:], [xs[-1] + 2, ys[-1] + 2])
    return boxes


def check_augment(augment: Mapping[str, Any] | None) -> dict[str, Any]:
    """The ``augment`` node with its defaults filled in.

    Raises:
        UsageError: an unknown key or a value out of range.
    """
    node = {"name": "none", "transforms": [], "mosaic": 0.0, "min_visibility": 0.1, "min_area": 1.0}
    for key, value in (augment or {}).items():
        if key not in KEYS:
            raise UsageError(f"augment.{key} is not known; known: {', '.join(sorted(KEYS))}")
        node[key] = value
    for key, most in (("mosaic", 1.0), ("min_visibility", 1.0), ("min_area", float("inf"))):
        value = node[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise UsageError(f"augment.{key}={value}: give a number from 0 to {most:g}")
    if not isinstance(node["transforms"], list):
        raise UsageError(f"augment.transforms={node['transforms']!r}: give a list of transforms")
    return node


def build_transforms(nodes: Iterable[Any], build: Callable[[Any], Any]) -> list[Any]:
    """Instantiates each node by ``build``; an argument a transform does not know is an error.

    Raises:
        UsageError: albumentations does not take the arguments (it would only warn).
    """
    transforms = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r"Argument\(s\)")
        for node in nodes:
            target = node.get("_target_", node) if isinstance(node, Mapping) else node
            try:
                transform = build(node)
            except (UserWarning, ValueError, TypeError) as e:
                raise UsageError(f"augment.transforms: {target}: {_line(e)}") from e
            if not isinstance(transform, A.BasicTransform | A.BaseCompose):
                raise UsageError(f"augment.transforms: {target} is no albumentations transform")
            transforms.append(transform)
    return transforms


def _check_targets(transforms: Sequence[Any], targets: Collection[str], name: str) -> None:
    """Albumentations leaves boxes and masks where they were if a transform cannot move them."""
    needed = {"boxes": "bboxes", "mask": "mask", "masks": "mask"}
    for transform in _flat(transforms):
        if not isinstance(transform, A.DualTransform):
            continue
        moves = (
            transform._targets if isinstance(transform._targets, tuple) else (transform._targets,)
        )
        known = {m.value.lower() for m in moves}
        for target in targets:
            if needed[target] not in known:
                raise UsageError(
                    f"augment={name}: {type(transform).__name__} moves pixels but not {target}; "
                    "leave it out of augment.transforms for this task"
                )


def _flat(transforms: Iterable[Any]) -> list[Any]:
    """Every transform, those inside OneOf, SomeOf and the like too."""
    found = []
    for transform in transforms:
        found.append(transform)
        if isinstance(transform, A.BaseCompose):
            found.extend(_flat(transform.transforms))
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
