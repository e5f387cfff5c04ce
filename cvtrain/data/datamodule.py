"""The loaders of a run: from the config's ``data`` and ``augment`` to batches, for any trainer."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from cvtrain.augment.geometry import RESIZES
from cvtrain.augment.object_crops import crops_of
from cvtrain.augment.policy import Augmentation
from cvtrain.data.classification_extra import Joint, join_labeled
from cvtrain.data.collate import Sample, collate
from cvtrain.data.dataset import VisionDataset, input_size
from cvtrain.data.given_boxes import BoxSource
from cvtrain.data.image_cache import RamCache
from cvtrain.data.image_labels import check_sampler, images_per_class, strata
from cvtrain.data.loader import Loader
from cvtrain.data.pixels import mask_pixels, spread
from cvtrain.data.sampler import EpochSampler, SizeBatches
from cvtrain.data.source import make_reader, split_seed
from cvtrain.data.table import Classes, Table
from cvtrain.data.task_tables import task_tables
from cvtrain.data.views import Views
from cvtrain.data.worker import start_worker
from cvtrain.errors import DataError, UsageError
from cvtrain.structures import TASKS
from cvtrain.text import say

if TYPE_CHECKING:
    from cvtrain.data.gate.run import GateReport

log = logging.getLogger(__name__)

MOST_WORKERS = 8
"""``data.num_workers=null`` takes one process a core, but not more than this."""

_TARGETS = {
    "classification": (),
    "multilabel_classification": (),
    "localization": ("boxes",),
    "detection": ("boxes",),
    "semantic_segmentation": ("mask",),
    "instance_segmentation": ("boxes", "masks"),
}


class DataModule(pl.LightningDataModule):
    """Loaders over checked tables.

    Training keeps a short last batch, unless it is of one image, which batch normalization cannot
    take; ranks are padded to equal numbers of batches by repeating the epoch's first samples.
    Validation and test see every image once: rank r takes every world-th, nothing is repeated.
    Run the trainer with ``use_distributed_sampler=False``.

    Args:
        tables: split -> table, as the gate left it.
        task: one of ``TASKS``.
        augment: the config's node, for the ``train`` split; None: no augmentation.
        batch_size: images a step and rank.
        image_size: the network's input, pixels: an int or [H, W].
        resize: ``letterbox`` or ``stretch``.
        num_workers: loader processes; None: one a core and rank, at most 8.
        cache: ``none`` or ``ram``.
        channels: of the images.
        sampler: ``shuffle``, or ``balanced``: classes are drawn equally often in training.
        seed: of the run; all draws follow from it.
        trust: packages that the augmentation's targets may come from.
        progress: shows a bar while the cache fills.
        epochs: of the whole run, for an ``augment.close_epoch`` that is a part of it.
        views: train on so many fixed views of each image in place of new ones every epoch.
        proposals: boxes for every image, for models that are given them; see ``make_boxes``.
        labeled: further training images, which have a class and no boxes.
        native: validation and test images stay as they are, at their own size.

    Attributes:
        notes: lines on the ``labeled`` images, for the log.

    Raises:
        UsageError: a value that cannot be used.
    """

    def __init__(
        self,
        tables: Mapping[str, Table],
        task: str,
        augment: Mapping[str, Any] | None = None,
        *,
        batch_size: int = 16,
        image_size: int | Sequence[int] = 448,
        resize: str = "letterbox",
        num_workers: int | None = None,
        cache: str = "none",
        channels: int = 3,
        sampler: str = "shuffle",
        seed: int = 0,
        trust: Sequence[str] = (),
        progress: bool = False,
        epochs: int | None = None,
        views: int | None = None,
        proposals: BoxSource | None = None,
        labeled: Sequence[Table] = (),
        native: bool = False,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise UsageError(f"task={task} is not known; choose one of {', '.join(TASKS)}")
        if type(batch_size) is not int or batch_size < 1:
            raise UsageError(f"data.batch_size={batch_size}: give a whole number, at least 1")
        if num_workers is not None and (type(num_workers) is not int or num_workers < 0):
            raise UsageError(f"data.num_workers={num_workers}: give null or a whole number")
        if resize not in RESIZES:
            raise UsageError(f"data.resize={resize}: choose one of {', '.join(RESIZES)}")
        if cache not in ("none", "ram"):
            raise UsageError(f"data.cache={cache}: choose none or ram")
        check_sampler(sampler, task)
        self.height, self.width = input_size(image_size)
        self.tables, self.task = task_tables(tables, task), task
        self.batch_size, self.resize, self.channels = batch_size, resize, channels
        self.workers, self.cache, self.sampler = num_workers, cache, sampler
        self.seed, self.progress, self.views = seed, progress, views
        self.proposals, self.native = proposals, native
        self.notes: list[str] = []
        self.augmentation = compile_augment(
            augment,
            task,
            height=self.height,
            width=self.width,
            resize=resize,
            trust=trust,
            epochs=epochs,
            class_names=self.classes.names,
        )
        self.labeled = [self._labeled(table, augment, trust, epochs) for table in labeled]
        self._datasets: dict[tuple[str, bool, bool], VisionDataset] = {}
        self._caches: dict[str, RamCache] = {}

    @property
    def classes(self) -> Classes:
        """Names and ids, the same in every split."""
        return next(iter(self.tables.values())).classes

    def take_classes(self, classes: Classes) -> None:
        """The classes of a model that knows all of these, and more; labels go by name.

        Nothing changes where it does not, where ids differ, or where masks hold values of their
        own.
        """
        own = self.classes
        ids = dict(zip(classes.names, classes.ids))
        numbered = own.ids == tuple(range(len(own)))
        known = all(n in ids and (numbered or ids[n] == i) for n, i in zip(own.names, own.ids))
        ordered = classes.names[: len(own)] == own.names
        masks = [t for t in self.tables.values() if t.masks is not None]
        if not known or (masks and not (ordered and all(t.mask_values is None for t in masks))):
            return
        to = np.array([*map(classes.names.index, own.names), -1])  # the last: no class
        self.tables = {k: _renumbered(t, classes, to) for k, t in self.tables.items()}
        self._datasets.clear()

    def table(self, split: str) -> Table:
        """The table of a split.

        Raises:
            DataError: there is no such split.
        """
        if split not in self.tables:
            there = ", ".join(self.tables) or "none"
            raise DataError(f"the data set has no {split} split; there are: {there}")
        return self.tables[split]

    def make_boxes(self, splits: Sequence[str] = ("train", "val")) -> Any:
        """Make the proposals of every image of these splits, before a sample is asked for.

        A step of its own, as it can take hours: what is wrong with a model is said before.

        Returns:
            ``cvtrain.proposals.source.Prepared``; None where there are no proposals.

        Raises:
            DataError: a file that holds boxes of other images; an image that cannot be read.
            UsageError, RunError: see ``cvtrain.proposals.source``.
        """
        source: Any = self.proposals
        if source is None:
            return None
        return source.prepare(
            {name: table for name, table in self.tables.items() if name in splits},
            channels=self.channels,
            workers=self.workers,
            progress=self.progress,
        )

    def class_counts(self) -> tuple[list[int], int | list[int]]:
        """Of each class the training images, and all of them; where there are masks its pixels.

        Then the second is K numbers too, see ``mask_pixels``.
        """
        if self.task == "semantic_segmentation":
            return mask_pixels(self.dataset("train"))
        table = self.table("train")
        return images_per_class(table, self.task).tolist(), len(table)

    def dataset(self, split: str, *, train: bool = False, native: bool = False) -> VisionDataset:
        """The samples of a split: augmented (``train``), or fitted (or not) with their truths."""
        key = (split, train, native)
        if key not in self._datasets:
            dataset = VisionDataset(
                self.table(split),
                self.task,
                height=self.height,
                width=self.width,
                resize=self.resize,
                channels=self.channels,
                augmentation=self.augmentation if train else None,
                seed=self.seed,
                proposals=self.proposals,
                native=native,
            )
            if self.cache == "ram":
                if split not in self._caches:
                    self._caches[split] = self._fill(dataset)
                dataset.cache = self._caches[split]
            self._datasets[key] = dataset
        return self._datasets[key]

    def _labeled(
        self, table: Table, augment: Mapping[str, Any] | None, trust: Sequence[str], epochs: Any
    ) -> VisionDataset:
        """Augmented samples of images with only a class, never mixed with others."""
        alone = None if augment is None else {**augment, "mosaic": 0.0, "copy_paste": 0.0}
        return VisionDataset(
            table,
            "classification",
            height=self.height,
            width=self.width,
            resize=self.resize,
            channels=self.channels,
            augmentation=compile_augment(
                alone,
                "classification",
                height=self.height,
                width=self.width,
                resize=self.resize,
                trust=trust,
                epochs=epochs,
            ),
            seed=self.seed,
        )

    def present(self, split: str, classes: Sequence[int]) -> list[int]:
        """Which of these classes the samples of a split name, where nothing augments them.

        Of semantic masks, which must be opened for it, at most 2,000 are.
        """
        dataset, wanted = self.dataset(split), set(classes)
        masks = self.task == "semantic_segmentation"
        rows = spread(len(dataset)) if masks else np.arange(len(dataset))
        found: set[int] = set()
        for row in rows.tolist():
            if found == wanted:
                break
            found |= dataset.classes_of(row) & wanted
        return sorted(found)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Augmented, shuffled batches of ``train``."""
        return self.loader("train", train=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Every image of ``val`` once, with truths."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Every image of ``test`` once, with truths."""
        return self.loader("test")

    def loader(
        self, split: str, *, train: bool = False, native: bool | None = None
    ) -> DataLoader[Sample]:
        """Batches of a split, for this rank of the trainer this module belongs to (or alone).

        Batches of images as they are (``native``; None: as this module has it) are of one size.
        """
        native = (self.native if native is None else native) and not train
        samples = self.dataset(split, train=train, native=native)
        fixed = train and self.views is not None
        dataset: Any = Views(samples, self.views or 1) if fixed else samples
        if train and self.labeled:
            dataset = Joint([samples, *self.labeled])
        groups = None
        if train and self.sampler == "balanced":
            groups = np.resize(strata(samples.table), len(dataset))  # views follow in turn
        rank, world, local = self._ranks()
        sampler = EpochSampler(
            len(dataset),
            seed=self.seed,
            rank=rank,
            world=world,
            shuffle=train,
            pad=train,
            strata=groups,
            now=lambda: 0 if self.trainer is None else self.trainer.current_epoch,
        )
        # One image alone has no batch statistics; a set of one image is the user's own choice.
        lone = train and self.batch_size > 1 and len(sampler) % self.batch_size == 1
        workers = default_workers(local) if self.workers is None else self.workers
        workers = min(workers, -(-len(sampler) // self.batch_size))
        batches: dict[str, Any] = {
            "batch_size": self.batch_size,
            "sampler": sampler,
            "drop_last": lone and len(sampler) > 1,
        }
        if native:
            pixels = self.batch_size * self.height * self.width
            alike = SizeBatches(sampler, samples.table.sizes, self.batch_size, pixels)
            batches = {"batch_sampler": alike}
        return Loader(
            dataset,
            **batches,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self._on_cuda(),
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator().manual_seed(self.seed),  # the workers' seeds draw from it
        )

    def _ranks(self) -> tuple[int, int, int]:
        """Rank, world size, and ranks on this machine."""
        if self.trainer is None:
            return 0, 1, 1
        return self.trainer.global_rank, self.trainer.world_size, self.trainer.num_devices

    def _on_cuda(self) -> bool:
        if self.trainer is None:
            return torch.cuda.is_available()
        return self.trainer.strategy.root_device.type == "cuda"

    def _fill(self, dataset: VisionDataset) -> RamCache:
        filled = RamCache(
            dataset.load,
            dataset.table.sizes,
            self.channels,
            copies=self._ranks()[2],
            progress=self.progress and self._ranks()[0] == 0,
        )
        log.info(filled.summary())
        return filled


def default_workers(ranks: int = 1) -> int:
    """One a core that this process may use, shared among the machine's ranks, at most 8."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores // max(1, ranks), MOST_WORKERS))


def compile_augment(
    augment: Mapping[str, Any] | None,
    task: str,
    *,
    height: int,
    width: int,
    resize: str,
    trust: Sequence[str] = (),
    epochs: int | None = None,
    class_names: Sequence[str] = (),
) -> Augmentation:
    """The config's ``augment`` node, ready to run; ``epochs`` are those of the whole run.

    Among ``class_names``, those of the data, ``object_crops`` looks for the background.

    Raises:
        UsageError: an unknown key, transform or argument; a transform or a way to mix images that
            this task cannot use.
    """
    from cvtrain.augment.config import closing_epoch, refuse_task, settled
    from cvtrain.augment.pipeline import build_pipeline
    from cvtrain.instantiate import instantiate

    node = settled(augment)
    refuse_task(node, task)
    pipeline = build_pipeline(
        node,
        lambda n, where: instantiate(n, where=where, trust=trust),
        height,
        width,
        resize=resize,
        targets=_TARGETS[task],
    )
    return Augmentation(
        pipeline,
        mosaic=node["mosaic"],
        min_visibility=node["min_visibility"],
        min_area=node["min_area"],
        copy_paste=node["copy_paste"],
        closes=closing_epoch(node["close_epoch"], epochs),
        crops=crops_of(node["object_crops"], epochs, class_names),
    )


def is_native(cfg: Mapping[str, Any]) -> bool:
    """Whether a run is evaluated on images as they are on disk (``task.inference.mode``)."""
    inference = (cfg.get("task") or {}).get("inference") or {}
    return inference.get("mode") in ("whole", "tiles")


def build_datamodule(
    cfg: Mapping[str, Any],
    task: str,
    *,
    seed: int = 0,
    trust: Sequence[str] = (),
    splits: Sequence[str] | None = None,
    images: int | None = None,
    progress: bool = True,
) -> tuple[DataModule, GateReport]:
    """Reads the data set, passes it through the gate, and makes the loaders.

    Args:
        cfg: the resolved config; ``data``, ``augment`` and ``proposals`` are read.
        task: one of ``TASKS``.
        seed: of the run.
        trust: packages that targets may come from.
        splits: None: all there are.
        images: at most so many of each split, evenly spaced; None: all.
        progress: shows bars, and what ``data=auto`` found.

    Raises:
        DataError: the data set has errors and ``data.on_bad`` is ``error``, or cannot be used.
        UsageError: a value in the config that cannot be used.
    """
    from cvtrain.data.gate.run import label_options, run_gate
    from cvtrain.instantiate import instantiate

    data = cfg["data"]
    source = instantiate(cfg.get("proposals"), where="proposals", trust=trust)
    reader = make_reader(data, trust, cfg.get("overrides") or ())
    if progress and hasattr(reader, "found"):
        say(reader.found)
    report = run_gate(
        reader,
        task,
        on_bad=data["on_bad"],
        val_fraction=data["val_fraction"],
        seed=split_seed(data, seed),
        channels=data["channels"],
        progress=progress,
        splits=splits,
        object_choice=data.get("object"),
        **label_options(data),
    )
    report.select(data, seed)
    if images is not None:
        for name, table in report.tables.items():
            rows = np.linspace(0, len(table) - 1, min(images, len(table)))
            report.tables[name] = table.take(rows.astype(np.int64))
    joined: tuple[dict[str, Table], list[Table], list[str]] = (report.tables, [], [])
    if splits is None and data.get("classification_root"):  # training; they are in no other split
        joined = join_labeled(report.tables, data, seed=seed, progress=progress)
    module = DataModule(
        joined[0],
        task,
        cfg.get("augment"),
        batch_size=data["batch_size"],
        image_size=data["image_size"],
        resize=data["resize"],
        num_workers=data["num_workers"],
        cache=data["cache"],
        channels=data["channels"],
        sampler=data.get("sampler") or "shuffle",  # runs of before have none
        seed=seed,
        trust=trust,
        progress=progress,
        epochs=(cfg.get("trainer") or {}).get("max_epochs"),
        views=(cfg.get("transfer") or {}).get("views"),
        proposals=source,
        labeled=joined[1],
        native=is_native(cfg),
    )
    module.notes = joined[2]
    return module, report


def _renumbered(table: Table, classes: Classes, to: np.ndarray) -> Table:
    """The table with labels of other numbers: int64 ``to[label]``."""
    columns = {
        name: to[labels]
        for name in ("labels", "image_labels", "tags")
        if (labels := getattr(table, name)) is not None
    }
    return replace(table, classes=classes, **columns)
