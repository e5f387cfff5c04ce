"""What a classifier has on its features: ``(B, F)`` -> logits ``(B, K)``.

- ``linear``: one linear layer.
- ``mlp``: one hidden layer with ReLU.
- ``svm``, ``logistic_regression``, ``knn``: scikit-learn's, fitted once on the features of all
  training images. What they learned is kept as tensors, so that a checkpoint holds no Python object
  and prediction is plain torch: the same as scikit-learn's own ``predict``.

The fitted ones see features scaled to unit length, as is usual for those of deep networks
(Razavian et al. 2014, "CNN Features off-the-shelf", arXiv 1403.6382): of an image its direction
counts, not how bright or rich it is.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.errors import DataError, UsageError

MAX_ITERATIONS = 10_000
"""Of the solvers of ``svm`` and ``logistic_regression``."""

NEVER = -1e4
"""The logit of a class that no training image has: its probability is 0."""

NO_VOTE = 1e-7
"""What ``knn`` gives a class without votes, as the logarithm of 0 is no number."""


def build_head(config: Mapping[str, Any] | None, features: int, num_classes: int) -> nn.Module:
    """The head that ``config`` names, at its random start or not fitted yet.

    Args:
        config: ``name`` and that head's own keys (``hidden``, ``C``, ``k``); None: linear.
        features: F.
        num_classes: K.

    Raises:
        UsageError: an unknown name.
    """
    config = config or {"name": "linear"}
    name = str(config.get("name"))
    if name == "linear":
        return _start(nn.Linear(features, num_classes))
    if name == "mlp":
        hidden = int(config.get("hidden") or 512)
        top = _start(nn.Linear(hidden, num_classes))
        return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), top)
    if name == "svm":
        return LinearSVM(features, num_classes, C=float(config.get("C") or 1.0))
    if name == "logistic_regression":
        return LogisticRegression(features, num_classes, C=float(config.get("C") or 10.0))
    if name == "knn":
        return NearestNeighbors(features, num_classes, k=int(config.get("k") or 5))
    raise UsageError(
        f"head {name}: expected linear, mlp, svm, logistic_regression or knn (transfer.head)"
    )


def _start(layer: nn.Linear) -> nn.Linear:
    """Nearly equal probabilities at the start."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


class FittedHead(nn.Module, ABC):
    """A head that is fitted once, not trained by gradients: it has buffers and no parameters.

    Args:
        features: F.
        num_classes: K.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.features, self.num_classes = features, num_classes

    @abstractmethod
    def fit(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Learn from the features of the training images.

        Args:
            features: float ``(N, F)``.
            labels: int64 ``(N,)`` in 0..K-1.

        Raises:
            DataError: fewer images or classes than it takes.
        """

    @abstractmethod
    def logits(self, directions: Tensor) -> Tensor:
        """Features of unit length, float32 ``(B, F)`` -> ``(B, K)``."""

    def forward(self, features: Tensor) -> Tensor:
        """``(B, F)`` -> float32 ``(B, K)``, in full precision whatever the run's."""
        with torch.autocast(features.device.type, enabled=False):
            return self.logits(F.normalize(features.float(), dim=1))


class LinearClassifier(FittedHead):
    """Heads whose logits are linear in the features.

    Args:
        features: F.
        num_classes: K.
        C: inverse of the strength of the L2 penalty.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, features: int, num_classes: int, C: float = 1.0) -> None:
        super().__init__(features, num_classes)
        self.C = C
        self.register_buffer("weight", torch.zeros(num_classes, features))
        self.register_buffer("bias", torch.zeros(num_classes))

    @abstractmethod
    def estimator(self) -> Any:
        """Scikit-learn's, not fitted."""

    def fit(self, features: np.ndarray, labels: np.ndarray) -> None:
        found = np.unique(labels)
        if len(found) < 2:
            raise DataError(
                f"{type(self).__name__} tells classes apart, but the training images are all of one"
            )
        directions = unit_length(features)
        estimator = self.estimator()
        with warnings.catch_warnings():
            # The loss and the metrics say what a solution that is not quite there is worth.
            warnings.filterwarnings("ignore", message=".*[Cc]onverge")
            estimator.fit(directions, labels)
        weight, bias = estimator.coef_, estimator.intercept_
        if len(found) == 2:  # one score for the second class: half for it, half against the other
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        self.weight.zero_()
        self.bias.fill_(NEVER)
        rows = torch.from_numpy(found).to(self.weight.device)
        self.weight[rows] = torch.from_numpy(weight).to(self.weight)
        self.bias[rows] = torch.from_numpy(bias).to(self.bias)

    def logits(self, directions: Tensor) -> Tensor:
        return F.linear(directions, self.weight.float(), self.bias.float())


class LinearSVM(LinearClassifier):
    """A linear support vector machine, one class against the rest (``sklearn.svm.LinearSVC``).

    Its logits are the signed distances times the length of each class's weights; a softmax makes
    them probabilities that order the classes, but say little of how sure one can be.
    """

    def estimator(self) -> Any:
        from sklearn.svm import LinearSVC

        return LinearSVC(C=self.C, max_iter=MAX_ITERATIONS, random_state=0)


class LogisticRegression(LinearClassifier):
    """Multinomial logistic regression (``sklearn.linear_model.LogisticRegression``)."""

    def estimator(self) -> Any:
        from sklearn.linear_model import LogisticRegression as Regression

        return Regression(C=self.C, max_iter=MAX_ITERATIONS)


class NearestNeighbors(FittedHead):
    """The votes of the ``k`` training images whose features lie in the nearest directions.

    As ``sklearn.neighbors.KNeighborsClassifier(k, metric="cosine")``: every neighbor has one vote,
    of classes with as many votes the first is taken. Probabilities are shares of the votes. The
    features of all training images are part of the model.

    Args:
        features: F.
        num_classes: K.
        k: neighbors that vote.
    """

    examples: Tensor
    labels: Tensor

    def __init__(self, features: int, num_classes: int, k: int = 5) -> None:
        super().__init__(features, num_classes)
        self.k = k
        self.register_buffer("examples", torch.zeros(0, features))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    def fit(self, features: np.ndarray, labels: np.ndarray) -> None:
        if len(features) < self.k:
            raise DataError(
                f"transfer.k={self.k} neighbors of {len(features)} training images: lower it"
            )
        device = self.examples.device
        directions = unit_length(features).astype(np.float32)
        self.examples = torch.from_numpy(directions).to(device)
        self.labels = torch.from_numpy(np.asarray(labels, np.int64)).to(device)

    def logits(self, directions: Tensor) -> Tensor:
        if not len(self.examples):
            return directions.new_zeros(len(directions), self.num_classes)
        likeness = directions @ self.examples.float().T  # (B, N)
        nearest = likeness.topk(self.k, dim=1).indices  # (B, k)
        votes = F.one_hot(self.labels[nearest], self.num_classes).sum(dim=1)  # (B, K)
        return (votes / self.k).clamp(min=NO_VOTE).log()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Takes as many examples as the checkpoint has."""
        for name in ("examples", "labels"):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                own: Tensor = getattr(self, name)
                setattr(self, name, own.new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def unit_length(features: np.ndarray) -> np.ndarray:
    """``(N, F)`` -> float64 ``(N, F)``, every row of length 1 (0 where it is 0)."""
    rows = np.asarray(features, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
