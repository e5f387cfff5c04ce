"""Lightning's Trainer from ``config["trainer"]``, and the callbacks no run goes without."""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import ClusterEnvironment
from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies import StrategyRegistry

from cvtrain.distributed import rank
from cvtrain.engine.checkpoint import AtomicCheckpointIO
from cvtrain.engine.device import Device
from cvtrain.errors import UsageError
from cvtrain.structures import Batch

_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def seed_all(*numbers: int) -> None:
    """Seed Python, numpy and torch from a tuple of numbers, so that streams do not overlap."""
    python, numpy, *rest = np.random.SeedSequence(numbers).generate_state(4)
    random.seed(int(python))
    np.random.seed(int(numpy))  # noqa: NPY002 - libraries draw from the global state
    torch.manual_seed(int(rest[0]) << 32 | int(rest[1]))


class Reseed(pl.Callback):
    """Every epoch draws from (seed, epoch, rank) alone: a resume needs no saved RNG state.

    Done at the first batch, once the epoch's loader iterator is made: that draws a number too, and
    at another moment in a resumed run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            seed_all(self.seed, trainer.current_epoch, rank())


def build_trainer(
    config: Mapping[str, Any],
    device: Device,
    environment: ClusterEnvironment | None,
    folder: Path,
    callbacks: list[pl.Callback],
    loggers: list[Any],
    has_frozen_epochs: bool = False,
) -> pl.Trainer:
    """A Trainer that is silent, unsharded by itself, and writes checkpoints atomically.

    ``has_frozen_epochs``: some parameters get no gradient in some epochs, which processes must
    look out for.

    Raises:
        UsageError: a value out of range, or one that Lightning refuses.
    """
    values = config["trainer"]
    strategy = str(values.get("strategy") or "auto")
    if strategy == "auto" and device.world_size > 1:
        strategy = "ddp"
    if strategy == "ddp" and has_frozen_epochs:
        strategy = "ddp_find_unused_parameters_true"
    plugins: list[Any] = [AtomicCheckpointIO()]
    if environment is not None:
        plugins.append(environment)
    deterministic = bool(values.get("deterministic", False))
    try:
        return pl.Trainer(
            accelerator=device.accelerator,
            devices=device.processes,
            num_nodes=device.nodes,
            strategy=strategy,
            precision=device.precision,  # type: ignore[arg-type]
            max_epochs=_at_least(values, "max_epochs", 1),
            accumulate_grad_batches=_at_least(values, "accumulate_grad_batches", 1),
            gradient_clip_val=values.get("gradient_clip_val"),
            sync_batchnorm=bool(values.get("sync_batchnorm", False)),
            deterministic=deterministic,
            benchmark=not deterministic,
            check_val_every_n_epoch=_at_least(values, "check_val_every_n_epoch", 1),
            limit_train_batches=_limit(values, "limit_train_batches"),
            limit_val_batches=_limit(values, "limit_val_batches"),
            profiler=_profiler(values.get("profiler"), folder),
            plugins=plugins,
            callbacks=callbacks,
            logger=loggers or False,
            default_root_dir=folder,
            enable_checkpointing=any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_autolog_hparams=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=False,  # a buffer made in validation must serve training too
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from error


def check_strategy(name: str) -> None:
    """Raise UsageError where Lightning knows no strategy of this name."""
    known = ["auto", *StrategyRegistry.available_strategies()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = (
            f"did you mean trainer.strategy={near[0]}?" if near else f"it takes {' | '.join(known)}"
        )
        raise UsageError(f"trainer.strategy={name}: Lightning has no such strategy; {hint}")


def _at_least(values: Mapping[str, Any], key: str, least: int) -> int:
    value = values.get(key)
    if value is None:  # nothing reads it, as where a head is fitted without epochs
        return least
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"trainer.{key}={value}: expected a whole number, {least} or more")
    return value


def _limit(values: Mapping[str, Any], key: str) -> int | float:
    value = values.get(key)
    if value is None:
        return 1.0
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    part = isinstance(value, float) and 0 < value <= 1
    if not (whole or part):
        raise UsageError(
            f"trainer.{key}={value}: expected a number of batches, a part of them (0..1], or null"
        )
    return value


def _profiler(name: str | None, folder: Path) -> Any:
    if name is None:
        return None
    if name not in _PROFILERS:
        raise UsageError(f"trainer.profiler={name}: expected {', '.join(_PROFILERS)} or null")
    return _PROFILERS[name](dirpath=folder, filename="profile")
