"""``cvtrain export what=backbone``: a file that timm loads, and another run."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn

import cvtrain
from cvtrain.cli import args
from cvtrain.cli.main import configuration, main
from cvtrain.config.groups import ConfDirs
from cvtrain.engine.build import build_model
from cvtrain.engine.checkpoint import load_model
from cvtrain.errors import CheckpointError, RunError, UsageError
from cvtrain.export.backbone import export_backbone
from cvtrain.instantiate import instantiate

Run = Callable[..., Path]
NAMES = {"names": ["a", "b", "c"], "ids": [0, 1, 2]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run folder with a checkpoint of a model that was not trained, its norms not at rest."""
    monkeypatch.chdir(tmp_path)

    def make(*words: str, name: str = "best") -> Path:
        torch.manual_seed(0)
        config = configuration(args.parse([*words, "data.image_size=64"]), ConfDirs())
        model = build_model(config, 3)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.8, 1.2)  # type: ignore[arg-type]
        header = {"version": "1", "config": config, "classes": NAMES, "metrics": {}}
        state = {f"model.{k}": v for k, v in model.state_dict().items()}
        folder = tmp_path / "run"
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        content = {"cvtrain": header, "state_dict": state, "epoch": 4}
        torch.save(content, folder / "checkpoints" / f"{name}.ckpt")
        return folder

    return make


def export(*words: str) -> int:
    return main(["export", "what=backbone", *words])


def called(out: str) -> nn.Module:
    """The model that the printed line of Python makes."""
    line = next(x for x in out.splitlines() if x.startswith("in Python: "))
    call = ast.parse(line.removeprefix("in Python: "), mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.unparse(call.func) == "timm.create_model"
    keywords = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    return timm.create_model(*(ast.literal_eval(a) for a in call.args), **keywords)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", 3),
        ("mobilenet_v3_small", 1),
        ("vit_tiny_patch16_224", 4),
        ("resnet18.a1_in1k", 3),
    ],
)
def test_timm_loads_it_and_gives_the_same(
    name: str, channels: int, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=classification", f"backbone={name}"]
    data = [] if channels in (1, 3) else ["data=folder", "data.root=."]
    folder = run(*words, *data, f"data.channels={channels}")
    assert export(f"ckpt={folder}") == 0
    out = capsys.readouterr().out
    assert "averaged weights" in out
    theirs = called(out).eval()
    ours = load_model(folder).model.backbone
    side = 224 if "vit" in name else 64
    x = torch.randn(2, channels, side, side)
    with torch.no_grad():
        assert torch.equal(theirs(x), ours.pooled(x))
    path = folder / "export" / "backbone.safetensors"
    timm.create_model(
        ours.name, num_classes=0, in_chans=channels, checkpoint_path=str(path)
    )  # as the manual says, without the keywords of ours
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == ours.name.partition(".")[0]
    assert metadata["cvtrain"] == cvtrain.__version__
    assert metadata["in_channels"] == str(channels)
    assert len(json.loads(metadata["mean"])) == channels
    assert json.loads(metadata["untrained"]) == []


def test_what_a_detector_leaves_out_is_filled_in_and_said(
    run: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = run("model=yolo", "backbone=mobilenet_v3_small", "callbacks.ema=null")
    assert export(f"ckpt={folder}", "out=m.safetensors") == 0
    out = capsys.readouterr().out
    assert "averaged" not in out
    assert "did not use 2 of these tensors; they are as timm starts them: conv_head.weight" in out
    theirs = called(out).eval()
    ours = load_model(folder).model.backbone
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs.forward_features(x), ours(x)[-1])
    torch.manual_seed(5)
    node = {**load_model(folder).config["backbone"], "weights": "m.safetensors"}
    again = instantiate(node, where="backbone")  # what was filled in is not taken for trained
    assert "2 keep their random start (body.conv_head.weight" in caplog.text
    assert not torch.equal(again.body.conv_head.weight, theirs.conv_head.weight)


@pytest.mark.parametrize(
    "name",
    [
        "darknet_tiny",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("overfeat_fast", "yolov1_20", "darknet19")
        ),
    ],
)
def test_our_own_networks_are_taken_by_another_run(
    name: str, run: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = run("task=classification", f"backbone={name}")
    assert export(f"ckpt={folder}") == 0
    out = capsys.readouterr().out
    assert "in Python" not in out
    line = next(x for x in out.splitlines() if x.startswith("in another run: "))
    words = line.removeprefix("in another run: ").split()
    assert words[0] == f"backbone={name}"
    backbone = instantiate(
        configuration(args.parse(words), ConfDirs())["backbone"], where="backbone"
    )
    ours = load_model(folder).model.backbone.state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in backbone.state_dict().items())
    assert not any(r.levelname == "WARNING" for r in caplog.records)


def test_an_export_tells_its_architecture(run: Run) -> None:
    export_backbone(
        load_model(run("task=classification", "backbone=darknet_tiny")), "a.safetensors"
    )
    node = {"_target_": "cvtrain.models.backbones.yolov1.YOLOv1Backbone", "layers": 20}
    with pytest.raises(CheckpointError, match="weights of darknet_tiny, the backbone is yolov1_20"):
        instantiate({**node, "weights": "a.safetensors"}, where="backbone")


def test_nothing_is_overwritten(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("task=classification", "backbone=darknet_tiny")
    run("task=classification", "backbone=darknet_tiny", name="last")
    assert export(f"ckpt={folder}") == 0
    path = folder / "export" / "backbone.safetensors"
    before = path.read_bytes()
    capsys.readouterr()
    assert export(f"ckpt={folder}") == 2
    assert "is there already" in capsys.readouterr().err
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="is there already"):
        export_backbone(load_model(folder), path)
    assert export(f"ckpt={folder}/checkpoints/last.ckpt") == 0
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == ["backbone.safetensors", "backbone_last.safetensors"]


def test_a_failed_write_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(run("task=classification", "backbone=darknet_tiny"))

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        RunError, match=r"cannot write .*No space left on device; give another out="
    ):
        export_backbone(loaded, "x/a.safetensors")
    assert list(Path("x").iterdir()) == []


def test_a_model_without_a_backbone(run: Run) -> None:
    loaded = load_model(run("task=classification", "backbone=darknet_tiny"))
    del loaded.model.backbone
    with pytest.raises(UsageError, match="model=classifier has no backbone to export"):
        export_backbone(loaded, "a.safetensors")
