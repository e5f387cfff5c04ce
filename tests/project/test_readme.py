"""README's own example of a user's model runs as typed, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def blocks(marker: str) -> list[tuple[str, str]]:
    """(argument, text) of every fenced block behind ``<!-- marker argument -->``."""
    pattern = rf"<!-- {marker}:? ?(\S*) ?-->\n```\w+\n(.*?)```"
    return re.findall(pattern, README.read_text(), flags=re.S)


def test_own_model_example(tmp_path: Path) -> None:
    files = blocks("file")
    assert [name for name, _ in files] == ["mynets.py", "conf/model/three_convs.yaml"]
    for name, text in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    ((_, script),) = blocks("run")
    environment = {**os.environ, "COLUMNS": "120"}
    for line in script.strip().splitlines():
        words = shlex.split(line)
        assert words[0] == "cvtrain"
        done = subprocess.run(
            [sys.executable, "-m", "cvtrain", *words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "my_run/results.json").read_text())
    assert results["model"] == "three_convs"
    assert 0 <= results["metrics"]["accuracy"] <= 1


def test_readme_promises_only_verbs_and_groups_that_exist() -> None:
    text = README.read_text()
    root = README.parent / "conf"
    for group in ("task", "model", "backbone", "data", "experiment"):
        named = set(re.findall(rf"(?<![\w.]){group}=([a-z]\w*)", text)) - {"three_convs"}
        known = {path.stem for path in (root / group).glob("*.yaml")}
        assert named <= known | {"coco128"}, group
