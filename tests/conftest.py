"""What every test shares: no network, few threads, the real data sets where they are."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before any import of these: albumentations asks the network for its version, wandb for a login.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import yaml

from cvtrain.cli import main as cli_main
from cvtrain.cli.args import parse
from cvtrain.config.groups import ConfDirs

# Started by nohup, a process ignores hangups, and cvtrain then leaves them ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real data sets, from CVTRAIN_REAL_DATA; the test is skipped without."""
    folder = os.environ.get("CVTRAIN_REAL_DATA")
    if not folder:
        pytest.skip("CVTRAIN_REAL_DATA is not set")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"CVTRAIN_REAL_DATA={folder} is not a folder")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def small_disk() -> Callable[..., Any]:
    """``small_disk(folder, size, work)``: what ``work()`` returns where ``folder`` holds ``size``
    bytes, in a child process that alone sees it so. Skipped where that is not allowed.
    """

    def run(folder: Path, size: int, work: Callable[[], Any], seconds: int = 60) -> Any:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(seconds)  # one that hangs is killed
            os.close(read)
            try:
                message = _mount(folder, size)
                answer = ("skip", message) if message else ("done", work())
            except BaseException:
                answer = ("failed", traceback.format_exc())
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(answer, pipe)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            content = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, f"ended by {signal.Signals(-status).name}" if status < 0 else status
        kind, value = pickle.loads(content)
        if kind == "skip":
            pytest.skip(value)
        assert kind == "done", value
        return value

    return run


def _mount(folder: Path, size: int) -> str | None:
    """Lay a file system of so many bytes over a folder, for this process; why not, if not."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, recursive, private = 0x20000, 0x4000, 1 << 18  # of sched.h and mount.h
    if not hasattr(libc, "unshare") or libc.unshare(new_mounts):
        return "mounting is not allowed here"
    if libc.mount(b"none", b"/", None, recursive | private, None):
        return "mounting is not allowed here"
    options = f"size={size}".encode()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options):
        return f"no tmpfs here: {os.strerror(ctypes.get_errno())}"
    return None


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key that seals runs is the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


# The command line in this process: everything but the engine, which is replaced by a recorder ----

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
