"""Classification metrics: worked by hand, and equal to scikit-learn's and torchmetrics'."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cvtrain.data.table import Classes
from cvtrain.errors import RunError
from cvtrain.metrics import metrics_for
from cvtrain.metrics.classification import ClassificationMetrics
from cvtrain.structures import ImageInfo, Prediction, Target


def fill(probs, labels, names=None):
    probs = torch.as_tensor(probs, dtype=torch.float32)
    names = names or [f"c{k}" for k in range(probs.shape[1])]
    metrics = metrics_for("classification", Classes.from_names(names))
    infos = [ImageInfo(i, f"{i}.jpg", f"{i}.jpg", 8, 8) for i in range(len(probs))]
    truths = [Target(label=torch.tensor(int(label))) for label in labels]
    metrics.update([Prediction(probs=p) for p in probs], truths, infos)
    return metrics


def test_by_hand():
    """Two classes, five images; the second class is found twice of three times."""
    probs = [[0.9, 0.1], [0.58, 0.42], [0.3, 0.7], [0.2, 0.8], [0.55, 0.45]]
    metrics = fill(probs, [0, 0, 1, 1, 1], ["cat", "dog"])
    values = metrics.compute()
    assert list(values) == ["accuracy", "f1_macro", "ece"]
    assert values["accuracy"] == pytest.approx(4 / 5)
    # cat: precision 2/3, recall 1, F1 4/5; dog: precision 1, recall 2/3, F1 4/5
    assert values["f1_macro"] == pytest.approx(4 / 5)
    details = metrics.details()
    assert details["confusion"].tolist() == [[2, 0], [1, 2]]
    assert details["confusion_labels"] == ["cat", "dog"]
    assert details["notes"] == []
    cat, dog = details["per_class"]
    assert (cat["name"], cat["images"], cat["predictions"]) == ("cat", 2, 3)
    assert (cat["precision"], cat["recall"]) == (pytest.approx(2 / 3), 1.0)
    assert (dog["precision"], dog["recall"]) == (1.0, pytest.approx(2 / 3))
    # 0.55 (wrong) and 0.58 (right) share the bin (8/15, 9/15]; the others have one each.
    assert values["ece"] == pytest.approx((0.1 + 0.3 + 0.2 + (0.58 + 0.55 - 1)) / 5, abs=1e-6)


def test_ece_by_hand():
    """Ten images of confidence 0.7, six of them right; ten of 0.95, all right: (0.1 + 0.05) / 2."""
    sure = [[0.95, 0.05]] * 10
    unsure = [[0.7, 0.3]] * 10
    metrics = fill(unsure + sure, [0] * 6 + [1] * 4 + [0] * 10)
    assert metrics.compute()["ece"] == pytest.approx((0.1 + 0.05) / 2, abs=1e-6)
    bins = metrics.details()["reliability"]
    assert bins["count"].tolist() == [0] * 10 + [10] + [0] * 3 + [10]
    assert bins["accuracy"][10] == pytest.approx(0.6)
    assert bins["confidence"][14] == pytest.approx(0.95)
    assert np.isnan(bins["accuracy"][0])


@pytest.mark.parametrize("k", [2, 5, 6])
def test_top5_is_given_from_six_classes_on(k):
    """Of five it would always be 1."""
    values = fill(np.eye(k).tolist(), list(range(k)), [f"c{n}" for n in range(k)]).compute()
    assert ("accuracy_top5" in values) == (k > 5)


def test_top5_counts_the_five_best_and_ties_go_to_the_first():
    probs = np.full((8, 8), 0.05)
    for i in range(8):
        probs[i, :6] = [0.3, 0.2, 0.15, 0.12, 0.1, 0.08]
    assert fill(probs, range(8)).compute()["accuracy_top5"] == pytest.approx(5 / 8)
    tied = np.full((8, 8), 1 / 8)
    values = fill(tied, range(8)).compute()
    assert values["accuracy_top5"] == pytest.approx(5 / 8)
    assert values["accuracy"] == pytest.approx(1 / 8)


def random_probs(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, k))
    labels = rng.integers(0, k, n)
    logits[np.arange(n), labels] += 1.5
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probs.astype(np.float32), labels


@pytest.mark.parametrize(("seed", "k"), [(0, 2), (1, 3), (2, 12), (3, 40)])
def test_equal_to_scikit_learn_and_torchmetrics(seed, k):
    from sklearn import metrics as sk
    from torchmetrics.functional import classification as tm

    probs, labels = random_probs(seed, 300, k)
    metrics = fill(probs, labels)
    values, details = metrics.compute(), metrics.details()
    best = probs.argmax(axis=1)
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(labels, best), abs=1e-12)
    assert values["f1_macro"] == pytest.approx(
        sk.f1_score(labels, best, average="macro", zero_division=0), abs=1e-12
    )
    assert np.array_equal(details["confusion"], sk.confusion_matrix(labels, best, labels=range(k)))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, best, labels=range(k), zero_division=0
    )
    for c, row in enumerate(details["per_class"]):
        assert row["precision"] == pytest.approx(precision[c])
        assert row["f1"] == pytest.approx(f1[c])
        assert row["images"] == support[c]
        if support[c]:
            assert row["recall"] == pytest.approx(recall[c])
    tensor, target = torch.tensor(probs), torch.tensor(labels)
    ece = tm.multiclass_calibration_error(tensor, target, num_classes=k, n_bins=15, norm="l1")
    assert values["ece"] == pytest.approx(float(ece), abs=1e-6)
    f1_tm = tm.multiclass_f1_score(tensor, target, num_classes=k, average="macro")
    assert values["f1_macro"] == pytest.approx(float(f1_tm), abs=1e-6)
    if k > 5:
        top5 = sk.top_k_accuracy_score(labels, probs, k=5, labels=range(k))
        assert values["accuracy_top5"] == pytest.approx(top5, abs=1e-12)


def test_classes_that_do_not_occur():
    """Class 2 is predicted but never true: its F1 of 0 counts, as in scikit-learn; 3 is nowhere."""
    probs = np.eye(4)[[0, 1, 2]]
    metrics = fill(probs, [0, 1, 1])
    values = metrics.compute()
    assert values["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert metrics.details()["notes"] == ["2 classes without ground truth: c2, c3"]
    rows = metrics.details()["per_class"]
    assert rows[2]["f1"] == 0.0
    assert math.isnan(rows[2]["recall"])
    assert math.isnan(rows[3]["f1"])


def test_one_class_and_no_image():
    one = fill([[1.0], [1.0]], [0, 0])
    assert one.compute() == {"accuracy": 1.0, "f1_macro": 1.0, "ece": 0.0}
    none = ClassificationMetrics(Classes.from_names(["a", "b"]))
    assert all(math.isnan(v) for v in none.compute().values())
    assert none.details()["notes"] == ["no image was evaluated"]


def test_ranks_and_order_change_nothing():
    probs, labels = random_probs(7, 50, 6)
    whole = fill(probs, labels)
    states = [[r for r in whole.state() if r.info.index % 3 == rank] for rank in range(3)]
    merged = ClassificationMetrics(whole.classes)
    merged.merge(states[::-1])
    assert merged.compute() == whole.compute()
    assert merged.predictions_json() == whole.predictions_json()


def test_wrong_arguments_are_refused():
    metrics = ClassificationMetrics(Classes.from_names(["a", "b"]))
    info = [ImageInfo(0, "x.jpg", "x.jpg", 8, 8)]
    label = [Target(label=torch.tensor(0))]
    good = [Prediction(probs=torch.tensor([0.5, 0.5]))]
    with pytest.raises(RunError, match=r"probabilities for x.jpg are not finite"):
        metrics.update([Prediction(probs=torch.tensor([float("nan"), 0.5]))], label, info)
    with pytest.raises(ValueError, match=r"probs of shape \(3,\), expected \(2,\)"):
        metrics.update([Prediction(probs=torch.ones(3) / 3)], label, info)
    with pytest.raises(ValueError, match=r"label 2, expected 0\.\.1"):
        metrics.update(good, [Target(label=torch.tensor(2))], info)
    with pytest.raises(ValueError, match=r"Prediction\.probs is None"):
        metrics.update([Prediction()], label, info)
    with pytest.raises(ValueError, match=r"Target\.label is None"):
        metrics.update(good, [Target()], info)
