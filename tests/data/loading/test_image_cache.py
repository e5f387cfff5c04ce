"""data.cache=ram: one copy, the same samples, refused where it does not fit."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cvtrain.data.datamodule import DataModule
from cvtrain.data.dataset import VisionDataset
from cvtrain.data.image_cache import RamCache, available_memory
from cvtrain.data.table import Blobs, Classes, Strings, Table
from cvtrain.errors import DataError

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and forks")


def test_images_come_back_as_they_were():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, 7, 3)).astype(d) for h, d in
              ((5, np.uint8), (9, np.uint16), (3, np.uint8), (4, np.float32))]  # fmt: skip
    cache = RamCache(lambda i: images[i], [i.shape[:2] for i in images], 3, threads=2)
    assert len(cache) == 4
    assert cache.nbytes == sum(i.nbytes for i in images)
    for k, image in enumerate(images):
        assert np.array_equal(cache[k], image)
        assert cache[k].dtype == image.dtype
        with pytest.raises(ValueError, match="read-only"):
            cache[k][0] = 0


def test_more_than_one_chunk(monkeypatch):
    monkeypatch.setattr("cvtrain.data.image_cache._CHUNK", 1000)
    images = [np.full((10, k + 1, 3), k, np.uint8) for k in range(60)]
    cache = RamCache(lambda i: images[i], [i.shape[:2] for i in images], 3)
    assert all(np.array_equal(cache[k], images[k]) for k in range(60))


def test_what_does_not_fit_is_refused_with_sizes_before_anything_is_decoded():
    calls = []
    with pytest.raises(DataError) as caught:
        RamCache(calls.append, np.full((1000, 2), 1024), 3, available=2**30)
    assert str(caught.value) == (
        "data.cache=ram: 1000 decoded images need 2.93 GiB, 0.90 GiB are free; use data.cache=none"
    )
    assert not calls
    with pytest.raises(DataError, match=r"need 1.17 GiB"):  # two ranks, a copy each
        RamCache(calls.append, np.full((200, 2), 1024), 3, available=2**30, copies=2)


def test_deeper_images_than_the_estimate_are_refused_on_the_way():
    deep = np.zeros((100, 100, 3), np.uint16)
    with pytest.raises(DataError, match=r"use data.cache=none"):
        RamCache(lambda _: deep, np.full((50, 2), 100), 3, available=2_000_000)


def test_an_image_that_cannot_be_read_stops_it(files, tmp_path):
    table = files(5)
    (tmp_path / "003.png").write_bytes(b"broken")
    data = DataModule({"train": table}, "detection", image_size=24, cache="ram", num_workers=0)
    with pytest.raises(DataError, match=r"003.png"):
        data.train_dataloader()


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_and_no_file_is_opened_again(files, tmp_path, workers):
    table = files(6)
    plain = DataModule({"train": table}, "detection", image_size=24, num_workers=0)
    expected = [b.images for b in plain.loader("train")]
    cached = DataModule(
        {"train": table}, "detection", image_size=24, num_workers=workers, cache="ram"
    )
    loader = cached.loader("train")
    assert (
        cached.dataset("train").cache.summary()
        == "data.cache=ram: 6 decoded images, 0.0 MiB of memory"
    )
    for file in tmp_path.glob("*.png"):
        file.unlink()
    for _ in range(2):
        assert all(torch.equal(b.images, e) for b, e in zip(loader, expected, strict=True))
    assert cached.dataset("train").cache is cached.dataset("train", train=True).cache


def test_available_memory_is_that_of_this_machine():
    assert 2**20 < available_memory() < 2**50


def in_child(work) -> int:
    """Runs ``work`` in a forked process; gives what it returns, through a pipe."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(write, str(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return int(text)


def private() -> int:
    """Bytes of this process alone, shared with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(v.split()[0]) for k, v in fields.items() if k.startswith("Private")) * 1024


class Blank:
    """Stands for decoding: every image is the same."""

    image = np.zeros((8, 8, 3), np.uint8)

    def __call__(self, file: str) -> np.ndarray:
        return self.image


def million() -> Table:
    """A million boxes with segments on 50,000 images."""
    images, per = 50_000, 20
    rows = images * per
    segment = b"[[0,0,4,0,4,4]]"
    segments = Blobs()
    segments.offsets = np.arange(rows + 1, dtype=np.int64) * len(segment)
    segments.buffer = np.frombuffer(segment * rows, np.uint8)
    return Table(
        root="/",
        classes=Classes.from_names(["a"]),
        files=Strings(f"images/{i:012d}.jpg" for i in range(images)),
        sizes=np.full((images, 2), 8, np.int32),
        starts=np.arange(images + 1, dtype=np.int64) * per,
        boxes=np.tile(np.array([[0.0, 0, 4, 4]]), (rows, 1)),
        labels=np.zeros(rows, np.int64),
        flags=np.zeros(rows, np.uint8),
        areas=np.full(rows, np.nan),
        lines=np.zeros(rows, np.int64),
        ids=np.arange(images),
        segments=segments,
        generator=Blank(),
    )


def growth() -> int:
    """Bytes that a worker comes to have for itself while it reads a million annotations."""
    dataset = VisionDataset(million(), "detection", height=8, width=8)
    dataset[0, 0]
    size = dataset.table.boxes.nbytes + dataset.table.segments.buffer.nbytes
    assert size > 40e6

    def work() -> int:
        gc.collect()
        before = private()
        for row in range(0, len(dataset), 9):  # touches nearly every page
            dataset[0, row]
        gc.collect()
        return private() - before

    return in_child(work)


@linux
def test_a_million_annotations_do_not_grow_a_worker():
    # In a process of its own: what the tests before have freed is no part of it.
    command = "from tests.data.loading.test_image_cache import growth; print(growth())"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=root, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 6e6


@linux
def test_the_table_holds_no_python_object_per_box():
    dataset = VisionDataset(million(), "detection", height=8, width=8)
    gc.collect()
    reachable, queue = set(), [dataset.table]
    while queue:
        thing = queue.pop()
        if id(thing) in reachable or isinstance(thing, type) or type(thing).__name__ == "module":
            continue
        reachable.add(id(thing))
        queue += [t for t in gc.get_referents(thing) if not callable(t)]
    assert len(reachable) < 500


@linux
def test_forked_workers_share_the_cache():
    images = np.random.default_rng(0).integers(0, 256, (40, 512, 512, 3), dtype=np.uint8)
    cache = RamCache(lambda i: images[i], np.full((40, 2), 512), 3)

    def work() -> int:
        before = private()
        total = sum(int(cache[i].sum()) for i in range(40))
        assert total == int(images.sum())
        return private() - before

    assert cache.nbytes > 30e6
    assert in_child(work) < 3e6
