"""What was found is remembered while path, size and mtime stay the same; never in the data set."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cvtrain.data.gate import cache
from cvtrain.data.gate.cache import cache_folder, cached_probe


def age(root: Path) -> None:
    """An hour ago: files changed just now are not remembered."""
    for path in root.rglob("*"):
        if path.is_file():
            info = path.stat()
            os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns - 3600 * 10**9))


def look(dataset, files, masks: bool = False, channels: int = 3):
    message: list[str] = []
    ticks: list[int] = []
    found = cached_probe(
        str(dataset.root),
        files,
        masks=masks,
        channels=channels,
        workers=1,
        tick=ticks.append,
        warn=message.append,
    )
    assert sum(ticks) == len(files)
    return found, message


@pytest.fixture
def files(dataset) -> list[str]:
    names = [f"ordner mit Ä/bild {i}.png" for i in range(12)]
    for i, name in enumerate(names):
        dataset.save(name, dataset.pixels(10 + i, 20))
    age(dataset.root)
    return names


def test_hit_gives_the_same_records(dataset, files) -> None:
    first, _ = look(dataset, files)
    second, message = look(dataset, files[::-1])
    assert (first.cached, second.cached, message) == (0, 12, [])
    assert np.array_equal(first.records[::-1], second.records)


def test_masks_keep_their_values(dataset, files) -> None:
    from PIL import Image

    for i, name in enumerate(files):
        values = np.arange(60, dtype=np.uint8).reshape(6, 10) % (i + 1)
        Image.fromarray(values).save(dataset.root / name)
    age(dataset.root)
    first, _ = look(dataset, files[3:], masks=True)
    again, _ = look(dataset, files, masks=True)  # three new ones in front: rows are merged
    third, _ = look(dataset, files, masks=True)
    assert (first.cached, again.cached, third.cached) == (0, 9, 12)
    for i in range(12):
        assert third.values[i][0].tolist() == list(range(i + 1))
        assert third.values[i][1].tolist() == again.values[i][1].tolist()
        assert third.values[i][1].sum() == 60


def test_images_and_masks_and_channels_are_kept_apart(dataset, files) -> None:
    look(dataset, files)
    assert look(dataset, files, masks=True)[0].cached == 0
    assert look(dataset, files, channels=1)[0].cached == 0
    assert look(dataset, files)[0].cached == 12


@pytest.mark.parametrize("change", ["size", "mtime", "gone"])
def test_change_invalidates_one_file(dataset, files, change: str) -> None:
    look(dataset, files)
    path = dataset.root / files[4]
    info = path.stat()
    if change == "size":
        dataset.save(files[4], dataset.pixels(99, 20))
        os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns))
    elif change == "mtime":
        os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns + 1))
    else:
        path.unlink()
    found, _ = look(dataset, files)
    assert found.cached == 11
    assert found.ok.sum() == (11 if change == "gone" else 12)
    assert found.records["width"][4] == {"size": 99, "mtime": 14, "gone": 0}[change]


def test_replaced_entry_is_found_again(dataset, files) -> None:
    look(dataset, files)
    dataset.save(files[4], dataset.pixels(99, 20))
    age(dataset.root)
    look(dataset, files)
    found, _ = look(dataset, files)
    assert found.cached == 12
    assert found.records["width"].tolist() == [10, 11, 12, 13, 99, *range(15, 22)]


def test_files_of_this_moment_and_bad_ones_are_not_remembered(dataset, files) -> None:
    dataset.save("new.png")
    (dataset.root / "bad.png").write_bytes(b"")
    os.utime(dataset.root / "bad.png", ns=(0, 0))
    names = [*files, "new.png", "bad.png"]
    look(dataset, names)
    found, _ = look(dataset, names)
    assert found.cached == 12
    assert found.details == {13: "0 bytes"}


@pytest.mark.parametrize("damage", ["garbage", "cut", "flip", "other"])
def test_damaged_cache_is_said_and_replaced(dataset, files, damage: str) -> None:
    first, _ = look(dataset, files)
    (path,) = cache_folder().iterdir()
    whole = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"no zip at all")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flip":
        middle = whole.index(b"records.npy") + 250
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    else:
        with path.open("wb") as file:
            np.savez(file, **{n: np.arange(3) for n in cache._Entries.__dataclass_fields__})
    found, message = look(dataset, files)
    assert found.cached == 0
    assert len(message) == 1
    assert str(path) in message[0]
    assert np.array_equal(found.records, first.records)
    assert look(dataset, files)[0].cached == 12


def test_folder_that_cannot_be_written_is_said(dataset, files, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found, message = look(dataset, files)
    assert found.ok.all()
    assert len(message) >= 1
    assert message[-1].startswith("cannot write ")
    assert message[-1].endswith("Not a directory; the next run opens all images again")


def test_full_disk_leaves_nothing_behind(dataset, files, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    found, message = look(dataset, files)
    assert found.ok.all()
    assert "No space left" in message[0]
    assert list(cache_folder().iterdir()) == []


def test_nothing_is_written_to_the_data_set(dataset, files) -> None:
    before = {p: (p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in tree(dataset.root)}
    look(dataset, files)
    look(dataset, files)
    assert before == {
        p: (p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in tree(dataset.root)
    }


def tree(root: Path) -> list[Path]:
    return [root, *sorted(root.rglob("*"))]


def test_moved_data_set_is_looked_at_anew(dataset, files, tmp_path: Path) -> None:
    look(dataset, files)
    dataset.root = Path(shutil.copytree(dataset.root, tmp_path / "copy"))
    assert look(dataset, files)[0].cached == 0
