"""R-CNN's classical parts: linear SVMs on the features, box regressors on the last map.

Girshick et al. 2014, arXiv 1311.2524, section 2.3 and appendices B and C.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.layers.hard_negative_svm import fit_machines
from cvtrain.layers.ridge import ridge
from cvtrain.models.staged import Stage

LENGTH = 20.0
"""Mean length that features are scaled to; ``C`` and the ridge's strength are for such."""


class SVMs(Stage):
    """One linear SVM a class: its objects against all boxes that overlap none of them much.

    Args:
        features: F.
        num_classes: K.
        C: weight of the hinge losses, for features of mean length 20.
        positive_weight: the objects' share of C, relative to the other boxes'.
        rounds: of hard-negative mining at most.
        most: hard negatives of a class that a round adds at most.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        features: int,
        num_classes: int,
        C: float,
        positive_weight: float,
        rounds: int,
        most: int = 5000,
    ) -> None:
        super().__init__()
        self.C, self.positive_weight, self.rounds, self.most = C, positive_weight, rounds, most
        self.register_buffer("weight", torch.zeros(num_classes, features))
        self.register_buffer("bias", torch.zeros(num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """``(N, F)`` -> margins float32 ``(N, K)``: above 0 the class, 1 and more surely so."""
        return F.linear(features.float(), self.weight.float(), self.bias.float())

    def fit(self, examples: Mapping[str, np.ndarray]) -> str:
        features, signs = examples["features"], examples["signs"]
        scale = LENGTH / max(mean_length(features), 1e-12)
        found = fit_machines(
            features,
            signs,
            C=self.C,
            scale=scale,
            positive_weight=self.positive_weight,
            rounds=self.rounds,
            most=self.most,
        )
        self.weight.copy_(torch.from_numpy(found.weight * scale))
        self.bias.copy_(torch.from_numpy(found.bias))
        self.fitted.fill_(True)
        message = (
            f"{len(self.bias)} classes, {int((signs > 0).sum()):,} objects, {found.held:,} hard "
        )
        message += f"of {int((signs < 0).sum()):,} negatives in {found.rounds} rounds"
        return message + (f" ({found.left:,} not seen yet)" if found.left else "")


class BoxRegressors(Stage):
    """A ridge regression a class, from the last map of a box to the object it is nearest to.

    Args:
        inputs: F, numbers of a box's map.
        num_classes: K.
        strength: of the penalty, lambda, for maps of mean length 20.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, num_classes: int, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.register_buffer("weight", torch.zeros(num_classes, 4, inputs))
        self.register_buffer("bias", torch.zeros(num_classes, 4))

    def forward(self, maps: Tensor) -> Tensor:
        """``(N, F)`` -> codes float32 ``(N, K, 4)``, as ``BoxCoder`` has them."""
        weight, bias = self.weight.float().flatten(0, 1), self.bias.float().flatten()
        return F.linear(maps.float(), weight, bias).unflatten(1, (-1, 4))  # (N, 4K) -> (N, K, 4)

    def fit(self, examples: Mapping[str, np.ndarray]) -> str:
        maps, codes, labels = (examples[k] for k in ("pair_maps", "pair_codes", "pair_labels"))
        scale = LENGTH / max(mean_length(maps), 1e-12)
        self.weight.zero_()
        self.bias.zero_()  # a class without pairs: boxes stay as they are
        for k in np.unique(labels).tolist():
            rows = np.flatnonzero(labels == k)
            # Scaled inputs and a penalty on the weights are the same as inputs as they are and a
            # penalty smaller by the square.
            weight, bias = ridge(maps[rows], codes[rows], self.strength / scale**2)
            self.weight[k] = torch.from_numpy(weight).to(self.weight)
            self.bias[k] = torch.from_numpy(bias).to(self.bias)
        self.fitted.fill_(True)
        found = len(np.unique(labels))
        return f"{len(labels):,} pairs of box and object, {found} of {len(self.bias)} classes"


def mean_length(rows: np.ndarray, step: int = 16_384) -> float:
    """Mean Euclidean length of rows ``(N, F)``, which may be memory-mapped; 0 of none."""
    total = 0.0
    for start in range(0, len(rows), step):
        total += float(np.linalg.norm(rows[start : start + step].astype(np.float64), axis=1).sum())
    return total / max(1, len(rows))
