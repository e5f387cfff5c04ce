"""The data of a run: checked once, by rank 0; then every process makes its own loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from cvtrain.callbacks.console import LOG
from cvtrain.data.datamodule import DataModule, build_datamodule
from cvtrain.distributed import broadcast, rank, world_size


def load_data(
    config: Mapping[str, Any], trust: Sequence[str] = (), splits: Sequence[str] | None = None
) -> tuple[DataModule, Any]:
    """The data module and the gate's report.

    Rank 0 reads and checks everything first, with a progress bar; what it found out about each
    file is kept in the cache, where the others find it.

    Raises:
        DataError: the data set has errors and ``data.on_bad`` is ``error``, or cannot be used.
        UsageError: a value that cannot be used.
    """

    def build(progress: bool) -> tuple[DataModule, Any]:
        return build_datamodule(
            config,
            config["task"]["name"],
            seed=int(config.get("seed") or 0),
            trust=trust,
            splits=splits,
            progress=progress,
        )

    if rank() == 0:
        data, report = build(True)
        for line in [*report.summary_lines(), *data.notes]:
            LOG.info(line)
        broadcast(None)
    else:
        broadcast(None)
        data, report = build(False)
    return data, report


def make_boxes(data: DataModule, splits: Sequence[str] = ("train", "val")) -> None:
    """Proposals for a model that is given its boxes: rank 0 makes them, the others find them.

    After the model was built, whose errors need not wait for them.

    Raises:
        DataError: a file of proposals that holds boxes of other images.
        UsageError, RunError: see ``cvtrain.proposals.source``.
    """
    if data.proposals is None:
        return
    if rank() == 0:
        LOG.info(f"proposals: {data.make_boxes(splits).summary()}")
        broadcast(None)
    else:
        broadcast(None)
        data.make_boxes(splits)


def loaders(
    data: DataModule, config: Mapping[str, Any], trainer: pl.Trainer
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training and validation batches for this process.

    With ``trainer.overfit_batches`` both are the first so many batches of the training set, not
    augmented and not shuffled.
    """
    data.trainer = trainer
    batches = int(config["trainer"].get("overfit_batches") or 0)
    if batches < 1:
        return data.train_dataloader(), data.val_dataloader()
    table = data.tables["train"]
    count = min(len(table), batches * data.batch_size * world_size())
    count = max(count // world_size() * world_size(), min(count, 1))  # ranks step together
    data.tables["overfit"] = table.take(range(count))
    return data.loader("overfit", native=False), data.loader("overfit")
