"""What the shell is offered, and that bash itself takes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cvtrain.cli.completion import candidates
from cvtrain.config.command import names
from cvtrain.config.groups import GROUPS, ConfDirs

Cli = Callable[..., Any]


@pytest.fixture
def offered(here: Path) -> Callable[[str], list[str]]:
    return lambda line: candidates(line, ConfDirs())


def test_first_word(offered: Callable[[str], list[str]]) -> None:
    found = offered("cvtrain ")
    assert {*names(), *(f"{g}=" for g in GROUPS)} <= set(found)
    assert offered("cvtrain tr") == ["train", "trainer.", "trainer=", "transfer=", "trust="]
    assert "train" not in offered("cvtrain eval ")
    assert "--config-dir" in offered("cvtrain --")


def test_options_keys_and_values(offered: Callable[[str], list[str]]) -> None:
    assert {"model=classifier", "model=yolo"} <= set(offered("cvtrain model="))
    assert "task=detection" in offered("cvtrain show task=d")
    assert offered("cvtrain model=yolo model.gri") == ["model.grid="]
    assert offered("cvtrain model.gri") == [], "the default model has no grid"
    assert offered("cvtrain optimizer=sgd optimizer.mom") == ["optimizer.momentum="]
    assert offered("cvtrain transfer=partial transfer.sta") == ["transfer.stages="]
    assert "transfer." in offered("cvtrain transfer=partial tra")
    assert offered("cvtrain callbacks.") == [
        f"callbacks.{name}." for name in ("early_stopping", "ema", "pictures", "progress")
    ]
    assert offered("cvtrain trainer.compile=") == [
        "trainer.compile=false",
        "trainer.compile=true",
    ]
    assert offered("cvtrain data.on_bad=") == [f"data.on_bad={v}" for v in ("drop", "error", "fix")]
    assert "backbone=resnet26d" in offered("cvtrain backbone=resnet2")
    assert offered("cvtrain model=yolo model.grid=") == ["model.grid=7"]
    assert offered("cvtrain nonsense=1 see") == ["seed="]


def test_only_what_the_verb_reads(offered: Callable[[str], list[str]]) -> None:
    assert offered("cvtrain eval c") == ["ckpt="]
    assert offered("cvtrain c") == ["cache", "callbacks.", "callbacks=", "check", "compare"]
    assert offered("cvtrain cache ") == ["clear"]
    assert offered("cvtrain cache clear ") == ["all", "features", "gate", "proposals"]
    assert offered("cvtrain -m sw") == ["sweep_dir="]
    assert offered("cvtrain sw") == []
    assert offered("cvtrain predict so") == ["source="]
    assert offered("cvtrain list lo") == ["logger", "loss"]
    assert offered("cvtrain --cfg ") == ["job"]
    assert offered("cvtrain seed=1 se") == [], "typed already"


def test_paths(offered: Callable[[str], list[str]], here: Path) -> None:
    (here / "photos" / "cats").mkdir(parents=True)
    (here / "photos" / "a.jpg").touch()
    assert offered("cvtrain data=folder data.root=ph") == ["data.root=photos/"]
    assert offered("cvtrain predict source=photos/") == [
        "source=photos/a.jpg",
        "source=photos/cats/",
    ]
    assert offered("cvtrain --config-dir=ph") == ["--config-dir=photos/"]
    assert offered("cvtrain --config-dir ph") == ["photos/"]
    assert offered("cvtrain data.root=nowhere/") == []


def test_a_users_own_options_are_offered(offered: Callable[[str], list[str]], here: Path) -> None:
    (here / "conf" / "model").mkdir(parents=True)
    (here / "conf" / "model" / "mynet.yaml").write_text("model: {tasks: [detection]}\n")
    assert offered("cvtrain --config-dir conf model=my") == ["model=mynet"]
    assert offered("cvtrain --config-dir=conf model=my") == ["model=mynet"]
    assert offered("cvtrain --config-dir=absent model=my") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_install_prints_a_script_the_shell_can_read(cli: Cli, here: Path, shell: str) -> None:
    done = cli(f"-sc install={shell}")
    assert done.code == 0
    assert f"-sc query={shell}" in done.out
    assert cli(f"-sc uninstall={shell}").code == 0
    if shutil.which(shell):
        (here / "script").write_text(done.out)
        subprocess.run([shell, "-n", "script"], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes(here: Path) -> None:
    """``eval "$(cvtrain -sc install=bash)"`` and a Tab, with and without = among the breaks."""
    program = here / "bin" / "cvtrain"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cvtrain "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(cvtrain -sc install=bash)"
        tab() {
            COMP_LINE="$1"; COMP_POINT=${#1}; COMP_WORDS=($1); COMPREPLY=()
            _cvtrain_complete
            printf '%s|' "${COMPREPLY[@]}"; echo
        }
        complete -p cvtrain
        tab "cvtrain pre"
        tab "cvtrain eval ck"
        COMP_WORDBREAKS="= "; tab "cvtrain task=classif"
        COMP_WORDBREAKS=" "; tab "cvtrain task=classif"
    """
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "complete -o nospace -F _cvtrain_complete cvtrain",
        "predict |",
        "ckpt=|",
        "classification |",
        "task=classification |",
    ]


def test_compare_offers_folders_and_its_keys(
    offered: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert offered("cvtrain compare ru") == ["run_dir=", "runs/"]
    assert offered("cvtrain compare lat") == ["latency_runs="]
    assert offered("cvtrain compare mo") == []
