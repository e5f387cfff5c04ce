"""experiment=transfer_study: what its runs are, what it refuses, how it goes on; runs pretend."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from cvtrain.errors import RunError
from cvtrain.lock import LOCK, locked
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.storage import is_run_folder
from cvtrain.sweep import child

Cli = Callable[..., Any]

SMALL = ("data.num_train=60", "data.num_val=9", "data.image_size=32")
STUDY = (
    "experiment=transfer_study",
    *SMALL,
    "study.backbones=[darknet_tiny]",
    "study.weights=weights/{backbone}.pt",
    "study.seeds=[0,1]",
)
GAIN = {"scratch": 0.1, "feature_extraction": 0.2, "fine_tune": 0.3}


class Jobs:
    """Stands for the processes of the runs: what was started; which runs fail."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.codes: dict[str, int] = {}

    def __call__(self, command: list[str], output: Path) -> int:
        self.commands.append(command)
        given = dict(word.split("=", 1) for word in command if "=" in word)
        folder = Path(given.get("run_dir") or given["resume"])
        assert folder.is_dir()
        (folder / "config.yaml").write_text(
            yaml.safe_dump({"task": {"monitor": "accuracy", "mode": "max"}})
        )
        code = self.codes.get(folder.name, 0)
        if code:
            output.write_text("epoch 1\ncvtrain: the disk is full\n")
            return code
        regime, seed = folder.name.split("-")[1], int(folder.name[-1])
        record = {"metrics": {"accuracy": GAIN[regime] + seed / 100}, "epoch": 3, "epochs": 5}
        (folder / "results.json").write_text(json.dumps(record))
        return 0

    @property
    def names(self) -> list[str]:
        """The run folders, as they were started."""
        last = [next(w for w in c if w.startswith(("run_dir=", "resume="))) for c in self.commands]
        return [Path(word.partition("=")[2]).name for word in last]


