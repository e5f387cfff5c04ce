"""scripts/bench_augment.py times every yaml of conf/augment, whatever task it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_yaml_has_its_line() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/bench_augment.py"), "--images=2", "--rounds=1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[2:] if line]
    times = {words[0]: float(words[1]) for words in lines if words[1][0].isdigit()}
    for path in (ROOT / "conf" / "augment").glob("*.yaml"):
        assert times[path.stem] > 0
