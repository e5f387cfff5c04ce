from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cvtrain import storage
from cvtrain.errors import RunError
from cvtrain.storage import flush_to_disk, replacing, reserve, write_atomic, write_json_atomic


@pytest.fixture
def events(monkeypatch):
    """What is brought to the disk and renamed, in order."""
    seen: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle):
        seen.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def spy_replace(source, target):
        seen.append(("replace", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    return seen


def test_content_is_on_the_disk_before_the_name_and_the_name_after(tmp_path, events) -> None:
    write_json_atomic(tmp_path / "run" / "results.json", {"a": 1})
    kinds = [kind for kind, _ in events]
    assert kinds == ["fsync", "replace", "fsync"]
    assert events[0][1].startswith(".results.")
    assert events[0][1].endswith(".partial.json")
    assert [name for _, name in events[1:]] == ["results.json", "run"]


def test_what_is_easily_made_again_is_not_waited_for(tmp_path, events) -> None:
    with replacing(tmp_path / "a.png", durable=False) as partial:
        partial.write_bytes(b"x")
    assert events == [("replace", "a.png")]


def test_a_content_that_cannot_reach_the_disk_replaces_nothing(tmp_path, monkeypatch) -> None:
    path = write_atomic(tmp_path / "a.txt", lambda file: file.write("old"))

    def fail(handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"cannot write .*a\.txt: Input/output error; free some"):
        write_atomic(path, lambda file: file.write("new"))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path, monkeypatch) -> None:
    def refuse(handle):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    flush_to_disk(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        flush_to_disk(tmp_path / "a")


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "a." + "b" * 250, "\udcff" * 90 + ".png"])
def test_long_and_strange_names_have_a_partial_name(tmp_path, name) -> None:
    with replacing(tmp_path / name) as partial:
        partial.write_bytes(b"x")
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208 (as it is, undecoded)


def test_a_full_disk_leaves_the_old_file(tmp_path, small_disk) -> None:
    def work():
        path = write_atomic(tmp_path / "a.txt", lambda file: file.write("old"))
        with pytest.raises(RunError) as caught:
            write_atomic(path, lambda file: file.write("new" * 100_000))
        storage.require_room = lambda folder, size: None  # taken by another in between
        with (tmp_path / "b").open("wb") as file, pytest.raises(OSError, match="No space"):
            reserve(file, 1 << 20)
        return str(caught.value), path.read_text(), sorted(p.name for p in tmp_path.iterdir())

    message, text, names = small_disk(tmp_path, 64 << 10, work)
    assert message == (
        f"cannot write {tmp_path / 'a.txt'}: No space left on device; free some space there or "
        "choose another run_dir=DIR"
    )
    assert (text, names) == ("old", ["a.txt", "b"])


def test_room_is_reserved_where_the_file_is(tmp_path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write(b"head")
        reserve(file, 1000)
        file.write(b"body")
    assert (tmp_path / "a").stat().st_size == 1004
    with (tmp_path / "b").open("wb") as file, pytest.raises(OSError, match="GB are needed"):
        reserve(file, 1 << 60)
