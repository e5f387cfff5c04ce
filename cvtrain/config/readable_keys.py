"""Which keys there are outside the groups, and which verb reads which; what is typed and not read
is an error.
"""

from __future__ import annotations

from collections.abc import Iterable

from cvtrain.config.command import command, commands
from cvtrain.config.groups import GROUPS

PATHS = (
    *("data.root", "ckpt", "source", "run_dir", "sweep_dir", "resume", "out"),
    *("backbone.weights", "model.weights", "study.weights", "proposals.path"),
    *("model.tree", "data.classification_root"),
)
"""Keys that hold paths: taken literally (no quotes needed), relative ones from here."""

DEVICE = tuple(
    f"trainer.{name}"
    for name in (
        *("accelerator", "devices", "num_nodes", "strategy", "precision"),
        *("channels_last", "compile", "deterministic"),
    )
)
"""Keys of the trainer that say where and how a network runs, in training or later."""

AFTER_TRAINING = (
    *("model.eval_layers", "model.merge", "model.merge_threshold"),
    *("model.max_detections", "model.rpn.proposals"),
)
"""Keys of a model that change how it predicts, not what it has learned: eval and predict read them.
"""
VOID = {
    ("data", "shapes", "data.val_fraction"): "shapes draws its own validation scenes: data.num_val",
    ("data", "shapes", "data.split_seed"): "shapes draws its own scenes: data.scene_seed",
}
"""(group, option, key): why an option that has the key, for the gate's sake, does not read it."""

OF_TASKS = {"data.object": ("localization",)}
"""Key -> the tasks that read it; for the others it is null."""

_SWEEP_DIR = "sweep_dir= is read by a multirun (-m) and by a study; one run has run_dir="
_USUAL = {
    "out": "{key}= is read by {readers}, not by {verb}; a run's folder is run_dir=DIR",
    "": "{key}= is read by {readers}, not by {verb}",
}
"""What is said of a key that a verb does not read; ``""`` of any other."""


def root_keys() -> tuple[str, ...]:
    """The keys outside all groups that any verb reads."""
    read = [e for verb in commands() if not verb.prints_only for e in verb.reads]
    outside = [e for e in read if e and "." not in e and e not in GROUPS]
    return tuple(dict.fromkeys([*outside, "sweep_dir", "trust"]))


def other_task(key: str, task: str | None) -> str:
    """Why a run of this task does not read ``key``; empty if it does."""
    tasks = OF_TASKS.get(key, ())
    return f"it is for task={' | '.join(tasks)}" if tasks and task not in tasks else ""


def of_tiles(keys: Iterable[str], mode: str | None) -> str:
    """Why the first of these keys that ``task.inference.mode=MODE`` does not read is not read."""
    if mode in (None, "tiles"):
        return ""
    unread = [f"task.inference.{name}" for name in ("tile_size", "overlap", "batch_size")]
    found = next((key for key in keys if key in unread), None)
    return f"{found}= would not be read: it is for task.inference.mode=tiles" if found else ""


def complaint(verb: str, key: str, *, multirun: bool = False) -> str:
    """Why ``verb`` does not read ``key``; empty if it does, or if there is no such key at all.

    Args:
        verb: the name of a verb that composes or reads a configuration.
        key: dotted; for a group choice (``model=yolo``) the group.
        multirun: whether ``-m`` was given.
    """
    if key == "sweep_dir":
        return "" if multirun else _SWEEP_DIR
    if key == "run_dir" and multirun:
        return "run_dir= is each job's own in a multirun; give sweep_dir=DIR"
    this = command(verb)
    if this.does_read(key):
        return ""
    readers = [other.name for other in commands() if other.does_read(key)]
    if key.split(".")[0] not in (*GROUPS, "study") and key not in (*root_keys(), "filter"):
        return ""
    template = this.unread.get(this.entry(key) or "-") or _USUAL.get(key, _USUAL[""])
    return template.format(key=key, verb=verb, readers=_and(readers))


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
