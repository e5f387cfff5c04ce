"""Models of which parts are fitted after their network is trained, one after the other.

The engine does it (``cvtrain.engine.post_training``): once the last epoch is over, the network of
the best one sees every training image once, as it is without augmentation; what each stage needs
of that is kept on disk; then each stage is fitted to it, and what it learned is saved before the
next begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cvtrain.structures import Target


class Stage(nn.Module, ABC):
    """A part that is fitted once; it has buffers alone, so that a checkpoint holds tensors.

    Attributes:
        fitted: bool ``()``: whether it was. A model does without it until then.
    """

    fitted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fitted", torch.tensor(False))

    @abstractmethod
    def fit(self, examples: Mapping[str, np.ndarray]) -> str:
        """Fit to the examples of all training images; sets ``fitted``.

        Args:
            examples: arrays by name, as ``Staged.examples`` made them, those of all images end to
                end; memory-mapped, read-only.

        Returns:
            Counts, in a few words for the terminal.
        """

    def reset(self) -> None:
        """Forget what was fitted."""
        for buffer in self.buffers():
            buffer.zero_()


class Staged(ABC):
    """What a model with stages has beside what ``Model`` asks.

    Attributes:
        stages: Stage by name, in the order in which they are fitted; empty: none are wanted.
    """

    stages: nn.ModuleDict

    @abstractmethod
    def examples(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> dict[str, np.ndarray]:
        """What the stages are fitted to, of a batch; in eval mode and without gradient.

        Returns:
            Arrays by name, of plain numbers; each call gives the same names, types and shapes but
            for the first axis, along which those of all batches are joined.
        """

    @abstractmethod
    def example_settings(self) -> dict[str, Any]:
        """Plain values that, beside weights, images and proposals, the examples follow from."""
