"""The main job: check the data, train, evaluate the best epoch, leave a run folder behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytorch_lightning as pl
from lightning_fabric.plugins.environments import ClusterEnvironment

from cvtrain.augment.mix import build_mix
from cvtrain.callbacks.checkpoint import BestAndLast
from cvtrain.callbacks.console import LOG
from cvtrain.callbacks.early_stopping import EarlyStopping
from cvtrain.callbacks.metrics_csv import History
from cvtrain.callbacks.pictures import Pictures, log_picture
from cvtrain.callbacks.signal_handlers import KeepSignals
from cvtrain.data.fingerprint import Fingerprint
from cvtrain.distributed import broadcast, rank
from cvtrain.engine.build import (
    build_callbacks,
    build_loggers,
    build_model,
    build_task,
    build_transfer,
    optimizer_factory,
)
from cvtrain.engine.checkpoint import (
    MODEL_PREFIX,
    AtomicCheckpointIO,
    load_checkpoint,
    without_downloads,
)
from cvtrain.engine.class_weights import weigh_classes
from cvtrain.engine.data import load_data, loaders, make_boxes
from cvtrain.engine.detection_limits import TASKS as OBJECT_TASKS
from cvtrain.engine.detection_limits import objects_of, too_few
from cvtrain.engine.device import Device, choose_device
from cvtrain.engine.evaluation import score, write_scores
from cvtrain.engine.features import feature_loaders, fit_head, wanted
from cvtrain.engine.launch import launch, started_elsewhere
from cvtrain.engine.model_from_data import settle_model
from cvtrain.engine.post_training import Stages, has_stages, with_stages
from cvtrain.engine.process_group import join_world
from cvtrain.engine.resume import FollowChanges, Resumed, command, load_last, load_states
from cvtrain.engine.rundir import RunDir, claimed, is_typed, new_run_dir, stored_config
from cvtrain.engine.session import session
from cvtrain.engine.trainer import Reseed, build_trainer, check_strategy, seed_all
from cvtrain.errors import CheckpointError
from cvtrain.models.base import Model
from cvtrain.optim.optimizers import check_optimizer
from cvtrain.outside import with_seals
from cvtrain.signals import exit_code
from cvtrain.storage import write_json_atomic
from cvtrain.tasks.class_coverage import Coverage
from cvtrain.version import __version__


def train(config: dict[str, Any]) -> int:
    """Train what ``config`` describes; the exit code.

    Args:
        config: resolved, plain dicts and lists; ``run_dir`` None: a new folder below ``runs/``;
            ``resume`` a run folder: go on in it from its last finished epoch.

    Returns:
        0 done, 130 after Ctrl-C, 143 after SIGTERM: the last finished epoch is kept.

    Raises:
        CvtrainError: one line for the user.
    """
    device = choose_device(config["trainer"])
    if device.world_size > 1 and not started_elsewhere():
        config = {**config, "run_dir": str(_run_dir(config).path)}
        return launch("cvtrain.engine.train:train", config, device.processes, device.nodes)
    with session(config) as log, ExitStack() as stack:
        environment = join_world(device)
        run = stack.enter_context(claimed(config, lambda: _run_dir(config)))
        training = _Training(config, device, environment, run)
        try:
            training.restore()
            if training.is_finished:
                training.say_finished()
                return 0
            training.prepare(log)
            training.fit()
            training.finish()
        except BaseException as error:
            code = exit_code(error)
            if code is None:
                raise
            training.say_how_to_go_on()
            return code
        finally:
            training.close()
    return 0


def _run_dir(config: Mapping[str, Any]) -> RunDir:
    """Where the run writes.

    Raises:
        UsageError: another run is there.
    """
    if config.get("resume"):
        return RunDir(config["resume"])
    run = RunDir(config["run_dir"]) if config.get("run_dir") else None
    if run is not None and (is_typed(config) or not run.path.exists()):
        run.raise_if_used()
        return run
    return new_run_dir(config["task"]["name"], (config.get("model") or {}).get("name", "model"))


class _Training:
    """One process's part of a run."""

    def __init__(
        self,
        config: dict[str, Any],
        device: Device,
        environment: ClusterEnvironment | None,
        run: RunDir,
    ) -> None:
        self.config = config
        self.device = device
        self.environment = environment
        self.run = run
        self.main = rank() == 0
        self.trust = list(config.get("trust") or [])
        self.resumed: Resumed | None = None
        self.callbacks: dict[str, Any] = {}
        self.history = History(run.metrics_csv, config["trainer"].get("max_minutes"))
        self.loggers: list[Any] = []
        self.status = "failed"
        self.in_stages = False

    # Before the first epoch --------------------------------------------------------------------

    def restore(self) -> None:
        """Callbacks, and how far a resumed run had come."""
        if self.config.get("resume"):
            self.resumed = load_last(self.run, self.config.get("overrides") or ())
        if self.resumed is not None:
            self.config = self.resumed.settle(self.config)
        self.callbacks = build_callbacks(self.config, self.trust)
        if self.resumed is not None:
            known = [c for c in self.callbacks.values() if isinstance(c, EarlyStopping)]
            load_states(self.resumed, [self.history, *known])

    def prepare(self, log: Any) -> None:
        """Data, model, loaders; then the run folder, once nothing can be wrong any more."""
        self._check_names()
        self.data, report = load_data(self.config, trust=self.trust)
        classes = {"names": list(self.data.classes.names), "ids": list(self.data.classes.ids)}
        data = Fingerprint.of(self.data)
        self._check_data(classes, data)
        config = self.config = settle_model(self.config, self.data)
        stored = stored_config(config, self.run)
        if not config.get("resume"):
            stored = with_seals(stored)
        seed_all(int(config.get("seed") or 0))
        model = self._model(len(self.data.classes))
        self._weigh_classes(model)
        # A model whose phases do not fit into so many epochs says so before anything is written.
        model.on_epoch_start(0, self.epochs)
        self.transfer = build_transfer(config, model)
        self.task = build_task(
            config, model, self.data.classes, trust=self.trust, transfer=self.transfer
        )
        make_boxes(self.data)
        self._watch_training()
        header = {
            "version": __version__,
            "config": stored,
            "classes": classes,
            "data": data.to_state(),
        }
        self.checkpoints = BestAndLast(self.run.checkpoints, header)
        if self.transfer is None or any(p.requires_grad for p in model.parameters()):
            self.task.make_optimizer()  # values that it refuses
        self.trainer = self._trainer()
        self.train_loader, self.val_loader = loaders(self.data, config, self.trainer)
        if self.main:
            if not config.get("resume"):  # what an aborted start left there is written over
                self.run.create(stored, config.get("overrides") or [])
                self.run.checkpoints.mkdir(exist_ok=True)
            elif config.get("overrides") or (self.resumed and self.resumed.changes):
                self.run.write_config(stored)
            self.run.sweep_partials()
            log.open(self.run.log)
            write_json_atomic(self.run.check, report.to_json())
        broadcast(None)  # the folder is there for all
        self._say_what_is_trained()

    def _check_names(self) -> None:
        """What the installed libraries have to know, asked before the data are read."""
        check_strategy(str(self.config["trainer"].get("strategy") or "auto"))
        if optimizer := self.config.get("optimizer"):  # none where a head is fitted
            check_optimizer(optimizer, optimizer_factory(optimizer, self.trust))

    def _weigh_classes(self, model: Model) -> None:
        data = self.data
        message = weigh_classes(model, data.classes.names, data.class_counts, data.sampler)
        if message:
            LOG.info(message)

    def _watch_training(self) -> None:
        """What the task does to training batches, and what it counts of them."""
        trainer = self.config["trainer"]
        if trainer.get("overfit_batches"):
            return  # these are not augmented
        self.task.mix = build_mix(
            self.config.get("augment"),
            len(self.data.classes),
            epochs=trainer["max_epochs"],
            seed=int(self.config.get("seed") or 0),
            rank=rank(),
        )
        if self.epochs_done == 0 and trainer.get("limit_train_batches") is None:
            self.task.coverage = Coverage(
                self.data.classes.names, lambda classes: self.data.present("train", classes)
            )

    def _model(self, num_classes: int) -> Model:
        """The model; that of a resumed run needs no file of weights, it has its own backbone."""
        if self.resumed is None:
            model = build_model(self.config, num_classes, trust=self.trust)
            model.load_pretrained(self.data.classes.names)
            return model
        model = build_model(without_downloads(self.config), num_classes, trust=self.trust)
        prefix = MODEL_PREFIX + "backbone."
        state = self.resumed.state["state_dict"]
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if own:
            model.backbone.load_state_dict(own)  # type: ignore[union-attr, operator]
        return model

    def _trainer(self) -> pl.Trainer:
        """The Trainer; its loggers open only after everything else has been checked."""
        for callback in self.callbacks.values():
            if isinstance(callback, Pictures):
                callback.path = self.run.plots / "predictions.png"
        seed = int(self.config.get("seed") or 0)
        callbacks = [Reseed(seed), KeepSignals(), *self.callbacks.values()]
        callbacks += [self.history, self.checkpoints]
        if self.resumed is not None:
            callbacks.append(FollowChanges(self.resumed))
        self.loggers = build_loggers(self.config, self.run.path, self.trust)
        return build_trainer(
            self.config,
            self.device,
            self.environment,
            self.run.path,
            callbacks,
            self.loggers,
            has_frozen_epochs=self.task.model.has_frozen_epochs,
        )

    def _check_data(self, classes: Any, data: Fingerprint) -> None:
        """Refuse to go on with other classes or, unless told to, other images than before."""
        if self.resumed is None:
            return
        before = self.resumed.header["classes"]
        if before != classes:
            raise CheckpointError(
                f"{self.resumed.path}: its classes are not those of the data now "
                f"({', '.join(before['names'][:5])}, ... before); restore the data set"
            )
        accepted = self.config.get("resume_data") == "changed"
        self.resumed.check_data(data, self.run, accepted)
        self.resumed.say_changes()

    @property
    def is_finished(self) -> bool:
        """Whether the run that is resumed has nothing left to do."""
        return self.resumed is not None and self._is_done() and self.run.results.exists()

    def _say_what_is_trained(self) -> None:
        task, data = self.task, self.config["data"]
        parameters = sum(p.numel() for p in task.model.parameters())
        sizes = [len(loader.dataset) for loader in (self.train_loader, self.val_loader)]  # type: ignore[arg-type]
        classes = len(self.data.classes)
        LOG.info(
            f"{self.config['model']['name']} for {task.name}: {parameters / 1e6:.2f} M parameters, "
            f"{classes} class{'es' if classes != 1 else ''}, on {self.device}"
        )
        if self.transfer is not None:
            LOG.info(self.transfer.summary(task.model, self.epochs))
        optimizer = self.config["optimizer"]  # none where a head is fitted
        if optimizer and (doubt := task.model.optimizer_warning(str(optimizer["name"]))):
            LOG.warning(doubt)
        LOG.info(f"{data['name']}: {sizes[0]:,} training images, {sizes[1]:,} for validation")
        if task.name in OBJECT_TASKS:
            counts = [objects_of(self.data.tables[split]) for split in ("train", "val")]
            if message := too_few(self.config["model"], np.concatenate(counts)):
                LOG.info(f"note: {message}")
        LOG.info(f"run folder: {self.run}")

    # Epochs ------------------------------------------------------------------------------------

    @property
    def epochs(self) -> int:
        """Epochs of the whole run; a head that is fitted takes one."""
        return int(self.config["trainer"].get("max_epochs") or 1)

    @property
    def epochs_done(self) -> int:
        """Epochs that the checkpoint resumed from has finished."""
        return 0 if self.resumed is None else self.resumed.epochs_done

    def _is_done(self) -> bool:
        """Whether no epoch is left, or something has stopped the run before its last one."""
        done = self.epochs_done
        return done >= self.epochs or bool(self.resumed is not None and self._why_stopped(done))

    def _why_stopped(self, done: int) -> str:
        """Why a run ends after ``done`` epochs, before its last one; empty if it does not."""
        if done >= self.epochs:
            return ""
        stopper = self.callbacks.get("early_stopping")
        if isinstance(stopper, EarlyStopping) and stopper.exhausted:
            return stopper.reason(self.config["task"]["monitor"])
        return self.history.why_over

    def _what_would_train_longer(self) -> str:
        """``key=value``; empty where a head is fitted, which knows no epochs."""
        trainer, stopper = self.config["trainer"], self.callbacks.get("early_stopping")
        if not trainer.get("max_epochs"):
            return ""
        if self.epochs_done >= self.epochs:
            return f"trainer.max_epochs={2 * self.epochs_done}"
        if isinstance(stopper, EarlyStopping) and stopper.exhausted:
            return f"callbacks.early_stopping.patience={2 * stopper.waited}"
        return f"trainer.max_minutes={2 * self.history.seconds / 60:.3g}"

    def fit(self) -> None:
        """All epochs that are left."""
        if self.resumed is not None:
            LOG.info(f"resuming after epoch {self.epochs_done} of {self.trainer.max_epochs}")
        elif self.config.get("resume"):
            LOG.info("no epoch of this run was finished: it starts again")
        if self._is_done():
            return
        begun = time.perf_counter()
        if wanted(self.config):
            self.train_loader, self.val_loader = feature_loaders(
                self.config, self.task, self.trainer, self.train_loader, self.val_loader
            )
        fit_head(self.task.model, self.train_loader)
        self.history.before += time.perf_counter() - begun
        # Lightning makes the first epoch's iterator before it tells the sampler which epoch it is.
        sampler = self.train_loader.sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.epochs_done)
        if self.config["trainer"].get("compile"):
            self.task.model.compile()
        for logger in self.loggers:
            logger.log_hyperparams(stored_config(self.config, self.run))
        self.trainer.fit(
            self.task,
            train_dataloaders=self.train_loader,
            val_dataloaders=self.val_loader,
            ckpt_path=None if self.resumed is None else str(self.resumed.path),
        )
        if message := self._why_stopped(len(self.history.rows)):
            LOG.info(f"stopped after epoch {len(self.history.rows)}: {message}")

    # After the last epoch ----------------------------------------------------------------------

    def finish(self) -> None:
        """Evaluate the best epoch on the validation set; write, plot and print the result."""
        path = self.run.best if self.run.best.exists() else self.run.last
        checkpoint = load_checkpoint(path)
        self.task.load_state_dict(checkpoint["state_dict"])
        stages = self._fit_stages()
        seconds = score(
            self.task,
            lambda _: self.val_loader,
            self.config,
            self.device,
            self.environment,
            self.run,
            self.callbacks,
        )
        if self.main:
            if stages:
                AtomicCheckpointIO().save_checkpoint(with_stages(checkpoint, self.task), path)
            self._write(checkpoint["epoch"], path.name, seconds, stages)
        self.status = "success"

    def _fit_stages(self) -> list[dict[str, Any]]:
        """Fit what is fitted after the last epoch, to the training images; empty: nothing is."""
        if not has_stages(self.task):
            return []
        self.in_stages = True
        values, samples = self.config["trainer"], self.data.dataset("train")
        if values.get("overfit_batches"):
            samples = self.data.dataset("overfit")
        elif (limit := values.get("limit_train_batches")) is not None:
            batches = limit if isinstance(limit, int) else int(limit * len(self.train_loader))
            images = min(len(samples), batches * self.data.batch_size)
            self.data.tables["stages"] = samples.table.take(range(images))
            samples = self.data.dataset("stages")
        stages = Stages(
            self.config, self.task, self.trainer, self.run, self.train_loader, samples
        ).fit()
        self.in_stages = False
        return stages

    def _write(self, epoch: int, name: str, seconds: float, stages: list[dict[str, Any]]) -> None:
        from cvtrain.report.curves import plot_curves
        from cvtrain.report.labels import plot_labels

        plot_curves(self.run.metrics_csv, self.run.plots / "curves.png")
        for split in ("train", "val"):
            table = self.data.tables[split]
            title = f"{split}: {len(table):,} images"
            plot_labels(table, self.run.plots / f"labels_{split}.png", title)
        split = "train" if self.config["trainer"].get("overfit_batches") else "val"
        write_scores(
            self.run,
            self.task,
            self.config,
            self.callbacks,
            self.data.tables["overfit" if "overfit" in self.data.tables else "val"],
            split,
            seconds,
            f"{name} (epoch {epoch + 1}) on {split}, {len(self.task.metrics):,} images:",
            self.val_loader.dataset,
            checkpoint=f"checkpoints/{name}",
            epoch=epoch,
            epochs=len(self.history.rows),
            train_seconds=self.history.seconds + sum(stage["seconds"] for stage in stages),
            **({"stages": stages} if stages else {}),
        )
        step = self.trainer.global_step
        for logger in self.loggers:
            logger.log_metrics({f"best/{k}": v for k, v in self.task.scores.items()}, step=step)
        for path in sorted(self.run.plots.glob("*.png")):
            log_picture(self.loggers, path.stem, path, step)
        LOG.info(f"run folder: {self.run}")

    def say_finished(self) -> None:
        """There is nothing to go on with; how there would be.

        Raises:
            UsageError: changes were asked for, of which nothing would come.
        """
        done = self.epochs_done
        count = f"{done} epoch{'' if done == 1 else 's'}"
        why = self._why_stopped(done)
        assert self.resumed is not None
        knob = self._what_would_train_longer()
        typed = self.config.get("overrides") or ()
        self.resumed.refuse_idle(self.run, f"{count}{f'; {why}' if why else ''}", knob, typed)
        message = f"this run is finished ({count}{f': {why}' if why else ''})"
        if knob:
            message += f". To train longer: {command(self.run, knob)}"
        LOG.info(message)
        LOG.info(f"run folder: {self.run}")

    def say_how_to_go_on(self) -> None:
        """What Ctrl-C and SIGTERM leave."""
        if self.in_stages:
            LOG.info(f"stopped; to resume with the remaining stages: cvtrain resume={self.run}")
        elif self.run.last.exists():
            LOG.info(f"stopped; to resume after the last finished epoch: cvtrain resume={self.run}")
        elif self.run.config.exists():
            LOG.info(f"stopped before the first epoch ended; to start again: {command(self.run)}")
        else:
            LOG.info("stopped before the run began: there is nothing to resume")

    def close(self) -> None:
        """Close loggers that stay open for the pictures at the end."""
        for logger in self.loggers:
            close = getattr(logger, "close", None)
            if close is not None:
                close(self.status)
