"""Small runs on generated scenes: in this process, and as the commands a user types."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cvtrain.callbacks import console as consoles
from cvtrain.cli import args
from cvtrain.cli.main import configuration
from cvtrain.config.groups import ConfDirs
from cvtrain.engine.train import train

TINY = (
    "task=detection",
    "model=yolo",
    "backbone.widths=[4,8,16,16]",
    "backbone.blocks=[1,1,1,1]",
    "model.hidden=32",
    "data=shapes",
    "data.num_train=16",
    "data.num_val=5",
    "data.image_size=64",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "callbacks.pictures=null",
)
"""A detector of 30,000 weights on 16 scenes of 64 pixels."""


def tiny_words(words: Iterable[str]) -> list[str]:
    """What of TINY these words leave."""
    chosen = {word.partition("=")[0] for word in words}
    if chosen & {"task", "model"}:
        chosen.add("model.hidden")  # YOLO's own
    return [word for word in TINY if word.partition("=")[0] not in chosen]


def compose_words(words: list[str]) -> dict[str, Any]:
    return configuration(args.parse(words), ConfDirs([]))


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without plots: they take longer than a tiny run, and ``trained`` draws them all."""
    for name in ("curves.plot_curves", "labels.plot_labels", "plots.plot_details"):
        monkeypatch.setattr(f"cvtrain.report.{name}", lambda *_, **__: None)


@pytest.fixture
def compose(tmp_path: Path, no_plots: None) -> Callable[..., dict[str, Any]]:
    """The configuration of a tiny run with further words; it writes into ``tmp_path/run``."""

    def make(*words: str, run_dir: Path | None = None) -> dict[str, Any]:
        return compose_words([*tiny_words(words), *words, f"run_dir={run_dir or tmp_path / 'run'}"])

    return make


@pytest.fixture
def command() -> Callable[..., dict[str, Any]]:
    """The configuration of any command."""
    return lambda *words: compose_words([str(word) for word in words])


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two epochs, pictures and all. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = [word for word in TINY if not word.startswith("callbacks.pictures")]
    words += ["callbacks.pictures.count=2", f"run_dir={folder}"]
    old = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    try:
        assert train(compose_words(words)) == 0
    finally:
        if old is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = old
    return folder


@pytest.fixture(autouse=True)
def fresh_console() -> Iterator[None]:
    """Each test's own stdout."""
    consoles._CONSOLE = None
    yield
    consoles._CONSOLE = None


KILLER = '''
"""Ends a run in the middle of an epoch, once: where the marker file is there."""

import os
import signal

import pytorch_lightning as pl
import torch


class Killer(pl.Callback):
    def __init__(self, marker, how, epoch=2, batch=1, rank=0):
        self.marker, self.how, self.epoch, self.batch, self.rank = marker, how, epoch, batch, rank

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        here = (trainer.current_epoch, batch_idx, trainer.global_rank)
        if here != (self.epoch, self.batch, self.rank) or not os.path.exists(self.marker):
            return
        os.unlink(self.marker)
        if self.how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.how == "bug":
            raise KeyError("no such thing")
        target = os.getppid() if self.how.startswith("parent-") else os.getpid()
        os.kill(target, getattr(signal, self.how.removeprefix("parent-")))
'''


@pytest.fixture
def killer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Words that make a run end by ``how``, the first time it is run."""
    (tmp_path / "killer_callback.py").write_text(KILLER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def words(how: str, rank: int = 0) -> list[str]:
        marker = tmp_path / "marker"
        marker.touch()
        node = f"_target_:killer_callback.Killer,marker:{marker},how:{how},rank:{rank}"
        return ["trust=[killer_callback]", f"+callbacks.killer={{{node}}}"]

    return words


@pytest.fixture
def cvtrain(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``cvtrain WORDS`` as a process of its own; ``tiny`` puts the tiny run's words first."""

    def run(*words: object, tiny: bool = False) -> subprocess.CompletedProcess[str]:
        typed = [str(word) for word in words]
        base = tiny_words(typed) if tiny else []
        return subprocess.run(
            [sys.executable, "-m", "cvtrain", *base, *typed],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
