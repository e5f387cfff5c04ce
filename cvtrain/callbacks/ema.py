"""An exponential moving average of the weights, validated and saved in their place."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from cvtrain.errors import UsageError


class EMA(WeightAveraging):
    """Averages weights and float buffers after every optimizer step; integer buffers are copied.

    Validation sees the average; a checkpoint's ``state_dict`` is the average and its
    ``current_model_state`` the raw weights.

    Args:
        decay: share of the average that stays at each step. After n steps it is at most
            ``(1 + n) / (10 + n)``, so that the first, random weights are soon forgotten.

    Raises:
        UsageError: a decay outside 0..1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"callbacks.ema.decay={decay}: expected 0 <= decay < 1")
        super().__init__(use_buffers=True, multi_avg_fn=self._average)
        self.decay = decay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            # On the CPU: reading a counter on a GPU would make the host wait at every step.
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    @torch.no_grad()
    def _average(self, averages: Any, values: Any, _: Any) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, values)
            return
        assert self._average_model is not None
        count: Tensor = self._average_model.n_averaged
        steps = float(count)
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(averages, values, 1 - decay)
