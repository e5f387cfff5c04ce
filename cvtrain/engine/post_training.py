"""What is fitted after the last epoch: the stages of a model that has them, each once.

One pass over the training images, as they are without augmentation, under the network of the best
epoch; what it gives is kept in the cache (``cvtrain.transfer.feature_cache``). Then stage after
stage is fitted to it and saved as ``stages/NAME.pt`` in the run folder: a run that is stopped goes
on with the first stage that is not there. Rank 0 does the work and tells the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch

from cvtrain.callbacks.console import LOG
from cvtrain.distributed import broadcast, rank
from cvtrain.engine.checkpoint import MODEL_PREFIX, AtomicCheckpointIO
from cvtrain.engine.features import Batches, in_order, one_pass
from cvtrain.engine.rundir import RunDir
from cvtrain.errors import RunError
from cvtrain.models.staged import Stage, Staged
from cvtrain.structures import Batch
from cvtrain.tasks.base import Task
from cvtrain.text import relative
from cvtrain.transfer.feature_cache import Arrays, Key
from cvtrain.version import __version__

REMEDY = "model.fit_boxes=500, to learn from fewer boxes per image"


FEATURES = "features"
"""The name by which results.json has the pass over the images."""


def has_stages(task: Task) -> bool:
    """Whether anything is left to fit once the network is trained."""
    return isinstance(task.model, Staged) and len(task.model.stages) > 0


class Stages:
    """The stages of one run.

    Args:
        config: of the run.
        task: its model, ``Staged``, has the weights of the epoch to go on from.
        trainer: of the run; says where and in which precision the network runs.
        run: its folder.
        loader: training batches; its table is what the stages learn from.
        samples: the data set of that table, without augmentation.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        task: Task,
        trainer: pl.Trainer,
        run: RunDir,
        loader: Batches,
        samples: Any,
    ) -> None:
        self.config, self.task, self.trainer = config, task, trainer
        self.folder = run.stages
        self.images = in_order(loader, samples)
        self.model = cast(Staged, task.model)

    def fit(self) -> list[dict[str, Any]]:
        """Fit, or take from the run folder, every stage; on every process of the run.

        Returns:
            Of each stage its name, the seconds it took and what it said, as results.json has it,
            and the same of what they were fitted to, where that was not there.

        Raises:
            RunError: there is no room for what they learn from.
        """
        made = self._fit() if rank() == 0 else None
        note: list[dict[str, Any]] = broadcast(made)
        for entry in note:
            if "state" in entry:
                self._stage(entry["name"]).load_state_dict(entry["state"])
        return [{k: v for k, v in entry.items() if k != "state"} for entry in note]

    def _stage(self, name: str) -> Stage:
        return cast(Stage, self.model.stages[name])

    def _fit(self) -> list[dict[str, Any]]:
        for stage in self.model.stages.values():
            cast(Stage, stage).reset()  # of an earlier run of these stages
        key = self._key()
        before = self._kept(FEATURES, key)  # computed by this run, which was cut after that
        done: list[dict[str, Any]] = [] if before is None else [before]
        examples: dict[str, np.ndarray] | None = None
        for name in self.model.stages:
            entry = self._kept(name, key)
            if entry is not None:
                LOG.info(f"stage {name}: {entry['said']}; from {relative(self._path(name))}")
                done.append(entry)
                continue
            if examples is None:
                examples = self._examples(key, done)
            started = time.perf_counter()
            stage = self._stage(name).cpu()
            message = stage.fit(examples)
            entry = {
                "name": name,
                "seconds": time.perf_counter() - started,
                "said": message,
                "state": stage.state_dict(),
            }
            self._keep(entry, key)
            LOG.info(f"stage {name}: {message}, {entry['seconds']:.1f} s")
            done.append(entry)
        return done

    def _keep(self, entry: Mapping[str, Any], key: str) -> None:
        path = self._path(entry["name"])
        AtomicCheckpointIO().save_checkpoint({**entry, "key": key}, path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def _kept(self, name: str, key: str) -> dict[str, Any] | None:
        """What the run folder has of a stage, if it was fitted to this network and these images."""
        try:
            found = torch.load(self._path(name), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
            raise RunError(f"{self._path(name)} cannot be read: delete it and resume") from error
        if found.pop("key", None) != key:
            return None  # the run was trained on, or the user changed its config or its data
        return dict(found)

    def _examples(self, key: str, done: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """What the stages learn from: of the cache, or of the network and then kept there."""
        arrays = Arrays(key, REMEDY)
        found = arrays.read()
        began = time.perf_counter()
        if found is None:
            arrays.write(self._batches(), len(self.images))
        counted = f"stage features: {len(self._samples):,} training images"
        if found is not None:
            LOG.info(f"{counted}, taken from {relative(arrays.path)}")
            return found
        found = arrays.read()
        if found is None:
            raise RunError(f"what was kept in {arrays.path} cannot be read: delete the folder")
        seconds, rows = time.perf_counter() - began, _shapes(found)
        entry = {"name": FEATURES, "seconds": seconds, "said": rows}
        self._keep(entry, key)
        done[:] = [entry, *(e for e in done if e["name"] != FEATURES)]
        LOG.info(
            f"{counted} ({rows}), {seconds:.1f} s, kept in {relative(arrays.path)} "
            f"({arrays.size / 1e6:.1f} MB)"
        )
        return found

    @property
    def _samples(self) -> Any:
        return self.images.dataset

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        def examples(batch: Batch) -> dict[str, np.ndarray]:
            return self.model.examples(batch.images, batch.targets, batch.proposals)

        return one_pass(self.task, self.trainer, self.images, "features", examples)

    def _key(self) -> str:
        """Names all that the examples, and so the stages, follow from."""
        samples, model = self._samples, self.task.model
        network = {k: v for k, v in model.state_dict().items() if not k.startswith("stages.")}
        kind = type(model)
        key = (
            Key()
            .plain([__version__, torch.__version__, kind.__module__, kind.__qualname__])
            .plain([self.model.example_settings(), self.config["model"]])
            .plain([str(self.trainer.precision), self.trainer.strategy.root_device.type])
            .plain([samples.height, samples.width, samples.resize, samples.channels])
            .plain(self.config["data"].get("reader") if samples.table.generator else 0)
            .tensors(network)
            .table(samples.table)
        )
        if samples.proposals is not None:
            for row in range(len(samples.table)):
                key.array(samples.proposals.boxes(samples.table.files[row]).boxes)
        return key.name


def _shapes(arrays: Mapping[str, np.ndarray]) -> str:
    """``features 41,230 x 256, ...``, of arrays of floats; labels and the like go with them."""
    large = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    return ", ".join(f"{n} {' x '.join(f'{v:,}' for v in a.shape)}" for n, a in large.items())


def with_stages(checkpoint: dict[str, Any], task: Task) -> dict[str, Any]:
    """A checkpoint's network with the stages that were fitted to it, and what it is worth now."""
    state = dict(checkpoint["state_dict"])
    prefix = f"{MODEL_PREFIX}stages."
    own = task.state_dict()
    state |= {name: value.cpu() for name, value in own.items() if name.startswith(prefix)}
    header = {**checkpoint["cvtrain"], "metrics": dict(task.results)}
    return {**checkpoint, "state_dict": state, "cvtrain": header}
