"""Selective search over data sets: cache, processes, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cvtrain.data.shapes import ShapesReader
from cvtrain.data.table import Table
from cvtrain.errors import DataError, RunError, UsageError
from cvtrain.proposals import source as module
from cvtrain.proposals.box_cache import cache_folder
from cvtrain.proposals.selective_search import selective_search, settings
from cvtrain.proposals.source import SelectiveSearch

Photos = Callable[..., Table]
Image = Callable[..., np.ndarray]


def entries() -> list[Path]:
    return sorted(cache_folder().rglob("*.npz"))


def test_boxes_are_those_of_the_search(photos: Photos, image: Image) -> None:
    table = photos(3)
    source = SelectiveSearch("single", seed=4)
    prepared = source.prepare({"train": table}, workers=0)
    assert (prepared.images, prepared.made) == (3, 3)
    assert prepared.seconds > 0
    for i in range(3):
        found = source.boxes(table.files[i])
        wanted = selective_search(image(i), settings("single", seed=4))
        assert np.array_equal(found.boxes, wanted.boxes)
        assert np.array_equal(found.scores, wanted.scores)
    assert len(entries()) == 3


def test_worker_processes_make_the_same(photos: Photos) -> None:
    tables = {"train": photos(5, "a"), "val": photos(names=["v.png"], folder="b")}
    one = SelectiveSearch("single")
    one.prepare(tables, workers=0)
    alone = [one.boxes(f).boxes for f in ("003.png", "v.png")]
    for path in entries():
        path.unlink()
    two = SelectiveSearch("single")
    assert two.prepare(tables, workers=2, progress=False).made == 5  # v.png has 000.png's pixels
    for boxes, file in zip(alone, ("003.png", "v.png"), strict=True):
        assert np.array_equal(two.boxes(file).boxes, boxes)


def test_what_is_there_is_not_made_again(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    table = photos(3)
    first = SelectiveSearch("single")
    before = first.prepare({"train": table}, workers=0)
    made: list[int] = []
    monkeypatch.setattr(
        module, "selective_search", lambda *a: made.append(1) or selective_search(*a)
    )
    again = SelectiveSearch("single", max_boxes=3)
    prepared = again.prepare({"train": table}, workers=0)
    assert (prepared.made, made) == (0, [])
    assert prepared.seconds == pytest.approx(before.seconds)
    assert len(again.boxes("000.png").boxes) == 3
    assert SelectiveSearch("single", seed=1).prepare({"train": table}, workers=0).made == 3
    assert SelectiveSearch("fast").prepare({"train": table}, workers=0).made == 3


def test_content_is_what_counts(photos: Photos, tmp_path: Path) -> None:
    table = photos(2)
    SelectiveSearch("single").prepare({"train": table}, workers=0)
    (tmp_path / "photos").rename(tmp_path / "moved")
    moved = replace(table, root=str(tmp_path / "moved"))
    assert SelectiveSearch("single").prepare({"train": moved}, workers=0).made == 0
    path = tmp_path / "moved" / "001.png"
    stat = path.stat()
    path.write_bytes((tmp_path / "moved" / "000.png").read_bytes()[:-1] + b"x")
    os.utime(path, (stat.st_atime, stat.st_mtime))
    assert SelectiveSearch("single").prepare({"train": moved}, workers=0).made == 1


def test_more_boxes_than_were_kept_are_made_again(
    photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvtrain.proposals.box_cache.KEPT", 4)
    table = photos(1)
    SelectiveSearch("fast", max_boxes=2).prepare({"train": table}, workers=0)
    assert SelectiveSearch("fast", max_boxes=4).prepare({"train": table}, workers=0).made == 0
    more = SelectiveSearch("fast", max_boxes=6)
    assert more.prepare({"train": table}, workers=0).made == 1
    assert len(more.boxes("000.png").boxes) == 6


@pytest.mark.parametrize("damage", [b"", b"PK nonsense", None])
def test_a_damaged_entry_is_made_again(photos: Photos, damage: bytes | None) -> None:
    table = photos(2)
    first = SelectiveSearch("single")
    first.prepare({"train": table}, workers=0)
    boxes = first.boxes("000.png").boxes
    for path in entries():
        path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    again = SelectiveSearch("single")
    assert again.prepare({"train": table}, workers=0).made == 2
    assert np.array_equal(again.boxes("000.png").boxes, boxes)


def test_drawn_scenes_have_boxes_too() -> None:
    reader = ShapesReader(task="detection", num_train=2, num_val=1, num_test=0, scene_size=[48, 64])
    tables = {split: reader.read(split).table for split in ("train", "val")}
    source = SelectiveSearch("single")
    assert source.prepare(tables, workers=0).made == 3
    assert source.boxes(tables["val"].files[0]).boxes[:, 2].max() == 64
    assert SelectiveSearch("single").prepare(tables, workers=0).made == 0


def test_gray_images_are_another_entry(photos: Photos) -> None:
    table = photos(1)
    SelectiveSearch("single").prepare({"train": table}, workers=0)
    assert SelectiveSearch("single").prepare({"train": table}, workers=0, channels=1).made == 1


def test_one_line_for_what_goes_wrong(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = photos(2)
    source = SelectiveSearch("single")
    with pytest.raises(UsageError, match=r"data\.channels=4: selective search takes RGB"):
        source.prepare({"train": table}, channels=4)
    with pytest.raises(DataError, match=r"000\.png: its proposals are not in"):
        source.boxes("000.png")
    (tmp_path / "photos" / "001.png").unlink()
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"001\.png: No such file.*restore the file"):
            source.prepare({"train": table}, workers=workers)
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    with pytest.raises(RunError, match=r"cannot write .*; make room, or set XDG_CACHE_HOME"):
        SelectiveSearch("single").prepare({"train": photos(2)}, workers=0)


def test_a_killed_worker_is_one_line(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(module, "selective_search", die)
    with pytest.raises(RunError, match=r"was killed, most likely for memory; lower data\.num_work"):
        SelectiveSearch("single").prepare({"train": photos(2)}, workers=2)


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from cvtrain.data.shapes import ShapesReader
from cvtrain.proposals import source as module
real = module.selective_search
def slow(*arguments):
    time.sleep(0.2)
    return real(*arguments)
module.selective_search = slow
reader = ShapesReader(task="detection", num_train=40, num_val=1, num_test=0, scene_size=32)
tables = {"train": reader.read("train").table}
print(module.SelectiveSearch("single").prepare(tables, workers=2).made, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks its workers")
def test_ctrl_c_leaves_what_was_made_and_no_process() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(entries()) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in err
    made = len(entries())
    assert 4 <= made < 40
    time.sleep(0.5)
    assert len(entries()) == made, "workers went on"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    reader = ShapesReader(task="detection", num_train=40, num_val=1, num_test=0, scene_size=32)
    rest = SelectiveSearch("single").prepare({"train": reader.read("train").table}, workers=0)
    assert rest.made == 40 - made
