"""What may be typed beside ``resume=RUN``, and what is wrong with the run's config.yaml."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvtrain.config import readable_keys, rules, suggest
from cvtrain.config.changes import refusal, with_copies
from cvtrain.config.compose import absolute
from cvtrain.config.groups import ConfDirs, pick
from cvtrain.config.overrides import Typed, by_key
from cvtrain.errors import UsageError
from cvtrain.text import relative

OWN = ("resume", "resume_data", "trust")
"""Keys of the command itself, which are no changes of the run."""

_GROUPS = {
    "task": "the weights are for the run's own task",
    "model": "the weights are those of the run's own model",
    "backbone": "the weights are those of the run's own backbone",
    "optimizer": "the optimizer's state is that of the run's own; its keys may change",
    "data": "it has the run's own data; data.root=FOLDER says where they lie now",
    "transfer": "which layers learn was settled at the start",
}


def with_typed(
    config: dict[str, Any], typed: Sequence[Typed], folder: Path, conf: ConfDirs
) -> dict[str, Any]:
    """A run's configuration with what was typed beside ``resume=``.

    Args:
        config: of the run, from its config.yaml.
        typed: the whole command line.
        folder: of the run.
        conf: where all keys that there are can be found.

    Raises:
        UsageError: a key that does not exist, a value it does not take, one that a resumed run
            cannot change; a value of config.yaml out of range; data that are not there.
    """
    config = _numbers(config)
    _check_stored(config, folder / "config.yaml")
    given = by_key(typed)
    changed = copy.deepcopy(config)
    for t in typed:
        if t.key in OWN:
            continue
        _check(t, config, folder, conf)
        _set(changed, t)
    mode = pick(changed, "task.inference.mode")
    if unread := readable_keys.of_tiles([t.key for t in typed], mode):
        raise UsageError(unread)
    if "resume_data" in given and (
        message := rules.wrong("resume_data", given["resume_data"].value)
    ):
        raise UsageError(message)
    _check_root(changed, given, folder)
    return with_copies(config, changed)


def _check(t: Typed, config: dict[str, Any], folder: Path, conf: ConfDirs) -> None:
    """Refuse what a resumed run cannot change, does not have, or that takes other values."""
    if t.kind == "group":
        why = _GROUPS.get(t.key, f"the run has its own {t.key}; single keys of it may change")
        raise UsageError(
            f"{t.text} beside resume=: {why}, or start a new run from these weights with "
            f"backbone.weights={relative(folder)}"
        )
    if t.kind == "delete":
        raise UsageError(f"{t.text} beside resume=: write {t.key}=null")
    if t.key == "run_dir":
        raise UsageError(f"{t.text} beside resume=: a run continues in its own folder; omit it")
    groups = ("data", "trainer")
    every = {group: _every_key(conf, group) for group in groups}
    base = {**config, **{g: {**every[g], **(config.get(g) or {})} for g in groups}}
    if message := suggest.unknown_keys([t], base, conf, "train"):
        raise UsageError(message)
    if reason := refusal(t.key):
        reason = reason.replace("RUN_DIR", relative(folder))
        raise UsageError(f"{t.text} beside resume=: {reason}")
    if other := readable_keys.other_task(t.key, pick(config, "task.name")):
        raise UsageError(f"{t.text} would not be read: {other}")
    default = pick(config, t.key)
    default = None if t.key in readable_keys.PATHS else default
    if message := rules.wrong(t.key, t.value, default, typed=t.shown):
        raise UsageError(message)


def _every_key(conf: ConfDirs, group: str) -> dict[str, Any]:
    """The keys that any option of a group has at its first level."""
    return {k: v for option in conf.options(group) for k, v in conf.node(group, option).items()}


def _set(config: dict[str, Any], t: Typed) -> None:
    *path, last = t.key.split(".")
    node: Any = config
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise UsageError(f"{t.text}: write the whole of {'.'.join(path)}")
    is_path = t.key in readable_keys.PATHS and isinstance(t.value, str)
    node[last] = absolute(t.value) if is_path else t.value


def _numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with numbers for texts like ``1e-4``, which YAML 1.1 takes for text."""
    changed = copy.deepcopy(dict(config))
    for key, rule in rules.RULES.items():
        value = pick(changed, key)
        if not isinstance(value, str) or rule.accepts(value):
            continue
        try:
            number = float(value)
        except ValueError:
            continue
        *path, last = key.split(".")
        node: Any = pick(changed, ".".join(path)) if path else changed
        node[last] = number
    return changed


def _check_stored(config: Mapping[str, Any], path: Path) -> None:
    """Refuse values of config.yaml that somebody has edited out of range."""
    for key in rules.RULES:
        value = pick(config, key)
        if value is not None and (message := rules.wrong(key, value)):
            raise UsageError(f"{path}: {message}")


def _check_root(config: Mapping[str, Any], given: Mapping[str, Typed], folder: Path) -> None:
    """Refuse to go on where the data set is not, saying how to name its new place."""
    root = pick(config, "data.root")
    if not isinstance(root, str) or pick(config, "data.download") or Path(root).is_dir():
        return
    if "data.root" in given:
        raise UsageError(suggest.missing_path("data.root", given["data.root"].shown, Path(root)))
    raise UsageError(
        f"the data of this run are no longer in {root}; where they are now says "
        f"cvtrain resume={folder} data.root=FOLDER"
    )
