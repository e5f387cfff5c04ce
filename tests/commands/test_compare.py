"""``cvtrain compare``: which runs it takes, which it refuses, what it calls them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvtrain.commands._compared_runs import find, labels, refuse
from cvtrain.commands.compare import compare
from cvtrain.errors import UsageError
from cvtrain.report.table import Blocks
from cvtrain.storage import RUN_MARKER

Cli = Callable[..., Any]
Make = Callable[..., Path]

TRUTH: dict[str, Any] = {
    "images": [
        {"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in ("a", "b", "c")
    ],
    "annotations": [{"id": 1, "image_id": "a", "category_id": 0, "bbox": [1.5, 2, 3, 4]}],
    "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
}


@pytest.fixture
def make(here: Path, stored_config: dict[str, Any]) -> Make:
    """A finished run's folder, its ground truth and its configuration as given."""

    def run(
        name: str,
        *,
        truth: dict[str, Any] | None = None,
        task: str = "detection",
        scored: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Path:
        folder = here / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "best.ckpt").touch()
        config = json.loads(json.dumps(stored_config))
        for key, value in keys.items():
            group, _, leaf = key.partition("__")
            config[group][leaf] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        truth = truth or TRUTH
        (folder / "ground_truth.json").write_text(json.dumps(truth))
        results = {
            "task": task,
            "data": "shapes",
            "split": "val",
            "metrics": {"mAP": 0.25, "mAP50": 0.5},
            "per_class": [
                {"name": c["name"], "id": c["id"], "objects": 1, "AP": 0.25}
                for c in truth["categories"]
            ],
            "checkpoint": "checkpoints/best.ckpt",
            "epochs": 2,
            "train_seconds": 12.5,
        }
        if scored is not None:
            results["scored"] = scored
        (folder / "results.json").write_text(json.dumps(results))
        return folder

    return run


WRONG = [
    ("compare", "compare needs run folders, or the folder of a sweep"),
    ("compare --cfg job", "the checkpoint's own"),
    ("-m compare runs/a", "-m runs train"),
    ("compare runs/a optimizer.lr=1", "optimizer.lr= is not read by compare"),
    ("compare runs/a model=yolo", "model= is not read by compare"),
    ("compare runs/a split=test", "split= is read by eval"),
    ("compare runs/a latency_runs=0", "latency_runs=0: it takes an integer from 1"),
    ("compare runs/a latency_run=5", "did you mean latency_runs"),
    ("compare runs/a data.batch_size=x", "data.batch_size=x: it takes an integer"),
    ("compare runs/a data.root=nowhere", "data.root=nowhere: there is no such"),
    ("compare runs/a device=cpu", "write trainer.accelerator=cpu"),
    ("model=yolo latency_runs=5", "latency_runs= is read by compare, not by train"),
    ("comapre runs/a", "did you mean compare?"),
]


@pytest.mark.parametrize(("command", "wanted"), WRONG)
def test_wrong_commands(command: str, wanted: str, cli: Cli) -> None:
    done = cli(command)
    assert done.code == 2
    assert wanted in done.line


def test_what_the_verb_is_called_with(cli: Cli, here: Path) -> None:
    done = cli("compare train runs/b trainer.accelerator=cpu latency_runs=3 data.root=.")
    assert (done.code, done.verb) == (0, "compare")
    assert done.config["runs"] == ["train", "runs/b"], "a folder may have a verb's name"
    assert done.config["accelerator"] == "cpu"
    assert done.config["latency_runs"] == 3
    assert done.config["data_root"] == str(here)


def test_runs_and_sweeps_are_found_and_what_is_not_finished_is_said(make: Make, here: Path) -> None:
    make("a")
    for name in ("s/10", "s/2"):
        make(name)
    (here / "s/3").mkdir()
    (here / "s/3/config.yaml").write_text((here / "a/config.yaml").read_text())
    runs, skipped = find(["a", "s"])
    assert [run.shown for run in runs] == ["a", "s/2", "s/10"]
    (line,) = skipped
    assert line.startswith("skipped: s/3 did not finish (no results.json), and none of its epochs")
    assert runs[0].train_seconds == 12.5


def test_a_home_is_a_run_like_any(cli: Callable[..., Any]) -> None:
    assert cli("compare ~a b").config["runs"] == ["~a", "b"]


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("b", "b: there is no such file or folder"),
        ("~a", "~a: there is no such file or folder"),
        ("a/checkpoints/best.ckpt", "is a file; give the run's folder: a"),
        ("empty", "neither a run (it has no config.yaml) nor a sweep"),
        (
            "begun",
            "begun did not finish (no results.json): cvtrain resume=begun finishes it, or "
            "cvtrain eval ckpt=begun scores it as it is; compare takes the folder",
        ),
        (
            "new",
            "new did not finish (no results.json), and none of its epochs was: train it again",
        ),
        ("predicted", "holds predictions without a score"),
        ("lost", "its checkpoint is gone"),
        ("broken", "results.json cannot be read"),
        ("other", "is not the result of a run: it has no split"),
        ("sweep", "none of its 1 runs was finished; the last, sweep/0, did not finish (no res"),
    ],
)
def test_what_is_no_finished_run(make: Make, here: Path, word: str, wanted: str) -> None:
    for name in ("a", "begun", "new", "predicted", "lost", "broken", "other", "sweep/0"):
        make(name)
    (here / "empty").mkdir()
    for name in ("begun", "new", "predicted", "sweep/0"):
        (here / name / "results.json").unlink()
    (here / "predicted/predictions.json").touch()
    for name in ("new", "lost"):
        (here / name / "checkpoints/best.ckpt").unlink()
    (here / "broken/results.json").write_text("{")
    (here / "other/results.json").write_text('{"task": "detection"}')
    with pytest.raises(UsageError) as error:
        find([word])
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


