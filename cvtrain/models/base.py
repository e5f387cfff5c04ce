"""What every model promises to the task that trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cvtrain.structures import Prediction, Target


class Model(nn.Module, ABC):
    """A plain torch module with a loss and predictions; it knows no data set and no trainer.

    A system implements ``forward`` (images to raw outputs), ``compute_loss`` and ``decode``. One
    whose loss and predictions cannot share a forward overrides ``loss``, ``predict`` and
    ``loss_and_predict`` instead. No method's return type depends on ``self.training``.

    Images come as ``(B, C, H, W)`` in the file's dtype; the model casts and normalizes them.
    Proposals, for a model whose yaml says ``proposals: true`` and for no other, are B float32
    ``(P, 4)``, P at least 1, xyxy network pixels inside the image, best first; None otherwise.

    Attributes:
        has_frozen_epochs: whether some parameters get no gradient in some epochs
            (``on_epoch_start``, or a backbone that is fixed for a time). Several processes must
            know.
    """

    has_frozen_epochs: bool = False

    @abstractmethod
    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``(B, C, H, W)`` images -> raw outputs, whatever ``compute_loss`` and ``decode`` take.

        A model that is given its boxes takes ``forward(images, proposals)``.
        """

    @abstractmethod
    def compute_loss(self, outputs: Any, targets: list[Target]) -> dict[str, Tensor]:
        """Loss terms by name, each a scalar, already weighted; the training loss is their sum.

        Names that begin with ``num_`` are counts: detached, not part of the sum, added up over
        an epoch and reported.
        """

    @abstractmethod
    def decode(self, outputs: Any) -> list[Prediction]:
        """Raw outputs -> one prediction an image, in network pixels."""

    def load_pretrained(self, class_names: Sequence[str]) -> None:
        """Called once before a new run trains, not for one that is resumed or a checkpoint's.

        A model that offers weights of a whole system to start from takes them here, where it is
        known what its K classes are called.

        Raises:
            RunError: they could not be fetched.
            CheckpointError: they do not fit.
        """

    def optimizer_warning(self, optimizer: str) -> str:
        """What speaks against training this with that optimizer, in one line; empty: nothing."""
        return ""

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """Called before each training epoch: whatever changes with time is decided here.

        A pure function of its arguments, so that a resumed run changes what the uninterrupted one
        does. Parameters that are trained in some epochs alone are switched here by
        ``requires_grad_``, after the optimizer has taken all; the optimizer leaves those without a
        gradient as they are.

        Args:
            epoch: the epoch that begins, from 0.
            epochs: of the whole run.
        """

    def on_batch_start(self, epoch: int, batch: int) -> None:
        """Called before the loss of each training batch: what changes within an epoch.

        A pure function of its arguments, the same on every process.

        Args:
            epoch: from 0.
            batch: of the epoch, from 0.
        """

    def loss(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Loss terms on a batch, with gradient."""
        return self.compute_loss(self._outputs(images, proposals), targets)

    def predict(self, images: Tensor, proposals: list[Tensor] | None = None) -> list[Prediction]:
        """Predictions on a batch, in eval mode and without gradient; the mode is restored."""
        with evaluating(self):
            return self.decode(self._outputs(images, proposals))

    def loss_and_predict(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[Prediction]]:
        """Validation: both from one forward, in eval mode and without gradient."""
        with evaluating(self):
            outputs = self._outputs(images, proposals)
            return self.compute_loss(outputs, targets), self.decode(outputs)

    def _outputs(self, images: Tensor, proposals: list[Tensor] | None) -> Any:
        return self(images) if proposals is None else self(images, proposals)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient inside; every submodule's own mode is restored after."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode


def total_loss(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the loss terms, counts (``num_...``) left out."""
    return torch.stack([v for k, v in terms.items() if not k.startswith("num_")]).sum()
