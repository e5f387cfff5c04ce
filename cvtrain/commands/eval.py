"""``cvtrain eval``: a checkpoint scored on a split of its own data or of other data."""

from __future__ import annotations

from cvtrain.config.command import CHECKPOINT, OF_TRAINING, Command
from cvtrain.config.readable_keys import AFTER_TRAINING, DEVICE

COMMAND = Command(
    "eval",
    "score a checkpoint on its own data or on other data: ckpt= [split=] [data=]",
    run="cvtrain.engine.evaluate:evaluate",
    configure="cvtrain.config.runs:checkpoint_config",
    reads=(
        *("seed", "run_dir", "ckpt", "split", "data.", "proposals.", "task.inference."),
        *("trainer", *DEVICE, "trainer.limit_val_batches", *AFTER_TRAINING),
    ),
    unread={
        **dict.fromkeys(("task.", "task.inference", "model.", "backbone.", "loss."), CHECKPOINT),
        **OF_TRAINING,
        "data.train_per_class": "",
    },
    order=1,
)
