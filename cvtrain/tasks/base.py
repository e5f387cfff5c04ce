"""The only Lightning class: wires a model, its data, its metrics and its optimizer together."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from cvtrain.data.table import Classes
from cvtrain.distributed import broadcast, gather
from cvtrain.errors import RunError, UsageError
from cvtrain.metrics.base import Metrics
from cvtrain.models.base import Model
from cvtrain.optim.optimizers import Factory, build_optimizer
from cvtrain.optim.schedules import Schedule
from cvtrain.structures import Batch, ImageInfo, Prediction
from cvtrain.tasks.class_coverage import Coverage
from cvtrain.tasks.loss_meters import LossSums, TrainingSums
from cvtrain.transfer.regimes import Transfer


class Task(pl.LightningModule, ABC):
    """Trains and validates one model; a family of tasks subclasses it and fills in ``to_original``.

    Args:
        model: loss and predictions.
        classes: class names and ids of the data.
        metrics: fed with predictions in original pixels.
        optimizer: ``name``, ``library``, ``lr``, ``weight_decay`` and the optimizer's own keys.
        scheduler: ``name`` and the schedule's own keys; None: a constant rate.
        monitor: the metric that decides which epoch is best, without a prefix.
        mode: ``max`` or ``min``: which of two values of it is better.
        name: of the task family.
        optimizer_factory: an optimizer class of the user's own, instead of one found by name.
        channels_last: memory format of images and weights.
        transfer: which stages of the model's backbone learn, when and how fast; None: all do.

    Attributes:
        mix: makes what is trained on of a batch on the device, its epoch and its index there
            (mixup, cutmix); None: the batch as it is.
        coverage: counts the labels of the first epoch; None: nobody asks.
        is_trained: whether an optimizer changes anything; a head that is fitted needs none.
        results: after a validation, loss means and metrics by name, the same on every process.
        scores: the metrics among them.
    """

    def __init__(
        self,
        model: Model,
        classes: Classes,
        metrics: Metrics,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any] | None,
        monitor: str,
        mode: str,
        name: str,
        optimizer_factory: Factory | None = None,
        channels_last: bool = False,
        transfer: Transfer | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("max", "min"):
            raise UsageError(f"task.mode={mode}: it takes max | min")
        # Kernels in the images' layout; 4-d tensors alone are concerned.
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self.classes = classes
        self.metrics = metrics
        self.optimizer_config = dict(optimizer)
        self.scheduler_config = None if scheduler is None else dict(scheduler)
        self.optimizer_factory = optimizer_factory
        self.monitor = monitor
        self.mode = mode
        self.name = name
        self.channels_last = channels_last
        self.transfer = transfer
        self.mix: Callable[[Batch, int, int], Batch] | None = None
        self.coverage: Coverage | None = None
        self.is_trained = True
        self.train_sums = TrainingSums()
        self.val_sums = LossSums()
        self.results: dict[str, float] = {}
        self.scores: dict[str, float] = {}

    # What a family of tasks says of itself -----------------------------------------------------

    @abstractmethod
    def to_original(self, prediction: Prediction, info: ImageInfo) -> Prediction:
        """A prediction in network pixels -> one in original pixels; both on the CPU."""

    def to_original_batch(
        self, predictions: Sequence[Prediction], infos: Sequence[ImageInfo]
    ) -> list[Prediction]:
        """A batch's predictions in original pixels, on the CPU."""
        pairs = zip(predictions, infos, strict=True)
        return [self.to_original(p.cpu(), info) for p, info in pairs]

    def evaluate_batch(
        self, batch: Batch
    ) -> tuple[dict[str, Tensor], list[Prediction], list[Prediction]]:
        """Loss terms, predictions in network pixels and in original ones, of a validation batch."""
        terms, predictions = self.model.loss_and_predict(
            batch.images, batch.targets, batch.proposals
        )
        return terms, predictions, self.to_original_batch(predictions, batch.infos)

    def predict_batch(self, batch: Batch) -> list[Prediction]:
        """Predictions in original pixels, of a batch without targets."""
        return self.to_original_batch(
            self.model.predict(batch.images, batch.proposals), batch.infos
        )

    # The order of a run, fixed -----------------------------------------------------------------

    def forward(self, images: Tensor) -> Any:
        """``(B, C, H, W)`` images -> the model's raw outputs."""
        return self.model(images)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Images and targets move; truths stay on the CPU, where the metric is."""
        if self.coverage is not None and self.trainer.training:
            self.coverage.add(batch.targets)  # on the CPU still: no device is waited for
        batch = batch.to(device, non_blocking=True)
        if self.channels_last and batch.images.ndim == 4:
            images = batch.images.contiguous(memory_format=torch.channels_last)
            batch = replace(batch, images=images)
        return batch

    def on_train_epoch_start(self) -> None:
        if self.transfer is not None:
            self.transfer.unfreeze(self.model)
        self.model.on_epoch_start(self.current_epoch, self.trainer.max_epochs or 1)
        if self.transfer is not None:
            self.transfer.freeze(self.model, self.current_epoch)
        self.train_sums.reset()
        self.results = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The loss; where nothing learns it is reported alone, as it is without augmentation."""
        if not self.is_trained:
            terms, _ = self.model.loss_and_predict(batch.images, batch.targets, batch.proposals)
            self.train_sums.add(terms, len(batch), self.global_step)
            return None
        if self.mix is not None:
            batch = self.mix(batch, self.current_epoch, batch_idx)
        self.model.on_batch_start(self.current_epoch, batch_idx)
        terms = self.model.loss(batch.images, batch.targets, batch.proposals)
        return self.train_sums.add(terms, len(batch), self.global_step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the first batch it is known what there is to monitor: do not wait for an epoch."""
        if batch_idx == 0 and self.current_epoch == 0:
            self.metrics.reset()
            self._check_monitor([*self.train_sums.names, *self.metrics.compute()])
            self.metrics.reset()

    def on_train_epoch_end(self) -> None:
        if self.coverage is not None:
            self.coverage.report()
            self.coverage = None

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()
        self.val_sums.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Prediction]]:
        """Loss and metric from one forward.

        Returns:
            ``predictions`` in network pixels and ``originals`` in those of the image.
        """
        if batch.truths is None:
            raise ValueError("a validation batch carries no ground truth")
        terms, predictions, originals = self.evaluate_batch(batch)
        self.val_sums.add(terms, len(batch), batch_idx)
        self.metrics.update(originals, batch.truths, batch.infos)
        return {"predictions": predictions, "originals": originals}

    def on_validation_epoch_end(self) -> None:
        """Every process's images meet on rank 0, which computes once over the whole set."""
        losses = self.val_sums.means()
        states = gather(self.metrics.state())
        computed: dict[str, float] = {}
        if states is not None:
            if len(states) > 1:
                self.metrics.merge(states)
            computed = {k: float(v) for k, v in self.metrics.compute().items()}
        self.scores = broadcast(computed)
        self.results = {**losses, **self.scores}
        self._check_monitor(self.results)
        self._check_divergence()
        self.log_dict({f"val/{k}": v for k, v in self.results.items()}, logger=False)

    def _check_monitor(self, names: Collection[str]) -> None:
        """Raise UsageError where nothing is called what is to decide which epoch is best."""
        if self.monitor not in names:
            near = difflib.get_close_matches(self.monitor, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(names)}"
            raise UsageError(f"task.monitor={self.monitor}: validation gives no such value; {hint}")

    def _check_divergence(self) -> None:
        """Raise RunError where training has diverged; the loss of an odd image may overflow."""
        if math.isfinite(self.results.get("loss", 0.0)):
            return
        weights = all(bool(torch.isfinite(p).all()) for p in self.model.parameters())
        if not weights or self.val_sums.all_finite_samples == 0:
            what = "no validation loss is" if weights else "the weights are not"
            raise RunError(
                f"training has diverged, {what} finite: lower optimizer.lr, set "
                "trainer.gradient_clip_val or trainer.precision=32-true; the checkpoints of "
                "earlier epochs are intact"
            )

    def train_results(self) -> dict[str, float]:
        """Loss means and counts of the epoch so far, over all processes (every one must call)."""
        return self.train_sums.means()

    def learning_rate(self) -> float:
        """The rate of the last optimizer step's schedule, highest of all groups; 0 without one."""
        if not self.is_trained:
            return 0.0
        optimizers = self.optimizers()
        optimizer = optimizers[0] if isinstance(optimizers, list) else optimizers
        return max(float(group["lr"]) for group in optimizer.param_groups)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer over what learns of the model.

        Raises:
            UsageError: what ``build_optimizer`` refuses.
        """
        rates = None if self.transfer is None else self.transfer.lr_factors(self.model)
        return build_optimizer(self.model, self.optimizer_config, self.optimizer_factory, rates)

    def configure_optimizers(self) -> Any:
        """An optimizer, and a schedule that is set at every step; None where nothing learns."""
        self.is_trained = any(p.requires_grad for p in self.model.parameters())
        if not self.is_trained and self.transfer is not None:
            return None
        optimizer = self.make_optimizer()
        epochs = self.trainer.max_epochs or 1
        schedule = Schedule(
            self.scheduler_config, int(self.trainer.estimated_stepping_batches), epochs
        )
        # A plain function: LambdaLR would save (and on resume restore) an object's attributes.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