@pytest.fixture
def jobs(here: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    (here / "weights").mkdir()
    torch.save(DarknetTiny().state_dict(), here / "weights/darknet_tiny.pt")
    recorder = Jobs()
    monkeypatch.setattr(child, "run", recorder)
    return recorder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "study.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_combination_is_a_run(cli: Cli, here: Path, jobs: Jobs) -> None:
    done = cli(*STUDY, "study.train_per_class=[4,8]", "trainer.max_epochs=2", "sweep_dir=s")
    assert done.code == 0, done.err
    assert jobs.names == [
        f"darknet_tiny-{regime}-{number}-seed{seed}"
        for seed in (0, 1)
        for number in (4, 8)
        for regime in GAIN
    ]
    weights = f"backbone.weights={here}/weights/darknet_tiny.pt"
    common = ["experiment=transfer_study", *SMALL, "trainer.max_epochs=2"]
    assert jobs.commands[0] == [
        *(sys.executable, "-m", "cvtrain", "train", *common, "~study", "transfer=scratch"),
        *("backbone=darknet_tiny", "data.train_per_class=4", "seed=0"),
        f"run_dir={here}/s/darknet_tiny-scratch-4-seed0",
    ]
    assert jobs.commands[2][4:-1] == [
        *(*common, "~study", "transfer=fine_tune", "backbone=darknet_tiny"),
        *(weights, "data.train_per_class=4", "seed=0"),
    ]
    assert done.out.splitlines()[1].startswith("data.train_per_class=8: 32 of 60 training images")
    assert "12 runs (3 regimes x 2 seeds x 2 numbers of images): s" in done.out
    assert "[1/12] darknet_tiny scratch 4 a class seed 0: accuracy 0.1000" in done.out
    assert "12 runs, 0 failed: s/study.md" in done.out
    assert is_run_folder(here / "s")
    found = rows(here / "s")
    assert [row["job"] for row in found] == jobs.names
    assert (found[2]["accuracy"], found[2]["train_per_class"], found[2]["epoch"]) == (
        "0.3",
        "4",
        "3",
    )
    text = (here / "s/study.md").read_text()
    assert "| darknet_tiny | 8 | 0.105 ± 0.007 | 0.205 ± 0.007 | **0.305 ± 0.007** |" in text
    assert "scratch 0, feature_extraction 0, fine_tune 2" in text
    assert Image.open(here / "s/study.png").size[0] > 300
    record = json.loads((here / "s/study.json").read_text())
    assert [run["metric"] for run in record["runs"]][:3] == [0.1, 0.2, 0.3]


def test_a_run_is_the_run_it_says(cli: Cli, here: Path, jobs: Jobs) -> None:
    quoted = "study.overrides.fine_tune=['transfer.layer_decay=0.6','trainer.max_epochs=9']"
    slower = "study.lr_factor.fine_tune=0.3"
    assert cli(*STUDY, "optimizer.lr=0.01", "trainer.max_epochs=3", quoted, slower).code == 0
    scratch, features, tuned = (cli(*words[4:-1]).config for words in jobs.commands[:3])
    assert all("study" not in config for config in (scratch, features, tuned))
    assert [c["transfer"]["name"] for c in (scratch, features, tuned)] == list(GAIN)
    assert scratch["backbone"]["weights"] is None
    assert tuned["backbone"]["weights"] == str(here / "weights/darknet_tiny.pt")
    assert [c["optimizer"]["lr"] for c in (scratch, features, tuned)] == [0.01, 0.01, 0.003]
    assert tuned["transfer"]["layer_decay"] == 0.6
    assert tuned["trainer"]["max_epochs"] == 3, "what is typed wins over study.overrides"
    folder = Path(jobs.commands[0][-1].partition("=")[2])
    assert folder.parents[1] == here / "runs/studies"


def test_a_failed_run_is_named_and_run_again(cli: Cli, here: Path, jobs: Jobs) -> None:
    bad = "darknet_tiny-fine_tune-all-seed0"
    jobs.codes[bad] = 1
    done = cli(*STUDY, "sweep_dir=s")
    assert done.code == 1
    assert len(jobs.commands) == 6
    why = f"the disk is full (s/{bad}/job.log)"
    assert f"darknet_tiny fine_tune seed 0: failed with exit code 1: {why}" in done.out
    assert f"failed: {bad}: {why}" in done.out
    assert "6 runs, 1 failed" in done.out
    assert [row["exit_code"] for row in rows(here / "s")] == ["0", "0", "1", "0", "0", "0"]
    assert "0.310 (n=1)" in (here / "s/study.md").read_text()
    jobs.codes.clear()
    done = cli("resume=s")
    assert done.code == 0, done.err
    assert jobs.names[6:] == [bad]
    assert jobs.commands[6][4:] == [f"resume={here}/s/{bad}"]
    assert "5 finished before" in done.out
    assert "0.305 ± 0.007" in (here / "s/study.md").read_text()
    assert cli("resume=s").code == 0
    assert len(jobs.commands) == 7


@pytest.mark.parametrize("again", ["resume=s", "experiment=transfer_study sweep_dir=s"])
def test_a_stopped_study_goes_on(cli: Cli, here: Path, jobs: Jobs, again: str) -> None:
    jobs.codes["darknet_tiny-feature_extraction-all-seed0"] = 130
    done = cli(*STUDY, "sweep_dir=s")
    assert done.code == 130
    assert len(jobs.commands) == 2
    assert "stopped; to resume: cvtrain resume=s" in done.out
    assert [row["exit_code"] for row in rows(here / "s")] == ["0", "130", "", "", "", ""]
    jobs.codes.clear()
    assert cli(*again.split()).code == 0
    assert len(jobs.commands) == 7
    assert len(set(jobs.names[2:])) == 5


def test_a_run_killed_with_its_study_is_resumed(cli: Cli, here: Path, jobs: Jobs) -> None:
    assert cli(*STUDY, "sweep_dir=s").code == 0
    folder = here / "s/darknet_tiny-scratch-all-seed1"
    record = json.loads((folder / child.JOB_FILE).read_text())
    (folder / child.JOB_FILE).write_text(json.dumps({**record, "exit_code": None}))
    never_begun = here / "s/darknet_tiny-fine_tune-all-seed1"
    for path in never_begun.iterdir():
        path.unlink()
    assert cli("resume=s").code == 0
    assert jobs.names[6:] == [folder.name, never_begun.name]
    assert jobs.commands[6][4:] == [f"resume={folder}"]
    assert jobs.commands[7][-1] == f"run_dir={never_begun}"


def test_a_study_grows(cli: Cli, here: Path, jobs: Jobs) -> None:
    assert cli(*STUDY, "sweep_dir=s").code == 0
    assert cli(*STUDY[:-1], "study.seeds=[0,1,2]", "sweep_dir=s").code == 0
    assert [name[-5:] for name in jobs.names[6:]] == ["seed2"] * 3
    assert len(rows(here / "s")) == 9
    done = cli(*STUDY, "trainer.max_epochs=3", "sweep_dir=s")
    assert done.code == 2
    assert "holds a study with other settings" in done.line
    assert "trainer.max_epochs=3; choose another sweep_dir=" in done.line
    assert len(jobs.commands) == 9


def test_other_folders_are_left_alone(cli: Cli, here: Path, jobs: Jobs) -> None:
    (here / "photos").mkdir()
    (here / "photos/cat.jpg").touch()
    done = cli(*STUDY, "sweep_dir=photos")
    assert done.code == 2
    assert "sweep_dir=photos holds something else" in done.line
    (here / "bad").mkdir()
    (here / "bad/study.json").write_text("[]")
    assert "is not the record of a study" in cli("resume=bad").line


def test_sigterm_keeps_the_tables(
    cli: Cli, here: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(words: list[str], output: Path) -> int:
        raise SystemExit(143)

    monkeypatch.setattr(child, "run", terminated)
    assert cli(*STUDY, "sweep_dir=s").code == 143
    assert [row["exit_code"] for row in rows(here / "s")][:2] == ["143", ""]


def test_a_study_that_began_elsewhere_is_typed_again(
    cli: Cli, here: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*STUDY[:-1], "study.seeds=[0]", "sweep_dir=s").code == 0
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(here / "another user"))
        done = cli("resume=s")
    assert done.code == 2
    assert "this study did not begin here" in done.line
    assert done.line.endswith("sweep_dir=s")
    record = json.loads((here / "s/study.json").read_text())
    record["words"].append("logger=wandb")
    (here / "s/study.json").write_text(json.dumps(record))
    assert "logger=wandb" in cli("resume=s").line


def test_a_stored_study_trusts_nobody(cli: Cli, here: Path, jobs: Jobs) -> None:
    assert cli(*STUDY, "study.seeds=[0]", "trust=[]", "sweep_dir=s").code == 2
    (here / "mine.py").touch()
    assert cli(*STUDY[:-1], "study.seeds=[0]", "trust=[mine]", "sweep_dir=s").code == 0
    assert all("trust=[mine]" in words for words in jobs.commands)
    assert "mine" not in (here / "s/study.json").read_text()
    (here / "s/darknet_tiny-scratch-all-seed0/results.json").unlink()
    assert cli("resume=s").code == 0
    assert "trust=[mine]" not in jobs.commands[-1]


def test_the_users_own_study(cli: Cli, here: Path, jobs: Jobs) -> None:
    (here / "conf/experiment").mkdir(parents=True)
    (here / "conf/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults: [transfer_study, _self_]\n"
        "study: {seeds: [5], regimes: [scratch, fine_tune], backbones: [darknet_tiny],\n"
        "  weights: 'weights/{backbone}.pt', overrides: {fine_tune: [augment=light]}}\n"
        "trainer: {max_epochs: 7}\n"
    )
    done = cli("--config-dir=conf", "experiment=mine", *SMALL, "sweep_dir=s")
    assert done.code == 0, done.err
    assert jobs.names == ["darknet_tiny-scratch-all-seed5", "darknet_tiny-fine_tune-all-seed5"]
    config = cli(*jobs.commands[1][4:-1]).config
    assert config["trainer"]["max_epochs"] == 7
    assert config["augment"]["name"] == "light"
    (here / "s/darknet_tiny-scratch-all-seed5/results.json").unlink()
    assert cli("resume=s").code == 0
    assert f"--config-dir={here / 'conf'}" in jobs.commands[-1]


def test_detectors_are_studied_too(cli: Cli, here: Path, jobs: Jobs) -> None:
    words = [w for w in STUDY if not w.startswith("data.image_size")]
    words += ["data.image_size=64", "study.lr_factor.fine_tune=0.3"]
    done = cli(*words, "model=yolo", "sweep_dir=s")
    assert done.code == 0, done.err
    configs = [cli(*c[4:-1]).config for c in jobs.commands[:3]]
    assert {c["model"]["name"] for c in configs} == {"yolo"}
    assert configs[2]["optimizer"]["lr"] == pytest.approx(0.3 * configs[0]["optimizer"]["lr"])
    assert json.loads((here / "s/study.json").read_text())["monitor"] == "mAP50"


WRONG = [
    ("-m {}", "a sweep already: omit -m"),
    ("{} seed=3", "write study.seeds="),
    ("{} transfer=scratch", "write study.regimes="),
    ("{} backbone=resnet18", "write study.backbones="),
    ("{} backbone.weights=x.pt", "write study.weights="),
    ("{} data.train_per_class=3", "write study.train_per_class="),
    ("{} transfer.layer_decay=0.5", "study.overrides.fine_tune=['transfer.layer_decay=0.5']"),
    ("{} run_dir=x", "give sweep_dir=DIR"),
    ("{} study.regimes=[finetune]", "did you mean transfer=fine_tune?"),
    ("{} study.backbones=[resnet81]", "did you mean backbone=resnet18"),
    ("{} study.backbones=[darknet_tiny]", "study.weights=runs/pretrain/{backbone}"),
    ("{} study.backbones=[darknet_tiny] study.weights=no/{backbone}.pt", "no such file"),
    ("{} study.backbones=[darknet_tiny] study.weights=empty", "holds no checkpoints/best.ckpt"),
    ("{} study.weights=weights/darknet_tiny.pt", "is one file for"),
    ("{} study.seeds=1", "[0, 1, 2]"),
    ("{} study.seeds=[1,1]", "each once"),
    ("{} study.train_per_class=[0]", "null for all"),
    ("{} study.seed=[1]", "study.seeds=[1]"),
    ("{} study.overrides.fine_tune=[a=1]", "quote each key"),
    ("{} study.overrides.fine_tune=['seed=1']", "write study.seeds="),
    ("{} study.lr_factor.fine_tune=high", "a number"),
    ("{} study.backbones=[darknet_tiny] study.weights=weights/{backbone}.pt task=detection "
     "study.train_per_class=[2]", "task=classification, not for detection"),
    ("{} study.backbones=[darknet_tiny] study.weights=weights/{backbone}.pt augment=strong",
     "what only one regime reads: study.overrides.fine_tune=['KEY=VALUE']"),
    ("study.seeds=[1]", "experiment=transfer_study"),
    ("check {} study.seeds=[1]", "read by train, not by check"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "said"), WRONG)
def test_what_a_study_refuses(cli: Cli, here: Path, jobs: Jobs, command: str, said: str) -> None:
    (here / "empty").mkdir()
    done = cli(*command.replace("{}", "experiment=transfer_study").split())
    assert done.code == 2, done.err
    assert said in done.line
    assert jobs.commands == []
    assert sorted(p.name for p in here.iterdir()) == ["empty", "weights"]


def test_weights_of_another_network_stop_it_before_it_starts(
    cli: Cli, here: Path, jobs: Jobs
) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, here / "weights/darknet_tiny.pt")
    done = cli(*STUDY, "sweep_dir=s")
    assert done.code == 1
    assert "matches nothing of this backbone" in done.line
    assert not (here / "s").exists()


