"""-m: every job in a process and a folder of its own; here with jobs that only pretend."""

from __future__ import annotations

import csv
import json
import logging
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvtrain.lock import LOCK, locked
from cvtrain.signals import SIGNALS, Interrupted, interruptible, stopped_by
from cvtrain.storage import is_run_folder
from cvtrain.sweep import child, runner

Cli = Callable[..., Any]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Records each job; one with seed=13 fails, the metric of the others is 0.5 + seed / 100."""
    ran: list[list[str]] = []

    def run(command: list[str]) -> int:
        ran.append(command)
        given = dict(word.split("=", 1) for word in command if "=" in word)
        folder = Path(given["run_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"task": {"monitor": "mAP50"}}))
        if given.get("seed") == "13":
            return 1
        value = 0.5 + int(given.get("seed", 0)) / 100
        (folder / "results.json").write_text(json.dumps({"metrics": {"mAP50": value}}))
        return 0

    monkeypatch.setattr(child, "run", run)
    return ran


def test_each_combination_is_a_job(cli: Cli, here: Path, jobs: list[list[str]]) -> None:
    done = cli("-m model=yolo optimizer.lr=0.1,0.01 seed=1,2 sweep_dir=s")
    assert done.code == 0, done.err
    head = [sys.executable, "-m", "cvtrain", "train", "model=yolo"]
    assert jobs == [
        [*head, f"optimizer.lr={lr}", f"seed={seed}", f"run_dir={here}/s/{n}"]
        for n, (lr, seed) in enumerate([(0.1, 1), (0.1, 2), (0.01, 1), (0.01, 2)])
    ]
    rows = list(csv.DictReader((here / "s" / "sweep.csv").open()))
    assert [row["job"] for row in rows] == ["0", "1", "2", "3"]
    assert [float(row["metric"]) for row in rows] == [0.51, 0.52, 0.51, 0.52]
    assert rows[3]["overrides"] == "model=yolo optimizer.lr=0.01 seed=2"
    assert rows[0]["monitor"] == "mAP50"
    assert "0.5200" in done.out
    assert "4 jobs, 0 failed: s/sweep.csv" in done.out
    assert is_run_folder(here / "s")


def test_a_job_that_fails_does_not_stop_the_rest(
    cli: Cli, here: Path, jobs: list[list[str]]
) -> None:
    done = cli("-m model=yolo seed=1,13,2 sweep_dir=s")
    assert done.code == 1
    assert len(jobs) == 3
    rows = list(csv.DictReader((here / "s" / "sweep.csv").open()))
    assert [(r["exit_code"], r["metric"]) for r in rows] == [
        ("0", "0.51"),
        ("1", ""),
        ("0", "0.52"),
    ]
    assert "3 jobs, 1 failed" in done.out


def test_hydra_leaves_the_loggers_of_others_alone(
    cli: Cli, here: Path, jobs: list[list[str]]
) -> None:
    logger = logging.getLogger("cvtrain")
    assert cli("-m model=yolo seed=1,2 sweep_dir=s").code == 0
    assert not logger.disabled


def test_every_model_brings_its_own_task(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(child, "run", lambda words: ran.append(words) or 0)
    assert cli("-m model=yolo,classifier sweep_dir=s").code == 0
    tasks = []
    for words in ran:
        (model,) = [w for w in words if w.startswith("model=")]
        assert not [w for w in words if w.startswith("task=")]
        tasks.append(cli(*words[4:]).config["task"]["name"])
        assert model
    assert tasks == ["detection", "classification"]


def test_all_jobs_are_checked_before_the_first_starts(
    cli: Cli, here: Path, jobs: list[list[str]]
) -> None:
    done = cli("-m model=yolo,classifier model.grid=5,7 sweep_dir=s")
    assert done.code == 2
    assert "in the job model=classifier model.grid=5" in done.line
    assert jobs == []
    assert not (here / "s").exists()


def test_a_jobs_own_command_is_read_as_it_was_meant(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "my data").mkdir()
    ran: list[list[str]] = []
    monkeypatch.setattr(child, "run", lambda words: ran.append(words) or 0)
    done = cli(
        "-m", "data=folder", "data.root=my data", "seed=range(2)", "logger=null", "sweep_dir=my s",
        "backbone=resnet26d", "data.image_size=[32,64],48", "experiment=null", "~callbacks.ema",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(ran) == 4
    jobs = [cli(*words[4:]) for words in ran]
    assert [job.err for job in jobs] == [""] * 4
    configs = [job.config for job in jobs]
    assert [c["seed"] for c in configs] == [0, 0, 1, 1]
    assert [c["data"]["image_size"] for c in configs] == [[32, 64], 48, [32, 64], 48]
    assert {c["data"]["root"] for c in configs} == {str(here / "my data")}
    assert {c["backbone"]["name"] for c in configs} == {"resnet26d"}
    assert [c["run_dir"] for c in configs] == [str(here / "my s" / str(n)) for n in range(4)]
    assert all(c["logger"] is None and "ema" not in c["callbacks"] for c in configs)


def test_timm_names_can_be_swept(cli: Cli, here: Path, jobs: list[list[str]]) -> None:
    assert cli("-m backbone=resnet18,resnet26d sweep_dir=s").code == 0
    assert [w for words in jobs for w in words if w.startswith("backbone")] == [
        "backbone=timm", "backbone.name=resnet18", "backbone=timm", "backbone.name=resnet26d",
    ]  # fmt: skip
    done = cli("-m model=yolo backbone=yolov1,resnet26d sweep_dir=t")
    assert done.code == 2
    assert "yolov1 is not timm's" in done.line


def test_the_users_folder_reaches_the_jobs(cli: Cli, here: Path, jobs: list[list[str]]) -> None:
    (here / "conf" / "optimizer").mkdir(parents=True)
    (here / "conf" / "optimizer" / "mine.yaml").write_text("name: sgd\nlibrary: torch\nlr: 0.1\n")
    done = cli("-m --config-dir=conf --debug optimizer=mine,adamw sweep_dir=s")
    assert done.code == 0, done.err
    assert all(f"--config-dir={here / 'conf'}" in words for words in jobs)
    assert all("--debug" in words for words in jobs)


def test_a_used_sweep_folder_is_refused(cli: Cli, here: Path, jobs: list[list[str]]) -> None:
    assert cli("-m model=yolo sweep_dir=s").code == 0
    done = cli("-m model=yolo sweep_dir=s")
    assert done.code == 2
    assert "already holds a sweep" in done.line
    assert len(jobs) == 1
    (here / "photos" / "cats").mkdir(parents=True)
    (here / "photos" / "cats" / "a.png").touch()
    done = cli("-m data=folder data.root=photos sweep_dir=photos/cats seed=1,2")
    assert done.code == 2
    assert "sweep_dir=" in done.line
    assert "lies in the data set and holds a.png" in done.line
    assert cli("-m model=yolo").code == 0
    assert Path(jobs[-1][-1].partition("=")[2]).parents[1] == here / "runs" / "sweeps"


def test_the_metric_goes_to_the_sweeper(here: Path, jobs: list[list[str]], cli: Cli) -> None:
    """A sweeper that optimizes sees each job's metric, and the worst where it failed."""
    seen: list[float] = []
    real = runner.Job.__call__

    class Watched(runner.Job):
        def __call__(self, config: Any) -> float:
            seen.append(real(self, config))
            return seen[-1]

    runner.Job, saved = Watched, runner.Job  # type: ignore[misc]
    try:
        cli("-m model=yolo seed=3,13 sweep_dir=s")
    finally:
        runner.Job = saved  # type: ignore[misc]
    assert seen == [0.53, float("-inf")]


