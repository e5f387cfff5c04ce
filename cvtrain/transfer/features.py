"""Batches of features in place of images: what a run on a fixed backbone is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cvtrain.data.dataset import VisionDataset
from cvtrain.data.views import Views
from cvtrain.structures import Batch

Samples = VisionDataset | Views


@dataclass
class FeatureBatch(Batch):
    """A batch whose ``images`` are features ``(B, F)``.

    Attributes:
        rows: B rows of ``samples``.
        samples: where the images are, for those who draw them.
    """

    rows: Sequence[int] = ()
    samples: Samples | None = None

    def pictures(self, places: Sequence[int]) -> Tensor:
        assert self.samples is not None
        images = [self.samples[self.rows[place]].image for place in places]  # (H, W, C) each
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # (P, C, H, W)


class Features(Dataset[Any]):
    """Samples whose images are replaced by their features; no image is read.

    Args:
        features: float32 ``(N, F)``.
        samples: the N samples they are of.
    """

    def __init__(self, features: np.ndarray, samples: Samples) -> None:
        self.features, self.samples = features, samples

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, keys: Sequence[tuple[int, ...]]) -> FeatureBatch:
        """A whole batch at once, as DataLoader asks for it."""
        rows = [key[1] if isinstance(key, tuple) else key for key in keys]
        message = [self.samples.described(row) for row in rows]
        truths = [s.truth for s in message if s.truth is not None]
        return FeatureBatch(
            images=torch.from_numpy(self.features[rows]),
            targets=[s.target for s in message],
            infos=[s.info for s in message],
            truths=truths or None,
            rows=rows,
            samples=self.samples,
        )

    def labels(self) -> np.ndarray:
        """int64 ``(N,)``: the class of each sample."""
        table = self.samples.table
        assert table.image_labels is not None
        return np.resize(table.image_labels, len(self)).astype(np.int64)  # views follow in turn


def on_features(loader: DataLoader[Any], features: np.ndarray) -> DataLoader[Any]:
    """The batches of ``loader``, in its order, with features in place of images.

    Args:
        loader: of ``VisionDataset`` or ``Views``.
        features: float32 ``(N, F)``, one row a sample of the loader's data set.
    """
    samples: Any = loader.dataset
    return DataLoader(
        Features(features, samples),
        batch_size=loader.batch_size,
        sampler=loader.sampler,
        drop_last=loader.drop_last,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # nothing is drawn from the run's own
    )


def _as_it_is(batch: Any) -> Any:
    return batch
