"""The table printed at the end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cvtrain.report.table import results_table


@pytest.fixture
def printed():
    def show(metrics, details=None, width=120):
        console = Console(file=io.StringIO(), width=width)
        console.print(results_table(metrics, details))
        return console.file.getvalue().splitlines()

    return show


def rows(n, undefined=0):
    return [
        {
            "name": f"class {k:03}",
            "id": k,
            "objects": 1000 + k,
            "AP": float("nan") if k < undefined else k / 1000,
            "AP50": 0.5,
        }
        for k in range(n)
    ]


def test_scalars_and_notes(printed):
    lines = printed({"mAP": 0.123456, "mAP_small": float("nan")}, {"per_class": [], "notes": ["x"]})
    assert [line.split() for line in lines] == [
        ["mAP", "0.1235"],
        ["mAP_small", "-"],
        ["note:", "x"],
    ]
    assert printed({"mAP": 0.5}) == ["mAP  0.5000"]


def test_one_class_has_no_table_of_its_own(printed):
    assert len(printed({"mAP": 0.5}, {"per_class": rows(1), "notes": []})) == 1


def test_few_classes_are_shown_in_their_order(printed):
    lines = printed({"mAP": 0.5}, {"per_class": rows(20, undefined=2), "notes": []})
    assert lines[1].split() == ["class", "objects", "AP", "AP50"]
    assert [line.split()[1] for line in lines[2:]] == [f"{k:03}" for k in range(20)]
    assert lines[2].split() == ["class", "000", "1,000", "-", "0.5000"]
    assert lines[-1].split() == ["class", "019", "1,019", "0.0190", "0.5000"]


def test_of_many_classes_the_best_and_the_worst_are_shown(printed):
    lines = printed({"mAP": 0.5}, {"per_class": rows(80, undefined=5), "notes": []})
    shown = [line.split()[1] for line in lines[2:12]]
    assert shown == [f"{k:03}" for k in range(79, 69, -1)]
    assert lines[12].strip() == "(60 between)"
    assert [line.split()[1] for line in lines[13:]] == [f"{k:03}" for k in range(14, 4, -1)]


def test_mostly_undefined_classes(printed):
    lines = printed({"mAP": 0.5}, {"per_class": rows(30, undefined=25), "notes": []})
    assert len(lines) == 2 + 21
    assert [line.split()[1] for line in lines[2:7]] == ["029", "028", "027", "026", "025"]


def test_markup_in_a_name_is_text(printed):
    per_class = [dict(row, name="[bold]x[/nonsense]") for row in rows(2)]
    lines = printed({"mAP": 0.5}, {"per_class": per_class, "notes": ["[/red] 日本"]})
    assert "[bold]x[/nonsense]" in lines[2]
    assert lines[-1] == "note: [/red] 日本"


def test_real_details(printed, detection_details, classification_details):
    names = tuple(f"kind {k}" for k in range(25))
    for details in (detection_details(names, absent=3), classification_details(names)):
        lines = printed(details["metrics"].compute(), details)
        assert any("kind" in line for line in lines)
        assert max(len(line) for line in lines) <= 120
