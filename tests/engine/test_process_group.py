"""Several processes: who prints, what launchers' environments mean, and the whole of it."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from cvtrain.engine.device import Device
from cvtrain.engine.launch import launch, started_elsewhere
from cvtrain.engine.process_group import join_world, speaks
from cvtrain.errors import RunError

LAUNCHED = (
    "LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "elsewhere", "prints"),
    [
        ({}, False, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, True, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, True, False),
        ({"LOCAL_RANK": "0", "RANK": "4"}, True, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, True, True),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, True, False),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, False, True),
        ({"SLURM_NTASKS": "1"}, False, True),
    ],
)
def test_one_process_of_all_prints(monkeypatch, environment, elsewhere, prints) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started_elsewhere() is elsewhere
    assert speaks() is prints


def test_alone_there_is_nothing_to_join() -> None:
    assert join_world(Device("cpu", 1, 1, "32-true")) is None


def test_a_launcher_and_a_config_that_disagree(monkeypatch) -> None:
    for name, value in {"LOCAL_RANK": "0", "WORLD_SIZE": "4", "NODE_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"4 processes were started.*2 x 1"):
        join_world(Device("cpu", 2, 1, "32-true"))


def test_several_machines_need_a_launcher() -> None:
    with pytest.raises(RunError, match="torchrun"):
        launch("cvtrain.engine.train:train", {}, processes=1, nodes=2)
    with pytest.raises(ValueError, match="os:system"):
        launch("os:system", {}, 1)


DDP = ("trainer.devices=2", "trainer.strategy=ddp")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_two_processes_make_one_run(cvtrain, tmp_path) -> None:
    """21 images: one process gets 11 and the other 10, and none is seen twice."""
    done = cvtrain(*DDP, "data.num_val=21", "run_dir=run", tiny=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("epoch 1/2") == 1
    trained = results(tmp_path / "run")
    assert trained["images"] == 21
    scores = []
    for n, words in enumerate((DDP, ())):
        scored = cvtrain("eval", "ckpt=run", f"run_dir=e{n}", "trainer.accelerator=cpu", *words)
        assert scored.returncode == 0, scored.stderr
        assert scored.stderr == ""
        scores.append(results(tmp_path / f"e{n}"))
    for name, value in scores[1]["metrics"].items():
        for other in (trained, scores[0]):
            assert other["metrics"][name] == pytest.approx(value, abs=1e-6)
    for name, value in scores[1]["losses"].items():
        assert scores[0]["losses"][name] == pytest.approx(value, rel=1e-6)
    files = [
        json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("e0", "e1")
    ]
    assert [e["image_id"] for e in files[0]] == [e["image_id"] for e in files[1]]


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_run_goes_on_exactly(cvtrain, killer, tmp_path) -> None:
    import torch

    words = [*killer("SIGKILL", rank=1), *DDP, "trainer.max_epochs=4", "data.batch_size=2"]
    cut = cvtrain(*words, "run_dir=cut", tiny=True)
    assert cut.returncode == 1
    assert cut.stderr.splitlines() == [
        "cvtrain: process 1 of 2 was killed by SIGKILL; the others were ended"
    ]
    assert cvtrain("resume=cut", "trust=[killer_callback]").returncode == 0
    assert cvtrain(*words, "run_dir=whole", tiny=True).returncode == 0
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("cut", "whole")
    ]
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(v, states[1][key][k]) for k, v in states[0][key].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "rank", "code", "said"),
    [
        ("memory", 1, 1, "cvtrain: out of memory (an allocation of 2.00 GiB)"),
        ("bug", 1, 1, "cvtrain: process 1 of 2 failed: KeyError: 'no such thing'"),
        ("parent-SIGTERM", 0, 143, ""),
        ("parent-SIGINT", 1, 130, ""),
    ],
)
def test_what_ends_one_process_ends_all_with_one_line(
    cvtrain, killer, tmp_path, how, rank, code, said
) -> None:
    words = [*killer(how, rank=rank), *DDP, "trainer.max_epochs=40", "data.batch_size=2"]
    done = cvtrain(*words, "run_dir=run", tiny=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)
    if not said:
        assert "cvtrain resume=run" in done.stdout
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "best.ckpt", "last.ckpt",
    ]  # fmt: skip


@pytest.mark.slow
def test_torchrun_starts_the_same_run(cvtrain, tmp_path, monkeypatch) -> None:
    import os
    import subprocess

    own = cvtrain(*DDP, "run_dir=own", tiny=True)
    assert own.returncode == 0, own.stderr
    words = (tmp_path / "own" / "overrides.txt").read_text().splitlines()
    words = [word for word in words if not word.startswith("run_dir=")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "cvtrain", *words, "run_dir=theirs"],
        cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/2") == 1
    assert results(tmp_path / "theirs")["metrics"] == results(tmp_path / "own")["metrics"]


def test_a_port_in_use_is_said_at_once(monkeypatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(RunError, match=f"MASTER_PORT={port} is in use"):
            launch("cvtrain.engine.train:train", {}, processes=2)
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RunError, match=f"MASTER_PORT={port} is in use"):
            join_world(Device("cpu", 2, 1, "32-true"))
    monkeypatch.setenv("MASTER_PORT", "70000")
    with pytest.raises(RunError, match="a number from 1 to 65535"):
        launch("cvtrain.engine.train:train", {}, processes=2)
