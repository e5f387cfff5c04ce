"""Paths and text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cvtrain.data.formats.auto import AutoReader
from cvtrain.data.formats.files import (
    MalformedError,
    below,
    data_root,
    folders,
    read_lines,
    shorten,
    storable,
    walk,
)
from cvtrain.data.formats.folder import FolderReader
from cvtrain.data.formats.unread import unread_images
from cvtrain.data.image_folder import find_images
from cvtrain.errors import DataError, UsageError
from cvtrain.storage import mark_run_folder, refuse_data_folder


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("a", "b.jpg", "a/b.jpg"),
        ("a", "../b.jpg", "b.jpg"),
        ("a", "../../b.jpg", None),
        ("", "..", None),
        ("", "a/../..", None),
        ("", "..a/b", "..a/b"),
        ("a", "./x//y/../b", "a/x/b"),
        ("a", "..", ""),
        ("", "/etc/passwd", None),
    ],
)
def test_below(make, folder, name, expected):
    assert below(make.root, folder, name) == expected


def test_below_takes_absolute_paths_into_the_root_by_both_its_names(make, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(make.root)
    root = data_root(link)
    assert root == link
    assert below(root, "x", str(link / "a")) == "a"
    assert below(root, "x", f"{make.root}/b/../a") == "a"
    assert below(root, "x", str(make.root)) == ""
    assert below(root, "x", f"{make.root}2/a") is None
    assert below(root, "x", f"{make.root}/../a") is None


def test_walk_follows_links_but_not_in_circles(make, tmp_path):
    make.text("a/b/c.txt", "x")
    make.text("../far/d.txt", "x")
    make.text(".git/e.txt", "x")
    make.text("__MACOSX/f.txt", "x")
    make.text("skip/g.txt", "x")
    (make.root / "a/up").symlink_to(make.root)
    (make.root / "one").symlink_to(tmp_path / "far")
    (make.root / "two").symlink_to(tmp_path / "far")
    (make.root / "broken").symlink_to(tmp_path / "gone")
    found = walk(make.root, skip=["skip"])
    assert found == ["a/b/c.txt", "broken", "one/d.txt", "two/d.txt"]
    assert walk(make.root, "nowhere") == []


def test_walk_says_which_folder_it_may_not_list(make, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be listed: Permission denied"):
        walk(make.root)


def test_names_that_are_not_utf8_on_disk(make):
    name = os.fsdecode(b"caf\xe9.jpg")
    (make.root / name).write_bytes(b"x")
    assert walk(make.root) == [name]
    assert storable(name) == name


def test_lines_keep_their_numbers(make):
    path = make.text("a.txt", "\ufeffone\r\n\r\n two \rthree")
    assert read_lines(path) == [(1, "one"), (3, "two"), (4, "three")]


def test_text_that_is_not_utf8_or_not_there(make):
    with pytest.raises(MalformedError) as error:
        read_lines(make.text("a.txt", b"fine\nfine\n\xe9"))
    assert error.value.where == "line 3"
    with pytest.raises(MalformedError, match="cannot be read"):
        read_lines(make.root / "gone.txt")


def test_shorten_is_one_line():
    assert shorten("a\nb\tc") == "a b c"
    assert len(shorten("x" * 500)) == 60


def test_link_to_itself_is_a_file(make):
    make.image("cat/a.png", "dog/b.png")
    for link in ("self", "cat/self.png"):
        (make.root / link).symlink_to(Path(link).name)
    assert walk(make.root) == ["cat/a.png", "cat/self.png", "dog/b.png", "self"]
    assert folders(make.root) == ["cat", "dog"]


def test_what_commands_wrote_into_the_data_set_is_not_data(make):
    make.image("cat/a.png", "dog/b.png", "runs/show/now/folder_light.png", "cat/run/plots/x.png")
    make.image("runs/of/old/plots/loss.png", "first try/images/cat.png", "runs/.cache/x.png")
    for folder in ("runs/show/now", "cat/run", "first try"):
        mark_run_folder(make.root / folder)
    for name in ("config.yaml", "overrides.txt", "environment.json"):  # before there was a marker
        make.text(f"runs/of/old/{name}", "")
    assert walk(make.root) == ["cat/a.png", "dog/b.png"]
    assert folders(make.root) == ["cat", "dog"]
    assert folders(make.root, "cat") == []
    assert walk(make.root / "first try") == ["images/cat.png"], "named itself, it is read"
    make.image("runs/of_salmon.png")
    assert folders(make.root) == ["cat", "dog", "runs"]
    (make.root / "runs/of_salmon.png").unlink()
    make.image("elsewhere/c.png")
    (make.root / "runs/more").symlink_to(make.root / "elsewhere")
    assert folders(make.root) == ["cat", "dog", "elsewhere", "runs"], "a link to images is data"


def test_a_folder_of_the_data_set_is_not_written_to(make):
    make.image("cat/a.png", "dog/b.png")
    root = make.root
    for folder in (root, root / "cat" / ".."):
        with pytest.raises(UsageError, match=r"run_dir=.* is the data set's own folder"):
            refuse_data_folder("run_dir", folder, root)
    with pytest.raises(UsageError, match=r"sweep_dir=.*cat lies in the data set and holds a.png"):
        refuse_data_folder("sweep_dir", root / "cat", root)
    mark_run_folder(root / "sweep")
    make.text("sweep/0/job.json", "{}")
    for folder in (root / "new", root / "sweep", root / "sweep" / "0", root.parent, "elsewhere"):
        refuse_data_folder("run_dir", folder, root)
    refuse_data_folder("run_dir", root, None)


def test_images_that_are_not_read_are_counted_and_named(make):
    make.image("cat/a.jpg")
    for n in range(7):
        make.text(f"cat/{n}.HEIC", "x")
    make.text("cat/b.tga", "x")
    make.text("README", "no image")
    make.text("list.txt", "a")
    (make.root / "cat/plain").write_bytes((make.root / "cat/a.jpg").read_bytes())
    found = unread_images(make.root, walk(make.root))
    assert found == [
        ("cat/plain", "1 image without an extension is not read: cat/plain"),
        (
            "cat/0.HEIC",
            "7 .heic files are not read: cat/0.HEIC, cat/1.HEIC, cat/2.HEIC, cat/3.HEIC, "
            "cat/4.HEIC, ...",
        ),
        ("cat/b.tga", "1 .tga file is not read: cat/b.tga"),
    ]
    (make.root / "cat/a.jpg").unlink()
    for read in (FolderReader, AutoReader, lambda root: find_images(root)):
        with pytest.raises((DataError, UsageError), match=r"7 \.heic files are not .* mogrify"):
            read(make.root)
