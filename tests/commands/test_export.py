"""``cvtrain export``: what it reads, what it refuses, what others' habits become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

WRONG = [
    ("export", "export needs ckpt=FILE_OR_RUN_FOLDER"),
    ("export ckpt=runs/a", "export needs what=backbone"),
    ("export ckpt=runs/a what=null", "export needs what=backbone"),
    ("export ckpt=runs/a what=onnx", "what=onnx: it takes backbone, the one thing"),
    ("export ckpt=runs/a what=bacbone", "did you mean what=backbone?"),
    ("export ckpt=runs/a format=onnx", "write what=backbone, the one thing"),
    ("export --format onnx", "cvtrain export ckpt=RUN_DIR what=backbone"),
    ("format=onnx", "cvtrain export ckpt=RUN_DIR what=backbone"),
    ("export weights=runs/a what=backbone", "write ckpt=runs/a"),
    ("export ckpt=runs/a what=backbone output=b.safetensors", "write out=b.safetensors"),
    ("output=b", "write run_dir=b"),
    ("export ckpt=runs/a what=backbone run_dir=b", "the file it writes is out=FILE"),
    ("model=yolo out=b", "a run's folder is run_dir=DIR"),
    ("export ckpt=runs/a what=backbone data=coco", "it comes from the checkpoint"),
    ("export ckpt=runs/a what=backbone optimizer.lr=1", "it comes from the checkpoint"),
    ("export ckpt=runs/a what=backbone split=val", "split= is read by eval"),
    ("export ckpt=runs/a what=backbone a.b=1", "unknown key a.b"),
    ("export ckpt=runs/b what=backbone", "no such file or folder"),
    ("export ckpt=runs/a what=backbone out=b.pt", "out=b.safetensors"),
    ("export ckpt=runs/a what=backbone out=runs", "is a folder"),
    ("export --cfg job", "the checkpoint's own"),
    ("-m export ckpt=runs/a", "-m runs train"),
    ("exprt ckpt=runs/a", "did you mean export?"),
    ("convert ckpt=runs/a", "the verb export"),
    ("eval ckpt=runs/a what=backbone", "what= is read by export"),
]


@pytest.mark.parametrize(("command", "wanted"), WRONG)
def test_wrong_commands(command: str, wanted: str, cli: Cli, finished_run: Path) -> None:
    done = cli(command)
    assert done.code == 2
    assert wanted in done.line


def test_what_the_engine_gets(cli: Cli, finished_run: Path) -> None:
    (finished_run.parents[1] / "mine.py").touch()
    done = cli("export ckpt=runs/a what=backbone trust=[mine]")
    assert (done.code, done.verb) == (0, "export")
    assert done.config == {
        "command": "export",
        "ckpt": str(finished_run),
        "what": "backbone",
        "out": str(finished_run / "export" / "backbone.safetensors"),
        "trust": ["mine"],
    }


@pytest.mark.parametrize(
    ("ckpt", "out"),
    [
        ("runs/a/checkpoints/best.ckpt", "runs/a/export/backbone.safetensors"),
        ("runs/a/checkpoints/last.ckpt", "runs/a/export/backbone_last.safetensors"),
        ("runs/a/checkpoints", "runs/a/export/backbone.safetensors"),
        ("mine.ckpt", "mine_backbone.safetensors"),
    ],
)
def test_where_it_is_written(ckpt: str, out: str, cli: Cli, here: Path, finished_run: Path) -> None:
    for path in (here / "mine.ckpt", finished_run / "checkpoints/last.ckpt"):
        path.touch()
    assert cli(f"export what=backbone ckpt={ckpt}").config["out"] == str(here / out)
