"""Heads on features: those that are fitted predict what scikit-learn predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as SkRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC
from torch import nn

from cvtrain.errors import DataError, UsageError
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.classification.classifier import Classifier
from cvtrain.models.classification.heads import FittedHead, build_head

WIDTH = 24
SKLEARN: dict[str, Callable[[], Any]] = {
    "svm": lambda: make_pipeline(Normalizer(), LinearSVC(C=2.0, max_iter=10_000, random_state=0)),
    "logistic_regression": lambda: make_pipeline(Normalizer(), SkRegression(C=2.0, max_iter=10000)),
    "knn": lambda: KNeighborsClassifier(4, metric="cosine"),
}
CONFIG = {
    "svm": {"name": "svm", "C": 2.0},
    "logistic_regression": {"name": "logistic_regression", "C": 2.0},
    "knn": {"name": "knn", "k": 4},
}
fitted = pytest.mark.parametrize("name", SKLEARN)


def features(classes: int, count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positive, as those after a ReLU are; the classes overlap."""
    generator = np.random.default_rng(seed)
    centers = np.random.default_rng(9).uniform(0, 2, (classes, WIDTH))
    labels = np.arange(count) % classes
    rows = np.abs(centers[labels] + generator.normal(0, 1.2, (count, WIDTH)))
    return (rows * generator.uniform(0.1, 5, (count, 1))).astype(np.float32), labels


def head(name: str, classes: int) -> Any:
    return build_head(CONFIG[name], WIDTH, classes)


@fitted
@pytest.mark.parametrize("classes", [2, 5])
def test_predictions_are_scikit_learns(name: str, classes: int) -> None:
    train, labels = features(classes)
    test, _ = features(classes, count=500, seed=1)
    # In the precision that is used here: a solver stops elsewhere in another.
    own, other = head(name, classes), SKLEARN[name]().fit(train.astype(np.float64), labels)
    own.fit(train, labels)
    logits = own(torch.from_numpy(test))
    assert logits.dtype == torch.float32
    predicted = np.argmax(logits.numpy(), axis=1)
    assert (predicted == other.predict(test)).all()
    assert 0.3 < (predicted == np.arange(500) % classes).mean() < 1
    if hasattr(other, "predict_proba"):
        probs = logits.softmax(dim=1).numpy()
        np.testing.assert_allclose(probs, other.predict_proba(test), atol=2e-6)


@fitted
def test_a_class_without_images_is_never_predicted(name: str) -> None:
    train, labels = features(3)
    own = head(name, 5)
    own.fit(train, labels + (labels > 0))  # classes 0, 2 and 3 of five
    probs = own(torch.from_numpy(train)).softmax(dim=1)
    assert probs[:, [1, 4]].max() < 1e-6
    assert torch.isfinite(own(torch.from_numpy(train))).all()
    assert set(probs.argmax(dim=1).tolist()) == {0, 2, 3}


@fitted
def test_what_was_fitted_is_in_the_state_dict_as_tensors(name: str) -> None:
    train, labels = features(3)
    own, fresh = head(name, 3), head(name, 3)
    own.fit(train, labels)
    assert not list(own.parameters())
    fresh.load_state_dict(own.state_dict())
    rows = torch.from_numpy(train)
    assert torch.equal(own(rows), fresh(rows))


def test_before_it_is_fitted_a_head_knows_nothing() -> None:
    for name in SKLEARN:
        assert not head(name, 3)(torch.rand(4, WIDTH)).any()


@fitted
def test_half_precision_changes_nothing(name: str) -> None:
    train, labels = features(3)
    own = head(name, 3)
    own.fit(train, labels)
    rows = torch.from_numpy(train)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(own(rows), own(rows.float()))
        assert own(rows).dtype == torch.float32


@pytest.mark.parametrize("name", ["svm", "logistic_regression"])
def test_one_class_alone_is_refused(name: str) -> None:
    train, _ = features(3)
    with pytest.raises(DataError, match="all of one"):
        head(name, 3).fit(train, np.zeros(len(train), np.int64))


def test_more_neighbors_than_images_are_refused() -> None:
    train, labels = features(3, count=3)
    with pytest.raises(DataError, match=r"transfer\.k=4 neighbors of 3 training images"):
        head("knn", 3).fit(train, labels)


def test_zero_features_are_no_division_by_zero() -> None:
    train, labels = features(3)
    train[0] = 0
    for name in SKLEARN:
        own = head(name, 3)
        own.fit(train, labels)
        assert torch.isfinite(own(torch.zeros(2, WIDTH))).all()


def test_trained_heads() -> None:
    mlp = build_head({"name": "mlp", "hidden": 7}, WIDTH, 3)
    assert [type(m) for m in mlp] == [nn.Linear, nn.ReLU, nn.Linear]  # type: ignore[arg-type]
    assert mlp(torch.rand(2, WIDTH)).shape == (2, 3)
    assert isinstance(build_head(None, WIDTH, 3), nn.Linear)
    with pytest.raises(UsageError, match="expected linear, mlp, svm"):
        build_head({"name": "forest"}, WIDTH, 3)


@pytest.mark.parametrize("name", ["linear", "mlp", *SKLEARN])
def test_a_classifier_takes_features_in_place_of_images(name: str) -> None:
    torch.manual_seed(0)
    config = {"mlp": {"name": "mlp", "hidden": 5}, **CONFIG}.get(name)
    net = DarknetTiny([4, 8], [1, 1], narrow=None)
    model = Classifier(net, nn.CrossEntropyLoss(), 3, dropout=0.5, head=config).eval()
    images = torch.randint(0, 255, (6, 3, 16, 16), dtype=torch.uint8)
    computed = model.features(images)
    assert computed.shape == (6, 8)
    for part in model.modules():
        if isinstance(part, FittedHead):
            part.fit(computed.detach().numpy(), np.array([0, 1, 2, 0, 1, 2]))
    assert torch.equal(model(computed), model(images))
    assert [p.probs.shape for p in model.predict(images)] == [(3,)] * 6  # type: ignore[union-attr]
