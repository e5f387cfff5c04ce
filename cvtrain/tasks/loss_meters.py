"""Loss terms summed over an epoch, kept on the device until somebody asks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cvtrain.distributed import broadcast, gather
from cvtrain.errors import RunError
from cvtrain.models.base import total_loss

DRAIN_EVERY = 16
"""Steps between two looks at a GPU's losses: each look waits for the device."""


class LossSums:
    """Means of loss terms over samples, and totals of counts (``num_...``).

    A term is taken as the mean over its batch and weighted with the batch's size; a count is added
    up. On a GPU values are fetched every ``DRAIN_EVERY`` batches, so that it is not held up.

    Attributes:
        totals, samples: sums of this process so far.
        finite_samples: of ``samples``, those in batches whose loss is a finite number.
        all_finite_samples: that of every process, once ``means`` was called.
        latest: the last loss that was fetched.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.names: tuple[str, ...] = ()
        self.totals: dict[str, float] = {}
        self.samples = 0
        self.finite_samples = 0
        self.latest = math.nan
        self.all_finite_samples = 0
        self._pending: list[tuple[Tensor, int, int]] = []

    def add(self, terms: dict[str, Tensor], size: int, step: int) -> Tensor:
        """Take in a batch of ``size`` samples; returns the total loss, with its gradient."""
        total = total_loss(terms)
        named = {"loss": total, **{k: v for k, v in terms.items() if k != "loss"}}
        if self.names and tuple(named) != self.names:
            self.drain()
        self.names = tuple(named)
        values = torch.stack([v.detach().float().reshape(()) for v in named.values()])
        self._pending.append((values, size, step))
        if values.device.type == "cpu" or len(self._pending) >= DRAIN_EVERY:
            self.drain()
        return total

    def drain(self) -> list[tuple[int, str, float]]:
        """Fetch what is pending; returns (step, term, value) of values that are not finite."""
        if not self._pending:
            return []
        fetched = torch.stack([values for values, _, _ in self._pending]).cpu().double().tolist()
        wrong = []
        for values, (_, size, step) in zip(fetched, self._pending, strict=True):
            self.samples += size
            self.finite_samples += size * math.isfinite(values[0])
            for name, value in zip(self.names, values, strict=True):
                weight = 1 if name.startswith("num_") else size
                self.totals[name] = self.totals.get(name, 0.0) + weight * value
                if not math.isfinite(value):
                    wrong.append((step, name, value))
            self.latest = values[0]
        self._pending = []
        self._wrong(wrong)
        return wrong

    def _wrong(self, wrong: list[tuple[int, str, float]]) -> None:
        """What to do with values that are not finite; nothing here."""

    def means(self) -> dict[str, float]:
        """Means and counts over what every process has seen; nothing where no sample was."""
        self.drain()
        # As objects: a process without a sample of a small set knows no names to sum by.
        parts = gather((self.totals, self.samples, self.finite_samples))
        means: dict[str, float] = {}
        finite = 0
        if parts is not None:
            samples = sum(count for _, count, _ in parts)
            finite = sum(count for _, _, count in parts)
            for name in dict.fromkeys(name for totals, *_ in parts for name in totals):
                total = sum(totals.get(name, 0.0) for totals, *_ in parts)
                means[name] = total if name.startswith("num_") else total / samples
        means, self.all_finite_samples = broadcast((means, finite))
        return means


class TrainingSums(LossSums):
    """Loss sums that stop a run whose loss is no longer a number."""

    def _wrong(self, wrong: list[tuple[int, str, float]]) -> None:
        if wrong:
            step = wrong[0][0]
            terms = [f"{name}={value}" for at, name, value in wrong if at == step]
            terms = [t for t in terms if not t.startswith("loss=")] or terms
            raise RunError(
                f"the loss is not finite at step {step} ({', '.join(terms)}): lower optimizer.lr, "
                "set trainer.gradient_clip_val or trainer.precision=32-true; "
                "the checkpoints of earlier epochs are intact"
            )
