"""Multi-label metrics: worked by hand, and equal to scikit-learn's."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch

from cvtrain.data.table import Classes
from cvtrain.errors import RunError
from cvtrain.metrics import metrics_for
from cvtrain.metrics.multilabel_classification import average_precision
from cvtrain.report.results import write_predictions
from cvtrain.structures import ImageInfo, Prediction, Target


def fill(probs, truths, names=None, parts=1):
    probs = torch.as_tensor(probs, dtype=torch.float32)
    truths = torch.as_tensor(truths, dtype=torch.float32)
    classes = Classes.from_names(names or [f"c{k}" for k in range(probs.shape[1])])
    states = []
    for part in range(parts):
        metrics = metrics_for("multilabel_classification", classes)
        for i in range(part, len(probs), parts):
            info = ImageInfo(i, f"{i}.jpg", f"{i}.jpg", 8, 8)
            metrics.update([Prediction(probs=probs[i])], [Target(probs=truths[i])], [info])
        states.append(metrics.state())
    metrics.merge(states)
    return metrics


def test_by_hand():
    """Three images, two classes; the second image has neither."""
    probs = [[0.9, 0.2], [0.6, 0.1], [0.7, 0.8]]
    metrics = fill(probs, [[1, 0], [0, 0], [1, 1]], ["cat", "dog"])
    values = metrics.compute()
    assert list(values) == [
        "mAP",
        "f1_macro",
        "f1_micro",
        "precision_micro",
        "recall_micro",
        "exact_match",
    ]
    assert values["mAP"] == 1.0  # cats 0.9 and 0.7 before 0.6
    assert values["precision_micro"] == pytest.approx(3 / 4)
    assert values["recall_micro"] == 1.0
    assert values["f1_micro"] == pytest.approx(6 / 7)
    assert values["f1_macro"] == pytest.approx((4 / 5 + 1) / 2)
    assert values["exact_match"] == pytest.approx(2 / 3)
    cat, dog = metrics.details()["per_class"]
    assert (cat["name"], cat["images"], cat["predictions"]) == ("cat", 2, 3)
    assert (cat["AP"], cat["precision"], cat["recall"]) == (1.0, pytest.approx(2 / 3), 1.0)
    assert (dog["images"], dog["predictions"], dog["f1"]) == (1, 1, 1.0)


def test_average_precision_by_hand():
    """Hits at ranks 1 and 3 of 4: (1 + 2/3) / 2; ties make one step: 2/4 for both."""
    truths = np.array([True, False, True, False])
    area, curve = average_precision(truths, np.array([0.9, 0.8, 0.7, 0.6]))
    assert area == pytest.approx((1 + 2 / 3) / 2)
    assert curve[:50] == pytest.approx(1)
    assert curve[51:] == pytest.approx(2 / 3)
    assert average_precision(truths, np.full(4, 0.5))[0] == pytest.approx(0.5)
    assert math.isnan(average_precision(np.zeros(3, bool), np.arange(3.0))[0])


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_scikit_learn(seed):
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(5, 90)), int(rng.integers(2, 9))
    truths = rng.random((n, k)) < rng.uniform(0.02, 0.9, k)
    probs = np.float32(np.clip(rng.normal(0.3 + 0.4 * truths, 0.3), 0, 1).round(1 + seed % 3))
    metrics = fill(probs, truths)
    values, rows = metrics.compute(), metrics.details()["per_class"]
    seen = np.flatnonzero(truths.any(0))
    want = [average_precision_score(truths[:, c], probs[:, c]) for c in seen]
    assert values["mAP"] == pytest.approx(np.mean(want), abs=1e-12)
    assert [rows[c]["AP"] for c in seen] == pytest.approx(want, abs=1e-12)
    message = probs >= 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that do not occur
        by = {
            average: precision_recall_fscore_support(
                truths, message, average=average, zero_division=np.nan
            )
            for average in (None, "micro", "macro")
        }
    assert [r["f1"] for r in rows] == pytest.approx(by[None][2].tolist(), nan_ok=True)
    assert [rows[c]["recall"] for c in seen] == pytest.approx(by[None][1][seen].tolist())
    told = np.flatnonzero(message.any(0))
    assert [rows[c]["precision"] for c in told] == pytest.approx(by[None][0][told].tolist())
    assert values["f1_macro"] == pytest.approx(by["macro"][2])
    for i, name in enumerate(("precision_micro", "recall_micro", "f1_micro")):
        assert values[name] == pytest.approx(by["micro"][i])
    assert values["exact_match"] == pytest.approx((message == truths).all(1).mean())


def test_processes_and_batches_change_no_digit():
    rng = np.random.default_rng(1)
    probs, truths = rng.random((40, 5)), rng.random((40, 5)) < 0.3
    one = fill(probs, truths)
    for parts in (2, 3):
        other = fill(probs, truths, parts=parts)
        assert other.compute() == one.compute()


def test_classes_that_no_image_has_are_named():
    metrics = fill([[0.9, 0.9, 0.1]], [[1, 0, 0]], ["cat", "dog", "emu"])
    values = metrics.compute()
    assert values["mAP"] == 1.0
    assert values["f1_macro"] == pytest.approx(0.5)  # the dog is predicted, the emu nowhere
    (note,) = metrics.details()["notes"]
    assert note == "mAP excludes 2 classes that no image has: dog, emu"
    assert math.isnan(metrics.details()["per_class"][2]["f1"])


def test_no_image_and_no_object():
    metrics = metrics_for("multilabel_classification", Classes.from_names(["a", "b"]))
    assert all(math.isnan(v) for v in metrics.compute().values())
    assert metrics.details()["notes"] == ["no image was evaluated"]
    empty = fill([[0.1, 0.2]], [[0, 0]])
    assert empty.compute()["exact_match"] == 1.0
    assert math.isnan(empty.compute()["mAP"])


def test_predictions_that_cannot_be_scored():
    with pytest.raises(RunError, match="not finite"):
        fill([[math.nan, 0.1]], [[1, 0]])
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(1,\)"):
        fill([[0.1, 0.2]], [[1, 0]], ["one"])


def test_anyone_gets_our_numbers_from_the_files(tmp_path):
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(4)
    probs, truths = rng.random((30, 3)), rng.random((30, 3)) < 0.4
    metrics = fill(probs, truths, ["cat", "dog", "emu"])
    predictions, truth = (json.loads(p.read_text()) for p in write_predictions(tmp_path, metrics))
    assert len(predictions) == 30
    pairs = {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
    aps = []
    for c, name in enumerate(("cat", "dog", "emu")):
        present = [(p["image_id"], c) in pairs for p in predictions]
        aps.append(average_precision_score(present, [p["scores"][name] for p in predictions]))
    assert metrics.compute()["mAP"] == pytest.approx(np.mean(aps), abs=1e-12)
    first = predictions[0]
    assert first["categories"] == [n for n, s in first["scores"].items() if s >= 0.5]
    assert len(first["category_ids"]) == len(first["categories"])