def test_a_job_that_ctrl_c_ended_stops_all_and_keeps_the_table(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(child, "run", lambda words: ran.append(words) or 130)
    done = cli("-m model=yolo seed=1,2 sweep_dir=s")
    assert done.code == 130
    assert len(ran) == 1
    rows = list(csv.DictReader((here / "s" / "sweep.csv").open()))
    assert [r["exit_code"] for r in rows] == ["130", "not started"]
    assert "2 jobs, 1 failed, 1 not started: s/sweep.csv" in done.out


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_all_and_keeps_the_table(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def stopped(words: list[str]) -> int:
        raise Interrupted(number)

    monkeypatch.setattr(child, "run", stopped)
    done = cli("-m model=yolo seed=1,2 sweep_dir=s")
    assert done.code == 128 + number
    assert done.line == stopped_by(number)
    rows = list(csv.DictReader((here / "s" / "sweep.csv").open()))
    assert [r["exit_code"] for r in rows] == [str(128 + number), "not started"]
    assert [r["overrides"] for r in rows] == ["model=yolo seed=1", "model=yolo seed=2"]


def test_a_job_that_had_ended_before_the_signal_has_its_own_code(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(words: list[str]) -> int:
        folder = Path(words[-1].partition("=")[2])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"task": {"monitor": "mAP50"}}))
        (folder / "results.json").write_text(json.dumps({"metrics": {"mAP50": 0.5}}))
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(child, "run", ended)
    done = cli("-m model=yolo seed=1,2,3 sweep_dir=s")
    assert done.code == 143
    rows = list(csv.DictReader((here / "s" / "sweep.csv").open()))
    assert [(r["exit_code"], r["metric"]) for r in rows] == [
        ("0", "0.5"),
        *[("not started", "")] * 2,
    ]
    assert "3 jobs, 0 failed, 2 not started: s/sweep.csv" in done.out


