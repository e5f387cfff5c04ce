"""Run folders and checkpoints of strangers: nothing of theirs runs, and nothing leaves the run.

Every verb on every attack: refused in one line, or harmless; no socket is opened, and of all that
lies around the run nothing changes.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import cvtrain
from cvtrain.cli.main import main
from cvtrain.errors import CvtrainError
from cvtrain.outside import outside, seals, unapproved, with_seals

Config = dict[str, Any]
EVIL = "http://evil.example:5000"


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What lies around the run, the user's home among it: unchanged at the end, and no sockets."""
    home = tmp_path / "home"
    (home / "other").mkdir(parents=True)
    for name in (".bashrc", "other/metrics.csv", "other/last.ckpt", "secret.npz", "secret.yaml"):
        (home / name).write_text("mine")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SECRET", "s3cr3t")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        raise OSError("no network in this test")

    def only_local(real: Callable[..., Any]) -> Callable[..., Any]:
        """Processes of this machine talk through such: compare's."""
        return lambda self, *arguments: (real if self.family == socket.AF_UNIX else refuse)(
            self, *arguments
        )

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, only_local(getattr(socket.socket, name)))
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    yield home
    assert not asked
    files = {str(p.relative_to(home)): p for p in home.rglob("*") if p.is_file()}
    assert {name: p.read_text() for name, p in files.items()} == dict.fromkeys(
        (".bashrc", "other/metrics.csv", "other/last.ckpt", "secret.npz", "secret.yaml"), "mine"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "stranger", "work"]
    assert not [p for p in (tmp_path / "work").iterdir() if p.name not in ("out", "image.png")]
    for path in (tmp_path / "work").rglob("*"):
        assert not path.is_file() or b"s3cr3t" not in path.read_bytes()


