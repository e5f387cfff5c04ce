"""Semantic segmentation: hand-computed cases, and a slow loop over pixels as the judge."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from cvtrain.data.table import Classes
from cvtrain.metrics import metrics_for
from cvtrain.metrics.contours import (
    boundary,
    boundary_counts,
    boundary_tolerance,
    device_counts,
)
from cvtrain.metrics.semantic_segmentation import mask_file, must_keep_suffix
from cvtrain.structures import ImageInfo, Prediction, Target

NAMES = ("sky", "road", "car", "sign")


def info(index: int, mask: np.ndarray, name: str = "") -> ImageInfo:
    name = name or f"val/{index:03}.png"
    return ImageInfo(index, name, name, *mask.shape)


def feed(metrics, pairs, start=0):
    for n, (message, true) in enumerate(pairs, start=start):
        metrics.update(
            [Prediction(mask=torch.tensor(message))],
            [Target(mask=torch.tensor(true))],
            [info(n, true)],
        )
    return metrics


def scene(seed: int, images: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Blobs and noise of several sizes; class 3 is predicted, but never true; some void."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        h, w = (int(v) for v in rng.integers(5, 30, 2))
        true = np.kron(rng.integers(0, 3, (4, 4)), np.ones((8, 8), np.int64))[:h, :w]
        message = np.where(
            rng.random((h, w)) < 0.2, rng.integers(0, 4, (h, w)), np.roll(true, 1, 1)
        )
        pairs.append((message, np.where(rng.random((h, w)) < 0.1, 255, true)))
    return pairs


def slow(pairs, k: int) -> dict[str, float]:
    """One pixel at a time."""
    matrix = [[0] * k for _ in range(k)]
    outline = [[0] * 4 for _ in range(k)]
    for message, true in pairs:
        h, w = true.shape
        edges: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for y in range(h):
            for x in range(w):
                if true[y, x] == 255:
                    continue
                matrix[true[y, x]][message[y, x]] += 1
                for what, mask in (("said", message), ("true", true)):
                    around = [
                        mask[b, a]
                        for b, a in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
                        if 0 <= b < h and 0 <= a < w and true[b, a] != 255
                    ]
                    if any(v != mask[y, x] for v in around):
                        edges.setdefault((what, int(mask[y, x])), []).append((y, x))
        reach = math.ceil(0.0075 * math.sqrt(h * h + w * w))
        for c in range(k):
            a, b = edges.get(("said", c), []), edges.get(("true", c), [])
            outline[c][0] += len(a)
            outline[c][1] += sum(any(math.dist(p, q) <= reach for q in b) for p in a)
            outline[c][2] += len(b)
            outline[c][3] += sum(any(math.dist(p, q) <= reach for q in a) for p in b)
    ious, dices, recalls, sharp, weighted, right, total = [], [], [], [], 0.0, 0, 0
    for c in range(k):
        actual = sum(matrix[c])
        predicted = sum(row[c] for row in matrix)
        right += matrix[c][c]
        total += actual
        if not actual:
            continue
        ious.append(matrix[c][c] / (actual + predicted - matrix[c][c]))
        dices.append(2 * matrix[c][c] / (actual + predicted))
        recalls.append(matrix[c][c] / actual)
        weighted += actual * ious[-1]
        if outline[c][2]:
            p = outline[c][1] / outline[c][0] if outline[c][0] else 0.0
            r = outline[c][3] / outline[c][2]
            sharp.append(2 * p * r / (p + r) if p + r else 0.0)
    return {
        "mIoU": sum(ious) / len(ious),
        "pixel_accuracy": right / total,
        "mean_accuracy": sum(recalls) / len(recalls),
        "dice": sum(dices) / len(dices),
        "fwIoU": weighted / total,
        "boundary_F": sum(sharp) / len(sharp),
    }


@pytest.fixture
def metrics():
    return metrics_for("semantic_segmentation", Classes(NAMES, (7, 8, 11, 20)))


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_a_loop_over_pixels(metrics, seed) -> None:
    pairs = scene(seed)
    got = feed(metrics, pairs).compute()
    expected = slow(pairs, len(NAMES))
    assert list(got) == list(expected)
    assert got == pytest.approx(expected, abs=1e-12)
    assert 0.2 < got["boundary_F"] < 0.98


def test_by_hand_and_not_the_mean_over_images(metrics) -> None:
    """A small image all wrong beside a large one all right: pixels are counted, not images."""
    large, small = np.zeros((10, 10), np.int64), np.ones((1, 10), np.int64)
    got = feed(metrics, [(large, large), (np.zeros((1, 10), np.int64), small)]).compute()
    assert got["mIoU"] == pytest.approx((100 / 110 + 0) / 2)
    assert got["pixel_accuracy"] == pytest.approx(100 / 110)
    assert got["mean_accuracy"] == pytest.approx(0.5)
    assert got["dice"] == pytest.approx((200 / 210 + 0) / 2)
    assert got["fwIoU"] == pytest.approx(100 / 110 * 100 / 110)
    assert math.isnan(got["boundary_F"])  # neither has a boundary
    assert metrics.details()["worst"][0]["file_name"] == "val/001.png"
    assert metrics.details()["worst"][0]["mean_iou"] == 0.0


def test_absent_classes_are_left_out_and_named(metrics) -> None:
    true = np.array([[0, 0, 1, 1]])
    message = np.array([[0, 3, 1, 3]])
    got = feed(metrics, [(message, true)]).compute()
    assert got["mIoU"] == pytest.approx(0.5)
    details = metrics.details()
    assert details["notes"] == ["the means exclude 2 classes without ground truth: car, sign"]
    rows = {row["name"]: row for row in details["per_class"]}
    assert math.isnan(rows["sign"]["IoU"])
    assert rows["sky"]["IoU"] == pytest.approx(0.5)
    assert (rows["sky"]["images"], rows["sky"]["pixels"], rows["sky"]["id"]) == (1, 2, 7)
    assert details["confusion"].tolist()[0] == [1, 0, 0, 1]


def test_void_counts_for_nothing_and_empty_sets_are_nan(metrics) -> None:
    assert all(math.isnan(v) for v in metrics.compute().values())
    assert metrics.details()["notes"] == ["no image was evaluated"]
    void = np.full((4, 5), 255)
    feed(metrics, [(np.ones((4, 5), np.int64), void)])
    assert all(math.isnan(v) for v in metrics.compute().values())
    assert "1 image is void altogether and count for nothing" in metrics.details()["notes"]
    assert metrics.details()["worst"] == []
    true = np.array([[0, 255, 1]])
    got = feed(metrics, [(np.array([[0, 2, 1]]), true)], start=1).compute()
    assert got["mIoU"] == got["pixel_accuracy"] == 1.0


def test_records_are_small_and_merge_to_the_same_numbers(metrics) -> None:
    pairs = scene(9, images=8)
    whole = feed(metrics, pairs).compute()
    other = metrics_for("semantic_segmentation", metrics.classes)
    first = metrics_for("semantic_segmentation", metrics.classes)
    feed(first, pairs[5:], start=5)
    feed(other, pairs[:5])
    other.merge([first.state(), other.state()])
    assert other.compute() == whole
    assert other.predictions_json() == metrics.predictions_json()
    big = np.kron(scene(1)[0][1], np.ones((40, 40), np.int64))
    big[big == 255] = 0
    feed(metrics, [(big, big)], start=8)
    assert len(pickle.dumps(metrics.state()[-1])) < 4000 < big.size


def test_what_is_written(metrics) -> None:
    true = np.array([[0, 0, 255, 2]])
    feed(metrics, [(np.array([[0, 2, 1, 2]]), true)])
    assert metrics.predictions_json() == [
        {
            "image_id": "val/000.png",
            "file_name": "val/000.png",
            "mask": "masks/val/000.png",
            "pixels": {"sky": 1, "road": 1, "car": 2},
        }
    ]
    truth = metrics.ground_truth_json()
    assert truth["annotations"] == [
        {"id": 1, "image_id": "val/000.png", "category_id": 7, "area": 2},
        {"id": 2, "image_id": "val/000.png", "category_id": 11, "area": 1},
    ]
    assert mask_file("a/b.JPG") == "masks/a/b.png"
    assert mask_file("a/b.v2") == "masks/a/b.v2.png"
    assert mask_file("a/b.jpg", keep_suffix=True) == "masks/a/b.jpg.png"
    assert must_keep_suffix(["a.jpg", "a.png"])
    assert not must_keep_suffix(["a.jpg", "b.png", "c/a.png"])


@pytest.mark.parametrize(
    ("said", "true", "message"),
    [
        ([[4]], [[0]], r"Prediction.mask of shape \(1, 1\) with values 4..4, expected \(H, W\)"),
        ([[255]], [[0]], "Prediction.mask"),
        ([[0]], [[9]], "Target.mask"),
        ([[0, 0]], [[0]], r"a mask of \(1, 2\) predicted, the ground truth is \(1, 1\)"),
    ],
)
def test_wrong_masks_are_refused(metrics, said, true, message) -> None:
    with pytest.raises(ValueError, match=message):
        feed(metrics, [(np.array(said), np.array(true))])
    with pytest.raises(ValueError, match="None, but this metric needs it"):
        metrics.update(
            [Prediction()], [Target(mask=torch.zeros(1, 1))], [info(0, np.zeros((1, 1)))]
        )


def test_boundaries_and_their_tolerance() -> None:
    assert boundary_tolerance(480, 360) == 5  # 4.5, rounded up
    assert boundary_tolerance(20, 20) == 1
    mask = np.array([[0, 0, 1], [0, 255, 1], [0, 0, 255]], np.uint8)
    assert boundary(mask, 0).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert boundary(mask, 1).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    true = np.zeros((20, 20), np.uint8)
    true[:, 10:] = 1
    for shift, near in ((0, 20), (1, 20), (2, 0)):
        moved = np.roll(true, shift, 1)
        pair = [torch.from_numpy(m[:, 5:15].copy()) for m in (moved, true)]
        classes, counts = boundary_counts(*pair)
        assert classes.tolist() == [0, 1]
        assert counts.tolist() == [[20, near, 20, near]] * 2


@pytest.mark.parametrize("size", [(40, 60), (7, 300), (1, 50), (50, 1), (300, 300)])
def test_a_gpu_counts_boundaries_as_the_distance_transform_does(size) -> None:
    rng = np.random.default_rng(sum(size))
    for side in (1, 9, 40):
        small = [max(1, -(-n // side)) for n in size]
        coarse = rng.integers(0, 4, (2, *small))
        masks = coarse.repeat(side, axis=1).repeat(side, axis=2)[:, : size[0], : size[1]]
        masks = masks.astype(np.uint8)
        masks[1][rng.random(size) < 0.1] = 255
        message, true = (torch.from_numpy(m.copy()) for m in masks)
        for one, other in zip(
            boundary_counts(message, true), device_counts(message, true), strict=True
        ):
            assert one.tolist() == other.tolist()
    void = torch.full(size, 255, dtype=torch.uint8)
    assert [len(part) for part in device_counts(message, void)] == [0, 0]
