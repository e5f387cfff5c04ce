"""SIGTERM and Ctrl-C in the middle of an epoch: what is left, and how it goes on."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import pytest
import torch

from cvtrain.engine.train import train


def states(folder: Path) -> dict:
    """All tensors of a run's last checkpoint by path."""
    found: dict[str, torch.Tensor] = {}

    def walk(value, path: str) -> None:
        if isinstance(value, torch.Tensor):
            found[path] = value
        elif isinstance(value, dict):
            for key, child in value.items():
                walk(child, f"{path}.{key}")
        elif isinstance(value, (list, tuple)):
            for n, child in enumerate(value):
                walk(child, f"{path}.{n}")

    walk(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True), "")
    return found


def assert_same_run(first: Path, second: Path) -> None:
    """Every tensor, averages and optimizer state included, and every number but the times."""
    a, b = states(first), states(second)
    assert a.keys() == b.keys()
    assert {path.split(".")[1] for path in a} >= {
        "state_dict", "current_model_state", "optimizer_states", "averaging_state",
    }  # fmt: skip
    assert [path for path in a if not torch.equal(a[path], b[path])] == []
    tables = []
    for folder in (first, second):
        with (folder / "metrics.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    for row in (*tables[0], *tables[1]):
        assert float(row.pop("seconds")) > 0
    assert tables[0] == tables[1]
    predictions = [(folder / "predictions.json").read_bytes() for folder in (first, second)]
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize(
    ("how", "code"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_a_run_that_goes_on_as_if_nothing_had_been(
    compose, command, killer, tmp_path, how, code, capsys
) -> None:
    words = killer(how)
    whole = compose(*words, "trainer.max_epochs=4", run_dir=tmp_path / "whole")
    whole["callbacks"]["killer"]["marker"] = str(tmp_path / "never")
    assert train(whole) == 0
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    folder = tmp_path / "cut"
    assert train(compose(*words, "trainer.max_epochs=4", run_dir=folder)) == code
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert f"resume={folder}" in capsys.readouterr().out.replace("\n", "")
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3  # two epochs
    assert not (folder / "results.json").exists()
    assert train(command(f"resume={folder}", "trust=[killer_callback]")) == 0
    assert_same_run(tmp_path / "whole", folder)


def test_a_signal_in_the_first_epoch(compose, killer, tmp_path, capsys) -> None:
    config = compose(*killer("SIGTERM"))
    config["callbacks"]["killer"]["epoch"] = 0
    assert train(config) == 143
    assert "; to start again: cvtrain resume=" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_kill_9_in_epoch_three_of_five_changes_nothing(cvtrain, killer, tmp_path) -> None:
    words = ["trainer.max_epochs=5", "data.num_workers=2", "data.cache=ram", *killer("SIGKILL")]
    cut = cvtrain(*words, "run_dir=cut", tiny=True)
    assert cut.returncode == -signal.SIGKILL, cut.stderr
    assert not (tmp_path / "marker").exists()  # so that the next runs are left in peace
    assert cvtrain("resume=cut", "trust=[killer_callback]").returncode == 0
    assert cvtrain(*words, "run_dir=whole", tiny=True).returncode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_exit_codes_of_the_command(cvtrain, killer, tmp_path, how, code) -> None:
    done = cvtrain(*killer(how), "trainer.max_epochs=4", "run_dir=cut", tiny=True)
    assert done.returncode == code
    assert "cvtrain resume=cut" in done.stdout
    assert done.stderr == ""