@pytest.fixture
def stranger(
    trained: Path, tmp_path: Path, around: Path
) -> Callable[[Callable[[Config], Any]], Path]:
    """A stranger's run: the change is made to config.yaml and to both checkpoints."""

    def make(change: Callable[[Config], Any]) -> Path:
        run = tmp_path / "stranger" / "run"
        shutil.copytree(trained, run)
        path = run / "config.yaml"
        config = yaml.safe_load(path.read_text())
        change(config)
        path.write_text(yaml.safe_dump(config))
        for path in (run / "checkpoints").glob("*.ckpt"):
            content = torch.load(path, weights_only=True)
            content["cvtrain"]["config"] = config
            path.unlink()  # one file under two names
            torch.save(content, path)
        return run

    return make


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a command ends with, "" where it succeeds."""

    def run(verb: str, run_dir: Path, *more: str) -> str:
        Image.new("RGB", (32, 32)).save("image.png")
        words = {
            "eval": ["eval", f"ckpt={run_dir}", "run_dir=out"],
            "predict": ["predict", f"ckpt={run_dir}", "source=image.png", "run_dir=out"],
            "export": ["export", f"ckpt={run_dir}", "what=backbone", "out=out/b.safetensors"],
            "resume": [f"resume={run_dir}"],
            "compare": ["compare", str(run_dir), "run_dir=out", "latency_runs=2"],
        }[verb]
        capsys.readouterr()
        code = main([*words, *more])
        lines = capsys.readouterr().err.strip().splitlines()
        if code == 0:
            return ""
        assert code in (1, 2)
        assert "unexpected" not in lines[-1]
        assert [x for x in lines if x.startswith("cvtrain: ")] == lines[-1:]
        return lines[-1]

    return run


def at(key: str, value: Any) -> Callable[[Config], None]:
    """Sets a dotted key."""

    def change(config: Config) -> None:
        *path, last = key.split(".")
        node = config
        for part in path:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[last] = value

    return change


def many(*changes: Callable[[Config], Any]) -> Callable[[Config], None]:
    return lambda config: [change(config) for change in changes] and None


FUNCTION = {
    "_target_": "torchvision.models._api.WeightsEnum.get_state_dict",
    "_args_": [
        {"_target_": "torchvision.models._api.Weights", "url": "file:///x", "transforms": None}
    ],
}
EXTRACTOR = {
    "_target_": "torchvision.models.feature_extraction.create_feature_extractor",
    "model": {"_target_": "torch.nn.ModuleDict", "modules": {'"+str(1)+"': None}},
    "return_nodes": ["b"],
}
FETCH = {"_target_": "cvtrain.models.backbones.fetch.fetch_file", "url": EVIL}
CHECKPOINTS = {
    "_target_": "pytorch_lightning.callbacks.ModelCheckpoint",
    "dirpath": "../../home/other",
    "filename": "last",
}
CSV = {
    "_target_": "pytorch_lightning.loggers.CSVLogger",
    "name": "..",
    "version": "../../home/other",
}
WANDB = {"_target_": "cvtrain.callbacks.loggers.Wandb", "mode": "online", "entity": "evil"}
MLFLOW = {"_target_": "cvtrain.callbacks.loggers.MLflow", "tracking_uri": EVIL}
BOARD = {"_target_": "cvtrain.callbacks.loggers.TensorBoard", "sub_dir": "../../../home"}
PROPOSED = {"_target_": "cvtrain.proposals.file.ProposalFile", "name": "file", "max_boxes": 9}

# What a command builds: refused by all that build it.
BUILT = {
    "model.loss": (FUNCTION, "WeightsEnum.get_state_dict is not among"),
    "model.backbone": (EXTRACTOR, "create_feature_extractor is not among"),
    "model.head": (FETCH, "fetch_file is not among"),
    "model.name": ("../../home/x", "model.name='../../home/x' is no name"),
    "task.name": ("${oc.env:SECRET}", "task.name='${oc.env:SECRET}' is no name"),
    "seed": ("0 trust=[os]", "seed='0 trust=[os]' is no number"),
}


@pytest.mark.parametrize("key", BUILT)
def test_what_a_model_is_built_of(key: str, stranger, says, tmp_path) -> None:
    value, message = BUILT[key]
    run = stranger(at(key, value))
    for verb in ("eval", "predict", "export", "resume"):
        assert message in says(verb, run), verb
    with pytest.raises(CvtrainError, match=r"is not among|is no name|is no number"):
        cvtrain.load_model(str(run))
    assert not (tmp_path / "work" / "out").exists()


# What eval, predict and export leave alone, and resume refuses.
LEFT_ALONE = {
    "callbacks.mine": (CHECKPOINTS, "trust=[pytorch_lightning.callbacks.ModelCheckpoint]"),
    "logger.mine": (CSV, "trust=[pytorch_lightning.loggers.CSVLogger]"),
    "callbacks.package": ({"_target_": "evil.Callback"}, "trust=[evil]"),
    "logger.wandb": (WANDB, "type it: logger.wandb.mode=online logger.wandb.entity=evil"),
    "logger.mlflow": (MLFLOW, f"type it: logger.mlflow.tracking_uri={EVIL}"),
    "logger.tensorboard": (BOARD, "type it: logger.tensorboard.sub_dir=../../../home"),
    "hydra.run.dir": ("../../home", "hydra.run.dir=../../home"),
    "backbone.options.file": ("/etc/passwd", "backbone.options.file=/etc/passwd"),
}


@pytest.mark.parametrize("key", LEFT_ALONE)
def test_resume_builds_its_own_alone(key: str, stranger, says) -> None:
    value, message = LEFT_ALONE[key]
    assert message in says("resume", stranger(at(key, value)))


def test_other_verbs_do_without_them(stranger, says, tmp_path) -> None:
    harmless = [
        at("trust", ["os", "evil"]),
        at("overrides", ["run_dir=../../home"]),
        at("model.about", "${oc.env:SECRET}"),
        at("resume", "../../home"),
        at("model.backbone.weights", str(tmp_path / "home" / "secret.npz")),
    ]
    run = stranger(many(*(at(key, value) for key, (value, _) in LEFT_ALONE.items()), *harmless))
    (run / "overrides.txt").write_text("run_dir=../../home\n")
    for verb in ("eval", "predict", "export"):
        assert says(verb, run) == "", verb
        shutil.rmtree("out")
    assert cvtrain.load_model(str(run)).classes.names


def test_a_trusted_class_may_not_write_outside_either(stranger, says) -> None:
    trust = "trust=[pytorch_lightning.callbacks,pytorch_lightning.loggers]"
    run = stranger(many(at("callbacks.mine", CHECKPOINTS), at("logger.mine", CSV)))
    message = says("resume", run, trust)
    assert "type it: callbacks.mine.dirpath=../../home/other logger.mine.name=.." in message


def test_files_outside_are_read_once_they_are_typed(stranger, says, around) -> None:
    file = str(around / "secret.npz")
    run = stranger(many(at("proposals", {**PROPOSED, "path": file}), at("data.x", EVIL)))
    for verb in ("eval", "predict"):
        assert f"proposals.path={file}" in says(verb, run), verb
    assert f"proposals.path={file}" in says("compare", run)
    assert f"proposals.path={file} data.x={EVIL}" not in says("predict", run)
    typed = says("predict", run, f"proposals.path={file}")
    assert "did not begin here" not in typed
    assert "secret.npz" in typed  # it was opened, and is no file of proposals


def test_a_run_that_starts_again_asks_no_network(stranger, says, around) -> None:
    node = {
        "_target_": "cvtrain.models.backbones.timm_backbone.TimmBackbone",
        "name": "resnet18",
        "pretrained": True,
    }
    run = stranger(many(at("backbone", node), at("model.backbone", node)))
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    assert "type it: backbone.pretrained=true" in says("resume", run)


@pytest.mark.parametrize("name", ["hf-hub:evil/net", "local-dir:/tmp/net", "no_such_net"])
def test_a_backbone_is_one_that_timm_lists(name: str, stranger, says) -> None:
    node = {"_target_": "cvtrain.models.backbones.timm_backbone.TimmBackbone", "name": name}
    assert f"backbone.name={name} is no model of timm" in says(
        "export", stranger(at("model.backbone", node))
    )


@pytest.mark.parametrize("library", ["torch", "timm"])
@pytest.mark.parametrize("name", ["__init__", "load", "lr_scheduler", "hf-hub:x", "../x"])
def test_an_optimizer_is_one_that_its_library_lists(library: str, name: str) -> None:
    from cvtrain.errors import UsageError
    from cvtrain.optim.optimizers import find_optimizer

    with pytest.raises(UsageError, match="has no such optimizer"):
        find_optimizer(name, library)


YAMLS = {
    "a tag": ("!!python/object/apply:os.system ['touch ../../home/pwned']", "could not determine"),
    "itself": ("&a {task: *a, model: {}, data: {}, trainer: {}}", "too large to be a run's"),
    "a bomb": (
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"{x}: &{x} [{', '.join([f'*{y}'] * 10)}]\n" for y, x in zip("abcdef", "bcdefg"))
        + "task: {}\nmodel: {}\ndata: {}\ntrainer: {}\n",
        "too large to be a run's",
    ),
}


@pytest.mark.parametrize("kind", YAMLS)
def test_a_config_that_is_none(kind: str, stranger, says) -> None:
    text, message = YAMLS[kind]
    run = stranger(lambda config: None)
    (run / "config.yaml").write_text(text)
    for verb in ("resume", "eval", "predict", "compare"):
        assert message in says(verb, run), verb


def test_links_that_lead_out_are_not_written_through(stranger, says, around) -> None:
    run = stranger(lambda config: None)
    for name, target in (("train.log", ".bashrc"), ("plots", "other"), ("export", "other")):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(around / target)
        assert f"{path} is a link to {around / target}" in says("resume", run)
        if name != "export":
            path.unlink()
    assert main(["export", f"ckpt={run}", "what=backbone"]) == 2


def test_a_public_set_is_not_fetched_for_a_stranger(stranger, says, around) -> None:
    reader = {"_target_": "cvtrain.data.formats.folder.FolderReader", "root": str(around / "new")}
    data = {"name": "cifar10", "root": str(around / "new"), "download": True, "reader": reader}
    run = stranger(lambda config: config["data"].update(data))
    assert "cifar10 is not in data.root" in says("eval", run)
    assert not (around / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model.loss", "callbacks.mine"])
def test_compare(key: str, stranger, says, tmp_path) -> None:
    value, message = {**BUILT, **LEFT_ALONE}[key]
    result = says("compare", stranger(at(key, value)))
    assert (message in result) if key in BUILT else result == ""


# Seals -------------------------------------------------------------------------------------------


def test_a_run_of_ones_own_goes_on_without_typing_again(
    compose, command, killer, tmp_path, monkeypatch
) -> None:
    from cvtrain.engine.train import train

    config = compose(*killer("SIGTERM"), "trainer.max_epochs=1")
    assert train(config) == 0
    run = tmp_path / "run"
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert set(outside(stored)) == set(stored["seals"]) == {"callbacks.killer.marker"}
    again = command(f"resume={run}", "trust=[killer_callback]")
    assert again["seals"] == stored["seals"]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    with pytest.raises(CvtrainError, match=r"type it: callbacks.killer.marker=") as caught:
        command(f"resume={run}", "trust=[killer_callback]")
    typed = str(caught.value).partition("type it: ")[2]
    moved = command(f"resume={run}", "trust=[killer_callback]", typed)
    assert moved["callbacks"] == stored["callbacks"]


def test_a_seal_is_of_one_key_and_value(tmp_path, monkeypatch) -> None:
    config = {"logger": {"mlflow": {"tracking_uri": EVIL}}, "backbone": {"weights": "/w.pt"}}
    sealed = with_seals(config)
    assert unapproved(sealed) == {}
    assert unapproved(config) == outside(config)
    other = {**sealed, "logger": {"mlflow": {"tracking_uri": f"{EVIL}/x"}}}
    assert unapproved(other) == {"logger.mlflow.tracking_uri": f"{EVIL}/x"}
    swapped = {**sealed, "seals": dict(zip(sealed["seals"], reversed(sealed["seals"].values())))}
    assert len(unapproved(swapped)) == 2
    for kept in (None, "x", {"backbone.weights": 3}, ["a"]):
        assert len(unapproved({**config, "seals": kept})) == 2
    assert unapproved(with_seals(config, ["backbone.weights"])).keys() == {
        "logger.mlflow.tracking_uri"
    }
    key = Path(os.environ["XDG_STATE_HOME"]) / "cvtrain" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")  # no home to keep a key in
    assert seals({"a": 1}) == {}
    assert "seals" not in with_seals(config)
