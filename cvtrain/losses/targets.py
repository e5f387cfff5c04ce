"""What losses aim at: labels of images, or a share of every class; class maps of their pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.structures import IGNORE_INDEX, Target


def class_targets(targets: list[Target], num_classes: int) -> Tensor:
    """Labels int64 ``(B,)`` where every target has a label alone, else float32 ``(B, K)``.

    ``Target.probs`` goes before ``Target.label``; beside a target with probs, the labels of the
    others become rows of one 1.

    Raises:
        ValueError: a target has neither, or probs of another number of classes.
    """
    rows = []
    for target in targets:
        if target.probs is not None:
            if target.probs.shape != (num_classes,):
                shape = tuple(target.probs.shape)
                raise ValueError(f"a target with probs of shape {shape}, not ({num_classes},)")
            rows.append(target.probs.float())
        elif target.label is not None:
            rows.append(target.label)
        else:
            raise ValueError("a target without a label: a classifier needs one for every image")
    if all(row.ndim == 0 for row in rows):
        return torch.stack(rows)  # (B,)
    return torch.stack([soft(row[None], num_classes)[0] if row.ndim == 0 else row for row in rows])


def soft(targets: Tensor, num_classes: int) -> Tensor:
    """int64 ``(B,)`` labels -> float32 ``(B, K)`` rows of one 1; ``(B, K)`` stay as they are."""
    return F.one_hot(targets, num_classes).float() if targets.ndim == 1 else targets


def mask_targets(targets: list[Target]) -> Tensor:
    """Class maps int64 ``(B, H, W)``, 255 void.

    Raises:
        ValueError: a target has none.
    """
    masks = [target.mask for target in targets if target.mask is not None]
    if len(masks) < len(targets):
        raise ValueError("a target without a mask: segmentation needs one for every image")
    return torch.stack(masks).long()


def over_pixels(values: Tensor, masks: Tensor) -> Tensor:
    """The mean of ``(B, H, W)`` over the pixels that are not void; 0, with gradient, of none."""
    counted = masks != IGNORE_INDEX
    return (values * counted).sum() / counted.sum().clamp(min=1)
