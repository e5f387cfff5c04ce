"""Several scored runs beside each other: what each reached, what it costs, which are worth it.

A run is on the Pareto front where no other is at least as accurate and as fast, and better in one.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvtrain.storage import write_atomic
from cvtrain.text import csv_cell, markdown_cell, printable

COUNTED = (
    "GFLOPs: of one image; a multiplication and an addition count as two (papers that count "
    "multiply-adds say half); convolutions, matrix products and attention only, no RoI pooling, "
    "NMS, normalization."
)
TIMED = (
    "Latency: one image at batch 1, from uint8 pixels on the device to final predictions, decoding "
    "and NMS included, reading and resizing the file not; median (10th to 90th percentile)."
)
HELD = "Memory: the peak of all that over what the process held before the model was made."
TRAINED = "Training seconds: all epochs with their validation, those before a resume included."
PROPOSED = (
    "Proposals: milliseconds of one core that an image's boxes took (none known for those of a "
    "file). They are NOT part of the latency, but are added to it in the picture and for the front."
)


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        name: short and unlike any other's.
        folder: of the run, as it was typed.
        model, backbone: their names; "" for no backbone.
        size: of the network's input, ``448`` or ``320x448``.
        scores: all metrics; None where undefined.
        per_class: the class's own score by class name.
        train_seconds, epochs: of the run; None: not known.
        cost: ``cvtrain.engine.benchmark.Cost`` as a dict; empty: it could not be measured.
    """

    name: str
    folder: str
    model: str
    backbone: str
    size: str
    scores: Mapping[str, float | None]
    per_class: Mapping[str, float | None]
    train_seconds: float | None
    epochs: int | None
    cost: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Of one image: latency, and where they are known its proposals."""
        if not self.cost:
            return None
        return float(self.cost["latency"]) + float(self.cost["proposals"] or 0.0)


class Comparison:
    """Rows, best first.

    Args:
        rows: one a run.
        monitor: the metric that decides; ``mode``: ``max`` or ``min``, which of two is better.
        title: what was scored.
        score: of a class, its name ("AP").
    """

    def __init__(
        self, rows: Sequence[Row], monitor: str, mode: str, title: str, score: str
    ) -> None:
        self.monitor, self.mode, self.title, self.score = monitor, mode, title, score
        self.rows = sorted(rows, key=self._rank)
        metrics = list(dict.fromkeys(name for row in rows for name in row.scores))
        shown = dict.fromkeys([*metrics[:2], monitor])
        boxes = [name for name in metrics if f"mask_{name}" in shown]  # of masks also their boxes'
        self.metrics = list(shown | dict.fromkeys(boxes))
        self.classes = list(dict.fromkeys(name for row in rows for name in row.per_class))
        self.front = self._front()

    @property
    def device(self) -> str:
        """What it was measured on; "" if nothing was."""
        return next((str(row.cost["device"]) for row in self.rows if row.cost), "")

    @property
    def proposed(self) -> bool:
        """Whether any model is given boxes."""
        return any(row.cost.get("takes_proposals") for row in self.rows)

    def value(self, row: Row) -> float | None:
        """The metric that decides."""
        return row.scores.get(self.monitor)

    def _rank(self, row: Row) -> tuple[bool, float, float]:
        value = self.value(row)
        sign = 1 if self.mode == "min" else -1
        seconds = row.seconds
        return value is None, sign * (value or 0.0), math.inf if seconds is None else seconds

    def _front(self) -> list[Row]:
        """The rows on the Pareto front, fastest first."""
        sign = 1.0 if self.mode == "max" else -1.0
        points = [
            (row, row.seconds, sign * value)
            for row in self.rows
            if row.seconds is not None and (value := self.value(row)) is not None
        ]
        front = [
            (seconds, row)
            for row, seconds, value in points
            if not any(
                s <= seconds and v >= value and (s < seconds or v > value) for _, s, v in points
            )
        ]
        return [row for _, row in sorted(front, key=lambda pair: pair[0])]

    # Tables ------------------------------------------------------------------------------------

    def table(self) -> list[list[str]]:
        """A titles row, then a row a run; numbers are rounded for people."""
        columns: list[tuple[str, Callable[[Row], str]]] = [
            ("run", lambda r: r.name),
            ("model", lambda r: r.model),
            ("backbone", lambda r: r.backbone or "-"),
            ("input", lambda r: r.size),
            ("M params", lambda r: _cost(r, "parameters", 1e-6)),
            ("GFLOPs", lambda r: _cost(r, "flops", 1e-9)),
        ]
        columns += [(m, lambda r, m=m: _score(r.scores.get(m))) for m in self.metrics]  # type: ignore[misc]
        columns += [
            ("train s", lambda r: "-" if r.train_seconds is None else f"{r.train_seconds:,.0f}"),
            ("ms at batch 1", _latency),
        ]
        if self.proposed:
            columns.append(("proposals ms", _proposals))
        columns += [
            ("images/s", lambda r: _cost(r, "images_per_s", 1)),
            ("batch", lambda r: str(r.cost["batch_size"]) if r.cost else "-"),
            ("MiB", lambda r: _cost(r, "memory", 2**-20)),
            ("front", lambda r: "*" if r in self.front else ""),
        ]
        if all(row.name == row.model for row in self.rows):
            columns = [c for c in columns if c[0] != "model"]
        return [[t for t, _ in columns], *([cell(r) for _, cell in columns] for r in self.rows)]

    def class_table(self) -> list[list[str]]:
        """A titles row, then a row a run: each class's own score."""
        rows = [[r.name, *(_score(r.per_class.get(c)) for c in self.classes)] for r in self.rows]
        return [["run", *self.classes], *rows]

    def notes(self) -> list[str]:
        """What the columns mean."""
        return [COUNTED, TIMED, *([PROPOSED] if self.proposed else []), HELD, TRAINED]

    def markdown(self, command: str) -> str:
        """Both tables, what the columns mean, and how they were made; classes as rows."""
        table = self.table()
        names = [c for c, t in enumerate(table[0]) if t in ("run", "model", "backbone")]
        for row in table[1:]:
            row[:] = [markdown_cell(cell) if c in names else cell for c, cell in enumerate(row)]
        for name in self.metrics[:2]:
            self._embolden(table, table[0].index(name), name)
        parts = [f"# {markdown_cell(self.title)}", _markdown(table)]
        parts.append(
            f"Each run's best epoch by {self.monitor}; * is on the Pareto front of {self.monitor} "
            f"over latency. Measured on {self.device or 'nothing'}."
        )
        parts.append("\n".join(f"- {note}" for note in self.notes()))
        if len(self.classes) > 1:
            by_class = [list(column) for column in zip(*self.class_table(), strict=True)]
            by_class[0] = [markdown_cell(name) for name in by_class[0]]
            for row in by_class:
                row[0] = markdown_cell(row[0])
            by_class[0][0] = "class"
            parts += [f"## {self.score} per class", _markdown(by_class)]
        folders = ([markdown_cell(r.name), markdown_cell(r.folder)] for r in self.rows)
        where = [["run", "folder"], *folders]
        parts += ["## Runs", _markdown(where, left=2), f"```\n{printable(command)}\n```"]
        return "\n\n".join(parts) + "\n"

    def _embolden(self, table: list[list[str]], column: int, metric: str) -> None:
        known = [v for row in self.rows if (v := row.scores.get(metric)) is not None]
        if len(known) < 2:
            return
        best = min(known) if self.mode == "min" and metric == self.monitor else max(known)
        for cells, row in zip(table[1:], self.rows, strict=True):
            if row.scores.get(metric) == best:
                cells[column] = f"**{cells[column]}**"

    def write_csv(self, path: Path) -> Path:
        """Every number, unrounded: SI units, bytes; empty where there is none.

        Raises:
            RunError: the file cannot be written.
        """
        metrics = list(dict.fromkeys(name for row in self.rows for name in row.scores))
        costs = list(dict.fromkeys(key for row in self.rows for key in row.cost))
        titles = ["run", "folder", "model", "backbone", "image_size", *metrics]
        titles += [f"{self.score}/{name}" for name in self.classes]
        titles += ["train_seconds", "epochs", *(_CSV.get(key, key) for key in costs), "front"]
        lines: list[list[Any]] = [[csv_cell(title) for title in titles]]
        for row in self.rows:
            texts = (row.name, row.folder, row.model, row.backbone, row.size)
            cells: list[Any] = [csv_cell(text) for text in texts]
            cells += [row.scores.get(name) for name in metrics]
            cells += [row.per_class.get(name) for name in self.classes]
            cells += [row.train_seconds, row.epochs, *(row.cost.get(key) for key in costs)]
            lines.append([*cells, int(row in self.front)])
        return write_atomic(
            path, lambda file: csv.writer(file, lineterminator="\n").writerows(lines)
        )


_CSV = {
    "latency": "latency_seconds",
    "latency_p10": "latency_seconds_p10",
    "latency_p90": "latency_seconds_p90",
    "runs": "timed_images",
    "memory": "memory_bytes",
    "proposals": "proposal_seconds",
}


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cost(row: Row, key: str, scale: float) -> str:
    return _three(row.cost[key] * scale) if row.cost else "-"


def _latency(row: Row) -> str:
    if not row.cost:
        return "-"
    low, middle, high = (_ms(row.cost[key]) for key in ("latency_p10", "latency", "latency_p90"))
    return f"{middle} ({low}-{high})"


def _proposals(row: Row) -> str:
    if not row.cost.get("takes_proposals"):
        return "-"
    seconds = row.cost["proposals"]
    return "not known" if seconds is None else _ms(seconds)


def _ms(seconds: float) -> str:
    return _three(seconds * 1000)


def _three(value: float) -> str:
    """Three digits, at most four of them decimals."""
    before = math.floor(math.log10(value)) + 1 if value > 0 else 1
    return f"{value:,.{min(4, max(0, 3 - before))}f}"


def _markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first ``left`` columns are text."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = ["---"] * left + ["---:"] * (len(rows[0]) - left)
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)
