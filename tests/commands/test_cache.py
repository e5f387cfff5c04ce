"""``cvtrain cache``: what is listed, what is deleted, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cvtrain.commands.cache import Kept, measure, shown
from cvtrain.data.gate import cache
from cvtrain.errors import RunError
from cvtrain.proposals import box_cache as proposals_cache
from cvtrain.storage import CACHE_KINDS, cache_folder, cache_home
from cvtrain.transfer import feature_cache

Cli = Callable[..., Any]


@pytest.fixture
def filled() -> Path:
    """A file of 1,500 bytes for proposals, two of 10 for features."""
    for name, size in (("proposals/a/b.npz", 1500), ("features/k/x", 10), ("features/k/y", 10)):
        path = cache_home() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0" * size)
    return cache_home()


def test_what_keeps_files_keeps_them_where_the_verb_looks() -> None:
    folders = [m.cache_folder() for m in (cache, proposals_cache, feature_cache)]
    assert sorted(folders) == sorted(cache_folder(kind) for kind in CACHE_KINDS)


def test_the_list_names_all_sizes_and_the_way_out(cli: Cli, filled: Path) -> None:
    done = cli("cache")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith(str(filled))
    rows = {line.split()[0]: line.split()[1:5] for line in lines[3:6]}
    assert rows["proposals"][:3] == ["1", "1.5", "kB"]
    assert rows["features"][:3] == ["2", "20", "B"]
    assert rows["gate"] == ["0", "0", "B", "-"]
    assert lines[-1].startswith("1.5 kB in all")
    assert "cvtrain cache clear features|gate|proposals|all" in lines[-1]


def test_nothing_there_is_nothing_to_delete(cli: Cli) -> None:
    assert cli("cache").out.splitlines()[-1].startswith("0 B in all")
    assert "features: 0 files deleted, 0 B" in cli("cache clear all").out


def test_what_is_named_is_deleted_and_nothing_else(cli: Cli, filled: Path) -> None:
    done = cli("cache clear proposals")
    assert (done.code, done.out) == (
        0,
        f"proposals: 1 file deleted, 1.5 kB; {filled / 'proposals'}\n",
    )
    assert measure(filled / "proposals") == Kept()
    assert measure(filled / "features").files == 2
    (filled / "mine").write_text("not cvtrain's to delete")
    assert cli("cache clear all").code == 0
    assert [p.name for p in filled.rglob("*") if p.is_file()] == ["mine"]


def test_links_are_deleted_and_not_followed(cli: Cli, filled: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept.txt").touch()
    (filled / "features/link").symlink_to(tmp_path / "elsewhere")
    assert cli("cache clear features").code == 0
    assert list((filled / "features").iterdir()) == []
    assert (tmp_path / "elsewhere/kept.txt").exists()


def test_what_cannot_be_deleted_is_said(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    from cvtrain.commands import cache

    monkeypatch.setattr(cache.shutil, "rmtree", refuse)
    with pytest.raises(RunError, match=r"cannot be deleted \(Permission denied\); stop what"):
        cache.empty(filled / "features")


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("cache proposals", "write cvtrain cache (lists) or cvtrain cache clear"),
        ("cache clear", "say what: cvtrain cache clear features|gate|proposals|all"),
        ("cache clear feature", "did you mean features?"),
        ("cache clear xyz", "nothing of that name is kept; there are features, gate"),
        ("cache data=shapes", "data=shapes is not read by cache"),
    ],
)
def test_wrong_commands(command: str, wanted: str, cli: Cli, filled: Path) -> None:
    done = cli(command)
    assert done.code == 2
    assert wanted in done.line
    assert measure(filled).files == 3


def test_sizes_for_people() -> None:
    wanted = {0: "0 B", 999: "999 B", 1000: "1.0 kB", 4e9: "4.0 GB", 2.5e12: "2.5 TB"}
    assert {size: shown(size) for size in wanted} == wanted
