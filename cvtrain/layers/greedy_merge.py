"""OverFeat's merging of many predicted boxes into few.

Paper: Sermanet et al. 2013, "OverFeat", arXiv 1312.6229, section 4.3: the two boxes that match best
are replaced by their average, until no two match well enough; a merged box has the sum of the
scores of the windows it came from. What does not agree with many others stays low.

Deviations: the paper's match score is "the sum of the distance between centers of the two bounding
boxes and the intersection area of the boxes", in units it does not give, the lowest score matching
best although more overlap should match better. Here it is the distance of the centers in units of
the mean side, plus 1 minus the intersection in units of the mean area: 0 for equal boxes, 0.5 for
equal squares a quarter of their side apart, above 2 for boxes that neither touch nor are near. The
average is over all boxes that went into a merged one, each counted once, so that it does not depend
on the order in which they came; the paper does not say.
"""

from __future__ import annotations

import numpy as np


def match_scores(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``(4,)`` and ``(N, 4)`` xyxy -> ``(N,)``; the lower, the better they match."""
    box = box[None]
    area, areas = _areas(box), _areas(others)
    center, centers = (box[:, :2] + box[:, 2:]) / 2, (others[:, :2] + others[:, 2:]) / 2
    side = np.maximum((np.sqrt(area) + np.sqrt(areas)) / 2, 1e-9)
    distance = np.hypot(*(centers - center).T) / side
    low, high = np.maximum(box[:, :2], others[:, :2]), np.minimum(box[:, 2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    scores: np.ndarray = distance + 1 - common / np.maximum((area + areas) / 2, 1e-9)
    return scores


def greedy_merge(
    boxes: np.ndarray, scores: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Merge boxes of one class.

    Args:
        boxes: ``(N, 4)`` xyxy.
        scores: ``(N,)``, not negative.
        threshold: two boxes whose match score is above it are not merged.

    Returns:
        float64 ``(M, 4)`` merged boxes and ``(M,)`` sums of scores, the highest first.
    """
    boxes, sums = boxes.astype(np.float64), scores.astype(np.float64)
    n = len(boxes)
    counts = np.ones(n)
    alive = np.ones(n, bool)
    match = np.full((n, n), np.inf)
    for i in range(n):
        match[i] = match_scores(boxes[i], boxes)
    np.fill_diagonal(match, np.inf)
    # The best partner of every box is kept, so that a step costs O(N) instead of O(N^2).
    partner = match.argmin(axis=1) if n else np.zeros(0, np.int64)
    best = match[np.arange(n), partner]
    while n:
        i = int(best.argmin())
        j = int(partner[i])
        if not best[i] <= threshold:
            break
        boxes[i] = (counts[i] * boxes[i] + counts[j] * boxes[j]) / (counts[i] + counts[j])
        counts[i] += counts[j]
        sums[i] += sums[j]
        alive[j] = False
        match[j] = match[:, j] = np.inf
        fresh = np.where(alive, match_scores(boxes[i], boxes), np.inf)
        fresh[i] = np.inf
        match[i] = match[:, i] = fresh
        best[j] = np.inf
        stale = np.flatnonzero(alive & ((partner == i) | (partner == j)))
        stale = np.union1d(stale, [i])
        partner[stale] = match[stale].argmin(axis=1)
        best[stale] = match[stale, partner[stale]]
        nearer = fresh < best
        partner[nearer], best[nearer] = i, fresh[nearer]
    order = np.argsort(-sums[alive], kind="stable")
    return boxes[alive][order], sums[alive][order]


def _areas(boxes: np.ndarray) -> np.ndarray:
    areas: np.ndarray = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    return areas
