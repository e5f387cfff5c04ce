from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
import torch

from cvtrain import failures
from cvtrain.data import shared
from cvtrain.data.datamodule import DataModule
from cvtrain.data.image_folder import ImageFolder
from cvtrain.errors import RunError

SHM = Path(failures.SHARED_MEMORY)


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    monkeypatch.setattr(shared._State, "told", False)


def batches(table, workers, **options):
    settings = {"image_size": 192, "batch_size": 2, "num_workers": workers, **options}
    data = DataModule({"train": table, "val": table}, "detection", **settings)
    return [b for split in ("train", "val") for b in data.loader(split, train=split == "train")]


def assert_same(first, second):
    assert len(first) == len(second) > 1
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.images.stride() == other.images.stride()  # channels last
        other.images[:] = 0  # may be written to
        for a, b in zip(one.targets, other.targets, strict=True):
            assert torch.equal(a.boxes, b.boxes)


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("kilobytes", [128, 300])  # a batch takes 216, each semaphore 4
def test_batches_that_find_no_room_come_through_the_pipe(files, small_disk, cache, kilobytes):
    table = files(8)
    expected = batches(table, 0)

    def work():
        notes = []
        shared.log.addHandler(handler := logging.Handler())
        handler.emit = lambda record: notes.append(record.getMessage())
        assert_same(expected, batches(table, 2, cache=cache))
        return notes

    (note,) = small_disk(SHM, kilobytes << 10, work)
    assert note.startswith("/dev/shm has 0 MiB free of 0 MiB, a batch of 0.2 MiB does not fit: ")
    assert note.endswith("--shm-size=2g, or set data.num_workers=0")


def test_so_do_those_of_predict(files, small_disk):
    folder = files(8).root

    def names():
        images = ImageFolder(folder, 192)
        return [i.file_name for b in images.batches(2, 1) for i in b.infos]

    assert small_disk(SHM, 128 << 10, names) == [f"{i:03d}.png" for i in range(8)]


def test_without_any_room_processes_are_not_started(files, small_disk):
    def work():
        (SHM / "full").write_bytes(bytes(4096))
        with pytest.raises(RunError) as caught:
            batches(files(4), 1)
        return str(caught.value)

    message = small_disk(SHM, 4096, work)
    assert message.startswith(
        "no worker process can be started (No space left on device; /dev/shm "
    )
    assert message.endswith("or set data.num_workers=0")


def test_arrays_in_shared_memory_are_not_copied(files):
    (batch, *_) = batches(files(4), 1)
    assert batch.images.is_shared()
    assert not shared._State.told


def test_without_files_for_shared_memory_batches_are_packed_again(files, monkeypatch):
    batch = batches(files(2), 0)[0]

    def refuse(fd):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("torch.multiprocessing.reductions.multiprocessing.reduction.DupFd", refuse)
    content, why = shared.pack(batch)
    assert why == "shared memory cannot be used (Too many open files)"
    back = shared.unpack(content, None)
    assert torch.equal(back.images, batch.images)
    assert not back.images.is_shared()


def test_errors_of_other_kinds_are_raised(monkeypatch):
    def fail(self):
        raise RuntimeError("cannot pin")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(RuntimeError, match="cannot pin"):
        shared.carried(torch.zeros(1 << 20))
