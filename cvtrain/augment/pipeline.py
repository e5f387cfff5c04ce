"""From the config's list of transforms to one call on a scene, with draws of its own."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np

from cvtrain.augment.config import families, transforms_of
from cvtrain.augment.planes import Masks
from cvtrain.augment.scene import Scene, box_areas
from cvtrain.augment.transforms import Placing, Resize
from cvtrain.errors import CvtrainError, DataError, UsageError

_CONVERTERS = (A.ToFloat, A.FromFloat, A.Normalize)
"""Transforms that are there to change the images' type."""


class Pipeline:
    """Augments a scene and puts it into the network's input; the draws are the caller's.

    Transforms run in the order of the list, in one ``albumentations.Compose``. A transform of ours
    that places the image (``Affine``, ``ResizedCrop``, ``Resize``) resizes to the network's input
    on the way; without one, a ``Resize`` goes last. Keypoints keep their places in the list: one
    that leaves the image is marked unseen.

    Attributes:
        applied: what the last call did, transform by transform, for captions.

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
        self.resize = resize
        self.applied: list[str] = []
        self._transforms = transforms
        self._leaves = [t for t in _flat(transforms) if isinstance(t, A.BasicTransform)]
        self._blends = any(_blends(leaf) for leaf in self._leaves)
        # Processors hang on the transforms (some ask for boxes): the plain one comes first, so that
        # those of the second stay; without boxes no transform uses them.
        self._plain = A.Compose(transforms)
        self._params = A.BboxParams(
            format="pascal_voc",
            min_area=min_area * 0.999,  # boxes are float32 fractions there: one of it stays
            min_visibility=min_visibility,
            clip=True,
            filter_invalid_bboxes=True,
        )
        self._with_boxes = A.Compose(transforms, bbox_params=self._params)
        self._with_points: A.Compose | None = None

    def __call__(self, scene: Scene, generator: np.random.Generator) -> Scene:
        """The augmented scene, ``height x width``; some boxes may be gone, with their masks.

        Raises:
            DataError: a transform failed on this image, or left it at another size.
        """
        count, masks = len(scene.boxes), scene.masks
        # Some transforms ask for boxes: a detector's pipeline gets them where there are none too.
        boxes = self._boxes or count > 0 or scene.keypoints is not None
        compose = self._compose(boxes, scene.keypoints is not None)
        compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        data: dict[str, Any] = {"image": scene.image}
        if scene.mask is not None:
            data["mask"] = scene.mask + np.uint8(1)  # 0 is void in there: what transforms fill with
        if boxes:
            rows = np.arange(count, dtype=np.float64)[:, None]
            data["bboxes"] = np.concatenate([scene.boxes, rows], axis=1)  # (N, 4) -> (N, 5)
            if scene.masks is not None and len(scene.masks.planes):
                masks = scene.masks.apart() if self._blends else scene.masks
                data["masks"] = masks.planes
        if scene.keypoints is not None:
            points = scene.keypoints.reshape(-1, 3)  # (N, K, 3) or (M, 3) -> (M, 3)
            data["keypoints"] = points - [0.5, 0.5, 0.0]  # theirs lie on pixel centers
        for leaf in self._leaves:
            leaf.params = {}
        try:
            out = compose(**data)
        except CvtrainError:
            raise
        except Exception as e:  # any transform of any package, on any image
            raise DataError(f"{self._failure(scene.image, _culprit(e))}: {_line(e)}") from e
        done = [t for t in self._leaves if t.params and not isinstance(t, Resize)]
        self.applied = [_said(transform) for transform in done]
        self._check_image(scene.image, out["image"])
        return self._collect(scene, out, masks)

    def _compose(self, boxes: bool, points: bool) -> A.Compose:
        if not points:
            return self._with_boxes if boxes else self._plain
        if self._with_points is None:
            self._with_points = A.Compose(
                self._transforms,
                bbox_params=self._params,
                keypoint_params=A.KeypointParams(format="xy", remove_invisible=False),
            )
        return self._with_points

    def _failure(self, image: np.ndarray, culprit: str) -> str:
        kind = f"{image.dtype} {'x'.join(map(str, image.shape))}"
        return f"augment={self.name}: {culprit} failed on a {kind} image"

    def _check_image(self, image: np.ndarray, out: np.ndarray) -> None:
        if out.shape[:2] != self.size:
            got, want = out.shape[:2], self.size
            raise DataError(
                f"augment={self.name} gives {got[0]} x {got[1]} images, the network takes "
                f"{want[0]} x {want[1]}; end its list with _target_: cvtrain.augment.Resize"
            )
        if out.dtype != image.dtype and not any(isinstance(t, _CONVERTERS) for t in self._leaves):
            culprit = next((t for t in self._leaves if _changes_type(t, image)), None)
            name = "a transform" if culprit is None else type(culprit).__name__
            raise DataError(
                f"{self._failure(image, name)}: it made it {out.dtype}; omit it, or save the "
                "images with 8 bits"
            )

    def _collect(self, scene: Scene, out: dict[str, Any], masks: Masks | None) -> Scene:
        mask = None if scene.mask is None else out["mask"] - np.uint8(1)
        boxes = np.asarray(out["bboxes"]) if len(scene.boxes) else np.zeros((0, 5))
        kept = boxes[:, 4].astype(np.int64) if len(boxes) else np.zeros(0, np.int64)
        boxes = boxes[:, :4] if len(boxes) else np.zeros((0, 4))
        if masks is not None:
            if "masks" in out:
                masks = masks.moved(np.asarray(out["masks"])).take(kept)
            else:
                masks = Masks.empty(*self.size)
            # A corner of the box may be left without the object, or with little of it.
            seen = (masks.areas > 0) & (box_areas(masks.boxes) >= self._params.min_area)
            kept, masks = kept[seen], masks.take(seen)
            boxes = masks.boxes
        points = scene.keypoints
        if points is not None:
            moved = np.asarray(out["keypoints"], np.float64).reshape(points.shape)
            points = moved + np.array([0.5, 0.5, 0.0])
        return scene.moved(np.ascontiguousarray(out["image"]), boxes, kept, mask, masks, points)


def _blends(transform: Any) -> bool:
    """Whether a transform makes pixels of masks of several others: not by nearest neighbor."""
    method = getattr(transform, "mask_interpolation", cv2.INTER_NEAREST)
    nearest = (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)
    return isinstance(transform, A.Morphological) or method not in nearest


def build_pipeline(
    node: Mapping[str, Any],
    build: Callable[[Any, str], Any],
    height: int,
    width: int,
    **options: Any,
) -> Pipeline:
    """The pipeline of a settled node: its own transforms, then its families, at their strengths.

    Where nothing in it places the image, families of pixels run at the network's size: the resize
    goes before them.

    Args:
        node: as ``config.settled`` gives it.
        build: makes a transform of its node and the dotted path it lies at.
        height: of the network's input, pixels.
        width: the same.
        options: of ``Pipeline``.

    Raises:
        UsageError: a transform that cannot be built, or cannot serve.
    """
    own = build_transforms(node["transforms"], build)
    names = families(node)
    composed: list[Any] = []
    for name in names:
        composed += build_transforms(transforms_of(name, node[name]), build, f"augment.{name}")
    if names and not any(isinstance(t, Placing) for t in own + composed):
        own.append(Resize())
    return Pipeline(
        own + composed,
        height=height,
        width=width,
        min_visibility=node["min_visibility"],
        min_area=node["min_area"],
        name=node["name"],
        **options,
    )


def build_transforms(
    nodes: Iterable[Any], build: Callable[[Any, str], Any], where: str = "augment"
) -> list[Any]:
    """Instantiates each node by ``build``; an argument a transform does not know is an error.

    Raises:
        UsageError: albumentations does not take the arguments (it would only warn).
    """
    transforms = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r"Argument\(s\)")
        for i, node in enumerate(nodes):
            target = node.get("_target_", node) if isinstance(node, Mapping) else node
            try:
                transform = build(node, f"{where}.transforms[{i}]")
            except (UserWarning, ValueError, TypeError) as e:
                raise UsageError(f"{where}.transforms: {target}: {_line(e)}") from e
            if not isinstance(transform, A.BasicTransform | A.BaseCompose):
                raise UsageError(f"{where}.transforms: {target} is no albumentations transform")
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
                    "omit it from the list for this task"
                )


def _flat(transforms: Iterable[Any]) -> list[Any]:
    """Every transform, those inside OneOf, SomeOf and the like too."""
    found = []
    for transform in transforms:
        found.append(transform)
        if isinstance(transform, A.BaseCompose):
            found.extend(_flat(transform.transforms))
    return found


def _said(transform: Any) -> str:
    """What a transform that was applied is called in a caption: ``sun flare`` for SunFlare."""
    own = getattr(transform, "said", "")
    name = type(transform).__name__
    return own or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower().replace("hsv", "HSV")


def _culprit(error: BaseException) -> str:
    """The class of the innermost transform that an error came from."""
    name, frames = "a transform", error.__traceback__
    while frames is not None:
        owner = frames.tb_frame.f_locals.get("self")
        name = type(owner).__name__ if isinstance(owner, A.BasicTransform) else name
        frames = frames.tb_next
    return name


def _changes_type(transform: Any, image: np.ndarray) -> bool:
    """Whether a transform alone gives another type than it is given."""
    try:
        return bool(transform(image=image, force_apply=True)["image"].dtype != image.dtype)
    except Exception:  # it needs more than an image: another one it was
        return False


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
