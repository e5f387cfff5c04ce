"""How bad values look in messages."""

from __future__ import annotations

import pytest

from cvtrain.data.formats.coco import COCOReader
from cvtrain.data.formats.files import shorten


def test_text_where_a_number_belongs_is_shown_as_text(make, img, ann):
    make.image("train/a.png")
    make.coco("train.json", [img(1, "a.png")], [ann(1, 1, category_id="a"), ann(2, "b")])
    messages = [p.message for p in COCOReader(make.root).read("train").problems]
    assert sorted(messages) == [
        "category_id 'a' is not in the categories",
        "image_id 'b' is not among the images",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\n b", "a b"),
        ([1, 2.5, "x"], "[1, 2.5, 'x']"),
        ({"a": None}, "{'a': None}"),
        ("x" * 70, "x" * 57 + "..."),
    ],
)
def test_values_on_one_short_line(value, shown):
    assert shorten(value) == shown


def test_a_small_file_that_is_huge_when_written_out():
    nested = ["x"] * 9
    for _ in range(20):
        nested = [nested] * 9
    assert len(shorten(nested)) <= 60
