"""Localization metrics against cases worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from cvtrain.data.table import Classes
from cvtrain.errors import RunError
from cvtrain.metrics import metrics_for
from cvtrain.structures import ImageInfo, Prediction, Target

CLASSES = Classes(("cat", "dog", "owl"), (10, 20, 30))
BOX = [10.0, 10.0, 30.0, 50.0]  # 20 x 40


def guess(*guesses: tuple[int, list[float]], first: int = 0) -> Prediction:
    """Guesses as (class, box), best first; ``first``: the most probable class."""
    probs = torch.full((3,), 0.2)
    probs[first] = 0.6
    scores = torch.linspace(0.9, 0.1, max(len(guesses), 1))[: len(guesses)]
    boxes = torch.tensor([b for _, b in guesses], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([k for k, _ in guesses], dtype=torch.int64)
    return Prediction(probs=probs, boxes=boxes, scores=scores, labels=labels)


def truth(label: int, box: list[float] = BOX) -> Target:
    return Target(label=torch.tensor(label), boxes=torch.tensor([box]))


def info(index: int) -> ImageInfo:
    return ImageInfo(index, 100 + index, f"{index}.jpg", 60, 80)


def scored(*pairs: tuple[Prediction, Target]) -> Any:
    metrics = metrics_for("localization", CLASSES)
    predictions, truths = [p for p, _ in pairs], [t for _, t in pairs]
    metrics.update(predictions, truths, [info(i) for i in range(len(pairs))])
    return metrics


def test_by_hand() -> None:
    half = [10.0, 10.0, 30.0, 30.0]  # the upper half: IoU exactly 0.5
    third = [10.0, 10.0, 30.0, 29.0]  # 19 of 40 rows: IoU 0.475
    beside = [40.0, 10.0, 60.0, 50.0]  # IoU 0
    metrics = scored(
        (guess((0, BOX)), truth(0)),  # right in both
        (guess((1, half)), truth(1)),  # right: 0.5 is enough
        (guess((1, third)), truth(1)),  # the class alone
        (guess((2, BOX), (1, beside), (0, BOX)), truth(0)),  # wrong class; the third guess is right
        (guess((0, beside), (1, BOX)), truth(0)),  # class and box, never both in one guess
    )
    values = metrics.compute()
    assert list(values) == ["localization_accuracy", "accuracy", "mean_iou", "top5_error"]
    assert values["localization_accuracy"] == pytest.approx(2 / 5)
    assert values["accuracy"] == pytest.approx(4 / 5)
    assert values["mean_iou"] == pytest.approx((1 + 0.5 + 0.475 + 1 + 0) / 5)
    assert values["top5_error"] == pytest.approx(2 / 5)


def test_only_the_first_five_guesses_count() -> None:
    wrong = [(1, BOX)] * 5
    values = scored((guess(*wrong, (0, BOX)), truth(0))).compute()
    assert values["top5_error"] == 1.0
    values = scored((guess(*wrong[:4], (0, BOX)), truth(0))).compute()
    assert values["top5_error"] == 0.0


def test_without_a_box() -> None:
    """The class is then the most probable one, and the IoU 0."""
    metrics = scored((guess(first=2), truth(2)), (guess((0, BOX)), truth(0)))
    values = metrics.compute()
    assert values == {
        "localization_accuracy": 0.5,
        "accuracy": 1.0,
        "mean_iou": 0.5,
        "top5_error": 0.5,
    }
    assert "1 image without a predicted box, IoU 0" in metrics.details()["notes"]


def test_without_images() -> None:
    metrics = metrics_for("localization", CLASSES)
    assert all(math.isnan(v) for v in metrics.compute().values())
    assert metrics.details()["notes"] == ["no image was evaluated"]
    assert np.isnan(metrics.details()["iou_curve"]["box"]).all()


def test_details() -> None:
    half = [10.0, 10.0, 30.0, 30.0]
    metrics = scored(
        (guess((0, BOX)), truth(0)),
        (guess((1, half)), truth(0)),
        (guess((1, half)), truth(1)),
    )
    details = metrics.details()
    rows = {row["name"]: row for row in details["per_class"]}
    assert (rows["cat"]["images"], rows["cat"]["predictions"]) == (2, 1)
    assert (rows["cat"]["localization_accuracy"], rows["cat"]["mean_iou"]) == (0.5, 0.75)
    assert rows["dog"]["localization_accuracy"] == 1.0
    assert math.isnan(rows["owl"]["accuracy"])
    assert details["notes"] == ["1 class without ground truth: owl"]
    assert details["confusion"].tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    curve = details["iou_curve"]
    at = {float(t): i for i, t in enumerate(curve["threshold"])}
    box, both = ([curve[key][at[t]] for t in (0.0, 0.5, 0.51, 1.0)] for key in ("box", "both"))
    assert box == pytest.approx([1, 1, 1 / 3, 1 / 3])
    assert both == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert [(w["file_name"], w["predicted"], w["truth"]) for w in details["worst"]] == [
        ("1.jpg", "dog", "cat"),
        ("2.jpg", "dog", "dog"),
        ("0.jpg", "cat", "cat"),
    ]


def test_the_files_say_the_same(tmp_path: Any) -> None:
    """Boxes as [x, y, w, h]; every number can be had from the two files alone."""
    from pycocotools.coco import COCO

    from cvtrain.report.results import write_predictions

    half = [10.0, 10.0, 30.0, 30.0]
    metrics = scored(
        (guess((0, BOX), (1, half)), truth(0)),
        (guess((2, half), (1, BOX)), truth(1)),
    )
    predictions, ground_truth = write_predictions(tmp_path, metrics)
    coco = COCO(str(ground_truth))
    results = coco.loadRes(str(predictions))
    assert coco.loadAnns(1)[0]["bbox"] == [10, 10, 20, 40]
    assert coco.loadAnns(1)[0]["area"] == 800
    assert coco.loadAnns(2)[0]["category_id"] == 20
    found = results.loadAnns(results.getAnnIds(imgIds=[101]))
    assert [(a["category_id"], a["bbox"]) for a in found] == [
        (30, [10, 10, 20, 20]),
        (20, [10, 10, 20, 40]),
    ]
    assert found[0]["score"] > found[1]["score"]


def test_two_processes_give_what_one_gives() -> None:
    pairs = [(guess((i % 3, [10, 10, 30, 10 + 5 * i + 1])), truth(i % 2)) for i in range(9)]
    alone = scored(*pairs)
    halves = []
    for rank in range(2):
        part = metrics_for("localization", CLASSES)
        for i in range(rank, 9, 2):
            part.update([pairs[i][0]], [pairs[i][1]], [info(i)])
        halves.append(part)
    halves[0].merge([h.state() for h in halves])
    assert halves[0].compute() == alone.compute()
    assert halves[0].predictions_json() == alone.predictions_json()


def test_what_cannot_be_scored_is_an_error() -> None:
    with pytest.raises(RunError, match="boxes"):
        scored((guess((0, [0, 0, math.nan, 1])), truth(0)))
    with pytest.raises(ValueError, match=r"expected \(1, 4\)"):
        scored((guess((0, BOX)), Target(label=torch.tensor(0), boxes=torch.zeros(2, 4))))
    with pytest.raises(ValueError, match="label 3"):
        scored((guess((3, BOX)), truth(0)))
    with pytest.raises(ValueError, match=r"Target\.label"):
        scored((guess((0, BOX)), Target(boxes=torch.tensor([BOX]))))
