"""README's and the guides' examples run as typed, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "conf").rglob("README.md")), ROOT / "cvtrain/README.md"]
PAGES += [ROOT / "scripts/README.md", ROOT / "tests/README.md"]
TEXT = "\n".join(page.read_text() for page in PAGES)


def blocks(marker: str) -> list[tuple[str, str]]:
    """(argument, text) of every fenced block, on any page, behind ``<!-- marker argument -->``."""
    pattern = rf"<!-- {marker}:? ?(\S*) ?-->\n```\w+\n(.*?)```"
    return re.findall(pattern, TEXT, flags=re.S)


def write_files(folder: Path) -> None:
    for name, text in blocks("file"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run(script: str, folder: Path) -> None:
    """Every line of a script, which is a cvtrain command, in that folder."""
    for line in script.strip().splitlines():
        words = shlex.split(line)
        assert words[0] == "cvtrain"
        call([sys.executable, "-m", "cvtrain", *words[1:]], folder)


def call(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_own_model_example(tmp_path: Path) -> None:
    write_files(tmp_path)
    assert (tmp_path / "mynets.py").exists()
    assert (tmp_path / "conf/model/three_convs.yaml").exists()
    ((_, script),) = blocks("run")
    run(script, tmp_path)
    results = json.loads((tmp_path / "my_run/results.json").read_text())
    assert results["model"] == "three_convs"
    assert 0 <= results["metrics"]["accuracy"] <= 1


@pytest.mark.slow
def test_walk_throughs_of_a_folder_of_photos(tmp_path: Path) -> None:
    write_files(tmp_path)
    call([sys.executable, "draw_photos.py"], tmp_path)
    first, few = (script for _, script in blocks("photos"))
    run(first, tmp_path)
    run(few, tmp_path)
    chance = {"first": 1 / 6, "few": 1 / 3}
    for name, least in chance.items():
        results = json.loads((tmp_path / "runs" / name / "results.json").read_text())
        assert results["metrics"]["accuracy"] > 2 * least, name


def test_readme_promises_only_verbs_and_groups_that_exist() -> None:
    root = ROOT / "conf"
    for group in ("task", "model", "backbone", "data", "experiment"):
        named = set(re.findall(rf"(?<![\w.]){group}=([a-z]\w*)", TEXT)) - {"three_convs", "mine"}
        known = {path.stem for path in (root / group).glob("*.yaml")}
        assert named <= known | {"coco128"}, group


def test_the_front_page_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.read_text()) <= 7000
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_every_folder_and_module_of_the_package_is_on_its_page() -> None:
    text = (ROOT / "cvtrain/README.md").read_text()
    folders = {path.parent.name for path in (ROOT / "cvtrain").glob("*/__init__.py")}
    assert {name for name in folders if f"`{name}/`" not in text} == set()
