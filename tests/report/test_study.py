"""A study's table and plot."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from cvtrain.report.study import Cell, Grid, Result, markdown, plot


def results(
    *values: float | None, lines: str = "ab", xs: str = "1", panel: str = "p"
) -> list[Result]:
    """Values in the order of x, line, seed 0, seed 1."""
    places = [(x, line, seed) for x in xs for line in lines for seed in (0, 1)]
    return [
        Result(panel, line, x, seed, value)
        for (x, line, seed), value in zip(places, values, strict=True)
    ]


def test_a_cell_by_hand() -> None:
    cell = Cell((0.5, 0.7, 0.6))
    assert cell.n == 3
    assert cell.mean == pytest.approx(0.6)
    assert cell.std == pytest.approx(0.1), "n - 1 in the denominator"
    assert cell.text() == "0.600 ± 0.100"
    assert Cell((0.5,)).text(count=True) == "0.500 (n=1)"
    assert math.isnan(Cell((0.5,)).std)
    assert Cell(()).text() == "-"


def test_markdown_of_whole_rows() -> None:
    grid = Grid(results(0.5, 0.7, 0.9, 0.7, 0.8, 0.8, 0.8, 0.8, xs="12"))
    assert markdown(grid, "accuracy", "images", "net").splitlines() == [
        "| net | images | a | b |",
        "| --- | --- | ---: | ---: |",
        "| p | 1 | 0.600 ± 0.141 | **0.800 ± 0.141** |",
        "| p | 2 | **0.800 ± 0.000** | **0.800 ± 0.000** |",
        "",
        "accuracy: mean ± standard deviation over the seeds 0, 1; n = 2. "
        "Best mean of a row (of 2): a 1, b 2.",
    ]


def test_a_run_that_failed_is_counted_out() -> None:
    text = markdown(Grid(results(0.5, None, 0.9, 0.7)), "loss", "images", "net")
    assert "| p | 0.500 (n=1) | **0.800 ± 0.141 (n=2)** |" in text
    assert "n is how many runs have a result" in text
    text = markdown(Grid(results(0.5, None, None, None)), "loss", "images", "net")
    assert "| p | 0.500 (n=1) | - |" in text
    assert "Best" not in text


def test_smaller_may_be_better() -> None:
    grid = Grid(results(0.5, 0.5, 0.9, 0.7), minimize=True)
    assert grid.best("p", "1") == ["a"]
    assert Grid(grid.results).best("p", "1") == ["b"]


@pytest.mark.parametrize(
    "grid",
    [
        Grid(
            [
                *results(*[0.1 * k for k in range(8)], xs="12"),
                *results(0.1, 0.2, 0.3, 0.4, panel="q"),
            ]
        ),
        Grid(results(0.5, None, None, None)),
        Grid(results(None, None, None, None)),
        Grid([Result("$x|", "line $1", "all", 0, 0.5)]),
        Grid([r for p in "pqrst" for r in results(0.1, 0.2, 0.3, 0.4, panel=p)]),
    ],
    ids=["two panels", "one value", "no value", "dollars", "five panels"],
)
def test_the_plot_is_drawn(grid: Grid, tmp_path: Path) -> None:
    path = plot(grid, tmp_path / "study.png", "val/accuracy", "images per class", "title")
    with Image.open(path) as image:
        colors = image.convert("RGB").getcolors(1_000_000)
    assert colors is not None
    known = {color for _, color in colors}
    drawn = any(r.value is not None for r in grid.results)
    assert ((0x00, 0x72, 0xB2) in known) is drawn
    assert [p.name for p in tmp_path.iterdir()] == ["study.png"]
