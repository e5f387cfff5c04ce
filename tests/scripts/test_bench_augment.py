"""scripts/bench_augment.py times every yaml of conf/augment, whatever task it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_yaml_has_its_line() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/bench_augment.py"), "--images=2", "--rounds=1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line)
    for path in (ROOT / "conf" / "augment").glob("*.yaml"):
        assert float(lines[path.stem].split()[0]) > 0