def test_weights_that_cannot_be_fetched_stop_it_before_it_starts(
    cli: Cli, here: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(config: Any, *args: Any, **kwargs: Any) -> None:
        assert config["backbone"]["pretrained"]
        raise RunError("could not fetch the weights of resnet18; say backbone.weights=FILE")

    monkeypatch.setattr("cvtrain.engine.build.build_model", offline)
    done = cli("experiment=transfer_study", *SMALL, "study.backbones=[resnet18]", "sweep_dir=s")
    assert done.code == 1
    assert done.line.endswith("in a study: study.weights=DIR/{backbone}.pt")
    assert not (here / "s").exists()


def test_data_that_cannot_be_used_stop_it_before_it_starts(
    cli: Cli, here: Path, jobs: Jobs
) -> None:
    done = cli(*STUDY, "data.classes=[start]", "sweep_dir=s")
    assert done.code == 2
    assert "did you mean star?" in done.line
    assert not (here / "s").exists()


def test_a_launchers_ranks_are_refused(
    cli: Cli, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert "without torchrun" in cli(*STUDY).line


@pytest.mark.slow
def test_real_runs(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Six runs of seconds: weights from a run on two classes, moved to the other two."""
    from cvtrain.cli.main import main

    tiny = ["data.num_train=24", "data.num_val=12", "data.image_size=32", "data.num_workers=0"]
    tiny += ["trainer.accelerator=cpu", "trainer.max_epochs=1", "callbacks.pictures=null"]
    start = ["backbone=darknet_tiny", "data.classes=[circle,square]", "run_dir=pre/darknet_tiny"]
    assert main([*start, *tiny]) == 0, capfd.readouterr().err
    words = ["study.backbones=[darknet_tiny]", "study.weights=pre/{backbone}", "study.seeds=[0,1]"]
    words += ["experiment=transfer_study", "data.classes=[star,triangle]", "sweep_dir=s"]
    assert main([*words, *tiny, "study.train_per_class=[3]"]) == 0, capfd.readouterr().out
    found = rows(here / "s")
    assert [row["exit_code"] for row in found] == ["0"] * 6
    assert all(0 <= float(row["accuracy"]) <= 1 for row in found)
    config = yaml.safe_load((here / "s" / found[2]["job"] / "config.yaml").read_text())
    assert config["transfer"]["name"] == "fine_tune"
    assert "study" not in config


def test_a_study_in_use_is_refused(cli: Cli, here: Path, jobs: Jobs) -> None:
    with locked(here / "s", "sweep_dir"):
        done = cli(" ".join([*STUDY, "sweep_dir=s"]))
    assert done.code == 2
    assert f"sweep_dir={here / 's'} is in use by process " in done.err
    assert jobs.commands == []
    (here / "s").mkdir()
    (here / "s" / LOCK).write_text("{}")  # of one that was killed
    assert cli(" ".join([*STUDY, "sweep_dir=s"])).code == 0
    assert not (here / "s" / LOCK).exists()
