"""Run folders: where a run writes, how one is resumed, evaluated and predicted with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvtrain.cli.args import parse
from cvtrain.cli.main import configuration, dispatch
from cvtrain.config.groups import ConfDirs
from cvtrain.errors import UsageError

Cli = Callable[..., Any]


# Where a run writes ----------------------------------------------------------------------------


def test_default_run_folders_do_not_collide(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvtrain.config.runs.time.strftime", lambda pattern: "2026-01-31_12-00-00")
    first = Path(cli("model=yolo").config["run_dir"])
    assert first == here / "runs/detection/yolo/2026-01-31_12-00-00"
    first.mkdir(parents=True)
    second = Path(cli("model=yolo").config["run_dir"])
    assert second.name == "2026-01-31_12-00-00-2"
    second.mkdir()
    assert Path(cli("model=yolo").config["run_dir"]).name == "2026-01-31_12-00-00-3"


def test_a_used_run_folder_is_refused(cli: Cli, finished_run: Path) -> None:
    done = cli("model=yolo run_dir=runs/a")
    assert done.code == 2
    assert f"resume={finished_run}" in done.line
    finished_run.with_name("empty").mkdir()
    assert cli("model=yolo run_dir=runs/empty").code == 0


@pytest.mark.parametrize("verb", ["train", "check", "show", "anchors", "proposals"])
def test_the_data_sets_folder_is_not_written_to(verb: str, here: Path) -> None:
    (here / "photos" / "cats").mkdir(parents=True)
    (here / "photos" / "cats" / "a.png").touch()
    words = [verb, "data=yolo", "data.root=photos", "task=detection"]
    words += ["model=yolov2"] if verb == "anchors" else []
    for folder, message in (("photos", "own folder"), ("photos/cats", "holds a.png")):
        command = parse([*words, f"run_dir={folder}"])
        with pytest.raises(UsageError, match=message):
            dispatch(verb, configuration(command, ConfDirs()))
    assert [p.name for p in here.rglob("*")] == ["photos", "cats", "a.png"]


def test_other_ranks_share_the_folder_of_the_first(
    cli: Cli, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert cli("model=yolo run_dir=runs/a").code == 2
    monkeypatch.setenv("RANK", "1")
    done = cli("model=yolo run_dir=runs/a")
    assert done.code == 0, done.err
    assert done.config["run_dir"] == str(finished_run)


def test_launchers_name_a_folder_that_all_ranks_share(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    done = cli("model=yolo")
    assert done.code == 2
    assert "run_dir=DIR" in done.err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    assert cli("model=yolo").config["run_dir"] == str(here / "runs/detection/yolo/torchrun-abc")
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    alone = cli("model=yolo").config["run_dir"]
    assert not alone.endswith("slurm-77"), "one task of a SLURM job is a run like any other"
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert cli("model=yolo").config["run_dir"] == str(here / "runs/detection/yolo/slurm-77")


# resume= ---------------------------------------------------------------------------------------


def test_resume_takes_the_runs_own_configuration(cli: Cli, finished_run: Path) -> None:
    moved = finished_run.with_name("moved")
    finished_run.rename(moved)
    done = cli("resume=runs/moved")
    assert (done.code, done.verb) == (0, "train")
    assert done.config["resume"] == done.config["run_dir"] == str(moved)
    assert done.config["data"]["batch_size"] == 7
    assert done.config["trust"] == []
    (finished_run.parents[1] / "mine.py").touch()
    assert cli("train resume=runs/moved trust=[mine]").config["trust"] == ["mine"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "seed=9 resume=runs/a",
            "or start a new run from these weights with backbone.weights=runs/a",
        ),
        ("optimizer.name=sgd resume=runs/a", "start a new run from these weights with"),
        ("model=yolo resume=runs/a", "model=yolo beside resume=: the weights are those"),
        ("resume=runs/a scheduler=step", "single keys of it may change"),
        ("resume=runs/a run_dir=b", "a run continues in its own folder"),
        ("resume=runs/a model.grid=5", "the weights are those of this model"),
        ("resume=runs/a optimizer.amsgrad=true", "no optimizer.amsgrad"),
        ("resume=runs/a +optimizer.amsgrad=true", "the optimizer's state was gathered"),
        ("resume=runs/a seed=3", "all draws of the epochs so far"),
        ("resume=runs/a data.image_size=64", "the model was built for it"),
        ("resume=runs/a trainer.max_epoch=9", "did you mean trainer.max_epochs=9?"),
        ("resume=runs/a trainer.max_epochs=0", "it takes an integer from 1"),
        ("resume=runs/a ~callbacks.ema", "write callbacks.ema=null"),
        ("resume=runs/a callbacks.early_stopping.patience=0", "an integer from 1, or null"),
        ("resume=runs/a task.inference.mode=tiles", "task.inference.mode"),
        ("resume=runs/a split=test", "read by eval"),
        ("resume=runs/a resume_data=yes", "it takes changed"),
        ("model=yolo resume_data=changed", "only beside resume=RUN_DIR"),
        ("resume=runs/b", "runs holds a"),
        ("resume=runs", "no config.yaml"),
        ("resume=runs/a/checkpoints/last.ckpt", "resume="),
        ("resume=true", "the newest run here is resume=runs/a"),
        ("resume=", "takes the run's folder"),
        ("resume=runs/a trust=mine", "[mypkg]"),
        ("eval resume=runs/a", "train, not by eval"),
    ],
)
def test_resume_refuses(cli: Cli, finished_run: Path, command: str, said: str) -> None:
    if "newest" in said:  # runs/<task>/<model>/<timestamp>
        nested = finished_run.parent / "detection" / "yolo" / "x"
        nested.parent.mkdir(parents=True)
        finished_run.rename(nested)
        said = "the newest run here is resume=runs/detection/yolo/x"
    done = cli(command)
    assert done.code == 2
    assert said in done.line


def test_keys_beside_resume_change_the_run(cli: Cli, finished_run: Path) -> None:
    done = cli(
        "resume=runs/a trainer.max_epochs=50 optimizer.lr=1e-4 data.num_train=9 resume_data=changed"
        " callbacks.early_stopping.patience=3 loss.lambda_coord=4"
    )
    assert done.code == 0, done.err
    config = done.config
    assert (config["trainer"]["max_epochs"], config["optimizer"]["lr"]) == (50, 1e-4)
    assert config["data"]["num_train"] == config["data"]["reader"]["num_train"] == 9
    assert config["loss"]["lambda_coord"] == config["model"]["loss"]["lambda_coord"] == 4
    assert config["resume_data"] == "changed"
    assert config["overrides"][:2] == ["trainer.max_epochs=50", "optimizer.lr=1e-4"]
    assert "resume_data=changed" not in config["overrides"]


def test_a_stored_configuration_is_judged_as_a_typed_one(cli: Cli, finished_run: Path) -> None:
    path = finished_run / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    stored["optimizer"]["lr"] = "1e-4"  # what YAML 1.1 makes of lr: 1e-4
    path.write_text(yaml.safe_dump(stored))
    assert cli("resume=runs/a").config["optimizer"]["lr"] == 1e-4
    stored["data"]["batch_size"] = 0
    path.write_text(yaml.safe_dump(stored))
    done = cli("resume=runs/a")
    assert done.code == 2
    assert done.line == f"{path}: data.batch_size=0: it takes an integer from 1"


def test_resume_names_the_run_folder_of_a_checkpoint(cli: Cli, finished_run: Path) -> None:
    assert f"resume={finished_run}" in cli("resume=runs/a/checkpoints/last.ckpt").line


def test_a_config_that_is_no_runs(cli: Cli, here: Path) -> None:
    (here / "config.yaml").write_text("a: 1\n")
    done = cli("resume=.")
    assert done.code == 2
    assert "not the configuration of a run" in done.line


# eval and predict ------------------------------------------------------------------------------


def test_eval_hands_over_the_checkpoint_and_nothing_else(cli: Cli, finished_run: Path) -> None:
    done = cli("eval ckpt=runs/a")
    assert (done.code, done.verb) == (0, "eval")
    assert done.config == {
        "command": "eval",
        "ckpt": str(finished_run),
        "split": "val",
        "source": None,
        "score_threshold": 0.25,
        "run_dir": None,
        "trust": [],
        "seed": None,
        "overrides": {"data": None, "proposals": None, "typed": ["ckpt=runs/a"], "set": {}},
    }
    path = finished_run / "checkpoints" / "best.ckpt"
    done = cli("ckpt=runs/a/checkpoints/best.ckpt split=test run_dir=e eval seed=3")
    config = done.config
    assert (config["ckpt"], config["split"], config["seed"]) == (str(path), "test", 3)
    assert config["run_dir"] == str(finished_run.parents[1] / "e")


def test_eval_takes_keys_of_data_and_trainer(cli: Cli, finished_run: Path) -> None:
    done = cli(
        "eval ckpt=runs/a data.batch_size=2 data.on_bad=drop data.num_workers=null "
        "trainer.devices=2 trainer.accelerator=cpu"
    )
    assert done.code == 0, done.err
    assert done.config["overrides"].pop("typed")[-1] == "trainer.accelerator=cpu"
    assert done.config["overrides"] == {
        "data": None,
        "proposals": None,
        "set": {
            "data.batch_size": 2,
            "data.on_bad": "drop",
            "data.num_workers": None,
            "trainer.devices": 2,
            "trainer.accelerator": "cpu",
        },
    }


def test_eval_on_other_data_keeps_the_models_input(
    cli: Cli, finished_run: Path, here: Path
) -> None:
    (here / "photos").mkdir()
    done = cli("eval ckpt=runs/a data=coco data.root=photos data.batch_size=3 trainer.devices=1")
    assert done.code == 0, done.err
    data = done.config["overrides"]["data"]
    assert data["name"] == "coco"
    assert data["root"] == data["reader"]["root"] == str(here / "photos")
    assert (data["batch_size"], data["image_size"]) == (3, 128), "128 is what the run trained at"
    assert data["resize"] == "stretch"
    assert data["split_seed"] == 0
    assert done.config["overrides"]["set"] == {"trainer.devices": 1}
    path = finished_run / "config.yaml"
    path.write_text(path.read_text().replace("split_seed: 0", "split_seed: 7"))
    again = cli("eval ckpt=runs/a data=coco data.root=photos").config["overrides"]["data"]
    assert again["split_seed"] == 7, "what was trained on is not scored on"


def test_a_checkpoint_without_its_run_folder(cli: Cli, here: Path) -> None:
    (here / "best.ckpt").touch()
    (here / "photos").mkdir()
    done = cli("eval ckpt=best.ckpt data=coco data.root=photos")
    assert done.code == 0, done.err
    data = done.config["overrides"]["data"]
    assert {"image_size", "resize", "channels"}.isdisjoint(data), "the engine takes the model's"
    assert cli("eval ckpt=best.ckpt data.root=photos data.one_based=true").code == 0
    assert "data.batch_size" in cli("eval ckpt=best.ckpt data.batchsize=3").line
    assert cli("eval ckpt=best.ckpt data.one_base=true").code == 2


def test_predict(cli: Cli, finished_run: Path, here: Path) -> None:
    (here / "new").mkdir()
    (here / "new" / "a [1].jpg").touch()
    done = cli("predict", "ckpt=runs/a", "source=new", "score_threshold=0.5")
    assert (done.code, done.verb) == (0, "predict")
    assert (done.config["source"], done.config["score_threshold"]) == (str(here / "new"), 0.5)
    done = cli("predict", "ckpt=runs/a", "source=new/*.jpg", "data.batch_size=2")
    assert done.config["source"] == str(here / "new/*.jpg")
    assert done.config["overrides"]["set"] == {"data.batch_size": 2}
    done = cli("predict", "ckpt=runs/a", "source=new/a [1].jpg")
    assert done.config["source"] == str(here / "new/a [1].jpg")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("eval", "eval needs ckpt="),
        ("eval ckpt=runs/b", "runs holds a"),
        ("eval ckpt=runs", "no checkpoints/best.ckpt"),
        ("eval ckpt=runs/a model=yolo", "from the checkpoint"),
        ("eval ckpt=runs/a model.nms_iou=0.4", "from the checkpoint"),
        ("eval ckpt=runs/a model.eval_layers=2", "a key of model=rt_detr, not of model=yolo"),
        ("eval ckpt=runs/a model.merge=nms", "a key of model=overfeat, not of model=yolo"),
        ("eval ckpt=runs/a model.max_detections=all", "model.max_detections=all: it takes"),
        ("eval ckpt=runs/a model.rpn.scales=[4]", "from the checkpoint"),
        ("eval ckpt=runs/a model.rpn.proposals=[9,9]", "not of model=yolo"),
        ("eval ckpt=runs/a task=detection", "from the checkpoint"),
        ("eval ckpt=runs/a optimizer.lr=0.1", "read by train"),
        ("eval ckpt=runs/a augment=light", "read by train"),
        ("eval ckpt=runs/a trainer.max_epochs=3", "read by train"),
        ("eval ckpt=runs/a experiment=yolo_voc", "read by train"),
        ("eval ckpt=runs/a source=x", "read by predict"),
        ("eval ckpt=runs/a score_threshold=0.1", "read by predict"),
        ("eval ckpt=runs/a split=valid", "split=val"),
        ("eval ckpt=runs/a splitt=val", "split=val"),
        ("eval ckpt=runs/a batch=3", "data.batch_size=3"),
        ("eval ckpt=runs/a data.batchsize=3", "data.batch_size=3"),
        ("eval ckpt=runs/a data.batch_size=x", "an integer"),
        ("eval ckpt=runs/a data.root=photos", "data=auto"),
        ("eval ckpt=runs/a data=cocoo", "data=coco"),
        ("eval ckpt=runs/a data=coco", "data.root=FOLDER"),
        ("eval ckpt=runs/a data=coco data.root=nowhere", "no such file or folder"),
        ("eval ckpt=runs/a data=coco data.root=runs data.bach_size=1", "data.batch_size=1"),
        ("eval ckpt=runs/a data.object=only", "it is for task=localization"),
        ("eval ckpt=runs/a task.inference.mode=tiles", "it is for task=semantic_segmentation"),
        ("eval ckpt=runs/a task.inference=tiles", "from the checkpoint"),
        ("eval ckpt=runs/a ~trainer.devices", "trainer.devices"),
        ("eval ckpt=runs/a --cfg job", "checkpoint's own"),
        ("predict ckpt=runs/a", "predict needs source="),
        ("predict source=runs", "predict needs ckpt="),
        ("predict ckpt=runs/a source=nothing/*.jpg", "no file matches"),
        ("predict ckpt=runs/a source=rnus", "did you mean"),
        ("predict ckpt=runs/a source=runs score_threshold=2", "from 0 to 1"),
        ("predict ckpt=runs/a source=runs split=val", "read by eval"),
        ("predict ckpt=runs/a source=runs data=coco", "source="),
        ("predict ckpt=runs/a source=runs data.root=x", "source="),
        ("predict ckpt=runs/a source=runs data.on_bad=drop", "not read by predict"),
        ("predict ckpt=runs/a source=runs data.allow_empty=true", "not read by predict"),
        ("predict ckpt=runs/a source=runs data.check_boxes=false", "not read by predict"),
    ],
)
def test_eval_and_predict_refuse(cli: Cli, finished_run: Path, command: str, said: str) -> None:
    done = cli(command)
    assert done.code == 2, done.err
    assert done.verb is None
    assert said in done.line


@pytest.fixture
def segmentation_run(cli: Cli, here: Path, finished_run: Path) -> Path:
    """``finished_run`` with the configuration of a segmentation."""
    done = cli("task=semantic_segmentation data=shapes")
    assert done.code == 0, done.err
    stored = {**done.config, "run_dir": str(finished_run)}
    (finished_run / "config.yaml").write_text(yaml.safe_dump(stored))
    return finished_run


def test_eval_and_predict_take_how_images_are_shown(cli: Cli, segmentation_run: Path) -> None:
    words = "task.inference.mode=tiles task.inference.tile_size=[64,96] task.inference.flip=true"
    for command in (f"eval ckpt=runs/a {words}", f"predict ckpt=runs/a source=runs {words}"):
        done = cli(command)
        assert done.code == 0, done.err
        assert done.config["overrides"]["set"] == {
            "task.inference.mode": "tiles",
            "task.inference.tile_size": [64, 96],
            "task.inference.flip": True,
        }


def test_images_are_shown_as_training_shows_them(cli: Cli) -> None:
    words = "task=semantic_segmentation data=shapes"
    for more, mode in (
        ("", "fit"),
        ("augment=crops", "tiles"),
        ("augment=crops task.inference.mode=whole", "whole"),
        ("augment=crops task.inference.tile_size=64", "tiles"),
    ):
        done = cli(f"{words} {more}")
        assert done.code == 0, done.err
        assert done.config["task"]["inference"]["mode"] == mode
    boxes = "model=deconvnet task.inference.mode=tiles data=shapes"
    assert "given boxes looks at the fitted image" in cli(boxes).line
    assert cli(f"{boxes} proposals=null").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("task.inference.mode=tile", "did you mean task.inference.mode=tiles?"),
        ("task.inference.overlap=1", "it takes a number from 0 to 0.9, or null"),
        ("task.inference.scales=[]", "it takes sizes from 0.1 to 8"),
        ("task.inference.scales=[0]", "it takes sizes from 0.1 to 8"),
        ("task.inference.tile_size=64", "it is for task.inference.mode=tiles"),
        ("task.inference.mode=whole task.inference.overlap=0.5", "for task.inference.mode=tiles"),
        ("task.inference.mod=tiles", "did you mean task.inference.mode=tiles?"),
        ("task.inference.flip=2", "true or false"),
    ],
)
def test_how_images_are_shown_is_checked(
    cli: Cli, segmentation_run: Path, words: str, said: str
) -> None:
    for command in (f"eval ckpt=runs/a {words}", f"task=semantic_segmentation {words}"):
        done = cli(command)
        assert done.code == 2, command
        assert said in done.line


def test_the_newest_run_is_named(cli: Cli, finished_run: Path) -> None:
    nested = finished_run.parent / "detection" / "yolo" / "x"
    nested.parent.mkdir(parents=True)
    finished_run.rename(nested)
    assert "ckpt=runs/detection/yolo/x" in cli("eval").line


def test_the_stored_configuration_composes_to_itself(cli: Cli, finished_run: Path) -> None:
    stored = yaml.safe_load((finished_run / "config.yaml").read_text())
    resumed = cli("resume=runs/a").config
    assert {k: resumed[k] for k in stored} == stored


BROKEN = [
    ("seed: 0\nx: [1\ny: 2\n", "line 3: not YAML (expected ',' or ']', but got ':'); correct this"),
    ("seed: 0\n\tx: 1\n", "line 2: not YAML (found character '\\t' that cannot start any token)"),
    ("seed: 0\nx: \xff\n", "line 2: not UTF-8 text; save the file as UTF-8"),
    ("x: \0\n", "cannot be read: special characters are not allowed; correct or restore the file"),
    ("- a\n", "holds a list; write keys and their values"),
    ("hello\n", "holds a single value; write keys and their values"),
]
"""What a YAML file holds, in Latin-1, and what is said of it."""


@pytest.mark.parametrize(
    ("text", "said"),
    [*BROKEN, ("", "is empty: restore it"), ("seed: 1\n", "is not the configuration of a run")],
)
def test_a_config_that_is_broken(cli: Cli, finished_run: Path, text: str, said: str) -> None:
    (finished_run / "config.yaml").write_text(text, encoding="latin-1")
    for command in ("resume=runs/a", "eval ckpt=runs/a", "predict ckpt=runs/a source=."):
        done = cli(command)
        assert done.code == 2
        assert f"runs/a/config.yaml{',' if said.startswith('line') else ''} {said}" in done.line
        assert "without the file, eval and predict take the configuration from the" in done.line
    (finished_run / "config.yaml").unlink()
    assert cli("eval ckpt=runs/a").code == 0


@pytest.mark.parametrize(("text", "said"), [*BROKEN, ("", "is empty; write the keys of this")])
def test_a_yaml_of_the_users_that_is_broken(cli: Cli, here: Path, text: str, said: str) -> None:
    """Wherever it stands: chosen, or named by another one's defaults."""
    for group in ("model", "optimizer"):
        (here / "conf" / group).mkdir(parents=True)
        (here / "conf" / group / "mine.yaml").write_text(text, encoding="latin-1")
        done = cli(f"--config-dir=conf {group}=mine")
        assert done.code == 2
        assert f"{group}/mine.yaml{',' if said.startswith('line') else ''} {said}" in done.line


def test_a_broken_yaml_that_another_one_names(cli: Cli, here: Path) -> None:
    (here / "conf" / "optimizer").mkdir(parents=True)
    (here / "conf" / "optimizer" / "mine.yaml").write_text("defaults: [base]\nname: sgd\n")
    (here / "conf" / "optimizer" / "base.yaml").write_text("lr: [\n")
    done = cli("--config-dir=conf optimizer=mine")
    assert done.code == 2
    assert "optimizer/base.yaml, line 2: not YAML" in done.line


@pytest.mark.parametrize(
    "command", ["resume=runs/a", "eval ckpt=runs/a", "compare runs/a", "check"]
)
def test_a_trusted_package_must_be_there(cli: Cli, finished_run: Path, command: str) -> None:
    name = f"mine_{command[:4]}"  # the folder of a trusted package stays on this process's path
    done = cli(f"{command} trust=[{name}.nets]")
    assert done.code == 2
    assert done.line == f"trust={name}.nets: no module named '{name}'; install it or set PYTHONPATH"
    (finished_run.parents[1] / name).mkdir()
    assert cli(f"{command} trust=[{name}.nets]").code == 0
