"""The COCO family of metrics of boxes and of masks, by faster-coco-eval or pycocotools.

Lin et al. 2014, "Microsoft COCO: Common Objects in Context", arXiv 1405.0312, and the protocol of
its evaluation code: average precision over 101 recall points, IoU 0.50:0.05:0.95, the 100 highest
scores an image and class; crowd regions are no objects, and matches with them no mistakes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvtrain.data.masks import rle_ious
from cvtrain.metrics.box_overlap import box_areas, box_ious
from cvtrain.structures import RLE

BACKENDS = ("faster_coco_eval", "pycocotools")
MAX_DETECTIONS = 100
AREAS = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class Detections:
    """All predictions and truths of a set, packed; rows of an image stand together, in its order.

    Images are numbered 0..N-1 in the order of their sorted ids, as pycocotools sorts them, so that
    equal scores meet in the same order here and in whoever scores the written files.

    Attributes:
        num_images, num_classes: N and K.
        images: int64 ``(D,)`` image of each prediction, ascending.
        boxes: float64 ``(D, 4)`` xyxy.
        scores: float64 ``(D,)``.
        labels: int64 ``(D,)``.
        gt_images, gt_boxes, gt_labels: the same for the G annotations.
        gt_ignore: bool ``(G,)``: crowd and difficult.
        gt_areas: float64 ``(G,)`` square pixels.
        sizes: int64 ``(N, 2)`` height, width of each image.
        rles, gt_rles: D and G masks; None: boxes are all there is.
    """

    num_images: int
    num_classes: int
    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    gt_images: np.ndarray
    gt_boxes: np.ndarray
    gt_labels: np.ndarray
    gt_ignore: np.ndarray
    gt_areas: np.ndarray
    sizes: np.ndarray
    rles: list[RLE] | None = None
    gt_rles: list[RLE] | None = None

    def ious(self, rows: np.ndarray, others: np.ndarray, crowd: bool = False) -> np.ndarray:
        """Overlap of predictions and annotations of one image: float64 ``(n, m)``.

        Of their masks where there are masks, else of their boxes.

        Args:
            rows: ``(n,)`` rows of predictions.
            others: ``(m,)`` rows of annotations.
            crowd: the annotations are regions: the intersection is divided by the prediction's
                area alone.
        """
        void = np.full(len(others), crowd)
        if self.rles is None or self.gt_rles is None:
            return box_ious(self.boxes[rows], self.gt_boxes[others], void if crowd else None)
        found, true = [self.rles[i] for i in rows], [self.gt_rles[i] for i in others]
        return rle_ious(found, true, void)

    def by_image(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows of predictions and of annotations of each image, in its order."""
        edges = np.arange(self.num_images + 1)
        starts = np.searchsorted(self.images, edges).tolist()
        gt_starts = np.searchsorted(self.gt_images, edges).tolist()
        for i in range(self.num_images):
            yield (
                np.arange(starts[i], starts[i + 1]),
                np.arange(gt_starts[i], gt_starts[i + 1]),
            )

    def counts(self) -> np.ndarray:
        """int64 ``(K,)`` annotations of each class that count as objects."""
        return np.bincount(self.gt_labels[~self.gt_ignore], minlength=self.num_classes)


@dataclass(frozen=True)
class COCOResult:
    """What the evaluation accumulates; NaN where there is no ground truth.

    With T=10 IoU thresholds, R=101 recalls, K classes, the areas all, small, medium, large, and
    1, 10, 100 detections an image:

    Attributes:
        precision: float64 ``(T, R, K, 4, 3)``.
        recall: float64 ``(T, K, 4, 3)``.
        recalls: float64 ``(R,)``.
    """

    precision: np.ndarray
    recall: np.ndarray
    recalls: np.ndarray

    def summary(self) -> dict[str, float]:
        """COCO's twelve numbers by name; NaN where no annotation is of that size."""
        precision, recall = self.precision, self.recall
        values = {
            "mAP": precision[:, :, :, 0, 2],
            "mAP50": precision[0, :, :, 0, 2],
            "mAP75": precision[5, :, :, 0, 2],
        }
        for a, area in enumerate(AREAS[1:], start=1):
            values[f"mAP_{area}"] = precision[:, :, :, a, 2]
        for m, count in enumerate((1, 10, MAX_DETECTIONS)):
            values[f"AR{count}"] = recall[:, :, 0, m]
        for a, area in enumerate(AREAS[1:], start=1):
            values[f"AR_{area}"] = recall[:, :, a, 2]
        return {name: mean(v) for name, v in values.items()}

    def per_class(self) -> dict[str, np.ndarray]:
        """``(K,)`` arrays by name: AP, AP50, AP75, AR100."""
        precision, recall = self.precision[..., 0, 2], self.recall[..., 0, 2]
        return {
            "AP": precision.mean(axis=(0, 1)),
            "AP50": precision[0].mean(axis=0),
            "AP75": precision[5].mean(axis=0),
            "AR100": recall.mean(axis=0),
        }


