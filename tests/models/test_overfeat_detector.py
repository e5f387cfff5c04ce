"""OverFeat as a detector: which window answers for which object, its losses, its merged boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cvtrain.errors import UsageError
from cvtrain.layers.boxes import pairwise
from cvtrain.layers.greedy_merge import greedy_merge
from cvtrain.layers.matcher import IGNORED, NEGATIVE
from cvtrain.layers.window_head import to_window
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.detection.overfeat import OverFeat
from cvtrain.models.localization.overfeat import CLASSIFIER, REGRESSOR, Dense
from cvtrain.structures import Target

Make = Callable[..., OverFeat]


@pytest.fixture
def make() -> Make:
    def build(num_classes: int = 3, **options: Any) -> OverFeat:
        torch.manual_seed(0)
        options = {"hidden": [16], "regressor_hidden": [16], "scales": [1.0, 2.0, 4.0], **options}
        return OverFeat(DarknetTiny(narrow=None), num_classes, 96, **options).eval()

    return build


def target(*rows: tuple[float, ...], ignore: tuple[int, ...] = ()) -> Target:
    """Rows of x1, y1, x2, y2, label."""
    table = torch.tensor(rows).view(-1, 5)
    hidden = torch.zeros(len(table), dtype=torch.bool)
    hidden[list(ignore)] = True
    return Target(boxes=table[:, :4], labels=table[:, 4].long(), ignore=hidden)


def windows_of(model: OverFeat, scale: float) -> Tensor:
    with torch.no_grad():
        return model.maps(torch.zeros(1, 3, 96, 96), scale)[1]


def test_every_object_has_a_window_at_the_scale_of_its_size_alone(make: Make) -> None:
    """A tall object of 40 pixels' side, which no window overlaps by 0.3: at scale 2 it has one."""
    model = make()
    tall = target((30, 3, 45, 93, 1))
    matched = {s: model._matched(windows_of(model, s), tall) for s in model.scales}
    assert [int((m >= 0).sum()) for m in matched.values()] == [0, 1, 0]
    windows = windows_of(model, 2.0)
    assert tall.boxes is not None
    [place] = (matched[2.0] >= 0).nonzero()
    assert pairwise(tall.boxes, windows)[0].argmax() == place


def test_windows_are_objects_background_or_neither(make: Make) -> None:
    model = make()
    truth = target((0, 0, 50, 50, 2), (60, 60, 96, 96, 0), (50, 0, 96, 40, 1), ignore=(2,))
    windows = windows_of(model, 2.0)
    index = model._matched(windows, truth)
    assert truth.boxes is not None
    iou = pairwise(windows, truth.boxes[:2])
    best, which = iou.max(dim=1)
    assert torch.equal(index[best >= 0.3], which[best >= 0.3])
    assert (index[(best >= 0.15) & (best < 0.3)] == IGNORED).all()
    low = index[best < 0.15]
    assert {NEGATIVE, IGNORED} == set(low.tolist())  # the ignored region hides some
    assert (model._matched(windows, target()) == NEGATIVE).all()


def test_the_losses_are_those_of_the_windows_one_by_one(make: Make) -> None:
    model = make(negatives=200)  # all of them, twice
    model.scales = [2.0]
    torch.manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    targets = [target((0, 0, 50, 50, 2), (60, 60, 96, 96, 0)), target()]
    with torch.no_grad():
        x = model.normalize(images)
        maps, windows = model.maps(x, 2.0)
        logits = model.classifier(maps).flatten(2)
        edges = model._edges(maps)
    classes, boxes = 0.0, []
    for i, truth in enumerate(targets):
        index = model._matched(windows, truth)
        positive, negative = [], []
        for v, found in enumerate(index.tolist()):
            entropy = -logits[i, :, v].log_softmax(dim=0)
            if found >= 0:
                assert truth.labels is not None
                assert truth.boxes is not None
                positive.append(float(entropy[truth.labels[found]]))
                wanted = to_window(truth.boxes[found], windows[v])
                boxes.append(float((edges[i, 0, v] - wanted).square().sum()))
            elif found == NEGATIVE:
                negative.append(float(entropy[3]))
        classes += float(np.mean(positive)) if positive else 0.0
        classes += float(np.mean(negative))
    terms, _ = model.loss_and_predict(images, targets)
    assert float(terms["classes"]) == pytest.approx(classes / 2, rel=1e-4)
    assert float(terms["boxes"]) == pytest.approx(float(np.mean(boxes)), rel=1e-4)
    assert terms["num_objects"] == 2


def test_each_phase_has_its_term(make: Make) -> None:
    model = make()
    images, targets = torch.zeros(1, 3, 96, 96, dtype=torch.uint8), [target((0, 0, 50, 50, 2))]
    model.on_epoch_start(0, 4)
    assert int(model.stage) == CLASSIFIER
    assert set(model.loss(images, targets)) == {"classes", "num_objects"}
    boxes = model.predict(images)[0].boxes
    assert boxes is not None
    assert len(boxes) == 0  # no regressor yet
    model.on_epoch_start(3, 4)
    assert int(model.stage) == REGRESSOR
    assert set(model.loss(images, targets)) == {"boxes", "num_objects"}


@pytest.mark.parametrize("merge", ["greedy", "nms"])
def test_windows_vote_class_by_class_and_are_merged(make: Make, merge: str) -> None:
    model = make(num_classes=2, merge=merge, max_windows=3)
    probs = torch.tensor([[[0.9, 0.8, 0.6, 0.5, 0.04], [0.0, 0.04, 0.0, 0.0, 0.7]]])  # (1, 2, 5)
    boxes = torch.tensor(
        [[10.0, 10, 30, 30], [12, 10, 32, 30], [60, 60, 80, 80], [0, 0, 9, 9], [50, 5, 99, 30]]
    )
    outputs = [Dense(probs, boxes[None, None], 96, 96)]  # (1, 1, 5, 4)
    [found] = model.decode(outputs)
    assert found.boxes is not None
    assert found.scores is not None
    assert found.labels is not None
    if merge == "greedy":  # the two near ones are one box, with the votes of both
        merged, sums = greedy_merge(boxes[:3].numpy(), np.array([0.9, 0.8, 0.6]), 0.7)
        assert found.labels.tolist() == [0, 1, 0]
        torch.testing.assert_close(found.boxes[0], torch.tensor(merged[0]).float())
        wanted = [sums[0] / (1 + sums[0]), 0.7 / 1.7, 0.6 / 1.6]
    else:  # the surest of each place
        wanted = [0.9, 0.7, 0.6]
    assert found.scores.tolist() == pytest.approx(wanted)
    assert found.boxes[1].tolist() == [50, 5, 96, 30]  # cut to the image


def test_a_detector_without_a_background_is_refused(make: Make) -> None:
    assert make().classifier.last.out_channels == 4
    with pytest.raises(UsageError, match=r"model\.background=false"):
        make(background=False)
    assert make(scales=None).scales == [1.0, 1.41, 2.0, 2.83, 4.0]
    with pytest.raises(UsageError, match=r"model\.scales=3: give a list of numbers"):
        make(scales=3)
