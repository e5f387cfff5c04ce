"""scripts/make_tiles.py on masks and objects made here."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from cvtrain.data.formats.folder import FolderReader
from cvtrain.data.gate.run import run_gate

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_tiles.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tiles", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Left half road with a void square in its middle, right half sky; 20 + 30 rows."""
    root = tmp_path / "masks"
    rng = np.random.default_rng(0)
    for split, number in (("train", 2), ("val", 1)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(number):
            mask = np.zeros((32, 64), np.uint8)
            mask[:, 32:] = 1
            mask[4:12, 4:12] = 255
            image = rng.integers(0, 256, (32, 64, 3), np.uint8)
            cv2.imwrite(str(root / "images" / split / f"{i}.png"), image)
            cv2.imwrite(str(root / "masks" / split / f"{i}.png"), mask)
    (root / "classes.txt").write_text("road\nsky\n")
    return root


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """COCO: tile (0, 0) has two objects, (0, 1) one that reaches into (0, 2), (1, 0) three."""
    root = tmp_path / "objects"
    boxes = [(2, 2, 4, 4), (9, 9, 4, 4), (22, 4, 12, 6)]
    boxes += [(1, 17, 3, 3), (6, 20, 3, 3), (11, 26, 3, 3)]
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        image = rng.integers(0, 256, (32, 64, 3), np.uint8)
        cv2.imwrite(str(root / split / f"{split}.png"), image)
        annotations = [
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": 7,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            for i, (x, y, w, h) in enumerate(boxes)
        ]
        content = {
            "images": [{"id": 1, "file_name": f"{split}.png", "height": 32, "width": 64}],
            "annotations": annotations,
            "categories": [{"id": 7, "name": "cell"}],
        }
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def digest(root: Path) -> str:
    parts = [f"{p}:{p.stat().st_mtime_ns}" for p in sorted(root.rglob("*"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def test_the_class_of_the_center_pixel(script: ModuleType, masks: Path, tmp_path: Path) -> None:
    before = digest(masks)
    out = tmp_path / "out"
    assert script.main([str(masks), str(out), "--size", "16"]) == 0
    assert digest(masks) == before
    names = sorted(p.relative_to(out).as_posix() for p in (out / "val").rglob("*.png"))
    assert names == [
        *(f"val/road/images_val_0_y{y}_x{x}.png" for y, x in ((0, 16), (16, 0), (16, 16))),
        *(f"val/sky/images_val_0_y{y}_x{x}.png" for y in (0, 16) for x in (32, 48)),
    ], "the tile at (0, 0) has a void center"
    tile = cv2.imread(str(out / "val/road/images_val_0_y16_x0.png"))
    image = cv2.imread(str(masks / "images/val/0.png"))
    assert tile is not None
    assert image is not None
    assert (tile == image[16:, :16]).all()
    report = run_gate(FolderReader(out), "classification", progress=False)
    assert {name: len(table) for name, table in report.tables.items()} == {"train": 14, "val": 7}
    record = json.loads((out / "tiles.json").read_text())
    assert record["tiles"]["train"] == {"road": 6, "sky": 8}


def test_the_class_that_covers_most(script: ModuleType, masks: Path, tmp_path: Path) -> None:
    words = {"size": 16, "stride": 8, "label": "share"}
    counts = script.make_tiles(masks, tmp_path / "a", share=0.75, **words)
    # Columns 0 .. 16 are road, 32 .. 48 sky, 24 is half and half; (0, 0) is a quarter void.
    assert counts["val"] == {"road": 9, "sky": 9}
    counts = script.make_tiles(masks, tmp_path / "b", share=1.0, **words)
    assert counts["val"] == {"road": 5, "sky": 9}


def test_how_many_objects(script: ModuleType, objects: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counts = script.make_tiles(objects, out, size=16, stride=16, label="count", many=3)
    # (0, 1) holds the center of its object; (0, 2) only an end of it.
    assert counts["train"] == {"empty": 4, "few": 2, "many": 1}
    few = sorted(p.name for p in (out / "train/few").iterdir())
    assert few == ["train_train_y0_x0.png", "train_train_y0_x16.png"]
    assert [p.name for p in (out / "train/many").iterdir()] == ["train_train_y16_x0.png"]


def test_objects_are_pixels_too(script: ModuleType, objects: Path, tmp_path: Path) -> None:
    counts = script.make_tiles(objects, tmp_path / "out", size=4, stride=4, label="center")
    assert set(counts["train"]) == {"background", "cell"}
    assert sum(counts["train"].values()) == 8 * 16


def test_a_draw_follows_from_the_seed(script: ModuleType, masks: Path, tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / name
        words = {"size": 4, "stride": 4, "label": "center", "per_class": 5}
        counts = script.make_tiles(masks, out, seed=seed, **words)
        assert counts["train"] == counts["val"] == {"road": 5, "sky": 5}
        drawn.append(sorted(p.name for p in (out / "train").rglob("*.png")))
    assert drawn[0] == drawn[1] != drawn[2]


def test_no_split_of_its_own_keeps_images_apart(
    script: ModuleType, masks: Path, tmp_path: Path
) -> None:
    for kind in ("images", "masks"):
        for path in (masks / kind / "val").iterdir():
            path.unlink()
        (masks / kind / "val").rmdir()
    out = tmp_path / "out"
    script.make_tiles(masks, out, size=16, stride=16, label="center")
    sources = {
        split: {p.name.split("_y")[0] for p in (out / split).rglob("*.png")}
        for split in ("train", "val")
    }
    assert sources["train"]
    assert sources["val"]
    assert not sources["train"] & sources["val"]


@pytest.mark.parametrize(
    ("out", "more", "said"),
    [
        ("masks/tiles", [], "never written to"),
        ("masks", [], "never written to"),
        ("full", [], "not empty"),
        ("out", ["--size", "100"], "no tile of 100 pixels in train has a class"),
        ("out", ["--share", "0.2"], "--share 0.5 to 1"),
        ("out", ["--label", "count"], "use task="),
    ],
)
def test_what_it_refuses(
    script: ModuleType,
    masks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    out: str,
    more: list[str],
    said: str,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").touch()
    before = digest(masks)
    assert script.main([str(masks), str(tmp_path / out), *more]) == 1
    err = capsys.readouterr().err
    assert err.startswith("make_tiles: ")
    assert len(err.splitlines()) == 1
    assert said in err
    assert digest(masks) == before


def test_help() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--per-class" in done.stdout
