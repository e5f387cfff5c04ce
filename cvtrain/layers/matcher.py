"""Which anchor answers for which object: thresholds on IoU, the rest to be a negative or ignored.

Regions to ignore (crowds, difficult objects) make no positives; an anchor that would be a negative
but lies in one for the most part is neither.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from cvtrain.layers.boxes import covered, pairwise

NEGATIVE = -1
"""The match of an anchor that is to say "nothing here"."""
IGNORED = -2
"""The match of an anchor that no loss counts."""

Rescue = Literal["none", "ties", "one"]

_PAIRS = 8_000_000
"""IoUs held at once: 1,000 objects on 200,000 anchors would take 800 MB in one piece."""


class Matcher:
    """Anchors to objects by IoU, as in Ren et al. 2015 (arXiv 1506.01497), section 3.1.2.

    An anchor takes the object it overlaps most: positive from ``high`` on, negative below ``low``,
    in between ignored. Where all of an object's anchors fall short, ``rescue`` says what becomes of
    it: ``none``; ``ties``: the anchors that overlap it most (several, if they tie) become positives
    of the object that they overlap most (Faster R-CNN, RetinaNet); ``one``: it gets the anchor it
    overlaps most for itself, whatever that anchor overlaps beside it; an anchor that two objects
    want goes to the one it overlaps more, the other takes its next best (SSD).

    Args:
        high: IoU, 0..1.
        low: IoU, at most ``high``; None: ``high``, nothing is in between.
        rescue: see above.
        ignore_share: an anchor of which more than this share lies in a region to ignore is ignored
            rather than negative, 0..1.

    Raises:
        ValueError: thresholds out of order, an unknown rescue.
    """

    def __init__(
        self,
        high: float,
        low: float | None = None,
        rescue: Rescue = "none",
        ignore_share: float = 0.5,
    ) -> None:
        low = high if low is None else low
        if not 0 <= low <= high <= 1:
            raise ValueError(f"low={low} high={high}: give 0 <= low <= high <= 1")
        if rescue not in get_args(Rescue):
            raise ValueError(f"rescue={rescue}: expected {' | '.join(get_args(Rescue))}")
        self.high, self.low, self.rescue, self.ignore_share = high, low, rescue, ignore_share

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, boxes: Tensor, ignore: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Match the anchors of one image.

        Args:
            anchors: ``(A, 4)`` xyxy pixels.
            boxes: ``(N, 4)`` the objects, N may be 0.
            ignore: ``(M, 4)`` the regions to ignore.

        Returns:
            int64 ``(A,)``: the object's index, ``NEGATIVE`` or ``IGNORED``; and float32 ``(A,)``:
            the IoU with the object it overlaps most.
        """
        index = torch.full((len(anchors),), NEGATIVE, dtype=torch.int64, device=anchors.device)
        best = torch.zeros(len(anchors), device=anchors.device)
        if len(boxes) and len(anchors):
            nearest, best, tops = self._best(anchors, boxes)
            between = (best >= self.low) & (best < self.high)
            index = torch.where(between, IGNORED, index)
            index = torch.where(best >= self.high, nearest, index)
            if self.rescue == "ties":
                index = torch.where(tops, nearest, index)
            elif self.rescue == "one":
                mine = _one_each(pairwise(boxes, anchors))  # (N,)
                has = mine >= 0
                index[mine[has]] = torch.arange(len(boxes), device=index.device)[has]
        if ignore is not None and len(ignore):
            hidden = covered(anchors, ignore) > self.ignore_share
            index = torch.where((index == NEGATIVE) & hidden, IGNORED, index)
        return index, best

    def _best(self, anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each anchor its nearest object, their IoU, and whether it is some object's best."""
        best = anchors.new_full((len(anchors),), -1.0, dtype=torch.float32)
        nearest = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        tops = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
        step = max(1, _PAIRS // len(anchors))
        for start in range(0, len(boxes), step):
            iou = pairwise(boxes[start : start + step], anchors)  # (n, A)
            value, which = iou.max(dim=0)
            better = value > best
            best = torch.where(better, value, best)
            nearest = torch.where(better, which + start, nearest)
            most = iou.amax(dim=1, keepdim=True)
            tops |= ((iou == most) & (most > 0)).any(dim=0)
        return nearest, best, tops


def _one_each(iou: Tensor) -> Tensor:
    """An anchor for each object, no anchor for two, the highest overlaps first.

    Objects propose to their best anchor, an anchor keeps the one it overlaps most (the first, if
    they tie), those refused go on to their next: the stable assignment, which is what taking the
    highest IoU of all, again and again, gives.

    Args:
        iou: float32 ``(N, A)``.

    Returns:
        int64 ``(N,)``, -1 where every anchor that an object overlaps is taken by a better one.
    """
    count, anchors = iou.shape
    mine = torch.full((count,), -1, dtype=torch.int64, device=iou.device)
    held = torch.zeros(anchors, device=iou.device)  # IoU of the object an anchor keeps
    holder = torch.full((anchors,), -1, dtype=torch.int64, device=iou.device)
    free = torch.arange(count, device=iou.device)
    while len(free):
        wishes = torch.where(iou[free] > held, iou[free], 0.0)  # (F, A)
        value, wish = wishes.max(dim=1)
        able = value > 0
        free, value, wish = free[able], value[able], wish[able]
        if not len(free):
            break
        # Of several that want an anchor the one of highest IoU gets it, of those the first.
        top = held.new_zeros(anchors).scatter_reduce(0, wish, value, "amax")
        order = free.new_full((anchors,), count).scatter_reduce(
            0, wish, torch.where(value == top[wish], free, count), "amin"
        )
        won = order[wish] == free
        winners, prizes = free[won], wish[won]
        losers = holder[prizes]
        losers = losers[losers >= 0]
        mine[losers] = -1
        mine[winners], holder[prizes], held[prizes] = prizes, winners, value[won]
        free = torch.cat([free[~won], losers]).sort().values
    return mine
