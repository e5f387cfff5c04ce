"""Metrics of masks: cases worked by hand, both backends, pycocotools on the written files."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from cvtrain.data.masks import decode_rle, rles_from_masks
from cvtrain.data.table import Classes
from cvtrain.errors import RunError, UsageError
from cvtrain.metrics import metrics_for
from cvtrain.metrics.instance_segmentation import BOXES, InstanceSegmentationMetrics
from cvtrain.report.results import write_predictions
from cvtrain.structures import ImageInfo, Prediction, Target

ONE = Classes(("nucleus",), (7,))
BACKENDS = ["faster_coco_eval", "pycocotools"]
COCO_NAMES = ["mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large"]
COCO_NAMES += ["AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]
SIZE = (100, 120)


def info(index=0, image_id=None, size=SIZE) -> ImageInfo:
    name = f"{index:03}.png"
    return ImageInfo(index, name if image_id is None else image_id, name, *size)


def rectangles(*boxes, size=SIZE):
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def box_tensor(boxes) -> torch.Tensor:
    return torch.tensor(np.asarray(boxes, np.float32).reshape(-1, 4))


def predicted(boxes, scores, masks=None, labels=None) -> Prediction:
    masks = rectangles(*boxes) if masks is None else masks
    return Prediction(
        boxes=box_tensor(boxes),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor([0] * len(scores) if labels is None else labels, dtype=torch.int64),
        rles=rles_from_masks(np.asarray(masks)),
    )


def annotated(boxes, masks=None, labels=None, ignore=None, areas=None) -> Target:
    masks = rectangles(*boxes) if masks is None else masks
    return Target(
        boxes=box_tensor(boxes),
        labels=torch.tensor([0] * len(boxes) if labels is None else labels, dtype=torch.int64),
        ignore=None if ignore is None else torch.tensor(ignore, dtype=torch.bool),
        areas=None if areas is None else torch.tensor(areas, dtype=torch.float64),
        rles=rles_from_masks(np.asarray(masks)),
    )


@pytest.fixture(params=BACKENDS)
def one(request):
    """Metrics after one image."""

    def run(prediction, truth, classes=ONE):
        metrics = InstanceSegmentationMetrics(classes, backend=request.param)
        metrics.update([prediction], [truth], [info()])
        return metrics

    return run


def test_a_perfect_prediction(one) -> None:
    box = [[10, 20, 90, 80]]
    values = one(predicted(box, [0.9]), annotated(box)).compute()
    masks = [f"mask_{name}" for name in COCO_NAMES]
    assert list(values)[:4] == ["mask_mAP", "mask_mAP50", "mAP", "mAP50"]
    assert set(values) == {*masks, *BOXES}
    for name, value in values.items():
        if name.endswith(("small", "large")):
            assert math.isnan(value)
        else:
            assert value == pytest.approx(1.0, abs=1e-12), name


def test_masks_are_compared_where_boxes_agree(one) -> None:
    """Two halves of one box: the boxes' IoU is 1, that of the masks 0; then a mask of 60 %."""
    box = [[0, 0, 40, 40]]
    upper, lower = rectangles([0, 0, 40, 20]), rectangles([0, 20, 40, 40])
    values = one(predicted(box, [0.9], upper), annotated(box, lower)).compute()
    assert (values["mAP"], values["mask_mAP"]) == (pytest.approx(1.0), 0.0)
    part = rectangles([0, 0, 40, 25])  # 25 / 40 = 0.625: a hit at 0.50, 0.55 and 0.60
    values = one(predicted(box, [0.9], part), annotated(box)).compute()
    assert values["mask_mAP50"] == pytest.approx(1.0)
    assert values["mask_mAP75"] == 0.0
    assert values["mask_mAP"] == pytest.approx(0.3)
    assert values["mask_AR100"] == pytest.approx(0.3)


def test_hit_miss_hit_by_hand(one) -> None:
    """Recall 1/2 at precision 1, recall 1 at precision 2/3."""
    truth = annotated([[0, 0, 20, 20], [50, 50, 80, 80]])
    found = predicted([[0, 0, 20, 20], [90, 0, 110, 20], [50, 50, 80, 80]], [0.9, 0.8, 0.7])
    metrics = one(found, truth)
    values = metrics.compute()
    for name in ("mask_mAP", "mask_mAP50", "mAP50"):
        assert values[name] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)
    (row,) = metrics.details()["per_class"]
    assert (row["name"], row["id"], row["objects"], row["predictions"]) == ("nucleus", 7, 2, 3)
    assert row["mask_AP50"] == pytest.approx(values["mask_mAP50"])
    assert row["AP50"] == pytest.approx(values["mAP50"])
    assert metrics.details()["confusion"].tolist() == [[2, 0], [1, 0]]
    assert metrics.details()["pr_curves"]["of"] == "masks"


