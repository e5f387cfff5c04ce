"""predictions.json and ground_truth.json: anyone who scores them gets our numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cvtrain.data.table import Classes
from cvtrain.metrics.classification import ClassificationMetrics
from cvtrain.metrics.detection import DetectionMetrics
from cvtrain.report.results import write_predictions, write_results
from cvtrain.structures import ImageInfo, Prediction, Target

NAMES = "mAP mAP50 mAP75 mAP_small mAP_medium mAP_large AR1 AR10 AR100 AR_small AR_medium AR_large"


def paths(n: int) -> list[str]:
    """Names whose order is not the order of the split, with spaces and other scripts."""
    kinds = ["train/z {}.jpg", "a/é {}.png", "日本/{}.jpg", "B/{}.JPG", "images/{}.jpg"]
    return [kinds[i % 5].format(n - i) for i in range(n)]


@pytest.mark.parametrize("backend", ["faster_coco_eval", "pycocotools"])
@pytest.mark.parametrize("ids", ["paths", "numbers", "none"])
def test_pycocotools_gets_the_same_numbers_from_the_files(
    ids, backend, tmp_path, random_scene, score_files
):
    n = 21
    given = {
        "paths": paths(n),
        "numbers": [int(i) for i in np.random.default_rng(1).permutation(10**6)[:n]],
        "none": None,
    }[ids]
    scene = random_scene(3, images=n, ids=given)
    metrics = scene.feed(DetectionMetrics(scene.classes, backend=backend))
    predictions, truth = write_predictions(tmp_path, metrics)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ground_truth.json", "predictions.json"]
    stats = score_files(predictions, truth)
    ours = np.array([metrics.compute()[name] for name in NAMES.split()])
    assert 0.1 < ours[1] < 0.99
    assert np.allclose(stats, np.where(np.isnan(ours), -1, ours), atol=1e-12, rtol=0)


def test_ties_between_images_are_broken_as_pycocotools_breaks_them(tmp_path, build, score_files):
    """A hit and a miss of equal score: which comes first depends on the order of the ids alone."""
    box, stray = [0, 0, 100, 100], [300, 300, 400, 400]
    seen = set()
    for first, second in (("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")):
        metrics = DetectionMetrics(Classes.from_names(["thing"]))
        metrics.update(
            [build.prediction([box], [0.5]), build.prediction([stray], [0.5])],
            [build.truth([box]), build.truth([box])],
            [build.info(0, first), build.info(1, second)],
        )
        stats = score_files(*write_predictions(tmp_path, metrics))
        assert metrics.compute()["mAP50"] == pytest.approx(stats[1], abs=1e-12)
        seen.add(round(stats[1], 6))
    assert len(seen) == 2


def test_detection_entries(tmp_path, build, read_json):
    classes = Classes(("person", "日本"), (1, 90))
    metrics = DetectionMetrics(classes)
    metrics.update(
        [build.prediction([[0.1, 0.2, 10.3, 20.7], [1, 2, 3, 4]], [1 / 3, 1e-9], [1, 0])],
        [build.truth([[1, 2, 31, 42], [5, 5, 9, 9]], [1, 0], [True, False], [77.25, np.nan])],
        [ImageInfo(0, 139, "val2017/000139.jpg", 480, 640)],
    )
    write_predictions(tmp_path, metrics)
    entries = read_json(tmp_path / "predictions.json")
    assert entries == metrics.predictions_json()
    assert [list(e) for e in entries] == [
        ["image_id", "file_name", "category_id", "category", "bbox", "score"]
    ] * 2
    first, second = entries
    assert (first["image_id"], first["file_name"]) == (139, "val2017/000139.jpg")
    assert (first["category_id"], first["category"]) == (90, "日本")
    x1, y1, x2, y2 = np.array([0.1, 0.2, 10.3, 20.7], np.float32).astype(np.float64)
    assert first["bbox"] == [x1, y1, x2 - x1, y2 - y1]  # to the last bit
    assert first["score"] == float(np.float32(1 / 3))
    assert second["score"] == float(np.float32(1e-9))  # not cut by any threshold

    truth = read_json(tmp_path / "ground_truth.json")
    assert truth["images"] == [
        {"id": 139, "file_name": "val2017/000139.jpg", "width": 640, "height": 480}
    ]
    assert truth["categories"] == [{"id": 1, "name": "person"}, {"id": 90, "name": "日本"}]
    assert truth["annotations"] == [
        {
            "id": 1,
            "image_id": 139,
            "category_id": 90,
            "bbox": [1.0, 2.0, 30.0, 40.0],
            "area": 77.25,
            "iscrowd": 1,
        },
        {
            "id": 2,
            "image_id": 139,
            "category_id": 1,
            "bbox": [5.0, 5.0, 4.0, 4.0],
            "area": 16.0,
            "iscrowd": 0,
        },
    ]


def test_entries_without_a_truth(build):
    metrics = DetectionMetrics(Classes.from_names(["thing"]))
    info = ImageInfo(0, "sub/a.jpg", "sub/a.jpg", 10, 10)
    entries = list(metrics.prediction_entries(build.prediction([[1, 1, 3, 4]], [0.5]), info))
    assert entries == [
        {
            "image_id": "sub/a.jpg",
            "file_name": "sub/a.jpg",
            "category_id": 0,
            "category": "thing",
            "bbox": [1.0, 1.0, 2.0, 3.0],
            "score": 0.5,
        }
    ]
    assert len(metrics) == 0


def test_classification_entries(tmp_path, read_json):
    metrics = ClassificationMetrics(Classes(("cat", "dog", "owl"), (10, 20, 30)))
    probs = torch.softmax(torch.tensor([0.3, 2.0, 1.0]), 0)
    info = ImageInfo(0, "val/owl/x.jpg", "val/owl/x.jpg", 32, 48)
    metrics.update([Prediction(probs=probs)], [Target(label=torch.tensor(2))], [info])
    write_predictions(tmp_path, metrics)
    entry = {
        "image_id": "val/owl/x.jpg",
        "file_name": "val/owl/x.jpg",
        "category_id": 20,
        "category": "dog",
        "score": float(probs[1]),
    }
    assert read_json(tmp_path / "predictions.json") == [entry]
    assert list(metrics.prediction_entries(Prediction(probs=probs), info)) == [entry]
    truth = read_json(tmp_path / "ground_truth.json")
    assert truth["annotations"] == [{"id": 1, "image_id": "val/owl/x.jpg", "category_id": 30}]
    assert truth["images"][0]["width"] == 48


def test_no_prediction_gives_an_empty_list(tmp_path, build, read_json):
    metrics = DetectionMetrics(Classes.from_names(["thing"]))
    metrics.update([build.prediction([], [])], [build.truth([])], [build.info(0)])
    write_predictions(tmp_path, metrics)
    assert read_json(tmp_path / "predictions.json") == []
    assert read_json(tmp_path / "ground_truth.json")["annotations"] == []


def test_undefined_metrics_are_null_in_results(tmp_path, build):
    metrics = DetectionMetrics(Classes.from_names(["thing"]))
    metrics.update([build.prediction([], [])], [build.truth([])], [build.info(0)])
    path = write_results(tmp_path, "detection", "yolo", "voc", "val", metrics.compute(), 1.5)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    written = json.loads(path.read_text(), parse_constant=refuse)
    assert written["metrics"]["mAP"] is None
    assert list(written["metrics"]) == list(metrics.compute())
