"""The command as a process: no torch before work starts, exit codes, quick answers."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "torchvision",
    "pytorch_lightning",
    "lightning_fabric",
    "albumentations",
    "cv2",
    "timm",
    "pandas",
    "torchmetrics",
    "wandb",
    "matplotlib",
)


def run(*words: str, cwd: Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else ["-m", "cvtrain"]), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "--cfg job task=detection",
        "list models",
        "list backbones filter=resnet",
        "epochs=3",
        "model=yolo loss=focal",
        "backbone=resnet5O",
        "eval ckpt=nowhere",
        "predict source=x",
        "check data=coco",
        "show data=coco data.root=nowhere",
        "resume=nowhere",
        "-m model=yolo,yollo",
        "-sc install=bash",
        "-sc query=bash",
    ],
)
def test_nothing_heavy_is_imported(here: Path, command: str) -> None:
    code = (
        "import sys\n"
        "from cvtrain.cli.main import main\n"
        "sys.argv[0] = 'cvtrain'\n"
        "code = main()\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "print('HEAVY', heavy, 'CODE', code)\n"
    )
    done = run(*command.split(), cwd=here, code=code)
    expected = 0 if command.startswith(("-sc", "--", "list")) else 2
    assert done.stdout.splitlines()[-1] == f"HEAVY [] CODE {expected}", done.stderr
    if command == "--help":
        lean = run(cwd=here, code=code.replace("HEAVY', heavy", "HYDRA', 'hydra' in sys.modules"))
        assert "HYDRA False" in lean.stdout, "help needs no Hydra either"


def test_a_wrong_command_costs_less_than_two_seconds_of_processor(here: Path) -> None:
    for command in (["model=yolo", "backbone=resnet5O"], ["trainer.epoch=3"], ["--help"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run(*command, cwd=here)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == (0 if command == ["--help"] else 2)
        spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        assert spent < 2, f"{command}: {spent:.1f} s"


def test_exit_code_and_one_line(here: Path) -> None:
    done = run("trainer.max_epochs=abc", cwd=here)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("cvtrain: trainer.max_epochs=abc: it takes an integer from 1\n")
    assert list(here.iterdir()) == []


def test_a_closed_pipe_is_quiet(here: Path) -> None:
    command = f"{sys.executable} -m cvtrain list backbones filter='*' | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("backbone")
