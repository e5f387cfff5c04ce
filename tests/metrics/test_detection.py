"""Detection metrics: cases worked by hand, slow references, equality of the two backends."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from cvtrain.data.table import Classes
from cvtrain.errors import RunError, UsageError
from cvtrain.metrics import metrics_for
from cvtrain.metrics.coco import coco_evaluate, top_rows
from cvtrain.metrics.detection import DetectionMetrics, pack_detections
from cvtrain.metrics.voc import average_precisions
from cvtrain.structures import Placement, Prediction, Target

ONE = Classes.from_names(["thing"])
BACKENDS = ["faster_coco_eval", "pycocotools"]
COCO_NAMES = ["mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large"]
COCO_NAMES += ["AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]


def same(a: dict[str, float], b: dict[str, float], tolerance: float) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name] == pytest.approx(b[name], abs=tolerance, nan_ok=True), name


@pytest.fixture(params=BACKENDS)
def one(request, build):
    """Metrics of one class after one image."""

    def run(prediction, truth, classes=ONE):
        metrics = DetectionMetrics(classes, backend=request.param)
        metrics.update([prediction], [truth], [build.info(0)])
        return metrics

    return run


def test_perfect_prediction(one, build):
    box = [[10, 20, 110, 90]]  # 7,000 square pixels: medium
    values = one(build.prediction(box, [0.9]), build.truth(box)).compute()
    assert list(values) == [*COCO_NAMES, "voc_mAP50", "voc07_mAP50"]
    for name, value in values.items():
        if name.endswith(("small", "large")):
            assert math.isnan(value)
        else:
            assert value == pytest.approx(1.0, abs=1e-12), name
        assert type(value) is float


def test_hit_miss_hit_by_hand(one, build):
    """Recall 1/2 at precision 1, recall 1 at precision 2/3."""
    truth = build.truth([[0, 0, 50, 50], [100, 100, 160, 160]])
    found = build.prediction(
        [[0, 0, 50, 50], [300, 300, 350, 350], [100, 100, 160, 160]], [0.9, 0.8, 0.7]
    )
    values = one(found, truth).compute()
    assert values["mAP50"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)
    assert values["mAP"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)
    assert values["voc_mAP50"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3, abs=1e-12)
    assert values["voc07_mAP50"] == pytest.approx((6 + 5 * 2 / 3) / 11, abs=1e-12)
    assert values["AR1"] == pytest.approx(0.5)
    assert values["AR10"] == pytest.approx(1.0)


def test_iou_decides_at_each_threshold(one, build):
    """A shift by 15 of 100 pixels: IoU 85/115 = 0.739, a hit at 0.50 to 0.70, 5 of 10."""
    values = one(
        build.prediction([[15, 0, 115, 100]], [0.5]), build.truth([[0, 0, 100, 100]])
    ).compute()
    assert values["mAP50"] == pytest.approx(1.0)
    assert values["mAP75"] == 0.0
    assert values["mAP"] == pytest.approx(0.5)
    assert values["AR100"] == pytest.approx(0.5)


def test_iou_of_exactly_one_half_is_a_hit(one, build):
    values = one(
        build.prediction([[0, 0, 100, 50]], [0.5]), build.truth([[0, 0, 100, 100]])
    ).compute()
    assert values["mAP50"] == pytest.approx(1.0)
    assert values["voc_mAP50"] == 1.0


def test_second_detection_of_an_object_is_a_mistake(one, build):
    box = [0, 0, 100, 100]
    truth = build.truth([box, [200, 200, 300, 300]])
    values = one(
        build.prediction([box, box, [200, 200, 300, 300]], [0.9, 0.8, 0.7]), truth
    ).compute()
    assert values["voc_mAP50"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert values["mAP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_ignored_objects_count_neither_way(one, build):
    """Two detections on a difficult object, ahead of the true one: as if they were not there."""
    truth = build.truth([[0, 0, 100, 100], [200, 200, 300, 300]], ignore=[True, False])
    found = build.prediction(
        [[0, 0, 100, 100], [2, 2, 100, 100], [200, 200, 300, 300]], [0.9, 0.8, 0.7]
    )
    metrics = one(found, truth)
    values = metrics.compute()
    for name in ("mAP", "mAP50", "mAP75", "AR100", "voc_mAP50", "voc07_mAP50"):
        assert values[name] == pytest.approx(1.0), name
    assert metrics.details()["notes"] == ["1 difficult or crowd object ignored"]
    assert metrics.details()["per_class"][0]["objects"] == 1


def test_detections_inside_a_crowd_are_excused_by_coco(one, build):
    """COCO divides the intersection with a crowd region by the detection's own area."""
    truth = build.truth([[0, 0, 400, 400], [500, 500, 550, 550]], ignore=[True, False])
    found = build.prediction(
        [[10, 10, 40, 40], [90, 90, 140, 140], [500, 500, 550, 550]], [0.9, 0.8, 0.7]
    )
    values = one(found, truth).compute()
    assert values["mAP50"] == pytest.approx(1.0)
    # VOC knows no crowds: an IoU below one half with a difficult object excuses nothing.
    assert values["voc_mAP50"] == pytest.approx(1 / 3)


