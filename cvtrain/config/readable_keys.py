"""Which verb reads which keys; what is typed and not read is an error, not a shrug."""

from __future__ import annotations

from collections.abc import Iterable

from cvtrain.config.groups import GROUPS

PATHS = (
    *("data.root", "ckpt", "source", "run_dir", "sweep_dir", "resume", "out"),
    *("backbone.weights", "model.weights", "study.weights", "proposals.path"),
    *("model.tree", "data.classification_root"),
)
"""Keys that hold paths: taken literally (no quotes needed), relative ones from here."""

_TRAINER_ALWAYS = frozenset(
    {
        "trainer.accelerator",
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.strategy",
        "trainer.precision",
        "trainer.channels_last",
        "trainer.compile",
        "trainer.deterministic",
    }
)
_TRAIN_ONLY = frozenset({"data.sampler", "data.classification_root"})
COMPARE = ("data.root", "data.batch_size", "trainer.accelerator", "trainer.precision")
"""What compare reads of the groups, the same for all runs."""
_CHECK_SKIPS = frozenset(
    {"data.batch_size", "data.image_size", "data.resize", "data.cache", "data.scene_size"}
)
_BOXES_SKIP = frozenset({"data.batch_size", "data.resize", "data.cache", "data.train_per_class"})
_ANCHORS_SKIP = frozenset(
    {"data.batch_size", "data.cache", "data.train_per_class", "data.num_workers"}
)
AFTER_TRAINING = (
    *("model.eval_layers", "model.merge", "model.merge_threshold"),
    *("model.max_detections", "model.rpn.proposals"),
)
"""Keys of a model that change how it predicts, not what it has learnt: eval and predict read them.
"""
VOID = {
    ("data", "shapes", "data.val_fraction"): "shapes draws its own validation scenes: data.num_val",
    ("data", "shapes", "data.split_seed"): "shapes draws its own scenes: data.scene_seed",
}
"""(group, option, key): why an option that has the key, for the gate's sake, does not read it."""

OF_TASKS = {"data.object": ("localization",)}
"""Key -> the tasks that read it; for the others it is null."""

_ROOT = {
    "seed": ("train", "eval", "check", "show", "proposals", "anchors"),
    "run_dir": ("train", "eval", "predict", "compare", "check", "show", "proposals", "anchors"),
    "sweep_dir": (),
    "resume": ("train",),
    "resume_data": ("train",),
    "ckpt": ("eval", "predict", "export"),
    "what": ("export",),
    "out": ("export",),
    "split": ("eval", "proposals"),
    "source": ("predict",),
    "score_threshold": ("predict",),
    "k": ("anchors",),
    "latency_runs": ("compare",),
    "trust": (
        *("train", "eval", "predict", "export", "compare"),
        *("check", "show", "proposals", "anchors"),
    ),
    "filter": ("list",),
}
_INSTEAD = {
    ("", "out"): "; a run's folder is run_dir=DIR",
    ("export", "run_dir"): "; the file it writes is out=FILE",
}
"""(verb, key), verb "" for any: what to write where a key is not read."""

ROOT_KEYS = tuple(k for k in _ROOT if k != "filter")
"""The keys outside all groups."""


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


def complaint(verb: str, key: str, *, group_choice: bool = False, multirun: bool = False) -> str:
    """Why ``verb`` does not read ``key``; empty if it does.

    Args:
        verb: train, eval, predict, export, compare, check, show, proposals or anchors.
        key: dotted; for a group choice (``model=yolo``) the group.
        group_choice: whether the whole group is chosen, not one of its keys.
        multirun: whether ``-m`` was given.
    """
    if key in _ROOT:
        if key == "sweep_dir":
            said = "sweep_dir= is read by a multirun (-m) and by a study; one run has run_dir="
            return "" if multirun else said
        if key == "run_dir" and multirun:
            return "run_dir= is each job's own in a multirun; give sweep_dir=DIR"
        readers = _ROOT[key]
        if verb in readers:
            return ""
        instead = _INSTEAD.get((verb, key)) or _INSTEAD.get(("", key)) or ""
        return f"{key}= is read by {_verbs(readers)}, not by {verb}{instead}"
    group = key.split(".")[0]
    if group == "study" and verb != "train":
        return f"{key}= is read by train, not by {verb}"
    if group not in GROUPS or verb == "train":
        return ""
    if verb == "export":
        return f"{key}= is not read by export: it comes from the checkpoint (ckpt=)"
    if verb == "compare":
        return "" if key in COMPARE else f"{key}= is not read by compare: it comes from each run"
    if verb in ("eval", "predict"):
        return _after_training(verb, key, group)
    return _data_only(verb, key, group, group_choice)


def _after_training(verb: str, key: str, group: str) -> str:
    if group == "data":
        if key in _TRAIN_ONLY:
            return f"{key}= is read by train, not by {verb}"
        if verb == "predict" and key in ("data", "data.root"):
            return "predict reads images: source=FILE, FOLDER or GLOB; data= is read by eval"
        unread = (
            "on_bad",
            "allow_empty",
            "check_boxes",
            "val_fraction",
            "split_seed",
            "cache",
            "classes",
            "object",
        )
        if verb == "predict" and key in {f"data.{name}" for name in unread}:
            return f"{key}= is not read by predict"
        if key == "data.train_per_class":
            return f"{key}= is read by train and show, not by {verb}"
        return ""
    if group == "trainer":
        limits = {"trainer.limit_val_batches"} if verb == "eval" else set()
        if key in _TRAINER_ALWAYS | limits or key == "trainer":
            return ""
        return f"{key}= is read by train, not by {verb}"
    inference = key.startswith("task.inference.")
    if group == "proposals" or inference or key in AFTER_TRAINING:
        return ""
    if group in ("task", "model", "backbone", "loss"):
        return f"{key}= is not read by {verb}: it comes from the checkpoint (ckpt=)"
    return f"{key}= is read by train, not by {verb}"


def _data_only(verb: str, key: str, group: str, group_choice: bool) -> str:
    if group == "data":
        if key in _TRAIN_ONLY:
            return f"{key}= is read by train, not by {verb}"
        if verb == "check" and key in _CHECK_SKIPS:
            return f"{key}= is not read by check, which looks only at the files"
        if verb == "proposals" and key in _BOXES_SKIP:
            return f"{key}= is not read by proposals, which makes boxes on the original images"
        if verb == "anchors" and key in _ANCHORS_SKIP:
            return f"{key}= is not read by anchors, which looks only at the boxes"
        return ""
    if verb == "proposals" and group in ("proposals", "model"):
        return f"{key}= is not read by proposals: no model is run" if group == "model" else ""
    if group in ("task", "experiment") or (group == "model" and group_choice):
        return ""
    if group in ("augment", "proposals") and verb == "show":
        return ""
    readers = {
        "augment": "train and show",
        "proposals": "train, eval, predict, show and proposals",
    }.get(group, "train")
    return f"{key}= is read by {readers}, not by {verb}"


def _verbs(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
