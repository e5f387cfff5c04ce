"""Builders of tiny data sets in every format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


class Maker:
    """Writes files below a root; every method gives the path it wrote."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def text(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def json(self, name: str, content: Any) -> Path:
        return self.text(name, json.dumps(content))

    def image(self, *names: str, size: tuple[int, int] = (8, 6)) -> None:
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (len(name) * 7 % 256, 9, 9)).save(path)

    def mask(self, name: str, values: Iterable[int], mode: str = "L") -> Path:
        """A mask of 4 x 4 pixels that holds these values."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.resize(np.array(list(values), np.uint8), (4, 4))
        if mode == "1":
            Image.fromarray(pixels > 0).save(path)
        else:
            image = Image.fromarray(pixels)
            if mode == "P":
                image = Image.frombytes("P", (4, 4), pixels.tobytes())
                image.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
            image.save(path)
        return path

    def coco(
        self,
        name: str,
        images: list[Any],
        annotations: list[Any],
        categories: list[Any] | None = None,
    ) -> Path:
        categories = [{"id": 1, "name": "cat"}] if categories is None else categories
        content = {"images": images, "annotations": annotations, "categories": categories}
        return self.json(name, content)

    def voc(self, name: str, *objects: Any, size: str = "", extra: str = "") -> Path:
        """An XML file with objects (name, xmin, ymin, xmax, ymax[, difficult])."""
        parts = [
            f"<object><name>{n}</name><difficult>{d[0] if d else 0}</difficult><bndbox>"
            f"<xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{e}</ymax></bndbox></object>"
            for n, a, b, c, e, *d in objects
        ]
        size = size or "<size><width>8</width><height>6</height><depth>3</depth></size>"
        return self.text(name, f"<annotation>{extra}{size}{''.join(parts)}</annotation>")


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    root = tmp_path / "set"
    root.mkdir()
    return Maker(root)


@pytest.fixture
def codes() -> Callable[[Any], list[str]]:
    """The codes of a split's problems, in order."""
    return lambda split: [p.code for p in split.problems]


@pytest.fixture
def img() -> Callable[..., dict[str, Any]]:
    """A COCO image record."""

    def record(ident: Any, name: str, **more: Any) -> dict[str, Any]:
        return {"id": ident, "file_name": name, "width": 8, "height": 6, **more}

    return record


@pytest.fixture
def ann() -> Callable[..., dict[str, Any]]:
    """A COCO annotation record."""

    def record(ident: Any, image: Any, bbox: Any = (1, 2, 3, 4), **more: Any) -> dict[str, Any]:
        bbox = list(bbox) if isinstance(bbox, tuple) else bbox
        record = {"id": ident, "image_id": image, "category_id": 1, "bbox": bbox}
        return {**record, **more}

    return record
