"""Ridge regression is scikit-learn's, in rows or in columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from cvtrain.layers.ridge import ridge


@pytest.mark.parametrize(("rows", "columns"), [(200, 7), (5, 30), (1, 4), (9000, 3)])
def test_it_equals_scikit_learns(rows: int, columns: int) -> None:
    generator = np.random.default_rng(rows)
    x = generator.normal(3.0, 2.0, (rows, columns)).astype(np.float32)
    y = x[:, :2] @ generator.normal(size=(2, 4)) + generator.normal(size=(rows, 4)) + 5
    weight, bias = ridge(x, y, 1000.0)
    known = Ridge(alpha=1000.0).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(weight, known.coef_, atol=1e-9)
    np.testing.assert_allclose(bias, known.intercept_, atol=1e-8)


def test_inputs_may_be_memory_mapped(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = x[:, :1] * 2
    weight, bias = ridge(mapped, y, 1e-6)
    np.testing.assert_allclose(weight, [[2, 0, 0, 0, 0, 0]], atol=1e-5)
    np.testing.assert_allclose(bias, [0], atol=1e-6)
