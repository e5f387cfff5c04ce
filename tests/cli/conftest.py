"""The command line in this process: everything but the engine, which is replaced by a recorder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvtrain.cli import main as cli_main
from cvtrain.cli.args import parse
from cvtrain.cli.conf import ConfDirs

RANKS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"),
    *("SLURM_PROCID", "SLURM_JOB_ID", "SLURM_NTASKS"),
)


@dataclass
class Done:
    code: int
    out: str
    err: str
    verb: str | None
    config: dict[str, Any]

    @property
    def line(self) -> str:
        """The one line on stderr."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        assert lines[0].startswith("cvtrain: ")
        return lines[0].removeprefix("cvtrain: ")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, outside any launcher."""
    monkeypatch.chdir(tmp_path)
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def cli(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """``cli("eval ckpt=x")`` or ``cli("eval", "ckpt=a b")``: run a command up to the engine."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def record(verb: str, config: dict[str, Any]) -> int:
        calls.append((verb, config))
        return 0

    monkeypatch.setattr(cli_main, "dispatch", record)

    def run(*words: str) -> Done:
        calls.clear()
        argv = words[0].split() if len(words) == 1 else list(words)
        code = cli_main.main(argv)
        captured = capsys.readouterr()
        verb, config = calls[0] if calls else (None, {})
        return Done(code, captured.out, captured.err, verb, config)

    return run


@pytest.fixture(scope="session")
def stored_config() -> dict[str, Any]:
    """What the engine writes to config.yaml for a YOLO on shapes."""
    command = parse(["model=yolo", "data.batch_size=7", "run_dir=a"])
    config = cli_main.configuration(command, ConfDirs())
    once = ("command", "overrides", "resume", "trust", "ckpt", "source", "sweep_dir")
    return {k: v for k, v in config.items() if k not in once}


@pytest.fixture
def finished_run(here: Path, stored_config: dict[str, Any]) -> Path:
    """The run folder of a YOLO on shapes, as the engine leaves it, but with empty checkpoints."""
    folder = here / "runs" / "a"
    (folder / "checkpoints").mkdir(parents=True)
    stored = {**stored_config, "run_dir": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    for name in ("best.ckpt", "last.ckpt"):
        (folder / "checkpoints" / name).write_bytes(b"")
    return folder
