"""Samples to a batch: images of one size and type, and a transport that opens few files.

A worker sends every tensor through a file descriptor of its own. So a batch travels packed: the
images, and one flat array for each kind of target; it unpacks itself in the training process.
``cvtrain.data.shared`` says how each of these arrays travels.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvtrain.augment.geometry import pad_value, widen
from cvtrain.data.shared import carried
from cvtrain.structures import IGNORE_INDEX, Batch, ImageInfo, Target

_THE_TARGETS = "targets"


@dataclass
class Sample:
    """What a data set yields: one image, ``(H, W, C)`` numpy, with its target and its truth.

    ``proposals`` are boxes from outside, float32 ``(P, 4)`` in network pixels, or None.
    """

    image: np.ndarray
    target: Target
    info: ImageInfo
    truth: Target | None = None
    proposals: np.ndarray | None = None


@dataclass
class LoaderBatch(Batch):
    """A ``Batch`` that crosses from a worker in a few pieces; in all else a ``Batch``."""

    def __reduce__(self) -> tuple[Any, ...]:
        truths: Any = None if self.truths is None else _pack(self.truths)
        if self.truths is not None and all(map(operator.is_, self.truths, self.targets)):
            truths = _THE_TARGETS  # originals: sent once
        boxes = None
        if self.proposals is not None:
            boxes = _pack([Target(boxes=b) for b in self.proposals])
        images = carried(self.images.permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, C)
        return _unpickle, (images, _pack(self.targets), self.infos, truths, boxes)


def collate(samples: Sequence[Sample]) -> LoaderBatch:
    """A batch of the samples, images ``(B, C, H, W)`` in channels-last memory.

    Images of several sizes are padded to the right and at the bottom to the largest (masks with
    void), so that boxes and placements hold. Images of several types meet in the widest, full scale
    on full scale: 255 of 8 bits is 65535 of 16.
    """
    images = [s.image for s in samples]
    height, width = (max(i.shape[a] for i in images) for a in (0, 1))
    dtype = np.result_type(*(i.dtype for i in images))
    batch = np.empty((len(images), height, width, images[0].shape[2]), dtype)
    targets = []
    for slot, sample in zip(batch, samples, strict=True):
        h, w = sample.image.shape[:2]
        if (h, w) != (height, width):
            slot[:] = np.asarray(pad_value(dtype)).astype(dtype)
        slot[:h, :w] = widen(sample.image, dtype)
        targets.append(_grow(sample.target, height, width))
    truths = [s.truth for s in samples if s.truth is not None]
    boxes = [torch.from_numpy(s.proposals) for s in samples if s.proposals is not None]
    return LoaderBatch(
        images=torch.from_numpy(batch).permute(0, 3, 1, 2),  # (B, H, W, C) -> (B, C, H, W)
        targets=targets,
        infos=[s.info for s in samples],
        truths=truths or None,
        proposals=boxes or None,
    )


def _grow(target: Target, height: int, width: int) -> Target:
    """Masks grow with a padded image: void, or no object."""
    mask, masks = target.mask, target.masks
    if mask is not None and mask.shape != (height, width):
        mask = _pad(mask, height, width, IGNORE_INDEX)
    if masks is not None and masks.shape[1:] != (height, width):
        masks = _pad(masks, height, width, 0)
    if mask is target.mask and masks is target.masks:
        return target
    values = {f.name: getattr(target, f.name) for f in fields(target)}
    return Target(**{**values, "mask": mask, "masks": masks})


def _pad(mask: Tensor, height: int, width: int, value: int) -> Tensor:
    out = mask.new_full((*mask.shape[:-2], height, width), value)  # (..., h, w) -> (..., H, W)
    out[..., : mask.shape[-2], : mask.shape[-1]] = mask
    return out


def _pack(targets: Sequence[Target]) -> tuple[int, dict[str, tuple[Any, list[Any]]]]:
    """How many targets, and for each field in use: all values end to end, and each one's shape."""
    packed: dict[str, tuple[Any, list[Any]]] = {}
    for field in fields(Target):
        values = [getattr(t, field.name) for t in targets]
        if all(v is None for v in values):
            continue
        if field.name == "rles":  # strings: no tensors
            packed[field.name] = (values, [])
            continue
        flat = torch.cat([v.reshape(-1) for v in values if v is not None])
        shapes = [None if v is None else tuple(v.shape) for v in values]
        packed[field.name] = (carried(flat), shapes)
    return len(targets), packed


def _unpack(count: int, packed: dict[str, tuple[Any, list[Any]]]) -> list[Target]:
    columns: dict[str, list[Any]] = {}
    for name, (flat, shapes) in packed.items():
        if name == "rles":
            columns[name] = flat
            continue
        whole = _tensor(flat)
        column: list[Tensor | None] = []
        at = 0
        for shape in shapes:
            if shape is None:
                column.append(None)
                continue
            size = int(np.prod(shape))
            column.append(whole[at : at + size].reshape(shape))  # (size,) -> shape
            at += size
        columns[name] = column
    return [Target(**{name: c[i] for name, c in columns.items()}) for i in range(count)]


def _tensor(arrived: Tensor | np.ndarray) -> Tensor:
    """What was ``carried``, as a tensor that may be written to."""
    if isinstance(arrived, Tensor):
        return arrived
    return torch.from_numpy(arrived if arrived.flags.writeable else arrived.copy())


def _unpickle(
    images: Tensor | np.ndarray,
    targets: tuple[int, dict[str, Any]],
    infos: list[ImageInfo],
    truths: tuple[int, dict[str, Any]] | str | None,
    boxes: tuple[int, dict[str, Any]] | None,
) -> LoaderBatch:
    found = _unpack(*targets)
    unpacked = None if truths is None else found
    if isinstance(truths, tuple):
        unpacked = _unpack(*truths)
    proposals = None
    if boxes is not None:
        proposals = [t.boxes for t in _unpack(*boxes) if t.boxes is not None]
    pixels = _tensor(images).permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
    return LoaderBatch(pixels, found, infos, unpacked, proposals)
