"""Cross-entropy that counts the gaps between touching objects many times over.

Paper: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", arXiv 1505.04597, equations 1 and 2: ``w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 /
(2 sigma^2))`` at pixels of the background, d1 and d2 the distances to the nearest and the second
nearest object; w0 = 10, sigma = 5 pixels. Written from the paper.

Where the paper is silent: an object is a 4-connected part of one class; distances are Euclidean,
to the nearest pixel of the object; the map is made of the mask as the network sees it, after
augmentation, so sigma is in network pixels. It is made on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.losses.targets import over_pixels
from cvtrain.losses.weights import ClassWeighted
from cvtrain.structures import IGNORE_INDEX


class BoundaryWeighted(ClassWeighted):
    """Cross-entropy, weighted by the class and by how narrow the gap is that a pixel lies in.

    Args:
        w0: what the middle of the narrowest gap counts beside its class's weight.
        sigma: pixels; gaps of several times as many are background like any other.
        background: index of the class that the gaps are of.
        class_weights: see ``ClassWeighted``.

    Raises:
        ValueError: a number out of range, wrong weights.
    """

    def __init__(
        self,
        w0: float = 10.0,
        sigma: float = 5.0,
        background: int = 0,
        class_weights: str | Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_weights)
        if w0 < 0 or sigma <= 0 or background < 0:
            raise ValueError(
                f"w0={w0} and background={background} must be at least 0, sigma={sigma} above 0"
            )
        self.w0, self.sigma, self.background = w0, sigma, background

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)`` and class maps int64 ``(B, H, W)``, 255 void -> scalar."""
        if self.background >= logits.shape[1]:
            raise ValueError(
                f"background={self.background}: the {logits.shape[1]} classes count from 0"
            )
        losses = F.cross_entropy(
            logits.float(), masks, ignore_index=IGNORE_INDEX, reduction="none"
        )  # (B, H, W)
        maps = [self.gaps(mask) for mask in masks.cpu().numpy()]
        weights = torch.from_numpy(np.stack(maps)).to(losses.device)
        by_class = self._current()
        if by_class is None:
            weights = weights + 1
        else:
            weights = weights + by_class[masks.masked_fill(masks == IGNORE_INDEX, 0)]
        return over_pixels(losses * weights, masks)

    def gaps(self, mask: np.ndarray) -> np.ndarray:
        """``(H, W)`` classes -> float32 ``(H, W)``, the second term of the weight."""
        first, second = two_nearest(objects(mask, self.background))
        reach = (first + second) ** 2 / (2 * self.sigma**2)
        value = np.where(mask == self.background, self.w0 * np.exp(-reach), 0.0)
        return value.astype(np.float32)


def objects(mask: np.ndarray, background: int) -> np.ndarray:
    """``(H, W)`` classes -> int32 ``(H, W)``: 1, 2, ... a connected part; 0 background and void."""
    found = np.zeros(mask.shape, np.int32)
    count = 0
    for label in np.unique(mask).tolist():
        if label not in (background, IGNORE_INDEX):
            number, parts = cv2.connectedComponents((mask == label).astype(np.uint8), None, 4)
            found = np.where(parts > 0, parts + count, found)
            count += number - 1
    return found


def two_nearest(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest and the second nearest of N objects, without N distance maps.

    The objects are divided by each bit of their number. Two different ones are apart by one bit at
    least, and no division puts the nearest nearer than it is: so the second nearest is as far as
    the farther of both sides, at that bit where this is least. 2 log2(N) maps are enough, and the
    result is exact.

    Args:
        parts: int32 ``(H, W)``, numbers of objects from 1.

    Returns:
        float64 ``(H, W)`` twice, pixels; infinite where there is no (second) object.
    """
    count = int(parts.max(initial=0))
    first, second = (np.full(parts.shape, np.inf) for _ in range(2))
    if count == 1:
        return _distance(parts > 0), second
    for bit in range(max(0, count - 1).bit_length()):
        side = ((parts - 1) >> bit & 1).astype(bool)
        sides = [_distance((parts > 0) & (side == which)) for which in (False, True)]
        first = np.minimum(*sides)
        second = np.minimum(second, np.maximum(*sides))
    return first, second


def _distance(inside: np.ndarray) -> np.ndarray:
    """Pixels to the nearest one inside; there is one.

    OpenCV's last bits depend on where in memory the mask lies. Squares of distances are whole
    numbers, which rounding gives back: a run then repeats bit for bit.
    """
    away = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.sqrt(np.rint(away.astype(np.float64) ** 2))
