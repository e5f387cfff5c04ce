"""Which stages of a backbone learn, in which epoch, and at which rate.

A backbone is a list of stages, from the image to the last map (``Backbone.stages``); everything
else in a model stands on top of it and learns at the full rate in every epoch.

- ``scratch``: all stages, from random weights.
- ``feature_extraction``: none.
- ``fine_tune``: all, those near the image more slowly: with S stages, stage i (from 0) learns at
  ``layer_decay ** (S - i)`` of the rate (ELECTRA, Clark et al. 2020, arXiv 2003.10555; for images
  BEiT, Bao et al. 2021, arXiv 2106.08254), times ``backbone_rate``; none in the first
  ``freeze_epochs``.
- ``partial``: the last ``stages``; or, with ``unfreeze_every`` E, none in the first E epochs, then
  one more every E epochs, the top first (gradual unfreezing: ULMFiT, Howard & Ruder 2018,
  arXiv 1801.06146, where E is 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cvtrain.errors import UsageError
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model

REGIMES = ("scratch", "feature_extraction", "fine_tune", "partial")
"""What ``transfer.name`` can be."""


class Transfer:
    """A regime for one model. What is fixed in an epoch is a pure function of its number.

    Args:
        config: the ``transfer`` node: ``name`` and that regime's own keys.
        model: its ``backbone`` is what the regime is about.

    Attributes:
        name: of the regime.
        stages: names of the parameters and buffers of each stage, below ``backbone.``.

    Raises:
        UsageError: an unknown regime, a model without a backbone, or a number of stages that the
            backbone does not have.
    """

    def __init__(self, config: Mapping[str, Any], model: Model) -> None:
        self.name = str(config.get("name"))
        if self.name not in REGIMES:
            raise UsageError(f"transfer.name={self.name}: expected one of {', '.join(REGIMES)}")
        self.stages = _backbone(model, self.name).stages()
        _check_stages(model, self.stages)
        self.head = config.get("head")
        self.layer_decay = float(config.get("layer_decay") or 1.0)
        self.backbone_rate = float(config.get("backbone_rate") or 1.0)
        self.freeze_epochs = int(config.get("freeze_epochs") or 0)
        self.unfreeze_every = config.get("unfreeze_every")
        self.last = len(self.stages)  # stages that are trained, where the epoch does not matter
        if self.name == "feature_extraction":
            self.last = 0
        elif self.name == "partial" and self.unfreeze_every is None:
            self.last = int(config.get("stages") or 0)
            if not 1 <= self.last <= len(self.stages):
                raise UsageError(
                    f"transfer.stages={self.last}: this backbone has {len(self.stages)} stages; "
                    "transfer=fine_tune trains them all"
                )

    @property
    def has_frozen_epochs(self) -> bool:
        """Whether some stages learn in some epochs alone."""
        return bool(self.freeze_epochs) or self.unfreeze_every is not None

    def trained(self, epoch: int) -> int:
        """How many stages learn in ``epoch`` (from 0), counted from the top."""
        if self.unfreeze_every is not None:
            return min(len(self.stages), epoch // int(self.unfreeze_every))
        return 0 if epoch < self.freeze_epochs else self.last

    def begin(self, model: Model) -> None:
        """Fix what is fixed for good; before an optimizer is made, which is to take the rest."""
        _backbone(model, self.name).freeze_stages(len(self.stages) - self.last)
        model.has_frozen_epochs = model.has_frozen_epochs or self.has_frozen_epochs

    def unfreeze(self, model: Model) -> None:
        """Undo ``hold``, so that the model itself may say what is trained in the coming epoch."""
        backbone = _backbone(model, self.name)
        backbone.freeze_stages(0)
        backbone.train(model.training)

    def freeze(self, model: Model, epoch: int) -> None:
        """Fix what does not learn in ``epoch``."""
        _backbone(model, self.name).freeze_stages(len(self.stages) - self.trained(epoch))

    def lr_factors(self, model: Model) -> dict[str, float]:
        """Parameters of ``model`` that learn at a part of the rate -> that part."""
        if self.layer_decay == self.backbone_rate == 1:
            return {}
        names = {name for name, _ in model.named_parameters()}
        parts = {
            f"backbone.{name}": self.backbone_rate * self.layer_decay ** (len(self.stages) - i)
            for i, stage in enumerate(self.stages)
            for name in stage
        }
        return {name: part for name, part in parts.items() if name in names}

    def summary(self, model: Model, epochs: int) -> str:
        """One line: what is trained."""
        count, total = len(self.stages), _shown(p.numel() for p in model.parameters())
        fixed = {f"backbone.{name}" for stage in self.stages[: count - self.last] for name in stage}
        free = _shown(p.numel() for n, p in model.named_parameters() if n not in fixed)
        message = f"transfer={self.name}: "
        if self.unfreeze_every is not None:
            every = int(self.unfreeze_every)
            reached = self.trained(epochs - 1)
            return message + (
                f"what stands on the backbone trains, and one more of its {count} stages every "
                f"{every} epoch{'s' if every > 1 else ''}, {reached} of them in the last epoch"
            )
        if self.name == "scratch":
            return message + f"random weights, all {count} stages train, {total} parameters"
        if self.name == "feature_extraction":
            if not any(p.requires_grad for p in model.parameters()):
                return message + f"the backbone is fixed, {self.head} is fitted to its features"
            return message + f"the backbone is fixed, {free} of {total} parameters train"
        if self.name == "partial":
            return message + f"{self.last} of {count} stages train, {free} of {total} parameters"
        message += f"all {count} stages train, {total} parameters"
        if self.layer_decay != 1:
            low, high = (self.backbone_rate * self.layer_decay**n for n in (count, 1))
            message += f", at {low:.2g} (next to the image) to {high:.2g} of optimizer.lr"
        elif self.backbone_rate != 1:
            message += f", the backbone's at {self.backbone_rate:.2g} of optimizer.lr"
        if self.freeze_epochs:
            first = "epoch" if self.freeze_epochs == 1 else f"{self.freeze_epochs} epochs"
            message += f"; in the first {first} none"
        return message


def _backbone(model: Model, regime: str) -> Backbone:
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise UsageError(
            f"transfer={regime} is about a backbone: {type(model).__name__} keeps none as "
            "self.backbone"
        )
    return backbone


def _check_stages(model: Model, stages: list[list[str]]) -> None:
    """Refuse stages that leave out parameters, or name some twice: they would train unasked."""
    named = sorted(name for stage in stages for name in stage)
    state = sorted(_backbone(model, "").state_dict())
    if named != state:
        wrong = next(n for n in [*named, *state] if named.count(n) != state.count(n))
        raise UsageError(
            f"the stages() of {type(model.backbone).__name__} name {wrong} {named.count(wrong)} "
            "times; every entry of its state dict stands in exactly one stage"
        )


def _shown(counts: Iterable[int]) -> str:
    """``8.4 M``, ``5.1 k``, ``700``."""
    total = sum(counts)
    if total < 1000:
        return str(total)
    return f"{total / 1e6:.1f} M" if total >= 1e6 else f"{total / 1e3:.1f} k"
