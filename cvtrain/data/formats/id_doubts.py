"""Whether masks that number objects are what they are taken for: looked at over a whole split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cvtrain.data.formats.mask_objects import MaskObject
from cvtrain.data.mask_file import VOID

_ENOUGH = 3
"""Masks with objects from which on anything is said."""
_PIECE = 9
"""Pixels from which on a piece counts: smaller ones are specks at an outline."""
_WIDE = 0.5
"""Share of the image from which on one value may be the background."""
_NO_IDS = 128
"""A set whose other values all lie below this has not counted up to 255."""


@dataclass(frozen=True)
class MaskLook:
    """What one mask of numbered objects holds.

    Attributes:
        values: of its objects, rising.
        pieces: separate pieces of the object, where there is one alone; else 0.
        wide: the value that covers most of the image and touches all four sides; None: none does.
        has_zero: whether any pixel is 0.
    """

    values: tuple[int, ...]
    pieces: int
    wide: int | None
    has_zero: bool


def look(pixels: np.ndarray, objects: Sequence[MaskObject]) -> MaskLook:
    """Look at the values ``(H, W)`` of a mask and the objects that were made of them."""
    height, width = pixels.shape
    pieces, wide = 0, None
    if len(objects) == 1:
        import cv2  # only here: a check of other formats starts without it

        mask = (pixels == objects[0].value).astype(np.uint8)
        sizes = cv2.connectedComponentsWithStats(mask)[2][1:, cv2.CC_STAT_AREA]
        pieces = int((sizes >= _PIECE).sum())
    for item in objects:
        if item.box == (0.0, 0.0, float(width), float(height)):
            share = float((pixels == item.value).mean())
            wide = item.value if share >= _WIDE else wide
    return MaskLook(tuple(o.value for o in objects), pieces, wide, bool((pixels == 0).any()))


def doubts(
    looks: Sequence[MaskLook], split: str, background: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """``(code, message)`` of what speaks against reading these masks as numbered objects.

    Args:
        looks: of every mask of a split.
        split: its name.
        background: ``data.reader.background``.
    """
    held = [a for a in looks if a.values]
    if len(held) < _ENOUGH:
        return
    values = {value for a in held for value in a.values}
    if len(values) == 1 and values <= {1, VOID}:
        several = sum(a.pieces > 1 for a in held)
        pieces = f", in {several:,} of them of several pieces" if several else ""
        yield (
            "masks-of-one-value",
            f"each of {len(held):,} masks of {split} holds the value {min(values)} alone{pieces}: "
            "one object per image; masks of 0 and 1, or 0 and 255, are data=masks for "
            "task=semantic_segmentation",
        )
        return
    wide = {a.wide for a in held}
    if len(wide) == 1 and None not in wide and not any(a.has_zero for a in held):
        value = next(iter(wide))
        yield (
            "background-numbered",
            f"value {value} fills most of all {len(held):,} masks of {split}, to all four sides, "
            "and none has a pixel of 0: if it is the background, "
            f"data.reader.background={_list([*background, value])}",
        )
    others = values - {VOID}
    if VOID in values and VOID not in background and others and max(others) < _NO_IDS:
        number = sum(VOID in a.values for a in held)
        yield (
            "void-numbered",
            f"value {VOID} is an object in {number:,} of {len(held):,} masks of {split}, where no "
            f"other value is above {max(others)}: if it is void, "
            f"data.reader.background={_list([*background, VOID])}",
        )


def _list(values: Sequence[int | None]) -> str:
    return f"[{','.join(map(str, dict.fromkeys(values)))}]"
