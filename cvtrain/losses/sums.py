"""A loss that is the weighted sum of others, each reported by its name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class SumLoss(nn.Module):
    """``sum_i w_i loss_i``.

    Args:
        parts: losses by name.
        weights: of the parts by name, from 0; a part without one counts 1.

    Raises:
        ValueError: no parts, a weight below 0 or of a part that is not there.
    """

    def __init__(
        self, parts: Mapping[str, nn.Module], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        weights = dict(weights or {})
        if not parts:
            raise ValueError("a sum without parts")
        for name, weight in weights.items():
            if name not in parts:
                raise ValueError(f"weights.{name}: the parts are {', '.join(parts)}")
            if weight < 0:
                raise ValueError(f"weights.{name}={weight} must be at least 0")
        self.parts = nn.ModuleDict(parts)
        self.weights = {name: float(weights.get(name, 1.0)) for name in parts}

    def terms(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The parts, weighted: scalars by ``NAME_loss``; ``dice`` alone is a metric's name."""
        return {
            f"{name}_loss": self.weights[name] * part(logits, targets)
            for name, part in self.parts.items()
        }

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Whatever the parts take -> scalar."""
        return torch.stack(list(self.terms(logits, targets).values())).sum()
