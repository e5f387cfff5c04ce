"""How well the outlines of classes agree: counts of boundary pixels that have a counterpart.

Papers: Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic segmentation?",
BMVC 2013, section 3 (the measure, and its tolerance of 0.75 % of the image's diagonal); Perazzi et
al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016
(DAVIS; whole pixels, rounded up). Written from the papers.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from cvtrain.structures import IGNORE_INDEX

TOLERANCE = 0.0075
"""Share of the image's diagonal, in pixels rounded up."""


def boundary_tolerance(height: int, width: int) -> int:
    """Pixels that a boundary may be off in an image of that size."""
    return math.ceil(TOLERANCE * math.hypot(height, width))


def device_counts(predicted: Tensor, truth: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """``boundary_counts`` by tensor operations alone, of which only the counts leave the device."""
    reach = boundary_tolerance(*truth.shape)
    predicted = torch.where(truth == IGNORE_INDEX, IGNORE_INDEX, predicted).to(torch.uint8)
    pixels = torch.stack([torch.bincount(m.flatten(), minlength=256) for m in (predicted, truth)])
    present = pixels.sum(dim=0).nonzero().flatten().tolist()  # waits for the device
    labels = [label for label in present if label != IGNORE_INDEX]
    counts = []
    for label in labels:
        message, true = _edge(predicted, label), _edge(truth, label)
        near_said, near_true = message & _within(true, reach), true & _within(message, reach)
        counts.append(torch.stack([m.sum() for m in (message, near_said, true, near_true)]))
    if not counts:
        return np.zeros(0, np.int64), np.zeros((0, 4), np.int64)
    table = torch.stack(counts).cpu().numpy()  # (n, 4)
    there = table[:, [0, 2]].any(axis=1)
    return np.array(labels, np.int64)[there], table[there]


def _edge(mask: Tensor, label: int) -> Tensor:
    """``boundary`` of a tensor."""
    own = mask == label
    other = ~own & (mask != IGNORE_INDEX)
    touched = torch.zeros_like(own)
    touched[1:] |= other[:-1]
    touched[:-1] |= other[1:]
    touched[:, 1:] |= other[:, :-1]
    touched[:, :-1] |= other[:, 1:]
    return own & touched


def _within(edge: Tensor, reach: int) -> Tensor:
    """``_near`` of a tensor: for each row up and down, how far along it the nearest pixel is."""
    height, width = edge.shape
    at = torch.arange(width, device=edge.device).expand(height, width)
    far = width + reach + 1
    before = torch.where(edge, at, -far).cummax(dim=1).values
    after = torch.where(edge, at, width - 1 + far).flip(1).cummin(dim=1).values.flip(1)
    along = torch.minimum(at - before, after - at)  # (H, W) pixels to the nearest of the row
    near = torch.zeros_like(edge)
    for down in range(-min(reach, height - 1), min(reach, height - 1) + 1):
        most = math.isqrt(reach**2 - down**2)
        rows, others = (slice(max(0, s), height + min(0, s)) for s in (-down, down))
        near[rows] |= along[others] <= most
    return near


def boundary(mask: np.ndarray, label: int) -> np.ndarray:
    """A bool ``(H, W)``: pixels of a class with one of another class above, below or beside them.

    Void is no other class, and neither is what lies outside the image.
    """
    own = mask == label
    other = ~own & (mask != IGNORE_INDEX)
    touched = np.zeros_like(own)
    touched[1:] |= other[:-1]
    touched[:-1] |= other[1:]
    touched[:, 1:] |= other[:, :-1]
    touched[:, :-1] |= other[:, 1:]
    edge: np.ndarray = own & touched
    return edge


def boundary_counts(predicted: Tensor, truth: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Boundary pixels of one image, and those within the tolerance of the other mask's.

    Distances are Euclidean, from pixel center to pixel center. The prediction counts nothing where
    the truth is void.

    Args:
        predicted: uint8 ``(H, W)`` classes.
        truth: uint8 ``(H, W)`` classes, 255 void, on the same device: a GPU counts itself.

    Returns:
        int64 ``(n,)`` classes with a boundary in either, and int64 ``(n, 4)``: predicted boundary
        pixels, those with a true one near, true boundary pixels, those with a predicted one near.
    """
    if predicted.device.type != "cpu":
        return device_counts(predicted, truth)
    return _counts(predicted.numpy(), truth.numpy())


def _counts(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By OpenCV's distance transform."""
    reach = boundary_tolerance(*truth.shape)
    predicted = np.where(truth == IGNORE_INDEX, np.uint8(IGNORE_INDEX), predicted)
    found = np.flatnonzero(
        np.bincount(predicted.ravel(), minlength=256) + np.bincount(truth.ravel(), minlength=256)
    )
    classes, counts = [], []
    for label in found[found != IGNORE_INDEX].tolist():
        message, true = boundary(predicted, label), boundary(truth, label)
        if message.any() or true.any():
            near_said, near_true = _near(true, reach), _near(message, reach)
            classes.append(label)
            counts.append(
                [message.sum(), (message & near_said).sum(), true.sum(), (true & near_true).sum()]
            )
    return np.array(classes, np.int64), np.array(counts, np.int64).reshape(-1, 4)


def _near(edge: np.ndarray, reach: int) -> np.ndarray:
    """A bool ``(H, W)``: pixels at most ``reach`` away from a pixel of ``edge``."""
    if not edge.any():
        return np.zeros_like(edge)
    away = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near: np.ndarray = away <= reach + 1e-3  # float32; squares of distances are whole numbers
    return near
