from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cvtrain.losses.focal import FocalLoss


def test_worked_example() -> None:
    """p = 0.5: -(0.5)^2 log 0.5; p = 0.9: -(0.1)^2 log 0.9; the mean of both."""
    logits = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log()
    want = -(0.25 * torch.tensor(0.5).log() + 0.01 * torch.tensor(0.9).log()) / 2
    torch.testing.assert_close(FocalLoss(2.0)(logits, torch.tensor([0, 1])), want)


def test_gamma_0_is_cross_entropy() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    torch.testing.assert_close(FocalLoss(0.0)(logits, labels), F.cross_entropy(logits, labels))


def test_finite_with_gradient_where_probabilities_are_0_or_1() -> None:
    logits = torch.tensor([[300.0, -300.0], [300.0, -300.0]], requires_grad=True)
    loss = FocalLoss(0.5)(logits, torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_negative_gamma_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma=-1"):
        FocalLoss(-1)
