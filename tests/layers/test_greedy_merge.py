"""The greedy merge against a slow one, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cvtrain.layers.greedy_merge import greedy_merge, match_scores


def slowly(
    boxes: np.ndarray, scores: np.ndarray, threshold: float
) -> list[tuple[list[float], float]]:
    """Section 4.3, steps (d) to (h), one pair at a time."""
    found = [(box, 1, float(score)) for box, score in zip(boxes.astype(float), scores)]
    while len(found) > 1:
        pairs = [
            (match_scores(found[i][0], found[j][0][None])[0], i, j)
            for i in range(len(found))
            for j in range(i + 1, len(found))
        ]
        match, i, j = min(pairs)
        if match > threshold:
            break
        (a, n, s), (b, m, t) = found[i], found[j]
        merged = ((n * a + m * b) / (n + m), n + m, s + t)
        found = [f for k, f in enumerate(found) if k not in (i, j)] + [merged]
    return sorted(([*box.tolist()], score) for box, _, score in found)


def test_match_score_by_hand() -> None:
    square = np.array([0.0, 0, 8, 8])
    others = np.array(
        [[0, 0, 8, 8], [2, 0, 10, 8], [8, 0, 16, 8], [2, 2, 6, 6], [80, 0, 88, 8]], float
    )
    expected = [0, 0.25 + 0.25, 1 + 1, 1 - 16 / 40, 10 + 1]
    assert match_scores(square, others) == pytest.approx(expected)


def test_two_groups_and_a_stray() -> None:
    boxes = np.array(
        [[0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60], [50, 52, 60, 62], [90, 0, 99, 9]]
    )
    merged, sums = greedy_merge(boxes, np.array([0.2, 0.3, 0.5, 0.4, 0.8]), 0.5)
    assert merged.tolist() == [[50, 51, 60, 61], [90, 0, 99, 9], [1, 0, 11, 10]]
    assert sums == pytest.approx([0.9, 0.8, 0.5])


def test_every_box_counts_once_in_an_average() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [1, 0, 11, 10]])
    merged, sums = greedy_merge(boxes, np.ones(4), 0.5)
    assert merged.tolist() == [[0.25, 0, 10.25, 10]]
    assert sums.tolist() == [4]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.1, 0.5, 1.5])
def test_it_is_the_slow_merge(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.choice([10.0, 40.0, 80.0], (25, 2)) + rng.normal(0, 4, (25, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(15, 40, (25, 2))], axis=1)
    scores = rng.random(25)
    merged, sums = greedy_merge(boxes, scores, threshold)
    slow = slowly(boxes, scores, threshold)
    assert len(merged) == len(slow)
    assert sums.sum() == pytest.approx(scores.sum())
    assert (np.diff(sums) <= 0).all()
    ours = sorted((box, total) for box, total in zip(merged.tolist(), sums.tolist()))
    for (box, total), (expected, wanted) in zip(ours, slow, strict=True):
        assert box == pytest.approx(expected)
        assert total == pytest.approx(wanted)


def test_nothing_and_boxes_without_area() -> None:
    merged, sums = greedy_merge(np.zeros((0, 4)), np.zeros(0), 0.5)
    assert merged.shape == (0, 4)
    assert sums.shape == (0,)
    merged, _ = greedy_merge(
        np.array([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9.0]]), np.ones(3), 0.5
    )
    assert np.isfinite(merged).all()


def test_the_inputs_stay_as_they_are() -> None:
    boxes, scores = np.array([[0.0, 0, 10, 10], [0, 0, 10, 11]]), np.array([0.5, 0.5])
    greedy_merge(boxes, scores, 0.5)
    assert boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 11]]
    assert scores.tolist() == [0.5, 0.5]
