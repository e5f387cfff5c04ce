"""A small data set written by hand, a reader that gives it, and the gate on both."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.gate.run import GateReport, run_gate
from cvtrain.data.table import Blobs, Classes, Problem, Split, Strings, Table

WIDTH, HEIGHT = 60, 40


@dataclass
class Row:
    file: str
    boxes: list[Any] = field(default_factory=list)
    labels: list[int] | None = None
    flags: list[int] | None = None
    areas: list[float] | None = None
    segments: list[bytes] | None = None
    size: tuple[int, int] = (-1, -1)  # height, width
    ident: int | None = None
    label: int | None = None
    mask: str | None = None


class Dataset:
    """Images in ``root``, rows of tables, and a reader over them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.classes: dict[str, Classes] = {}
        self.names = ("cat", "dog")
        self.kinds = frozenset({"boxes"})
        self.rows: dict[str, list[Row]] = {}
        self.problems: dict[str, list[Problem]] = {}
        self.unlisted: list[str] = []
        self.relative = False
        self.mask_values: np.ndarray | None = None
        self.annotation_files = False
        self.draws = np.random.default_rng(0)
        self.reads: list[str] = []

    def pixels(self, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
        return Image.fromarray(self.draws.integers(0, 256, (height, width, 3), np.uint8))

    def save(self, name: str, image: Image.Image | None = None, **options: Any) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (image or self.pixels()).save(path, **options)
        return path

    def add(self, name: str, *, split: str = "train", image: Any = None, **row: Any) -> Row:
        """Writes an image (unless there is one) and lists it."""
        if not (self.root / name).exists():
            self.save(name, image)
        self.rows.setdefault(split, []).append(Row(name, **row))
        return self.rows[split][-1]

    def splits(self) -> list[str]:
        return [name for name in ("train", "val", "test") if name in self.rows]

    def read(self, name: str) -> Split:
        self.reads.append(name)
        first = name == self.splits()[0]
        unlisted = self.unlisted if first else []
        return Split(name, self.table(name), list(self.problems.get(name, [])), unlisted)

    def table(self, name: str) -> Table:
        rows = self.rows[name]
        counts = [len(r.boxes) for r in rows]
        total = sum(counts)

        def column(key: str, default: Any) -> list[Any]:
            return [
                v
                for r in rows
                for v in (
                    getattr(r, key) if getattr(r, key) is not None else [default] * len(r.boxes)
                )
            ]

        return Table(
            root=str(self.root),
            classes=self.classes.get(name, Classes.from_names(self.names)),
            files=Strings(r.file for r in rows),
            sizes=np.array([r.size for r in rows], np.int32).reshape(-1, 2),
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=np.array([b for r in rows for b in r.boxes], np.float64).reshape(-1, 4),
            labels=np.array(column("labels", 0), np.int64),
            flags=np.array(column("flags", 0), np.uint8),
            areas=np.array(column("areas", np.nan), np.float64),
            lines=np.arange(1, total + 1),
            ids=None if any(r.ident is None for r in rows) else np.array([r.ident for r in rows]),
            segments=Blobs(column("segments", b""))
            if any(r.segments is not None for r in rows)
            else None,
            image_labels=None
            if any(r.label is None for r in rows)
            else np.array([r.label for r in rows]),
            masks=None if any(r.mask is None for r in rows) else Strings(r.mask for r in rows),
            annotation_files=Strings(f"{r.file}.txt" for r in rows)
            if self.annotation_files
            else None,
            relative=self.relative,
            mask_values=self.mask_values,
        )

    def gate(self, task: str | None = None, **options: Any) -> GateReport:
        """The gate, not strict; whatever it finds, the counts must add up."""
        usual = {"strict": False, "progress": False, "workers": 2, "allow_empty": True}
        options = {**usual, **options}
        if "val" not in self.rows and "train" in self.rows:
            options.setdefault("splits", ["train"])
            self.rows["val"] = [Row("val.png")]
            if not (self.root / "val.png").exists():
                self.save("val.png")
            report = run_gate(self, task, **options)
            del self.rows["val"]
        else:
            report = run_gate(self, task, **options)
        assert report.images == report.used + report.rejected
        assert report.used == sum(count.used for count in report.counts.values())
        for count in report.counts.values():
            assert count.images == count.used + count.rejected
        return report

    def codes(self, task: str | None = None, **options: Any) -> dict[str, int]:
        return dict(Counter(p.code for p in self.gate(task, **options).problems))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    root = tmp_path / "data"
    root.mkdir()
    return Dataset(root)


BOX = [5.0, 5.0, 25.0, 30.0]


@pytest.fixture
def apart() -> Callable[[int], list[list[float]]]:
    """So many boxes inside the images of ``dataset``, the first of them ``box``, none a copy."""

    def boxes(count: int) -> list[list[float]]:
        corners = itertools.product(
            range(5, 25, 2), range(5, 25, 2), range(25, 59, 2), (30, 33, 36)
        )
        made = [[float(v) for v in (x1, y1, x2, y2)] for x1, y1, x2, y2 in corners]
        return made[:count]

    return boxes


@pytest.fixture
def box() -> list[float]:
    """A box well inside the images of ``dataset``, 60 x 40 pixels."""
    return list(BOX)