def mean(values: np.ndarray) -> float:
    """The mean of what is defined; NaN where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def coco_evaluate(
    data: Detections, backend: str = BACKENDS[0], iou_type: str = "bbox"
) -> COCOResult:
    """Run COCO's evaluation of boxes (``bbox``) or masks (``segm``); both backends agree to 1e-9.

    Whether a detection is small, medium or large goes by its box in both, as pycocotools has it
    with results that carry a ``bbox`` beside the ``segmentation``.
    """
    masks = iou_type == "segm"
    truths, results = _dataset(data, masks), _results(data, masks)
    run = _run_faster if backend == "faster_coco_eval" else _run_pycocotools
    evaluator = run(truths, results, iou_type)
    precision = np.asarray(evaluator.eval["precision"], np.float64)
    recall = np.asarray(evaluator.eval["recall"], np.float64)
    return COCOResult(
        precision=np.where(precision < 0, np.nan, precision),  # COCO marks "undefined" by -1
        recall=np.where(recall < 0, np.nan, recall),
        recalls=np.asarray(evaluator.params.recThrs, np.float64),
    )


def _run_faster(truths: dict[str, Any], results: dict[str, Any], iou_type: str) -> Any:
    from faster_coco_eval import COCO, COCOeval_faster

    evaluator = COCOeval_faster(COCO(truths), COCO(results), iouType=iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def _run_pycocotools(truths: dict[str, Any], results: dict[str, Any], iou_type: str) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def index(dataset: dict[str, Any]) -> Any:
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress by print
        evaluator = COCOeval(index(truths), index(results), iouType=iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _dataset(data: Detections, masks: bool) -> dict[str, Any]:
    """COCO's ground truth dict, images and categories named by their positions."""
    boxes = _xywh(data.gt_boxes).tolist()
    columns = zip(
        data.gt_images.tolist(),
        data.gt_labels.tolist(),
        boxes,
        data.gt_areas.tolist(),
        data.gt_ignore.tolist(),
        strict=True,
    )
    return _frame(data) | {
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": area,
                "iscrowd": int(ignore),
                **_segmentation(data.gt_rles, n - 1, masks),
            }
            for n, (image, label, box, area, ignore) in enumerate(columns, start=1)
        ]
    }


def _results(data: Detections, masks: bool) -> dict[str, Any]:
    """COCO's results as ``loadRes`` would index them; unlike it, at home with an empty list.

    Only the detections that the evaluation reads become Python objects.
    """
    rows = top_rows(data, MAX_DETECTIONS)
    boxes = _xywh(data.boxes[rows])
    columns = zip(
        data.images[rows].tolist(),
        data.labels[rows].tolist(),
        boxes.tolist(),
        (boxes[:, 2] * boxes[:, 3]).tolist(),
        data.scores[rows].tolist(),
        strict=True,
    )
    return _frame(data) | {
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": area,
                "score": score,
                "iscrowd": 0,
                **_segmentation(data.rles, rows[n - 1], masks),
            }
            for n, (image, label, box, area, score) in enumerate(columns, start=1)
        ]
    }


def _segmentation(rles: list[RLE] | None, row: int, masks: bool) -> dict[str, Any]:
    """The entry of a mask; none of boxes, and none in a set that knows boxes alone."""
    return {"segmentation": rles[row]} if masks and rles is not None else {}


def top_rows(data: Detections, limit: int) -> np.ndarray:
    """Rows of the ``limit`` highest scores of each image and class, in their own order."""
    order = np.lexsort((np.arange(len(data.scores)), -data.scores, data.labels, data.images))
    keys = data.images[order] * data.num_classes + data.labels[order]
    first = np.searchsorted(keys, keys, side="left")  # keys ascend along ``order``
    return np.sort(order[np.arange(len(order)) - first < limit])


def _frame(data: Detections) -> dict[str, Any]:
    return {
        "images": [
            {"id": i, "height": height, "width": width}
            for i, (height, width) in enumerate(data.sizes.tolist())
        ],
        "categories": [{"id": k, "name": str(k)} for k in range(data.num_classes)],
    }


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)  # (N, 4)


def truth_areas(boxes: np.ndarray, areas: np.ndarray | None) -> np.ndarray:
    """``(N,)`` areas as the data set gives them, those of the boxes where it does not."""
    own = box_areas(boxes)
    return own if areas is None else np.where(np.isnan(areas), own, areas)
