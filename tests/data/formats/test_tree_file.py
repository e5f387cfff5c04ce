"""Trees of classes in text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvtrain.data.shapes import NAMES, TREE
from cvtrain.data.tree_file import flat_tree, parse_tree, read_tree, with_classes
from cvtrain.errors import DataError, UsageError


def test_indentation_says_what_is_one_of_what(tmp_path: Path) -> None:
    text = "# animals\nanimal\n\tdog\n\t    hunting dog: all\n\tcat\n\nplant\n  rose\n"
    (tmp_path / "a.txt").write_text("\ufeff" + text)
    tree = read_tree(tmp_path / "a.txt")
    assert tree["names"] == ["animal", "dog", "hunting dog: all", "cat", "plant", "rose"]
    assert tree["parents"] == [-1, 0, 1, 0, -1, 4]
    found = with_classes(tree, ["rose", "dog"])
    assert found["names"] == ["animal", "plant", "dog", "cat", "rose", "hunting dog: all"]
    assert found["parents"] == [-1, -1, 0, 0, 1, 2]
    assert found["classes"] == [4, 2]


def test_the_root_is_left_out() -> None:
    found = with_classes(parse_tree(TREE), NAMES)
    assert found == {
        "names": ["round", "polygon", "circle", "square", "triangle", "star"],
        "parents": [-1, -1, 0, 1, 1, 1],
        "classes": [2, 3, 4, 5],
    }
    assert with_classes(parse_tree(TREE), ["shape", "star"])["names"][0] == "shape"
    assert with_classes(parse_tree("one"), ["one"]) == flat_tree(["one"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no class in it"),
        ("# nothing\n", "there is no class in it"),
        ("a\n  b\n    a\n", "line 3: a stands below itself: a cycle"),
        ("a\n  b\nc\n  b\n", "line 4: b stands in line 2 too; a class has one parent"),
        ("a\n    b\n  c\n", "line 3: c is indented like no line above it"),
        ("  a\nb\n", "line 1: a is indented like no line above it"),
    ],
)
def test_what_is_no_tree_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        parse_tree(text, "model.tree=t.txt")
    assert str(error.value).startswith("model.tree=t.txt")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match="it is no UTF-8 text"):
        read_tree(tmp_path / "b")
    with pytest.raises(UsageError, match="Is a directory"):
        read_tree(tmp_path)


def test_classes_that_the_tree_lacks() -> None:
    with pytest.raises(DataError, match="tree has no cat, dog, which the data set has"):
        with_classes(parse_tree(TREE), ["cat", "star", "dog"])
    with pytest.raises(DataError, match="c0, c1, c2, c3, c4 and 2 more"):
        with_classes(parse_tree(TREE), [f"c{k}" for k in range(7)])
