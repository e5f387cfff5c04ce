"""Copy-paste (Ghiasi et al. 2020, Simple Copy-Paste, arXiv 2012.07177): objects of another image.

Both images have been augmented and placed already, each by draws of its own, as in the paper (which
scales and mirrors both). A random subset of the second one's objects, each with probability 1/2 and
at least one, is laid over the first by their masks; what they cover of other objects is cut from
those. Edges are left hard: the paper found that blending them changes nothing.
"""

from __future__ import annotations

import numpy as np

from cvtrain.augment.geometry import widen
from cvtrain.augment.planes import Masks
from cvtrain.augment.scene import Scene, hide


def copy_paste(
    scene: Scene,
    other: Scene,
    generator: np.random.Generator,
    *,
    min_visibility: float = 0.1,
    min_area: float = 1.0,
) -> Scene:
    """``scene`` with some of ``other``'s objects over it; both of one size, both with masks.

    Objects of which the pasted ones leave less than ``min_visibility``, or fewer than ``min_area``
    square pixels, are dropped; the others' masks, boxes and areas are what is still seen of them.
    Crowds and objects to be ignored are not pasted.
    """
    assert scene.masks is not None
    assert other.masks is not None
    candidates = np.flatnonzero(~other.ignore)
    if not len(candidates):
        return scene
    chosen = candidates[generator.random(len(candidates)) < 0.5]
    if not len(chosen):
        chosen = candidates[generator.integers(len(candidates), size=1)]
    picked = other.masks.take(chosen)
    cover = picked.union()  # (H, W)
    below = _seen(scene, cover, min_visibility, min_area)
    pasted = other.moved(other.image, other.boxes[chosen], chosen, None, picked, other.keypoints)
    dtype = np.result_type(scene.image.dtype, other.image.dtype)
    image = widen(scene.image, dtype).copy()
    image[cover] = widen(other.image, dtype)[cover]
    mask = scene.mask
    if mask is not None and other.mask is not None:
        mask = np.where(cover, other.mask, mask)
    points = below.keypoints
    if points is not None and pasted.keypoints is not None and points.ndim == 3:
        points = np.concatenate([points, pasted.keypoints])
    assert below.masks is not None
    assert pasted.masks is not None
    return Scene(
        image=image,
        boxes=np.concatenate([below.boxes, pasted.boxes]),
        labels=np.concatenate([below.labels, pasted.labels]),
        ignore=np.concatenate([below.ignore, pasted.ignore]),
        areas=np.concatenate([below.areas, pasted.areas]),
        mask=mask,
        masks=Masks.joined([below.masks, pasted.masks]),
        keypoints=points,
    )


def _seen(scene: Scene, cover: np.ndarray, min_visibility: float, min_area: float) -> Scene:
    """The scene's objects as far as ``cover (H, W)`` leaves them in view."""
    assert scene.masks is not None
    masks = scene.masks.without(cover)
    before, after = scene.masks.areas, masks.areas
    touched = after < before
    stays = (after > 0) & (after >= min_area) & (after >= min_visibility * before)
    kept = np.flatnonzero(~touched | stays)
    boxes = np.where(touched[:, None], masks.boxes, scene.boxes)
    points = None if scene.keypoints is None else hide(scene.keypoints, cover)
    return scene.moved(scene.image, boxes[kept], kept, scene.mask, masks.take(kept), points)
