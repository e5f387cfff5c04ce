"""What the frame costs: an epoch through cvtrain against the same in a hand-written loop.

Both train the demo's model on its scenes, with the same loader, optimizer, schedule, clipping
and EMA. cvtrain's epoch has its default callbacks, logging, checkpoints and validation;
the loop has what anyone would write: validation and one checkpoint. Both run in this process, by
turns, so that a noisy machine disturbs them alike; the ratio of the medians is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it, for both

import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from cvtrain.callbacks.checkpoint import BestAndLast
from cvtrain.callbacks.metrics_csv import History
from cvtrain.callbacks.signal_handlers import KeepSignals
from cvtrain.cli import args as command_line
from cvtrain.cli.main import configuration
from cvtrain.config.groups import ConfDirs
from cvtrain.data.datamodule import DataModule, build_datamodule
from cvtrain.engine.build import build_callbacks, build_model, build_task
from cvtrain.engine.device import choose_device
from cvtrain.engine.logs import run_log
from cvtrain.engine.trainer import Reseed, build_trainer, seed_all
from cvtrain.metrics import metrics_for
from cvtrain.models.base import total_loss
from cvtrain.optim.optimizers import build_optimizer
from cvtrain.optim.schedules import Schedule


def through_cvtrain(config: dict[str, Any], data: DataModule, folder: Path) -> list[float]:
    """Seconds of each epoch, from its start to its checkpoint's end."""
    seed_all(0)
    task = build_task(config, build_model(config, len(data.classes)), data.classes)
    header = {"version": "bench", "config": config, "classes": {"names": [], "ids": []}}
    ends: list[float] = []

    class Clock(BestAndLast):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            ends.append(time.perf_counter())

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            ends.append(time.perf_counter())

    callbacks = [Reseed(0), KeepSignals(), *build_callbacks(config).values()]
    callbacks += [History(folder / "metrics.csv"), Clock(folder / "checkpoints", header)]
    device = choose_device(config["trainer"])
    trainer = build_trainer(config, device, None, folder, callbacks, [])
    data.trainer = trainer
    trainer.fit(task, data.train_dataloader(), data.val_dataloader())
    return [b - a for a, b in pairwise(ends)]


def by_hand(config: dict[str, Any], data: DataModule, folder: Path) -> list[float]:
    """The same in a loop of one's own; seconds of each epoch."""
    seed_all(0)
    device = choose_device(config["trainer"]).torch_device()
    model = build_model(config, len(data.classes)).to(device)
    data.trainer = None
    train: DataLoader[Any] = data.train_dataloader()
    val: DataLoader[Any] = data.val_dataloader()
    optimizer = build_optimizer(model, config["optimizer"])
    epochs = config["trainer"]["max_epochs"]
    schedule = Schedule(config["scheduler"], epochs * len(train), epochs)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    decay = config["callbacks"]["ema"]["decay"]
    steps = 0

    def average(averages: Any, values: Any, _: Any) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + steps) / (10 + steps)))
        else:
            torch._foreach_copy_(averages, values)

    ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    metrics = metrics_for(config["task"]["name"], data.classes)
    seconds = []
    for epoch in range(epochs):
        started = time.perf_counter()
        train.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        model.train()
        losses = []
        for batch in train:
            batch = batch.to(device, non_blocking=True)
            loss = total_loss(model.loss(batch.images, batch.targets))
            optimizer.zero_grad()
            loss.backward()
            clip = config["trainer"]["gradient_clip_val"]
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            ema.update_parameters(model)
            steps += 1
            losses.append(loss.detach())
        metrics.reset()
        for batch in val:
            batch = batch.to(device, non_blocking=True)
            _, predictions = ema.module.loss_and_predict(batch.images, batch.targets)
            for prediction, truth, info in zip(predictions, batch.truths, batch.infos, strict=True):
                found = prediction.cpu()
                found.boxes = info.placement.boxes_to_original(found.boxes)
                metrics.update([found], [truth], [info])
        scores = metrics.compute()
        mean = float(torch.stack(losses).mean())
        state = {"model": model.state_dict(), "ema": ema.state_dict()}
        torch.save({**state, "optimizer": optimizer.state_dict()}, folder / "hand.ckpt")
        seconds.append(time.perf_counter() - started)
        print(f"by hand: epoch {epoch + 1} loss {mean:.4g} mAP50 {scores['mAP50']:.4f}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs a turn; the first of each is "
                        "not counted: it starts the loader (default 4)")  # fmt: skip
    parser.add_argument("words", nargs="*", help="further key=value words for both")
    options = parser.parse_args()
    words = ["task=detection", "model=yolo", f"trainer.max_epochs={options.epochs}"]
    with tempfile.TemporaryDirectory() as name, run_log(speaks=True):
        folder = Path(name)
        words += [*options.words, f"run_dir={folder / 'run'}"]
        config = configuration(command_line.parse(words), ConfDirs([]))
        data, _ = build_datamodule(config, "detection", progress=False)
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(options.rounds):
            # Who begins changes: the second of a pair finds warmer caches.
            pair = [(through_cvtrain, ours), (by_hand, theirs)]
            for job, seconds in pair if turn % 2 == 0 else pair[::-1]:
                seconds += job(config, data, folder)[1:]
    for name, seconds in (("through cvtrain", ours), ("by hand", theirs)):
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}, {len(seconds)} epochs"
        print(f"{name}: {statistics.median(seconds):.3f} s an epoch ({spread})")
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(
        f"ratio {ratio:.3f} of medians, {min(ours) / min(theirs):.3f} of the fastest; target 1.05"
    )


if __name__ == "__main__":
    main()
