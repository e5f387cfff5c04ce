"""What every metric promises to the task that feeds it.

A metric sees predictions and truths, never a model. It keeps one small record an image until the
epoch is over and computes once over the whole set, so that neither batch size, nor the order of
arrival, nor the number of processes can change a digit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvtrain.data.table import Classes
from cvtrain.errors import RunError
from cvtrain.structures import ImageInfo, Prediction, Target


@dataclass(frozen=True)
class Record:
    """What a metric keeps of one image.

    Attributes:
        info: which image it is (without its placement).
        predicted: packed prediction, the metric's own choice of arrays and numbers.
        annotated: packed ground truth, likewise.
    """

    info: ImageInfo
    predicted: Any
    annotated: Any


class Metrics(ABC):
    """Collects one record an image, then computes scalars in 0..1 and details over all of them.

    A subclass says how a prediction and a truth are packed, what they amount to (``_evaluate``),
    and how they are written (``prediction_entries``, ``_truth_entries``).

    Args:
        classes: names and category ids, the class index being the position.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self._records: dict[int, Record] = {}
        self._evaluated: tuple[dict[str, float], dict[str, Any]] | None = None

    def __len__(self) -> int:
        """The number of images seen since the last reset."""
        return len(self._records)

    def reset(self) -> None:
        """Forget every image."""
        self._records = {}
        self._evaluated = None

    def update(
        self, predictions: list[Prediction], truths: list[Target], infos: list[ImageInfo]
    ) -> None:
        """Take in a batch.

        Args:
            predictions: one an image, pixels of the original image, on the CPU.
            truths: one an image, pixels of the original image.
            infos: one an image; ``index`` identifies it, so each image comes once.

        Raises:
            ValueError: the lists differ in length, an image came before, a needed field is None.
            RunError: a prediction is not finite.
        """
        for prediction, truth, info in zip(predictions, truths, infos, strict=True):
            self._add(self._record(prediction, truth, replace(info, placement=None)))

    def compute(self) -> dict[str, float]:
        """Scalars by name, the most important first; NaN where the data does not define one."""
        return dict(self._results()[0])

    def details(self) -> dict[str, Any]:
        """What does not fit a scalar.

        Always there: ``per_class``, a list of one dict a class that begins with ``name``, and
        ``notes``, lines a reader of the numbers must know. The rest is the metric's own.
        """
        return self._results()[1]

    def infos(self) -> list[ImageInfo]:
        """The images seen, in the order of the split."""
        return [record.info for record in self._sorted()]

    def state(self) -> list[Record]:
        """Picklable: what this process has seen, for the others."""
        return self._sorted()

    def merge(self, states: Iterable[list[Record]]) -> None:
        """Replace what is held by the union of ``states``: one a process, this one's included.

        Raises:
            ValueError: two states hold the same image.
        """
        states = list(states)
        self.reset()
        for state in states:
            for record in state:
                self._add(record)

    def predictions_json(self) -> list[dict[str, Any]]:
        """All predictions, unrounded and uncut; see ``prediction_entries`` for an entry."""
        return list(self.iter_predictions())

    def iter_predictions(self) -> Iterator[dict[str, Any]]:
        """The entries of ``predictions_json`` one by one, in the order of the split."""
        for record in self._sorted():
            yield from self._packed_entries(record.predicted, record.info)

    def prediction_entries(
        self, prediction: Prediction, info: ImageInfo
    ) -> Iterator[dict[str, Any]]:
        """One image's entries of predictions.json, for images without a truth (``predict``)."""
        yield from self._packed_entries(self._pack_prediction(prediction, info), info)

    def ground_truth_json(self) -> dict[str, Any]:
        """The truths as a COCO data set with the ids that ``predictions_json`` uses.

        Annotation ids count from 1: pycocotools takes 0 for "unmatched".
        """
        records = self._sorted()
        annotations = [e for r in records for e in self._truth_entries(r.annotated, r.info)]
        return {
            "info": {"description": "ground truth as cvtrain scored it"},
            "images": [
                {
                    "id": r.info.image_id,
                    "file_name": r.info.file_name,
                    "width": r.info.width,
                    "height": r.info.height,
                }
                for r in records
            ],
            "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
            "categories": [
                {"id": i, "name": name}
                for i, name in zip(self.classes.ids, self.classes.names, strict=True)
            ],
        }

    # What a subclass says of itself -----------------------------------------------------------

    @abstractmethod
    def _pack_prediction(self, prediction: Prediction, info: ImageInfo) -> Any:
        """The part of a prediction that the metric and predictions.json need, on the CPU."""

    @abstractmethod
    def _pack_truth(self, truth: Target, info: ImageInfo) -> Any:
        """The part of a truth that the metric and ground_truth.json need."""

    @abstractmethod
    def _packed_entries(self, predicted: Any, info: ImageInfo) -> Iterator[dict[str, Any]]:
        """The entries of predictions.json that a packed prediction makes."""

    @abstractmethod
    def _truth_entries(self, annotated: Any, info: ImageInfo) -> Iterator[dict[str, Any]]:
        """The annotations of ground_truth.json that a packed truth makes, without ``id``."""

    @abstractmethod
    def _evaluate(self, records: list[Record]) -> tuple[dict[str, float], dict[str, Any]]:
        """``compute`` and ``details`` over the whole set; records come sorted by index."""

    def _record(self, prediction: Prediction, truth: Target, info: ImageInfo) -> Record:
        """One image's record; overridden where neither half is worth keeping (pixel counts)."""
        return Record(info, self._pack_prediction(prediction, info), self._pack_truth(truth, info))

    # Common to all ----------------------------------------------------------------------------

    def _sorted(self) -> list[Record]:
        return [self._records[index] for index in sorted(self._records)]

    def _results(self) -> tuple[dict[str, float], dict[str, Any]]:
        if self._evaluated is None:
            self._evaluated = self._evaluate(self._sorted())
        return self._evaluated

    def _add(self, record: Record) -> None:
        index = record.info.index
        if index in self._records:
            raise ValueError(
                f"image {record.info.file_name} (index {index}) was given to the metric twice"
            )
        self._records[index] = record
        self._evaluated = None


def as_array(tensor: Tensor | None, what: str, dtype: torch.dtype) -> np.ndarray:
    """A copy on the CPU in ``dtype``: nothing of the batch it came from stays alive.

    Raises:
        ValueError: the tensor is None; ``what`` names it.
    """
    if tensor is None:
        raise ValueError(f"{what} is None, but this metric needs it")
    return tensor.detach().to("cpu", dtype, copy=True).numpy()


def check_finite(values: np.ndarray, what: str, info: ImageInfo) -> None:
    """Raise RunError where a prediction holds NaN or infinity: no metric is defined on it."""
    if not np.isfinite(values).all():
        raise RunError(
            f"the model's {what} for {info.file_name} are not finite: training has diverged; "
            "lower optimizer.lr, or set trainer.precision=32-true"
        )


def listed(names: list[str], limit: int = 10) -> str:
    """A readable list, cut after ``limit`` names."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
