"""``cvtrain predict``: a checkpoint on images without ground truth."""

from __future__ import annotations

from cvtrain.config.command import CHECKPOINT, OF_TRAINING, Command
from cvtrain.config.readable_keys import AFTER_TRAINING, DEVICE

_IMAGES = "predict reads images: source=FILE, FOLDER or GLOB; data= is read by eval"

COMMAND = Command(
    "predict",
    "run a checkpoint on images: ckpt= source=FILE_FOLDER_OR_GLOB [score_threshold=]",
    run="cvtrain.engine.predict:predict",
    configure="cvtrain.config.runs:checkpoint_config",
    reads=(
        *("run_dir", "ckpt", "source", "score_threshold", "data.", "proposals."),
        *("task.inference.", "trainer", *DEVICE, *AFTER_TRAINING),
    ),
    unread={
        **dict.fromkeys(("task.", "task.inference", "model.", "backbone.", "loss."), CHECKPOINT),
        **OF_TRAINING,
        "data.train_per_class": "",
        **dict.fromkeys(("data", "data.root"), _IMAGES),
        **dict.fromkeys(
            (
                *("data.on_bad", "data.allow_empty", "data.check_boxes", "data.val_fraction"),
                *("data.split_seed", "data.cache", "data.classes", "data.object"),
            ),
            "{key}= is not read by predict",
        ),
    },
    order=2,
)