def changed(part: str, value: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(TRUTH)), part: value}


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        ({"task": "localization"}, "one is of task=detection, the other of task=localization"),
        ({"task__monitor": "mAP"}, "best epochs by mAP50 and by mAP"),
        (
            {"truth": changed("categories", [{"id": 0, "name": "cat"}, {"id": 1, "name": "cow"}])},
            "other classes (dog only in the first",
        ),
        (
            {"truth": changed("images", TRUTH["images"][:1])},
            "other images (3 and 1 images; b.jpg 64x48 and 1 more only in the first",
        ),
        (
            {"truth": changed("annotations", [])},
            "the same images with other annotations (shapes, val)",
        ),
    ],
)
def test_other_splits_are_refused(make: Make, other: dict[str, Any], wanted: str) -> None:
    make("a")
    make("b", **other)
    with pytest.raises(UsageError, match="a and b do not compare") as error:
        refuse(find(["a", "b"])[0])
    assert wanted in str(error.value)


def test_pixels_count_where_both_know_them(make: Make) -> None:
    from cvtrain.report.fingerprint import fingerprint

    names = ("a.jpg", "b.jpg", "c.jpg")
    known = [fingerprint(TRUTH, {n: n.encode() + tail for n in names}) for tail in (b"1", b"2")]
    make("old")
    for name, scored in zip(("one", "two"), known, strict=True):
        make(name, scored=scored)
    refuse(find(["old", "one"])[0])
    with pytest.raises(UsageError, match="same names and sizes with other pixels"):
        refuse(find(["one", "two"])[0])


def test_the_same_run_twice_is_refused(make: Make, here: Path) -> None:
    make("a")
    (here / "link").symlink_to(here / "a")
    for words in (["a", "a"], ["a", "link"]):
        with pytest.raises(UsageError, match="is given twice"):
            refuse(find(words)[0])
    evaluated = make("a-eval")
    results = json.loads((evaluated / "results.json").read_text())
    results["checkpoint"] = str(here / "a/checkpoints/best.ckpt")
    del results["train_seconds"]
    (evaluated / "results.json").write_text(json.dumps(results))
    with pytest.raises(UsageError, match="a and a-eval scored the same checkpoint"):
        refuse(find(["a", "a-eval"])[0])
    assert find(["a-eval"])[0][0].train_seconds == 12.5, "those of the run it evaluated"


def test_a_run_that_does_not_say_what_it_was_scored_on(make: Make) -> None:
    (make("a") / "ground_truth.json").unlink()
    with pytest.raises(UsageError, match="score it again: cvtrain eval ckpt=a"):
        find(["a"])


def test_names_tell_runs_apart(make: Make) -> None:
    make("a")
    make("b", model__name="ssd")
    make("c", model__name="ssd", data__image_size=[64, 96])
    make("s/0", model__name="fcos")
    make("t/0", model__name="fcos")
    runs = find(["a", "b", "c", "s", "t"])[0]
    size = runs[1].size
    assert labels(runs) == ["yolo", f"ssd {size}", "ssd 64x96", "fcos s/0", "fcos t/0"]


def test_columns_that_do_not_fit_go_into_another_block() -> None:
    table = [["run", "aaaa", "bbbb", "cc"], ["x", "1", "2", "3"]]
    assert Blocks(table).split(100)[1] == [[0, 1, 2, 3]]
    assert Blocks(table).split(15)[1] == [[0, 1, 2], [0, 3]]
    assert Blocks(table).split(1)[1] == [[0, 1], [0, 2], [0, 3]]


def test_what_it_writes_where_one_model_cannot_be_measured(
    make: Make, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cvtrain.engine import benchmark
    from cvtrain.errors import RunError

    for n in range(3):
        make(f"r{n}", model__name=f"m{n}")
    cost = benchmark.Cost(7, 1e9, 0.02, 0.01, 0.03, 5, 60.0, 4, 2**20, 0.5, True, "cpu")
    monkeypatch.setattr(
        benchmark, "measure_all", lambda jobs: [cost, RunError("no memory"), cost][: len(jobs)]
    )
    cfg = {
        "runs": ["r0", "r1", "r2"],
        "words": ["r0", "r1", "r2"],
        "run_dir": str(here / "out"),
        "data_root": None,
        "latency_runs": 5,
        "batch_size": None,
        "accelerator": "cpu",
        "precision": "auto",
        "trust": [],
    }
    assert compare(cfg) == 1
    message = capsys.readouterr().out
    assert "[2/3] m1: not measured: no memory" in message
    assert "20.0 (10.0-30.0)" in message
    assert sorted(p.name for p in (here / "out").iterdir()) == [
        RUN_MARKER,
        "compare.csv",
        "compare.md",
        "compare.png",
    ]
    text = (here / "out/compare.md").read_text()
    assert "cvtrain compare r0 r1 r2" in text
    assert "NOT part of the latency" in text
    monkeypatch.setattr(benchmark, "measure_all", lambda jobs: [RunError("no memory")] * len(jobs))
    shutil.rmtree(here / "out")
    with pytest.raises(RunError, match="no memory"):
        compare(cfg)
    assert not (here / "out").exists()
