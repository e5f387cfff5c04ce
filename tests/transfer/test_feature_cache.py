"""Features on disk: whole or not there; named by everything that they follow from."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvtrain.data.formats.folder import FolderReader
from cvtrain.errors import RunError
from cvtrain.transfer import feature_cache as store_module
from cvtrain.transfer.feature_cache import Arrays, Key, Store, cache_folder

from .conftest import write_photos

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_what_was_written_is_read_memory_mapped() -> None:
    store = Store("key", 4)
    assert store.read() is None
    store.write(iter([ROWS[:3], ROWS[3:]]))
    found = store.read()
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert (found == ROWS).all()
    assert store.path.parent == cache_folder()
    assert [p.name for p in cache_folder().iterdir()] == ["key"]


def test_a_write_that_is_cut_off_leaves_nothing_to_be_read() -> None:
    def batches() -> Any:
        yield ROWS[:2]
        raise KeyboardInterrupt

    store = Store("key", 4)
    with pytest.raises(KeyboardInterrupt):
        store.write(batches())
    assert store.read() is None
    with pytest.raises(RunError, match="2 features of 4 images"):
        store.write(iter([ROWS[:2]]))
    assert list(cache_folder().iterdir()) == []


def test_halves_of_killed_runs_are_never_used_and_swept_after_a_day() -> None:
    old, young = (cache_folder() / f".{n}.1.partial" for n in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "features.npy").write_bytes(b"half")
    past = time.time() - 2 * 24 * 3600
    os.utime(old, (past, past))
    Store("key", 4).write(iter([ROWS]))
    assert not old.exists()
    assert young.exists()
    assert Store("young", 4).read() is None


@pytest.mark.parametrize("keep", [0, 10, 140])
def test_a_damaged_file_is_not_read_and_written_anew(keep: int) -> None:
    store = Store("key", 4)
    store.write(iter([ROWS]))
    file = store.path / "features.npy"
    file.write_bytes(file.read_bytes()[:keep])
    assert store.read() is None
    store.write(iter([ROWS]))
    assert (store.read() == ROWS).all()


def test_a_disk_too_small_is_said_before_the_rest_is_computed(small_disk) -> None:
    cache_folder().mkdir(parents=True)
    computed = []

    def batches() -> Any:
        for n in range(1000):
            computed.append(n)
            yield np.ones((4, 1000), np.float32)

    def work() -> Any:
        with pytest.raises(RunError) as caught:
            Store("key", 4000).write(batches())
        return str(caught.value), len(computed), [p.name for p in cache_folder().iterdir()]

    message, batches_computed, left = small_disk(cache_folder(), 1 << 20, work)
    assert message.startswith(
        f"features cannot be kept in {cache_folder()} (0.02 GB are needed, 0.00 "
    )
    assert "set XDG_CACHE_HOME to a folder with room, or say transfer.cache=false" in message
    assert (batches_computed, left) == (1, [])


def test_a_disk_that_fills_up_ends_in_one_line(small_disk) -> None:
    cache_folder().mkdir(parents=True)

    def batches() -> Any:
        for _ in range(100):
            yield {"rows": np.ones((4, 1000), np.float32)}

    def work() -> Any:
        with pytest.raises(RunError) as caught:
            Arrays("key", "model.fit_boxes=500").write(batches(), 1)  # far more come than was said
        return str(caught.value)

    message = small_disk(cache_folder(), 1 << 20, work)
    assert message.startswith(
        f"features cannot be kept in {cache_folder()} (No space left on device)"
    )


def test_features_are_on_the_disk_before_their_folder_has_its_name(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(store_module, "flush_to_disk", lambda path: seen.append(path))
    Store("key", 4).write(iter([ROWS]))
    names = [path.name.rpartition(".")[2] for path in seen]
    assert names == ["npy", "partial", "features"]
    assert seen[0].parent == seen[1]


def test_features_of_another_number_of_images_are_not_read() -> None:
    Store("key", 4).write(iter([ROWS]))
    assert Store("key", 5).read() is None


def test_two_runs_at_once_keep_one() -> None:
    first, second = Store("key", 4), Store("key", 4)

    def batches() -> Any:
        second.write(iter([ROWS]))
        yield ROWS + 1

    first.write(batches())
    assert (first.read() == ROWS).all()


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"XDG_CACHE_HOME.*transfer\.cache=false") as info:
        Store("key", 4).write(iter([ROWS]))
    assert "\n" not in str(info.value)


def test_arrays_of_any_number_of_rows() -> None:
    arrays = Arrays("key", "less")
    assert arrays.read() is None
    labels = np.zeros(0, np.int64)
    arrays.write(iter([{"a": ROWS, "b": labels}, {"a": ROWS[:1] + 1, "b": labels}]), 2)
    found = arrays.read()
    assert found is not None
    assert (found["a"] == np.concatenate([ROWS, ROWS[:1] + 1])).all()
    assert isinstance(found["a"], np.memmap)
    assert not found["a"].flags.writeable
    assert found["b"].shape == (0,)
    assert found["b"].dtype == np.int64
    assert arrays.size > 5 * 3 * 4


@pytest.mark.parametrize("file", ["a.bin", "index.json"])
def test_damaged_arrays_are_not_read_and_written_anew(file: str) -> None:
    arrays = Arrays("key", "less")
    arrays.write(iter([{"a": ROWS}]), 1)
    content = (arrays.path / file).read_bytes()
    (arrays.path / file).write_bytes(content[: len(content) // 2])
    assert arrays.read() is None
    arrays.write(iter([{"a": ROWS}]), 1)
    found = arrays.read()
    assert found is not None
    assert (found["a"] == ROWS).all()


def test_arrays_that_are_cut_off_leave_nothing() -> None:
    def batches() -> Any:
        yield {"a": ROWS}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Arrays("key", "less").write(batches(), 2)
    assert list(cache_folder().iterdir()) == []


def test_a_key_follows_every_bit_of_the_weights() -> None:
    state = {"a": torch.zeros(3), "count": torch.tensor(1), "half": torch.ones(2).bfloat16()}
    name = Key().tensors(state).name
    assert Key().tensors({k: v.clone() for k, v in state.items()}).name == name
    others = [{**state, "a": torch.tensor([0, 0, 1e-45])}, {**state, "count": torch.tensor(2)}]
    others += [
        {**state, "a": torch.zeros(1, 3)},
        {"b" if k == "a" else k: v for k, v in state.items()},
    ]
    assert len({name, *(Key().tensors(o).name for o in others)}) == 5


def test_a_key_follows_the_files(tmp_path: Path) -> None:
    write_photos(tmp_path)

    def name() -> str:
        return Key().table(FolderReader(str(tmp_path)).read("train").table).name

    before = name()
    assert name() == before
    image = tmp_path / "train" / "red" / "0.png"
    os.utime(image, (1_000_000_000, 1_000_000_001))
    touched = name()
    (tmp_path / "train" / "red" / "1.png").rename(tmp_path / "train" / "red" / "9.png")
    renamed = name()
    (tmp_path / "train" / "red" / "9.png").unlink()
    assert len({before, touched, renamed, name()}) == 4
