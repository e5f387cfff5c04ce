"""Images with any number of classes through the gate: counted, noted, split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.formats.csv_labels import CSVReader
from cvtrain.data.gate.run import run_gate
from cvtrain.errors import DataError


@pytest.fixture
def csv(tmp_path: Path):
    """Rows -> a reader of them, each image of its own pixels."""
    draws = np.random.default_rng(0)

    def make(rows: list[str], val: list[str] | None = None, **options) -> CSVReader:
        for name, lines in (("train", rows), ("val", val)):
            if lines is None:
                continue
            for line in lines:
                path = tmp_path / line.split(",")[0]
                if not path.exists() and not path.name.startswith("gone"):
                    pixels = draws.integers(0, 256, (6, 8, 3), np.uint8)
                    Image.fromarray(pixels).save(path)
            (tmp_path / f"{name}.csv").write_text("image,labels\n" + "\n".join(lines) + "\n")
        return CSVReader(tmp_path, **options)

    return make


def gate(reader, task="multilabel_classification", **options):
    report = run_gate(reader, task, progress=False, workers=1, strict=False, **options)
    assert report.images == report.used + report.rejected
    return report


def codes(report, severity):
    found = report.errors if severity == "error" else report.notes
    return dict(Counter(p.code for p in found))


def tags(table):
    return {table.files[i]: table.tags_of(i).tolist() for i in range(len(table))}


ROWS = ["a.png,cat;dog", "b.png,", "c.png,dog", "d.png,cat"]


def test_images_without_a_class_are_kept(csv) -> None:
    report = gate(csv(ROWS, ["e.png,cat;dog"]))
    assert report.errors == []
    (note,) = report.notes
    assert (note.code, note.file) == ("image-without-annotation", "b.png")
    assert note.message == "no class is named for it"
    assert tags(report.tables["train"]) == {
        "a.png": [0, 1],
        "b.png": [],
        "c.png": [1],
        "d.png": [0],
    }
    assert report.tables["train"].sizes.tolist() == [[6, 8]] * 4


def test_one_class_an_image_where_the_task_wants_it(csv) -> None:
    rows = [*ROWS, *(f"{n}.png,cat" for n in range(8))]
    reader = csv(rows, ["e.png,cat"])
    report = gate(reader, "classification")
    assert [(p.code, p.file, p.where) for p in report.errors] == [
        ("labels-several", "train.csv", "line 2"),
        ("label-missing", "train.csv", "line 3"),
    ]
    assert report.errors[0].message == "'a.png' has 2 classes: 'cat', 'dog'"
    assert report.errors[1].message == "'b.png' has no class"
    assert "use task=multilabel_classification" in report.errors[0].fix
    dropped = gate(reader, "classification", on_bad="drop").tables["train"]
    assert dropped.image_labels.tolist() == [1, *[0] * 9]
    assert dropped.tags is None
    assert codes(gate(reader, None), "error") == {}


def test_sets_of_several_labels_are_not_for_classification(csv) -> None:
    with pytest.raises(DataError, match=r"has tags: use task=multilabel_classification"):
        gate(csv(ROWS, ["e.png,cat"]), "classification")


def test_bad_lines_lose_their_images_and_are_counted(csv) -> None:
    rows = [*ROWS, "gone.png,cat", "a.png,cat", "x.png", "/etc/x.png,cat"]
    reader = csv(rows, ["e.png,cat"])
    report = gate(reader)
    assert codes(report, "error") == {
        "image-missing": 1,
        "duplicate-file": 1,
        "record-malformed": 1,
        "path-outside-root": 1,
    }
    assert (report.counts["train"].images, report.counts["train"].used) == (7, 4)
    assert len(report.stopping) == 4
    for on_bad in ("fix", "drop"):
        cured = gate(reader, on_bad=on_bad)
        assert cured.stopping == []
        assert tags(cured.tables["train"]) == tags(report.tables["train"])


def test_val_is_drawn_by_the_rarest_class(csv) -> None:
    """30 dogs, ten of which are spotted, and five images of nothing."""
    rows = [f"{n}.png,dog{';spotted' if n < 10 else ''}" for n in range(30)]
    rows += [f"{n}.png," for n in range(30, 35)]
    report = gate(csv(rows), val_fraction=0.2)
    train, val = report.tables["train"], report.tables["val"]
    assert np.bincount(train.tags).tolist() == [24, 8]
    assert np.bincount(val.tags).tolist() == [6, 2]
    assert (len(train), len(val)) == (28, 7)


def test_copies_say_what_they_are_labeled(csv, tmp_path) -> None:
    reader = csv(["a.png,cat;dog", "b.png,dog", "c.png,dog"], ["e.png,cat"])
    for name in ("b.png", "e.png"):
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
    message = {p.code: p.message for p in gate(reader).notes}
    assert message["duplicate-image"] == (
        "the same pixels as 'a.png', there 'cat', 'dog', here 'dog'"
    )
    assert message["leak"] == "the same pixels as 'a.png' in train, there 'cat', 'dog', here 'cat'"


def test_unused_classes(csv) -> None:
    reader = csv(["a.png,cat"], ["e.png,dog"], names=["cat", "dog", "emu"])
    messages = [p.message for p in gate(reader).notes if p.code == "class-unused"]
    assert messages == [
        "class 'dog' never occurs in train, but in val",
        "class 'emu' never occurs in train or val",
    ]


def test_imbalance_is_noted_with_what_helps(csv) -> None:
    rows = [f"{n}.png,cat" for n in range(20)]
    report = gate(csv([*rows, "a.png,dog;cat", "b.png,dog"], ["e.png,cat;dog"]))
    (note,) = report.notes
    assert note.code == "class-imbalance"
    assert note.message == "21 training images of 'cat', 2 of 'dog'"
    assert "data.sampler=balanced" in note.fix
    assert gate(csv([*rows, "a.png,dog", "b.png,dog", "c.png,dog"], ["e.png,cat;dog"])).notes == []


def test_folders_and_boxes_serve_the_task(dataset, box) -> None:
    dataset.kinds = frozenset({"boxes"})
    dataset.add("a.png", boxes=[box, box, box], labels=[1, 0, 1])
    dataset.add("b.png", boxes=[box], labels=[1], flags=[2])
    dataset.add("c.png")
    table = dataset.gate("multilabel_classification").tables["train"]
    assert tags(table) == {"a.png": [0, 1], "b.png": [], "c.png": []}


def test_class_folders_serve_the_task(dataset) -> None:
    dataset.kinds = frozenset({"label"})
    dataset.add("a.png", label=1)
    dataset.add("b.png", label=0)
    table = dataset.gate("multilabel_classification").tables["train"]
    assert tags(table) == {"a.png": [1], "b.png": [0]}
    assert table.image_labels is None