def test_voc_takes_the_annotation_of_largest_overlap_even_if_it_is_difficult(one, build):
    """IoU 0.9 with a difficult object, 0.6 with a plain one: neither hit nor mistake."""
    truth = build.truth([[0, 0, 100, 100], [0, 0, 100, 66]], ignore=[True, False])
    values = one(build.prediction([[0, 0, 100, 95]], [0.9]), truth).compute()
    assert values["voc_mAP50"] == 0.0
    assert values["mAP50"] == pytest.approx(1.0)  # COCO prefers objects that count


def test_no_prediction_is_zero_and_no_truth_is_undefined(one, build):
    none = build.prediction([], [])
    zero = one(none, build.truth([[0, 0, 100, 100]]))
    assert zero.compute()["mAP"] == 0.0
    assert zero.compute()["voc_mAP50"] == 0.0
    assert zero.compute()["AR100"] == 0.0
    assert math.isnan(zero.compute()["mAP_small"])
    assert zero.details()["notes"] == ["the model predicted nothing"]
    for found in (none, build.prediction([[0, 0, 10, 10]], [0.4])):
        undefined = one(found, build.truth([]))
        assert all(math.isnan(v) for v in undefined.compute().values())
        assert undefined.details()["notes"] == ["no ground truth: every metric is undefined"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_any_image_everything_is_undefined(backend):
    metrics = DetectionMetrics(ONE, backend=backend)
    assert all(math.isnan(v) for v in metrics.compute().values())
    assert metrics.details()["notes"] == ["no image was evaluated"]
    assert metrics.predictions_json() == []
    assert metrics.ground_truth_json()["images"] == []


def test_class_without_ground_truth_is_named_and_left_out(one, build):
    classes = Classes(("a", "b", "c"), (5, 2, 9))
    box = [0, 0, 100, 100]
    metrics = one(
        build.prediction([box, [200, 0, 300, 100], [0, 200, 99, 299]], [0.9, 0.8, 0.7], [0, 1, 2]),
        build.truth([box, [0, 200, 100, 300]], [0, 2], [False, True]),
        classes,
    )
    values = metrics.compute()
    assert values["mAP50"] == pytest.approx(1.0)
    assert values["voc_mAP50"] == 1.0
    notes = metrics.details()["notes"]
    assert notes[0] == "2 classes without ground truth, excluded: b, c"
    rows = metrics.details()["per_class"]
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert [row["id"] for row in rows] == [5, 2, 9]
    assert [row["objects"] for row in rows] == [1, 0, 0]
    assert rows[0]["AP50"] == pytest.approx(1.0)
    for column in ("AP", "AP50", "AP75", "AR100", "voc_AP50", "voc07_AP50"):
        assert math.isnan(rows[1][column])


def test_areas_of_the_data_set_decide_the_size(one, build):
    """A box of 100 x 100 whose segment covers 500 square pixels is small."""
    box = [[0, 0, 100, 100]]
    small = one(build.prediction(box, [0.9]), build.truth(box, areas=[500.0])).compute()
    assert small["AR_small"] == 1.0
    assert math.isnan(small["AR_large"])
    large = one(build.prediction(box, [0.9]), build.truth(box, areas=[float("nan")])).compute()
    assert large["AR_large"] == 1.0
    assert math.isnan(large["AR_small"])


@pytest.mark.parametrize("seed", range(6))
def test_backends_agree(seed, random_scene):
    scene = random_scene(seed, ignored=(0.0, 0.15, 0.9)[seed % 3], classes=(1, 4, 3)[seed % 3])
    fast = scene.feed(DetectionMetrics(scene.classes))
    slow = scene.feed(DetectionMetrics(scene.classes, backend="pycocotools"))
    assert 0 < fast.compute()["mAP50"] < 1
    same(fast.compute(), slow.compute(), 1e-9)
    one, other = fast.details(), slow.details()
    assert np.allclose(
        one["pr_curves"]["precision"], other["pr_curves"]["precision"], atol=1e-9, equal_nan=True
    )
    for a, b in zip(one["per_class"], other["per_class"], strict=True):
        assert a.pop("name") == b.pop("name")
        same(a, b, 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_voc_equals_the_slow_reference(seed, random_scene, slow_voc):
    scene = random_scene(seed, ignored=(0.0, 0.3)[seed % 2], images=20)
    values = scene.feed(DetectionMetrics(scene.classes)).compute()
    expected = slow_voc(scene)
    assert 0 < expected["voc_mAP50"] < 1
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-12)


def test_eleven_point_recalls_are_exact():
    """3 of 10 found: recall 0.3 reaches the fourth level, which 3 * 0.1 in floats misses."""
    area, eleven = average_precisions(np.ones(3, bool), 10)
    assert area == pytest.approx(0.3)
    assert eleven == pytest.approx(4 / 11)
    assert average_precisions(np.zeros(0, bool), 2) == (0.0, 0.0)


def test_only_the_100_highest_scores_of_a_class_and_image_are_read(random_scene):
    scene = random_scene(1, images=3, classes=2, detections=350, unused_class=False)
    data = pack_detections(scene.feed(DetectionMetrics(scene.classes)).state(), 2)
    rows = top_rows(data, 100)
    for i in range(3):
        for k in range(2):
            all_rows = np.flatnonzero((data.images == i) & (data.labels == k))
            kept = np.intersect1d(rows, all_rows)
            best = all_rows[np.argsort(-data.scores[all_rows], kind="stable")][:100]
            assert np.array_equal(kept, np.sort(best))
    assert len(rows) < len(data.scores)
    assert coco_evaluate(data).summary()["mAP50"] > 0


def test_pr_curves(one, build):
    truth = build.truth([[0, 0, 50, 50], [100, 100, 160, 160]])
    found = build.prediction([[0, 0, 50, 50], [300, 300, 350, 350]], [0.9, 0.8])
    curves = one(found, truth).details()["pr_curves"]
    assert np.allclose(curves["recall"], np.arange(101) / 100)
    assert curves["precision"].shape == (1, 101)
    assert np.allclose(curves["precision"][0, :51], 1.0)
    assert (curves["precision"][0, 51:] == 0).all()


def test_confusion_by_hand(build):
    """A right one, a mistaken class, a stray, a missed one, one in a crowd, one of low score."""
    classes = Classes.from_names(["cat", "dog"])
    metrics = DetectionMetrics(classes)
    truth = build.truth(
        [[0, 0, 50, 50], [100, 0, 150, 50], [200, 0, 250, 50], [0, 200, 300, 400]],
        [0, 0, 1, 1],
        [False, False, False, True],
    )
    found = build.prediction(
        [
            [0, 0, 50, 50],
            [100, 0, 150, 50],
            [400, 0, 450, 50],
            [20, 220, 60, 260],
            [200, 0, 250, 50],
        ],
        [0.9, 0.8, 0.7, 0.6, 0.2],
        [0, 1, 1, 0, 1],
    )
    metrics.update([found], [truth], [build.info(0)])
    details = metrics.details()
    assert details["confusion_labels"] == ["cat", "dog", "background"]
    #                                          cat dog missed
    assert details["confusion"].tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_order_batches_and_ranks_change_nothing(random_scene):
    scene = random_scene(5, images=21)
    whole = scene.feed(DetectionMetrics(scene.classes))
    expected, expected_json = whole.compute(), whole.predictions_json()
    shuffled = scene.feed(
        DetectionMetrics(scene.classes), rows=np.random.default_rng(0).permutation(21), batch=1
    )
    assert shuffled.compute() == expected
    assert shuffled.predictions_json() == expected_json
    for ranks in (2, 3, 30):
        parts = [
            scene.feed(DetectionMetrics(scene.classes), rows=range(r, 21, ranks))
            for r in range(ranks)
        ]
        states = [part.state() for part in parts]
        merged = parts[0]
        merged.merge(reversed(states))
        assert merged.compute() == expected
        assert merged.predictions_json() == expected_json
        assert merged.ground_truth_json() == whole.ground_truth_json()
        assert len(merged) == 21


def test_state_can_be_pickled_and_compute_follows_changes(random_scene):
    scene = random_scene(6)
    metrics = scene.feed(DetectionMetrics(scene.classes), rows=range(5))
    before = metrics.compute()
    scene.feed(metrics, rows=range(5, 12))
    after = metrics.compute()
    assert before != after
    other = DetectionMetrics(scene.classes)
    other.merge([pickle.loads(pickle.dumps(metrics.state()))])
    assert other.compute() == after
    metrics.reset()
    assert len(metrics) == 0
    assert math.isnan(metrics.compute()["mAP"])


def test_the_same_image_twice_is_an_error(random_scene):
    scene = random_scene(0)
    metrics = scene.feed(DetectionMetrics(scene.classes))
    with pytest.raises(ValueError, match=r"images/003.jpg \(index 3\) was given .* twice"):
        scene.feed(metrics, rows=[3])
    with pytest.raises(ValueError, match="twice"):
        metrics.merge([metrics.state(), metrics.state()])


def test_what_is_kept_is_small_and_independent_of_the_batch(build):
    big = torch.rand(10_000, 4).sort(dim=1).values
    placement = Placement(1.0, 1.0, 0.0, 0.0, 480, 640)
    info = build.info(0)
    metrics = DetectionMetrics(ONE)
    prediction = Prediction(boxes=big[:2], scores=torch.tensor([0.5, 0.4]), labels=torch.zeros(2))
    metrics.update([prediction], [build.truth([])], [replace(info, placement=placement)])
    assert metrics.state()[0].info.placement is None
    assert len(pickle.dumps(metrics.state())) < 2_000
    first = metrics.predictions_json()
    big.zero_()
    assert metrics.predictions_json() == first


def test_predictions_that_are_not_finite_are_refused(build):
    metrics = DetectionMetrics(ONE)
    for boxes, scores, what in (
        ([[0, 0, float("nan"), 5]], [0.5], "boxes"),
        ([[0, 0, 5, 5]], [float("inf")], "scores"),
    ):
        with pytest.raises(RunError, match=rf"{what} for images/0000.jpg are not finite"):
            metrics.update([build.prediction(boxes, scores)], [build.truth([])], [build.info(0)])


def test_wrong_arguments_are_refused(build):
    with pytest.raises(UsageError, match="backend 'coco': expected one of faster_coco_eval"):
        DetectionMetrics(ONE, backend="coco")
    metrics = DetectionMetrics(ONE)
    box = [[0, 0, 5, 5]]
    with pytest.raises(ValueError, match="zip"):
        metrics.update([build.prediction(box, [0.5])], [], [build.info(0)])
    with pytest.raises(ValueError, match=r"labels 1..1, expected 0..0"):
        metrics.update([build.prediction(box, [0.5], [1])], [build.truth([])], [build.info(0)])
    with pytest.raises(ValueError, match=r"labels -1..-1, expected 0..0"):
        metrics.update([build.prediction([], [])], [build.truth(box, [-1])], [build.info(0)])
    with pytest.raises(ValueError, match="1 boxes, 2 scores"):
        metrics.update([build.prediction(box, [1, 0])], [build.truth([])], [build.info(0)])
    with pytest.raises(ValueError, match=r"Prediction\.boxes is None"):
        metrics.update([Prediction()], [build.truth([])], [build.info(0)])
    with pytest.raises(ValueError, match=r"Target\.boxes is None"):
        metrics.update([build.prediction([], [])], [Target()], [build.info(0)])
    truth = build.truth(box, ignore=[True, False])
    with pytest.raises(ValueError, match="1 boxes, 1 labels, 2 ignore, 1 areas"):
        metrics.update([build.prediction([], [])], [truth], [build.info(0)])
    assert len(metrics) == 0


def test_metrics_for_finds_a_tasks_metrics_by_name():
    assert type(metrics_for("detection", ONE)) is DetectionMetrics
    assert metrics_for("detection", ONE, backend="pycocotools").backend == "pycocotools"
    for name in ("nonsense", "base", "os.path"):
        with pytest.raises(UsageError, match=f"task '{name}' has no metrics"):
            metrics_for(name, ONE)


def test_half_precision_predictions_are_taken(build):
    box = torch.tensor([[0, 0, 64, 64]])
    found = Prediction(
        boxes=box.bfloat16(), scores=torch.tensor([0.5]).bfloat16(), labels=torch.tensor([0])
    )
    metrics = DetectionMetrics(ONE)
    metrics.update([found], [build.truth(box)], [build.info(0)])
    assert metrics.compute()["mAP"] == pytest.approx(1.0)
