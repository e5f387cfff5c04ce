"""Labels counted over an epoch, and the line that is said where a class had none."""

from __future__ import annotations

import logging

import pytest
import torch

from cvtrain.structures import Target
from cvtrain.tasks.class_coverage import Coverage

NAMES = ("cat", "dog", "owl", "fox")


def coverage(present=(0, 1, 2, 3)):
    return Coverage(NAMES, lambda classes: [k for k in classes if k in present])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(label=torch.tensor(2)), [0, 0, 1, 0]),
        (Target(label=torch.tensor(2), probs=torch.tensor([0.5, 0.0, 0.5, 0.0])), [1, 0, 1, 0]),
        (Target(labels=torch.tensor([1, 1, 3])), [0, 2, 0, 1]),
        (
            Target(labels=torch.tensor([1, 3]), ignore=torch.tensor([False, True])),
            [0, 1, 0, 0],
        ),
        (Target(mask=torch.tensor([[0, 255], [3, 3]])), [1, 0, 0, 2]),
        (Target(labels=torch.zeros(0, dtype=torch.int64)), [0, 0, 0, 0]),
    ],
)
def test_every_kind_of_label_counts(target, expected):
    seen = coverage()
    seen.add([target])
    assert seen.counts.tolist() == expected


def test_only_classes_that_the_data_have_are_missed(caplog):
    seen = coverage(present=(0, 1, 2))
    seen.add([Target(labels=torch.tensor([1]))])
    with caplog.at_level(logging.WARNING, "cvtrain"):
        seen.report()
    (record,) = caplog.records
    assert "not one label of cat, owl was left in the first epoch" in record.message
    assert "data.image_size" in record.message
    assert "\n" not in record.message


def test_of_masks_pixels_are_missed_and_no_boxes_area_is_blamed(caplog):
    seen = coverage()
    seen.add([Target(mask=torch.tensor([[0, 255], [3, 1]]))])
    seen.report()
    assert "not one pixel of owl was left" in caplog.records[0].message
    assert "min_area" not in caplog.records[0].message


def test_nothing_is_said_where_nothing_is_missed(caplog):
    seen = coverage(present=(1,))
    seen.add([Target(label=torch.tensor(1))])
    seen.report()
    assert not caplog.records


def test_many_classes_are_counted_not_listed(caplog):
    names = tuple(f"c{k}" for k in range(20))
    Coverage(names, list).report()
    assert "c4 and 15 more" in caplog.records[0].message


def test_processes_add_up(monkeypatch):
    other = torch.tensor([1, 0, 0, 0])
    monkeypatch.setattr("cvtrain.tasks.class_coverage.gather", lambda counts: [counts, other])
    seen = coverage()
    seen.add([Target(labels=torch.tensor([1, 2]))])
    assert seen.missing() == [3]
