"""The features of a run on a fixed backbone: computed once, kept, and trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
import pytorch_lightning as pl
import timm
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from cvtrain.callbacks.console import LOG, console
from cvtrain.data.collate import collate
from cvtrain.data.loader import Loader
from cvtrain.data.views import Views
from cvtrain.data.worker import start_worker
from cvtrain.distributed import broadcast, rank
from cvtrain.errors import RunError, UsageError
from cvtrain.models.base import Model
from cvtrain.models.classification.heads import FittedHead
from cvtrain.structures import Batch
from cvtrain.tasks.base import Task
from cvtrain.text import relative
from cvtrain.transfer.feature_cache import Key, Store
from cvtrain.transfer.features import Features, on_features
from cvtrain.version import __version__

Batches = DataLoader[Any]
T = TypeVar("T")


def wanted(config: Mapping[str, Any]) -> bool:
    """Whether a run is trained on features that are kept."""
    return bool((config.get("transfer") or {}).get("cache"))


def feature_loaders(
    config: Mapping[str, Any], task: Task, trainer: pl.Trainer, train: Batches, val: Batches
) -> tuple[Batches, Batches]:
    """The same batches in the same order, with features in place of images.

    Features that no run has computed yet are computed by rank 0, with the model as it is; the other
    processes wait, and all read the one file.

    Args:
        config: of the run.
        task: its model has ``features(images)``, and takes their result in place of images.
        trainer: of the run; says where and in which precision a backbone runs.
        train: batches of training images.
        val: batches of validation images.

    Raises:
        UsageError: the model has no features of its own.
        RunError: they cannot be kept.
    """
    if not callable(getattr(task.model, "features", None)):
        raise UsageError(
            f"transfer.cache=true: {type(task.model).__name__} has no features(images) that it "
            "takes in place of images; say transfer.cache=false"
        )
    weights = Key().tensors(task.model.backbone.state_dict()).name  # type: ignore[union-attr, operator]
    made = []
    for name, loader in (("training", train), ("validation", val)):
        samples: Any = loader.dataset
        store = Store(_key(config, task, trainer, samples, weights), len(samples))
        made.append(on_features(loader, _read(store, task, trainer, loader, name)))
    return made[0], made[1]


def fit_head(model: Model, loader: Batches) -> bool:
    """Fit a head that is fitted on all training features at once.

    Returns:
        Whether the model has such a head.

    Raises:
        DataError: too few images or classes for it.
        UsageError: there are no features: they are not kept.
    """
    heads = [m for m in model.modules() if isinstance(m, FittedHead)]
    if not heads:
        return False
    if not isinstance(loader.dataset, Features):
        raise UsageError("a head that is fitted takes features: say transfer.cache=true")
    started = time.perf_counter()
    data = loader.dataset
    for head in heads:
        head.fit(np.asarray(data.features), data.labels())
    seconds = time.perf_counter() - started
    LOG.info(f"fitted {type(heads[0]).__name__} to {len(data):,} features in {seconds:.1f} s")
    return True


def _read(store: Store, task: Task, trainer: pl.Trainer, loader: Batches, name: str) -> np.ndarray:
    """Features float32 ``(N, F)``, on every process."""
    there = store.read() is not None
    if rank() == 0 and not there:
        _compute(store, task, trainer, loader, name)
    broadcast(None)
    if trainer.local_rank == 0 and store.read() is None:  # a machine with a cache of its own
        _compute(store, task, trainer, loader, name)
    broadcast(None)
    features = store.read()
    if features is None:
        raise RunError(f"the features in {store.path} cannot be read: delete the folder")
    if there:
        LOG.info(f"features of {_counted(loader.dataset, name)} taken from {relative(store.path)}")
    return features


def _compute(store: Store, task: Task, trainer: pl.Trainer, loader: Batches, name: str) -> None:
    started = time.perf_counter()
    store.write(_batches(task, trainer, loader, name))
    seconds = time.perf_counter() - started
    size = store.path.joinpath("features.npy").stat().st_size / 1e6
    LOG.info(
        f"features of {_counted(loader.dataset, name)} computed in {seconds:.1f} s, kept in "
        f"{relative(store.path)} ({size:.1f} MB)"
    )


def _counted(samples: Any, name: str) -> str:
    images = f"{len(samples.table):,} {name} images"
    return f"{images} x {samples.count} views" if isinstance(samples, Views) else images


def _batches(task: Task, trainer: pl.Trainer, loader: Batches, name: str) -> Iterator[np.ndarray]:
    """Features float32 ``(B, F)`` of every sample, in the data set's own order."""
    images, model = in_order(loader, loader.dataset), cast(Any, task.model)

    def features(batch: Batch) -> Tensor:
        return model.features(batch.images)

    for found in one_pass(task, trainer, images, f"features ({name})", features):
        yield found.float().cpu().numpy()


def in_order(loader: Batches, samples: Any) -> Batches:
    """Batches of all samples in the data set's own order, made as ``loader`` makes its own."""
    return Loader(
        samples,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=collate,
        pin_memory=loader.pin_memory,
        worker_init_fn=start_worker,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),  # nothing is drawn from the run's own
    )


def one_pass(
    task: Task,
    trainer: pl.Trainer,
    loader: Batches,
    title: str,
    function: Callable[[Batch], T],
) -> Iterator[T]:
    """What ``function`` makes of each batch of a loader.

    It is called with the batch and the model on the run's device, in the run's precision, the model
    in eval mode, without gradient. ``title`` names the bar that is shown in a terminal.
    """
    device = trainer.strategy.root_device
    model = task.model.to(device)
    model.eval()
    batches: Iterable[Any] = loader
    if console().is_terminal and rank() == 0:
        batches = track(loader, title, len(loader), console=console(), transient=True)
    try:
        for batch in batches:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                moved = batch.to(device, non_blocking=True)
                if task.channels_last:
                    images = moved.images.contiguous(memory_format=torch.channels_last)
                    moved = replace(moved, images=images)
                made = function(moved)
            yield made
    finally:
        model.train()


def _key(
    config: Mapping[str, Any], task: Task, trainer: pl.Trainer, samples: Any, weights: str
) -> str:
    """Names everything that features follow from."""
    model: Any = task.model
    base = samples.base if isinstance(samples, Views) else samples
    node = config["model"].get("backbone") or {}
    kind = type(model)
    network = {k: v for k, v in node.items() if k not in ("weights", "pretrained")}
    generated = base.table.generator is not None
    augmented = base.augmentation is not None and config.get("augment") is not None
    return (
        Key()
        .plain([__version__, torch.__version__, timm.__version__])
        .plain([f"{kind.__module__}.{kind.__qualname__}", network, weights])
        .plain([list(model.backbone.mean), list(model.backbone.std)])
        .plain([str(trainer.precision), trainer.strategy.root_device.type])
        .plain([base.height, base.width, base.resize, base.channels, base.task])
        .plain(
            [config["augment"], base.seed, len(samples) // max(1, len(base))] if augmented else 0
        )
        .plain(base.augmentation is not None)
        .plain(config["data"].get("reader") if generated else 0)
        .table(base.table)
        .name
    )
