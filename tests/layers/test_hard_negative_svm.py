"""Mined SVMs are those of all negatives."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from cvtrain.layers.hard_negative_svm import NEVER, fit_machines


def examples(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """3,000 points of 6 numbers; two classes of 40, and some rows that are neither to each."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(3000, 6))
    x[:40, 0] += 3.0
    x[40:80, 1] += 3.0
    signs = np.full((3000, 2), -1, np.int8)
    signs[:40, 0] = signs[40:80, 1] = 1
    signs[100:130, 0] = 0
    x[100:130, 0] += 4.0  # would change the first machine, did they count
    return x.astype(np.float32), signs


def test_mining_ends_at_the_machine_of_all_negatives() -> None:
    x, signs = examples()
    found = fit_machines(x, signs, C=0.1, scale=0.5, most=100, rounds=50, tolerance=1e-6)
    assert found.left == 0
    assert 1 < found.rounds < 50
    assert found.held < 2000, "most negatives are easy, and are forgotten"
    for k in range(2):
        rows = signs[:, k] != 0
        known = LinearSVC(
            C=0.1, loss="hinge", dual=True, intercept_scaling=10.0, max_iter=100_000, tol=1e-6
        ).fit(x[rows] * 0.5, signs[rows, k] > 0)
        np.testing.assert_allclose(found.weight[k], known.coef_[0], atol=0.01)
        np.testing.assert_allclose(found.bias[k], known.intercept_[0], atol=0.01)


def test_rounds_that_are_not_enough_are_counted() -> None:
    x, signs = examples()
    found = fit_machines(x, signs, C=0.1, most=20, rounds=1)
    assert found.rounds == 1
    assert found.held == 40
    assert found.left > 0


def test_mining_finds_what_the_first_fit_has_not_seen() -> None:
    """The only negatives near the positives are rare: an even sample misses most of them."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(5000, 2)) * 0.1
    x[:20] += [1.0, 1.0]
    x[20::500] += [1.0, -1.0]
    signs = np.full((5000, 1), -1, np.int8)
    signs[:20] = 1
    scores = [
        x[20::500] @ m.weight[0] + m.bias[0]
        for m in (fit_machines(x, signs, C=1.0, most=7, rounds=r) for r in (1, 20))
    ]
    assert scores[0].max() > -1.0
    assert scores[1].max() < scores[0].max() - 0.5


@pytest.mark.parametrize(("sign", "bias"), [(-1, NEVER), (0, NEVER), (1, 1.0)])
def test_a_class_with_one_kind_of_example(sign: int, bias: float) -> None:
    x, signs = examples()
    signs[:, 1] = sign
    found = fit_machines(x, signs, C=0.1)
    assert found.bias[1] == bias
    assert not found.weight[1].any()
    assert found.weight[0].any()
