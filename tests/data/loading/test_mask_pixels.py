"""Pixels of each class, counted once before training."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cvtrain.data import pixels
from cvtrain.data.datamodule import build_datamodule
from cvtrain.data.pixels import spread


def test_void_is_left_out_and_images_without_the_class(tmp_path) -> None:
    masks = [[[0, 0, 1, 255]], [[2, 2, 0, 2]], [[255, 255, 255, 255]]]
    for n, mask in enumerate(masks):
        for kind in ("images", "masks"):
            (tmp_path / kind / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((1, 4, 3), 40 * n, np.uint8)).save(
            tmp_path / f"images/train/{n}.png"
        )
        Image.fromarray(np.array(mask, np.uint8)).save(tmp_path / f"masks/train/{n}.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    node = {
        "reader": {"_target_": "cvtrain.data.formats.masks.MasksReader", "root": str(tmp_path)},
        "on_bad": "fix",
        "val_fraction": 0.3,
        "channels": 3,
        "batch_size": 1,
        "image_size": 8,
        "resize": "letterbox",
        "num_workers": 0,
        "cache": "none",
    }
    data, _ = build_datamodule({"data": node}, "semantic_segmentation", splits=None, progress=False)
    data.tables["train"] = data.tables["train"].take(range(len(data.tables["train"])))
    counts, totals = data.class_counts()
    rows = [np.array(masks[int(f.split("/")[-1][0])]) for f in data.tables["train"].files]
    assert counts == [sum(int((m == k).sum()) for m in rows) for k in range(4)]
    assert totals == [sum(int((m != 255).sum()) for m in rows if (m == k).any()) for k in range(4)]


def test_of_many_masks_some_are_opened(monkeypatch) -> None:
    monkeypatch.setattr(pixels, "MOST_MASKS", 3)
    assert spread(3).tolist() == [0, 1, 2]
    assert spread(9).tolist() == [0, 4, 8]
