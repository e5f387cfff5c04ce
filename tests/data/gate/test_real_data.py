"""The small real data sets are clean, and what is known of them is found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cvtrain.data.formats.auto import AutoReader
from cvtrain.data.gate.run import run_gate

SETS = {
    "raccoon": (200, {"color-mode": 3, "duplicate-image": 3, "leak": 1}),
    "cifar10_mini": (4000, {}),
    "membrane": (30, {"color-mode": 30}),
    "street_mini": (90, {}),
    "nuclei_mini": (120, {"color-mode": 120}),
}


@pytest.mark.parametrize("name", SETS)
def test_real_set(real_data: Path, name: str) -> None:
    images, notes = SETS[name]
    report = run_gate(AutoReader(real_data / name), None, progress=False, workers=2)
    assert report.errors == []
    assert (report.images, report.used, report.rejected) == (images, images, 0)
    assert dict(Counter(p.code for p in report.notes)) == notes
    again = run_gate(AutoReader(real_data / name), None, progress=False, workers=2)
    assert again.cached == again.files
    assert again.problems == report.problems