def test_what_lies_in_a_crowd_is_no_mistake(one) -> None:
    """Of a crowd the share of the prediction in it counts: one wholly in it, one by a third."""
    truth = annotated([[0, 0, 100, 50], [0, 60, 30, 90]], ignore=[True, False])
    inside, across = [10, 10, 30, 30], [50, 40, 60, 70]
    found = predicted([inside, [0, 60, 30, 90]], [0.9, 0.8])
    metrics = one(found, truth)
    assert metrics.compute()["mask_mAP"] == pytest.approx(1.0)
    assert metrics.details()["confusion"].tolist() == [[1, 0], [0, 0]]
    assert metrics.details()["notes"] == ["1 difficult or crowd object ignored"]
    assert metrics.details()["worst"][0]["quality"] == pytest.approx(1.0)
    metrics = one(predicted([across, [0, 60, 30, 90]], [0.9, 0.8]), truth)
    assert metrics.compute()["mask_mAP50"] == pytest.approx(0.5)
    assert metrics.details()["worst"][0]["wrong"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_without_predictions_and_without_objects(backend, tmp_path, score_files) -> None:
    metrics = InstanceSegmentationMetrics(ONE, backend=backend)
    assert math.isnan(metrics.compute()["mask_mAP"])
    assert metrics.details()["notes"] == ["no image was evaluated"]
    box = [[5, 5, 50, 60]]
    metrics.update([predicted([], [])], [annotated(box)], [info(0)])
    assert metrics.compute()["mask_mAP"] == 0.0  # loadRes([]) would raise
    assert metrics.compute()["mAP50"] == 0.0
    assert "the model predicted nothing" in metrics.details()["notes"]
    metrics.update([predicted([], [])], [annotated([])], [info(1)])
    metrics.update([predicted(box, [0.5])], [annotated([])], [info(2)])
    metrics.update([predicted(box, [0.4])], [annotated(box)], [info(3)])
    # The mistake comes first: two objects, one found behind one mistake.
    assert metrics.compute()["mask_mAP50"] == pytest.approx(51 / 2 / 101, abs=1e-12)
    stats = score_files(*write_predictions(tmp_path, metrics), "segm")
    assert stats[1] == pytest.approx(metrics.compute()["mask_mAP50"], abs=1e-12)
    worst = [(e["index"], e["found"], e["missed"], e["wrong"]) for e in metrics.details()["worst"]]
    assert worst == [(0, 0, 1, 0), (2, 0, 0, 1), (3, 1, 0, 0)]


def test_a_mask_of_no_pixel_finds_nothing(one) -> None:
    box = [[10, 10, 30, 30]]
    nothing = np.zeros((1, *SIZE), bool)
    values = one(predicted(box, [0.9], nothing), annotated(box)).compute()
    assert (values["mask_mAP"], values["mAP"]) == (0.0, pytest.approx(1.0))
    values = one(predicted(box, [0.9], nothing), annotated(box, nothing)).compute()
    assert values["mask_mAP"] == 0.0


def blobs(seed: int, images: int = 14):
    """Ellipses that are hit, nearly hit, doubled and strayed from, of all sizes, tied scores."""
    rng = np.random.default_rng(seed)
    predictions, truths, infos = [], [], []
    for i in range(images):
        size = (int(rng.integers(90, 260)), int(rng.integers(90, 260)))
        y, x = np.mgrid[: size[0], : size[1]] + 0.5

        def ellipses(centers, axes, y=y, x=x, size=size):
            masks = [
                ((x - c[0]) / a[0]) ** 2 + ((y - c[1]) / a[1]) ** 2 < 1
                for c, a in zip(centers, axes, strict=True)
            ]
            boxes = np.concatenate([centers - axes, centers + axes], axis=1).reshape(-1, 4)
            boxes = np.clip(boxes, 0, [size[1], size[0], size[1], size[0]])
            return np.array(masks, bool).reshape(-1, *size), boxes

        n = 0 if i % 5 == 3 else int(rng.integers(1, 7))
        centers = rng.uniform(10, 80, (n, 2))
        axes = np.exp(rng.uniform(np.log(5), np.log(60), (n, 2)))
        labels = rng.integers(0, 3, n)
        masks, boxes = ellipses(centers, axes)
        areas = masks.sum(axis=(1, 2)).astype(np.float64)
        areas[rng.random(n) < 0.3] = np.nan
        ignore = rng.random(n) < 0.2
        truths.append(annotated(boxes, masks, labels, ignore, areas))
        m = 0 if i % 7 == 5 else 12
        source = rng.integers(0, max(n, 1), m)
        if n:
            noise = rng.choice([0.0, 0.06, 0.25], (m, 1))
            moved = centers[source] + rng.normal(0, 1, (m, 2)) * axes[source] * noise
            grown = axes[source] * np.exp(rng.normal(0, 1, (m, 2)) * noise)
            message = np.where(rng.random(m) < 0.85, labels[source], rng.integers(0, 4, m))
        else:
            moved, grown = rng.uniform(0, 80, (m, 2)), rng.uniform(5, 30, (m, 2))
            message = rng.integers(0, 4, m)
        found, around = ellipses(moved, grown)
        predictions.append(predicted(around, rng.integers(1, 20, m) / 20, found, message))
        infos.append(info(i, f"z/{(i * 5) % images}.png", size))
    return Classes(("a", "b", "c", "d"), (3, 7, 90, 91)), predictions, truths, infos


@pytest.mark.parametrize("backend", BACKENDS)
def test_pycocotools_gets_the_same_numbers_from_the_files(backend, tmp_path, score_files) -> None:
    classes, predictions, truths, infos = blobs(3)
    metrics = InstanceSegmentationMetrics(classes, backend=backend)
    metrics.update(predictions, truths, infos)
    files = write_predictions(tmp_path, metrics)
    values = metrics.compute()
    assert 0.2 < values["mask_mAP"] < values["mask_mAP50"] < 0.9
    assert values["mask_mAP"] != values["mAP"]
    stats = score_files(*files, "segm")
    ours = np.array([values[f"mask_{name}"] for name in COCO_NAMES])
    assert np.allclose(stats, np.where(np.isnan(ours), -1, ours), atol=1e-9, rtol=0)
    stats = dict(zip(COCO_NAMES, score_files(*files, "bbox"), strict=True))
    ours = np.array([values[name] for name in BOXES])
    theirs = [stats[name] for name in BOXES]
    assert np.allclose(theirs, np.where(np.isnan(ours), -1, ours), atol=1e-9, rtol=0)


def test_neither_order_nor_processes_change_a_digit() -> None:
    classes, predictions, truths, infos = blobs(5)
    whole = InstanceSegmentationMetrics(classes)
    whole.update(predictions, truths, infos)
    parts = []
    for rank in (1, 0):
        part = InstanceSegmentationMetrics(classes)
        for i in reversed(range(rank, len(infos), 2)):
            part.update([predictions[i]], [truths[i]], [infos[i]])
        parts.append(pickle.loads(pickle.dumps(part.state())))
    merged = InstanceSegmentationMetrics(classes)
    merged.merge(parts)
    assert merged.compute() == pytest.approx(whole.compute(), abs=0, nan_ok=True)
    assert merged.predictions_json() == whole.predictions_json()
    assert merged.ground_truth_json() == whole.ground_truth_json()
    assert merged.details()["worst"] == whole.details()["worst"]


def test_an_image_is_kept_as_its_outlines_not_its_area() -> None:
    """A hundred objects of 1,000 x 1,000 pixels each: a few KB in all."""
    size = (1000, 1000)
    mask = np.zeros((1, *size), bool)
    mask[0, 100:900, 100:900] = True
    rle = rles_from_masks(mask)[0]
    box = torch.tensor([[100.0, 100, 900, 900]]).expand(100, 4)
    labels = torch.zeros(100, dtype=torch.int64)
    metrics = InstanceSegmentationMetrics(ONE)
    message = Prediction(boxes=box, scores=torch.full((100,), 0.5), labels=labels, rles=[rle] * 100)
    truth = Target(boxes=box, labels=labels, rles=[dict(rle) for _ in range(100)])
    metrics.update([message], [truth], [info(size=size)])
    assert len(pickle.dumps(metrics.state())) < 8 * len(rle["counts"]) * 200


def test_entries_of_the_files() -> None:
    metrics = InstanceSegmentationMetrics(ONE)
    boxes = [[10, 20, 40, 60]]
    triangle = np.tril(np.ones((1, *SIZE), bool)) & rectangles(*boxes)
    metrics.update([predicted(boxes, [0.75], triangle)], [annotated(boxes)], [info(0, 139)])
    (entry,) = metrics.predictions_json()
    assert (entry["image_id"], entry["category_id"], entry["score"]) == (139, 7, 0.75)
    assert entry["bbox"] == [10, 20, 30, 40]
    assert entry["segmentation"]["size"] == list(SIZE)
    assert type(entry["segmentation"]["counts"]) is str
    assert np.array_equal(decode_rle(entry["segmentation"]), triangle[0])
    truth = metrics.ground_truth_json()["annotations"][0]
    assert (truth["category_id"], truth["area"], truth["iscrowd"]) == (7, 1200, 0)
    assert np.array_equal(decode_rle(truth["segmentation"]), rectangles(*boxes)[0])
    message, true = metrics.shown(0)
    assert message.rles == [entry["segmentation"]]
    assert true.rles == [truth["segmentation"]]
    assert list(metrics.prediction_entries(message, info(0, 139))) == [entry]


def test_the_worst_images_come_first() -> None:
    classes = Classes.from_names(["a", "b"])
    metrics = InstanceSegmentationMetrics(classes)
    two = [[0, 0, 20, 20], [40, 40, 80, 80]]
    metrics.update(
        [
            predicted(two, [0.9, 0.8]),  # all found
            predicted(two, [0.9, 0.8], labels=[1, 0]),  # one of another class
            predicted(two, [0.2, 0.1]),  # too unsure
            predicted([[0, 0, 20, 20], [0, 0, 20, 19]], [0.9, 0.8]),  # one twice
        ],
        [annotated(two)] * 4,
        [info(i) for i in range(4)],
    )
    found = [
        (e["index"], e["found"], e["missed"], e["wrong"], e["quality"])
        for e in metrics.details()["worst"]
    ]
    assert found == [
        (2, 0, 2, 0, 0.0),
        (1, 1, 1, 1, 0.5),
        (3, 1, 1, 1, 0.5),
        (0, 2, 0, 0, 1.0),
    ]


def test_more_objects_than_coco_counts_are_said() -> None:
    metrics = InstanceSegmentationMetrics(ONE)
    boxes = [[x, y, x + 5, y + 5] for x in range(0, 110, 8) for y in range(0, 90, 10)]
    assert len(boxes) == 126
    scores = np.linspace(0.9, 0.5, len(boxes)).tolist()
    metrics.update([predicted(boxes, scores)], [annotated(boxes)], [info()])
    assert metrics.compute()["mask_AR100"] == pytest.approx(100 / 126)
    assert metrics.details()["notes"] == [
        "1 image has more than 100 objects of a class: COCO counts no more predictions there, so "
        "not all can be found"
    ]


def test_wrong_arguments_are_refused() -> None:
    box = [[0, 0, 5, 5]]
    message, true = predicted(box, [0.5]), annotated(box)
    metrics = InstanceSegmentationMetrics(ONE)
    for prediction, truth, what in (
        (replace(message, rles=None), true, r"Prediction\.rles is None"),
        (message, replace(true, rles=None), r"Target\.rles is None"),
        (
            replace(message, rles=message.rles * 2),
            true,
            r"000\.png: 2 Prediction\.rles for 1 boxes",
        ),
    ):
        with pytest.raises(ValueError, match=what):
            metrics.update([prediction], [truth], [info()])
    with pytest.raises(ValueError, match=r"size \[100, 120\], the image is \[120, 100\]"):
        metrics.update([message], [true], [info(size=(120, 100))])
    with pytest.raises(RunError, match=r"the model's boxes for 000\.png are not finite"):
        metrics.update([replace(message, boxes=message.boxes / 0)], [true], [info()])
    assert len(metrics) == 0
    with pytest.raises(UsageError, match="backend 'coco': expected one of faster_coco_eval"):
        metrics_for("instance_segmentation", ONE, backend="coco")
    assert type(metrics_for("instance_segmentation", ONE)) is InstanceSegmentationMetrics
