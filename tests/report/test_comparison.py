"""The comparison's front, tables and picture; what a run was scored on."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cvtrain.report.comparison import Comparison, Row
from cvtrain.report.fingerprint import differing, fingerprint
from cvtrain.report.pareto import plot_pareto


def row(name: str, score: float | None, seconds: float | None, **cost: Any) -> Row:
    values = {
        "parameters": 1_500_000,
        "flops": 2.5e9,
        "latency_p10": (seconds or 0) * 0.9,
        "latency_p90": (seconds or 0) * 1.1,
        "runs": 50,
        "images_per_s": 30.0,
        "batch_size": 8,
        "memory": 300 * 2**20,
        "proposals": None,
        "takes_proposals": False,
        "device": "cpu, 1 thread",
    }
    known = {} if seconds is None else {"latency": seconds, **values, **cost}
    scores = {"mAP": score, "mAP50": score, "AR": 0.1}
    return Row(name, f"runs/{name}", name, "", "64", scores, {"a|b": score, "c": None}, 9, 2, known)


def comparison(*rows: Row, mode: str = "max") -> Comparison:
    return Comparison(rows, "mAP50", mode, "detection on x", "AP")


def test_the_front_by_hand() -> None:
    rows = [
        row("slow", 0.9, 1.0),
        row("fast", 0.3, 0.01),
        row("worse", 0.3, 0.02),
        row("tie", 0.9, 1.0),
        row("undefined", None, 0.001),
        row("unmeasured", 0.95, None),
    ]
    both = comparison(*rows)
    assert [r.name for r in both.front] == ["fast", "slow", "tie"]
    assert [r.name for r in both.rows] == [
        "unmeasured",
        "slow",
        "tie",
        "fast",
        "worse",
        "undefined",
    ]
    assert [r.name for r in comparison(*rows[:3], mode="min").front] == ["fast"]


def test_proposals_count_for_the_front() -> None:
    given = row("given", 0.5, 0.01, proposals=2.0, takes_proposals=True)
    both = comparison(given, row("whole", 0.5, 0.1))
    assert [r.name for r in both.front] == ["whole"]
    assert given.seconds == pytest.approx(2.01)
    titles, *cells = both.table()
    column = titles.index("proposals ms")
    assert {c[0]: c[column] for c in cells} == {"given": "2,000", "whole": "-"}
    unknown = comparison(row("file", 0.5, 0.01, takes_proposals=True))
    assert "not known" in unknown.table()[1]


def test_tables(tmp_path: Path) -> None:
    both = comparison(row("one", 0.5, 0.0204), row("two", 0.25, 0.5), row("three", 0.1, None))
    titles, first, *_, last = both.table()
    assert dict(zip(titles, first, strict=True)) == {
        "run": "one",
        "backbone": "-",
        "input": "64",
        "M params": "1.50",
        "GFLOPs": "2.50",
        "mAP": "0.500",
        "mAP50": "0.500",
        "train s": "9",
        "ms at batch 1": "20.4 (18.4-22.4)",
        "images/s": "30.0",
        "batch": "8",
        "MiB": "300",
        "front": "*",
    }
    assert last.count("-") == 7
    assert both.class_table() == [
        ["run", "a|b", "c"],
        ["one", "0.500", "-"],
        ["two", "0.250", "-"],
        ["three", "0.100", "-"],
    ]
    text = both.markdown("cvtrain compare a b")
    assert "**0.500**" in text
    assert "a\\|b" in text
    path = both.write_csv(tmp_path / "compare.csv")
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["front"] for line in lines] == ["1", "0", "0"]
    assert lines[0]["latency_seconds"] == "0.0204"
    assert lines[0]["AP/a|b"] == "0.5"
    assert lines[2]["flops"] == ""


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_a_picture_of_any_number(tmp_path: Path, count: int) -> None:
    rows = [row(f"a long name of a run {n} $x$", 0.5, 0.02 + n % 7 / 1000) for n in range(count)]
    rows.append(row("nothing", None, None))
    if count:
        rows.append(row("given", 0.4, 0.1, proposals=1.0, takes_proposals=True))
    with Image.open(plot_pareto(comparison(*rows), tmp_path / "compare.png")) as picture:
        assert picture.width > 800


TRUTH: dict[str, Any] = {
    "images": [
        {"id": 4, "file_name": "a.jpg", "width": 9, "height": 5},
        {"id": 7, "file_name": "b.jpg", "width": 9, "height": 5},
    ],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0.1, 1, 2, 3]}],
    "categories": [{"id": 3, "name": "x"}],
}


def test_a_fingerprint_knows_neither_order_nor_ids() -> None:
    other = {
        "images": [{**i, "id": n} for i, n in zip(TRUTH["images"][::-1], ("p", "q"), strict=True)],
        "annotations": [{"id": 9, "image_id": "p", "category_id": 0, "bbox": [0.1, 1, 2, 3]}],
        "categories": [{"id": 0, "name": "x"}],
    }
    pixels = {"a.jpg": b"1", "b.jpg": b"2"}
    assert fingerprint(TRUTH, pixels) == fingerprint(other, pixels)
    assert differing(fingerprint(TRUTH, None), fingerprint(other, pixels)) is None


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("classes", {"categories": [{"id": 3, "name": "y"}]}),
        ("files", {"images": [*TRUTH["images"], {**TRUTH["images"][0], "file_name": "c"}]}),
        ("files", {"images": [{**TRUTH["images"][0], "width": 8}, TRUTH["images"][1]]}),
        ("truths", {"annotations": []}),
        ("truths", {"annotations": [{**TRUTH["annotations"][0], "bbox": [0.2, 1, 2, 3]}]}),
    ],
)
def test_a_fingerprint_sees_every_difference(part: str, change: dict[str, Any]) -> None:
    assert differing(fingerprint(TRUTH, None), fingerprint({**TRUTH, **change}, None)) == part


def test_foreign_names_are_text_in_both_files(tmp_path: Path) -> None:
    odd = row("=cmd() [x](y)\n\x1b", 0.5, 0.01)
    both = comparison(odd, row("b", 0.4, 0.02))
    text = both.markdown("cvtrain compare x\x1b")
    assert "=cmd() \\[x\\](y)\\\\n\\\\x1b" in text
    assert "a\\|b" in text
    assert "\x1b" not in text
    with both.write_csv(tmp_path / "c.csv").open(newline="") as file:
        cells = list(csv.reader(file))
    assert cells[1][0] == "'=cmd() [x](y)\\n\\x1b"
    assert float(cells[1][cells[0].index("mAP")]) == 0.5