def test_the_table_gives_back_what_was_typed(cli: Cli, here: Path, jobs: list[list[str]]) -> None:
    (here / "my 'data'").mkdir()
    words = ["data=folder", "data.root=my 'data'", "seed=1,2"]
    words.append("data.classes=[a b,'c,d']")
    assert cli("-m", *words, "sweep_dir=s").code == 0
    rows = list(csv.DictReader((here / "s" / "sweep.csv").open(newline="")))
    for seed, row in enumerate(rows, 1):
        assert shlex.split(row["overrides"]) == [*words[:2], words[3], f"seed={seed}"]


def test_a_jobs_process(here: Path) -> None:
    assert child.run([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert child.run([sys.executable, "-c", kill]) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_running_job_first(here: Path, number: int) -> None:
    wait = f"import os, signal, sys, time\nnumber = {int(number)}\n"
    wait += "signal.signal(number, lambda *a: sys.exit(open('ended', 'w').close()))\n"
    wait += "signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])\n"
    wait += "os.kill(os.getppid(), number)\ntime.sleep(60)\n"
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, interruptible():
        child.run([sys.executable, "-c", wait])
    assert caught.value.code == 128 + number
    assert (here / "ended").exists()
    assert signal.getsignal(number) == before


def test_ctrl_c_in_a_jobs_first_moments(capfd: pytest.CaptureFixture[str]) -> None:
    """Before Python, let alone cvtrain, has set up anything: -2 or a traceback without our care."""
    job = child._start([sys.executable, "-m", "cvtrain", "--version"])
    job.send_signal(signal.SIGINT)
    assert job.wait(20) == 130
    assert capfd.readouterr().err == "cvtrain: stopped by Ctrl-C\n"


@pytest.mark.slow
def test_real_jobs(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two runs of seconds and one that fails, each with its own folder and configuration."""
    from cvtrain.cli.main import main

    tiny = ["data.num_train=8", "data.num_val=4", "data.image_size=64", "trainer.max_epochs=1"]
    tiny += ["data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu"]
    code = main(["-m", "model=yolo", "seed=1,2", "sweep_dir=s", *tiny])
    assert code == 0, capfd.readouterr().err
    for number, seed in enumerate((1, 2)):
        folder = here / "s" / str(number)
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == seed
        assert (folder / "checkpoints" / "best.ckpt").is_file()
    rows = list(csv.DictReader((here / "s" / "sweep.csv").open()))
    assert [float(r["metric"]) >= 0 for r in rows] == [True, True]


def test_a_sweep_in_use_is_refused(cli: Cli, here: Path, jobs: list[list[str]]) -> None:
    with locked(here / "s", "sweep_dir"):
        done = cli("-m model=yolo seed=1,2 sweep_dir=s")
    assert done.code == 2
    assert f"sweep_dir={here / 's'} is in use by process " in done.err
    assert jobs == []
    assert cli("-m model=yolo seed=1,2 sweep_dir=s").code == 0
    assert not (here / "s" / LOCK).exists()
