"""The run folder: what lies where, and the files that describe the run itself."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from cvtrain.distributed import broadcast, rank
from cvtrain.errors import HeldError, UsageError
from cvtrain.lock import locked
from cvtrain.storage import (
    holds_run,
    mark_run_folder,
    refuse_data_folder,
    write_atomic,
    write_json_atomic,
)
from cvtrain.text import relative
from cvtrain.version import __version__

_PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "timm", "albumentations", "opencv-python-headless",
    "numpy", "pycocotools", "faster-coco-eval", "torchmetrics", "hydra-core", "wandb",
)  # fmt: skip


class RunDir:
    """Paths below one run's folder.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - keeps symbolic links
        self.config = self.path / "config.yaml"
        self.overrides = self.path / "overrides.txt"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.metrics_csv = self.path / "metrics.csv"
        self.results = self.path / "results.json"
        self.check = self.path / "check.json"
        self.environment = self.path / "environment.json"
        self.plots = self.path / "plots"
        self.stages = self.path / "stages"
        self.log = self.path / "train.log"

    def __str__(self) -> str:
        return relative(self.path)

    def raise_if_used(self, data: str | Path | None = None) -> None:
        """Raise UsageError where another run's files, or ``data``, would be written into."""
        refuse_data_folder("run_dir", self.path, data)
        if (self.path / "predictions.json").exists() and not self.last.exists():
            raise UsageError(f"run_dir={self} already holds predictions: choose another run_dir")
        if holds_run(self.path):
            raise UsageError(
                f"run_dir={self} already holds a run: resume={self} continues it, "
                "or choose another run_dir"
            )

    def create(self, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
        """Make the folder and write what describes the run.

        Raises:
            RunError: the folder cannot be written to.
        """
        mark_run_folder(self.path)
        self.write_config(config)
        lines = "".join(f"{override}\n" for override in overrides)
        write_atomic(self.overrides, lambda file: file.write(lines))
        write_json_atomic(self.environment, environment())
        self.plots.mkdir(exist_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml.

        Raises:
            RunError: the folder cannot be written to.
        """
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)
        head = f"# The configuration of this run; `cvtrain resume={self.path}` continues it.\n"
        write_atomic(self.config, lambda file: file.write(head + text))

    def sweep_partials(self) -> None:
        """Remove halves of files that a killed run left."""
        for folder in (self.path, self.checkpoints, self.plots, self.stages):
            for partial in folder.glob(".*.partial*"):
                partial.unlink(missing_ok=True)


@contextmanager
def claimed(config: Mapping[str, Any], choose: Callable[[], RunDir]) -> Iterator[RunDir]:
    """The folder of a run, on every process of it; no other command writes there meanwhile.

    Args:
        config: of the command.
        choose: names the folder; called on rank 0 alone, which holds it, and once more where
            nobody typed the name and another command was faster.

    Raises:
        UsageError: another process holds it, or it holds another run.
    """
    key = "resume" if config.get("resume") else "run_dir"
    with ExitStack() as stack:
        run = None
        while rank() == 0:
            run = choose()
            try:
                stack.enter_context(locked(run.path, key))
                break
            except HeldError:
                if config.get("resume") or is_typed(config):
                    raise
        if run is not None and not config.get("resume"):
            run.raise_if_used()
        yield RunDir(broadcast(None if run is None else str(run.path)))


def is_typed(config: Mapping[str, Any]) -> bool:
    """Whether the user chose the folder, and not the clock."""
    return bool(config.get("run_dir")) and bool(config.get("run_dir_is_typed", True))


def new_run_dir(task: str, model: str, suffix: str = "") -> RunDir:
    """``runs/<task>/<model>/<timestamp><suffix>`` below the working directory, not there yet."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S") + suffix
    path = Path("runs") / task / model / stamp
    count = 1
    while path.exists():
        count += 1
        path = path.with_name(f"{stamp}_{count}")
    return RunDir(path)


def stored_config(config: Mapping[str, Any], run: RunDir) -> dict[str, Any]:
    """What config.yaml and checkpoints hold: no trust, nothing that belongs to one command."""
    once = {
        "command",
        "overrides",
        "resume",
        "resume_data",
        "trust",
        "ckpt",
        "source",
        "split",
        "sweep_dir",
    }
    once |= {"score_threshold", "what", "out", "latency_runs", "run_dir_is_typed"}
    return {**{k: v for k, v in config.items() if k not in once}, "run_dir": str(run.path)}


def environment() -> dict[str, Any]:
    """Versions, git commit, hardware and command of this run."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cvtrain": __version__,
        "git_commit": _git_commit(),
        "command": ["cvtrain", *sys.argv[1:]],
        "working_directory": str(Path.cwd()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "packages": versions,
    }


def _git_commit() -> str | None:
    """The commit cvtrain runs from, with ``+`` where files differ; None outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
