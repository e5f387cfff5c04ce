"""Going on with a run: its last checkpoint, what has changed since, and how that takes effect."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from cvtrain.callbacks.console import LOG
from cvtrain.config.changes import Change, changes, with_copies
from cvtrain.data.fingerprint import Fingerprint
from cvtrain.engine.checkpoint import load_checkpoint
from cvtrain.engine.rundir import RunDir
from cvtrain.errors import CheckpointError, CvtrainError, DataError, UsageError
from cvtrain.tasks.base import Task
from cvtrain.text import relative


class Resumed:
    """The state that a run goes on from.

    Args:
        path: the checkpoint it comes from.
        state: what that holds.

    Attributes:
        changes: keys of the configuration that are no longer what they were.
        data_changed: whether the data are not those of the last epoch either.
    """

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path = path
        self.state = state
        self.changes: list[Change] = []
        self.data_changed = False

    @property
    def header(self) -> dict[str, Any]:
        """What cvtrain itself put into the checkpoint."""
        return dict(self.state["cvtrain"])

    @property
    def epochs_done(self) -> int:
        """Epochs that are finished."""
        progress = self.state["loops"]["fit_loop"]["epoch_progress"]["current"]
        return int(progress["processed"])

    def settle(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration to go on with; ``changes`` says what of it is new.

        Raises:
            UsageError: a change that cannot take effect.
        """
        before = self.header["config"]
        settled = with_copies(before, config)
        words = (str(word) for word in config.get("overrides") or ())
        typed = {word.partition("=")[0].lstrip("+~") for word in words}
        self.changes = changes(before, settled, typed)
        return settled

    def check_data(self, now: Fingerprint, run: RunDir, accepted: bool) -> None:
        """Compare the data with those of the last epoch.

        Raises:
            DataError: they differ, and ``resume_data=changed`` was not given.
        """
        before = Fingerprint.from_state(self.header.get("data"))
        if before is None:
            LOG.info(
                "note: this run's checkpoint does not say what its data were (another version of "
                "cvtrain wrote it): whether they have changed is not known"
            )
            return
        found = before.changes(now)
        if not found:
            return
        self.data_changed = True
        if not accepted:
            raise DataError(
                f"the data have changed since the last epoch: {'; '.join(found)}; bring them back, "
                f"or continue with what is there now: {command(run, 'resume_data=changed')}"
            )
        LOG.info(f"the data have changed since the last epoch: {'; '.join(found)}")

    def say_changes(self) -> None:
        """One line on what is new in the configuration."""
        if self.changes:
            LOG.info(f"changed since the last epoch: {', '.join(map(str, self.changes))}")

    def refuse_idle(self, run: RunDir, why: str, knob: str, typed: Sequence[str]) -> None:
        """Raise UsageError for changes of a run that has nothing left to train.

        Args:
            run: its folder.
            why: it is finished.
            knob: ``key=value`` that would let it train; empty where nothing would.
            typed: the words of the command beside ``resume=``.
        """
        if not self.changes:
            return
        listed = ", ".join(map(str, self.changes))
        message = f"{run} is finished ({why}): nothing would come of {listed}"
        if knob:
            key = knob.partition("=")[0]
            words = [shlex.quote(w) for w in typed if w.partition("=")[0].lstrip("+") != key]
            message += f"; to train longer: {command(run, *words, knob)}"
        raise UsageError(message)


class FollowChanges(pl.Callback):
    """Brings changes to the optimizer and its schedule once a checkpoint has restored both.

    A restored optimizer has the old learning rate and weight decay in its groups, and a restored
    scheduler the old rate to scale and the old number of steps. The schedule becomes that of the
    run as it is configured now, at the place where the run stands: after 20 of 50 epochs, a cosine
    over 50 epochs at epoch 20. The optimizer's momentum and averages stay.

    Args:
        resumed: the state the run goes on from.
    """

    def __init__(self, resumed: Resumed) -> None:
        self.resumed = resumed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if not pl_module.is_trained or not (self.resumed.changes or self.resumed.data_changed):
            return
        optimizer = trainer.optimizers[0]
        scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
        before = pl_module.learning_rate()
        fresh = pl_module.configure_optimizers()  # as this configuration has it, from the start
        names = {c.key.split(".")[1] for c in self.resumed.changes if c.key.startswith("optimizer")}
        for group, new in zip(optimizer.param_groups, fresh["optimizer"].param_groups, strict=True):
            for name in names & new.keys():
                group[name] = new[name]
            group["initial_lr"] = new["initial_lr"]
        scheduler.base_lrs = fresh["lr_scheduler"]["scheduler"].base_lrs
        epochs = trainer.max_epochs or 1
        steps = int(trainer.estimated_stepping_batches)
        scheduler.last_epoch = round(self.resumed.epochs_done * steps / epochs)
        rates = [
            base * factor(scheduler.last_epoch)
            for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
        now = pl_module.learning_rate()
        if now != before:
            name = (pl_module.scheduler_config or {}).get("name", "none")
            how = "constant" if name == "none" else f"scheduler={name} over {epochs} epochs"
            LOG.info(
                f"learning rate {before:.3g} -> {now:.3g}: {how}, after {self.resumed.epochs_done}"
            )


def load_last(run: RunDir, typed: Sequence[str] = ()) -> Resumed | None:
    """What the run resumes from; None where no epoch of it was finished.

    Args:
        run: its folder.
        typed: the overrides beside ``resume=``, for the command that a message names.

    Raises:
        CheckpointError: the checkpoint is damaged; names another one that is whole.
    """
    if not run.last.exists():
        if not run.best.exists():
            return None
        LOG.info(f"{relative(run.last)} is missing: resuming from {run.best.name}")
        return Resumed(run.best, load_checkpoint(run.best))
    try:
        return Resumed(run.last, load_checkpoint(run.last))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_remedy(run, typed)}") from error


def _remedy(run: RunDir, typed: Sequence[str]) -> str:
    """What to do about a last.ckpt that cannot be read."""
    try:
        best = load_checkpoint(run.best, mmap=True)
    except CvtrainError:
        return "best.ckpt is of no help either: start a new run"
    names = " ".join(shlex.quote(relative(path)) for path in (run.best, run.last))
    return (
        f"best.ckpt beside it is whole, of epoch {int(best['epoch']) + 1}; to resume from there: "
        f"cp {names} && {command(run, *map(shlex.quote, typed))}"
    )


def command(run: RunDir, *words: str) -> str:
    """The command that goes on with a run."""
    return " ".join(["cvtrain", shlex.quote(f"resume={run}"), *words])


def load_states(resumed: Resumed, callbacks: Sequence[Any]) -> None:
    """Give callbacks what they knew after the last epoch."""
    states = resumed.state.get("callbacks", {})
    for callback in callbacks:
        if callback.state_key in states:
            callback.load_state_dict(states[callback.state_key])
