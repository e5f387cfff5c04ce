"""Losses of whole images: hard and soft targets, and weights of classes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cvtrain.losses.bce import BinaryCrossEntropy
from cvtrain.losses.cross_entropy import CrossEntropy
from cvtrain.losses.focal import FocalLoss
from cvtrain.losses.targets import class_targets, soft
from cvtrain.losses.weights import balanced_weights, effective_number, positive_weights
from cvtrain.structures import Target

K = 4
WEIGHTS = [1.0, 2.0, 0.5, 0.0]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, K, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 3, 1, 0])


def test_targets_are_labels_or_shares() -> None:
    hard = [Target(label=torch.tensor(2)), Target(label=torch.tensor(0))]
    assert class_targets(hard, 3).tolist() == [2, 0]
    mixed = [*hard, Target(label=torch.tensor(1), probs=torch.tensor([0.0, 0.7, 0.3]))]
    found = class_targets(mixed, 3)
    assert found.dtype == torch.float32
    want = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0.7, 0.3]])
    torch.testing.assert_close(found, want)
    with pytest.raises(ValueError, match="without a label"):
        class_targets([*hard, Target()], 3)
    with pytest.raises(ValueError, match=r"shape \(2,\), not \(3,\)"):
        class_targets([Target(probs=torch.zeros(2))], 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_by_hand(
    logits: torch.Tensor, smoothing: float, weights: list[float] | None
) -> None:
    """The same for labels and for rows of one 1."""
    loss = CrossEntropy(smoothing, weights)
    one_hot = F.one_hot(LABELS, K).float()
    shares = one_hot * (1 - smoothing) + smoothing / K
    w = torch.tensor(weights or [1.0] * K)
    want = -(w * shares * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(logits, LABELS), want)
    torch.testing.assert_close(loss(logits, one_hot), want)


def test_a_batch_is_the_mean_of_its_images(logits: torch.Tensor) -> None:
    """Whatever their weights: so that two processes, or two batches, give what one gives."""
    for loss in (CrossEntropy(0.1, WEIGHTS), FocalLoss(2.0, WEIGHTS)):
        halves = [loss(logits[:3], LABELS[:3]), loss(logits[3:], LABELS[3:])]
        torch.testing.assert_close(loss(logits, LABELS), torch.stack(halves).mean())


@pytest.mark.parametrize("loss", [CrossEntropy(), FocalLoss(2.0), BinaryCrossEntropy()])
def test_soft_targets_are_between_the_hard_ones(
    loss: torch.nn.Module, logits: torch.Tensor
) -> None:
    other = torch.tensor([1, 2, 3, 0, 0, 3])
    mixed = 0.3 * F.one_hot(LABELS, K) + 0.7 * F.one_hot(other, K)
    want = 0.3 * loss(logits, LABELS) + 0.7 * loss(logits, other)
    torch.testing.assert_close(loss(logits, mixed), want)


def test_bce_by_hand(logits: torch.Tensor) -> None:
    present = torch.tensor([[1.0, 0, 1, 0]]).expand(6, K)
    p = logits.sigmoid()
    w = torch.tensor(WEIGHTS)
    terms = w * present * p.log() + (1 - present) * (1 - p).log()
    torch.testing.assert_close(BinaryCrossEntropy(0, WEIGHTS)(logits, present), -terms.mean())
    smooth = present * 0.9 + 0.05
    want = -(smooth * p.log() + (1 - smooth) * (1 - p).log()).mean()
    torch.testing.assert_close(BinaryCrossEntropy(0.1)(logits, present), want)
    labels = BinaryCrossEntropy()(logits, LABELS)
    torch.testing.assert_close(labels, BinaryCrossEntropy()(logits, soft(LABELS, K)))


def test_balanced_weights_are_scikit_learns() -> None:
    """N / (K n_c) of the classes there are; a class without images gets 1."""
    assert balanced_weights([90, 10]) == pytest.approx([100 / 180, 100 / 20])
    assert balanced_weights([90, 0, 10]) == pytest.approx([100 / 180, 1, 100 / 20])
    assert balanced_weights([0, 0]) == [1, 1]


def test_effective_numbers() -> None:
    """Equation 2 of Cui et al., and weights in proportion to 1 / E with mean 1 over the images."""
    assert effective_number(1, "effective") == pytest.approx(1)
    assert effective_number(2, "effective") == pytest.approx(1 + 0.999)
    assert effective_number(10**6, "effective") == pytest.approx(1000)
    counts = [5000, 100, 7]
    weights = balanced_weights(counts, "effective")
    e = [(1 - 0.999**n) / (1 - 0.999) for n in counts]
    assert weights[1] / weights[0] == pytest.approx(e[0] / e[1])
    assert sum(n * w for n, w in zip(counts, weights, strict=True)) / 5107 == pytest.approx(1)
    auto = balanced_weights(counts)
    assert auto[2] / auto[0] > weights[2] / weights[0] > 1


def test_positive_weights() -> None:
    assert positive_weights([25, 0, 100, 50], 100) == pytest.approx([3, 1, 1, 1])
    assert 1 < positive_weights([25], 10_000, "effective")[0] < (10_000 - 25) / 25


@pytest.mark.parametrize("kind", ["auto", "effective"])
@pytest.mark.parametrize("make", [CrossEntropy, FocalLoss, BinaryCrossEntropy])
def test_counted_weights_travel_in_the_state(make: type, kind: str, logits: torch.Tensor) -> None:
    """A model loads from its checkpoint without the data that its weights were counted from."""
    loss = make(class_weights=kind)
    with pytest.raises(ValueError, match="not counted yet"):
        loss(logits, LABELS)
    loss.weigh([10, 20, 30, 0], 60)
    assert list(loss.state_dict()) == ["weights"]
    again = make(class_weights=kind)
    again.load_state_dict(loss.state_dict())
    torch.testing.assert_close(again(logits, LABELS), loss(logits, LABELS))
    assert not torch.isclose(loss(logits, LABELS), make()(logits, LABELS))
    # A state of other data, over weights that are there.
    other = make(class_weights=kind)
    other.weigh([1, 2], 3)
    other.load_state_dict(loss.state_dict())
    assert other.weights.shape == (4,)
    assert make().state_dict() == {}


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, -2\]: numbers from 0"):
        CrossEntropy(class_weights=[1, -2])
    with pytest.raises(ValueError, match=r"class_weights=\[0, 0\]: at least one above 0"):
        CrossEntropy(class_weights=[0, 0])
    with pytest.raises(ValueError, match="class_weights=balanced: auto, effective or numbers"):
        FocalLoss(class_weights="balanced")
    with pytest.raises(ValueError, match="numbers from 0"):
        BinaryCrossEntropy(class_weights=[])
    with pytest.raises(ValueError, match="2 weights for 3 classes"):
        CrossEntropy(class_weights=[1, 2]).weigh([1, 1, 1], 3)
    for make in (CrossEntropy, BinaryCrossEntropy):
        with pytest.raises(ValueError, match=r"label_smoothing=1.5"):
            make(label_smoothing=1.5)
        with pytest.raises(ValueError, match=r"label_smoothing=1 must be from 0 to below 1"):
            make(label_smoothing=1)


def test_focal_loss_weighs_classes_and_shares() -> None:
    p = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
    loss = FocalLoss(2.0, [1.0, 3.0])
    want = -(0.25 * p[0, 0].log() + 3 * 0.01 * p[1, 1].log()) / 2
    torch.testing.assert_close(loss(p.log(), torch.tensor([0, 1])), want)
