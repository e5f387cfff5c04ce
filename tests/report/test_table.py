"""The table printed at the end."""

from __future__ import annotations

import io

import pytest
import torch
from rich.cells import cell_len

from cvtrain.data.table import Classes
from cvtrain.report.table import Blocks, results_table
from cvtrain.structures import ImageInfo, Prediction, Target
from cvtrain.terminal import Terminal


@pytest.fixture
def printed():
    def show(metrics, details=None, width=120):
        console = Terminal(file=io.StringIO(), width=width)
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
    assert lines[1] == ""
    assert lines[2].split() == ["class", "objects", "AP", "AP50"]
    assert [line.split()[1] for line in lines[3:]] == [f"{k:03}" for k in range(20)]
    assert lines[3].split() == ["class", "000", "1,000", "-", "0.5000"]
    assert lines[-1].split() == ["class", "019", "1,019", "0.0190", "0.5000"]


def test_of_many_classes_the_best_and_the_worst_are_shown(printed):
    lines = printed({"mAP": 0.5}, {"per_class": rows(80, undefined=5), "notes": []})
    shown = [line.split()[1] for line in lines[3:13]]
    assert shown == [f"{k:03}" for k in range(79, 69, -1)]
    assert lines[13].strip() == "(60 between)"
    assert [line.split()[1] for line in lines[14:]] == [f"{k:03}" for k in range(14, 4, -1)]


def test_mostly_undefined_classes(printed):
    lines = printed({"mAP": 0.5}, {"per_class": rows(30, undefined=25), "notes": []})
    assert len(lines) == 3 + 21
    assert [line.split()[1] for line in lines[3:8]] == ["029", "028", "027", "026", "025"]


def test_markup_in_a_name_is_text(printed):
    per_class = [dict(row, name="[bold]x[/nonsense]") for row in rows(2)]
    lines = printed({"mAP": 0.5}, {"per_class": per_class, "notes": ["[/red] 日本"]})
    assert "[bold]x[/nonsense]" in lines[3]
    assert lines[-1] == "note: [/red] 日本"


def test_real_details(printed, detection_details, classification_details):
    names = tuple(f"kind {k}" for k in range(25))
    for details in (detection_details(names, absent=3), classification_details(names)):
        lines = printed(details["metrics"].compute(), details)
        assert any("kind" in line for line in lines)
        assert max(len(line) for line in lines) <= 120


def test_at_80_columns_no_number_is_cut_and_nothing_wraps(printed):
    numbers = ["objects", "predicted", "AP", "AP50", "AP75", "AR100", "voc_AP50", "voc07_AP50"]
    per_class = [
        {"name": name, "id": 0, **{n: 123456 if n == "objects" else 0.1234 for n in numbers}}
        for name in ("Platelets and their precursors", "x")
    ]
    details = {"per_class": per_class, "notes": [], "confusion_thresholds": {"score": 0.25}}
    for width in (80, 60, 45):
        lines = printed({"mAP": 0.5}, details, width)
        assert max(map(len, lines)) <= width
        text = "\n".join(lines)
        assert "…" not in text
        assert text.count("0.1234") == 2 * (len(numbers) - 1)
        assert text.count("123,456") == 2
        assert all(text.count(name) for name in numbers)
    assert len([line for line in printed({"mAP": 0.5}, details, 120) if "AP50" in line]) == 1


def test_a_long_name_wraps_and_loses_its_middle_last(printed):
    table = Blocks([["class", "AP"], ["the traffic light far away " * 2, "0.5000"]])
    lines = printed_of(table, 34)
    assert " ".join(line.replace("0.5000", "").strip() for line in lines[1:]).split() == (
        ["the", "traffic", "light", "far", "away", "the", "traffic", "light", "far", "away"]
    )
    lines = printed_of(Blocks([["class", "AP"], ["a" * 500 + "END", "0.5000"]]), 80)
    assert len(lines) == 1 + 3
    assert "…" in "".join(lines)
    assert "END" in "".join(lines)


def test_a_table_in_a_file_is_in_one_piece():
    rows = [
        ["run", *(f"column {k}" for k in range(40))],
        ["x" * 60, *("0.1234" for _ in range(40))],
    ]
    terminal = Terminal(file=io.StringIO())
    terminal.print(Blocks(rows))
    assert len(terminal.file.getvalue().splitlines()) == 2


def test_wide_letters_take_two_columns():
    lines = printed_of(Blocks([["class", "AP", "AP50"], ["日本語" * 8, "0.5", "0.25"]]), 40)
    assert max(cell_len(line) for line in lines) <= 40
    assert "0.25" in "".join(lines)


def test_the_table_counts_predictions_that_a_person_sees(printed):
    from cvtrain.metrics import metrics_for

    metrics = metrics_for("detection", Classes.from_names(["cat", "dog"]))
    boxes = torch.tensor([[0.0, 0, 9, 9]] * 5)
    scores = torch.tensor([0.9, 0.25, 0.24, 0.1, 0.01])
    message = Prediction(boxes=boxes, scores=scores, labels=torch.zeros(5, dtype=torch.int64))
    truth = Target(boxes=boxes[:1], labels=torch.zeros(1, dtype=torch.int64))
    metrics.update([message], [truth], [ImageInfo(0, "a", "a", 20, 20)])
    details = metrics.details()
    assert details["per_class"][0] | {"predictions": 5, "predicted": 2} == details["per_class"][0]
    lines = printed(metrics.compute(), details)
    titles = next(line for line in lines if line.startswith("class")).split()
    cells = next(line for line in lines if line.startswith("cat")).split()
    assert "predictions" not in titles
    assert cells[titles.index("predicted")] == "2"
    assert "predicted: those with a score of 0.25 or more" in lines


def printed_of(table, width):
    terminal = Terminal(file=io.StringIO(), width=width)
    terminal.print(table)
    return terminal.file.getvalue().splitlines()
