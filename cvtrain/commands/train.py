"""``cvtrain train``, the default verb: a run, or a sweep of runs."""

from __future__ import annotations

from cvtrain.config.command import Command
from cvtrain.config.groups import GROUPS

COMMAND = Command(
    "train",
    "train, evaluate the best checkpoint, leave a run folder (the default verb)",
    run="cvtrain.engine.train:train",
    configure="cvtrain.config.runs:train_config",
    sweep="cvtrain.sweep.runner:sweep",
    reads=(
        *("seed", "run_dir", "resume", "resume_data", "study."),
        *(f"{group}." for group in GROUPS),
    ),
    order=0,
)
