"""The wheel carries its configs and runs the main job from any folder, away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_wheel_and_sdist_carry_the_configs(built: Path) -> None:
    configs = {p.relative_to(ROOT).as_posix() for p in (ROOT / "conf").rglob("*.yaml")}
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"cvtrain/{name}" for name in configs} <= names
    assert not [n for n in names if n.startswith(("tests/", "scripts/"))]
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    assert configs <= inside
    assert {"Makefile", "README.md", "LICENSE", "CHANGELOG.md", ".ci/constraints.txt"} <= inside


@pytest.mark.slow
def test_the_main_job_runs_from_the_wheel(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    work = tmp_path / "an empty folder"
    work.mkdir()
    # -P keeps the working folder off the path; PYTHONPATH puts the wheel before the checkout.
    command = [sys.executable, "-P", "-m", "cvtrain", "task=detection", "model=yolo"]
    command += ["data.num_train=16", "data.num_val=8", "trainer.max_epochs=1", "run_dir=run"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import cvtrain; print(cvtrain.__file__)"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((work / "run/results.json").read_text())["model"] == "yolo"
