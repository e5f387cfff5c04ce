"""Which keys of a run's configuration may change between two starts of it. No torch here.

A resumed run has weights, an optimizer's state and a history. A change that these do not rule out
takes effect from the next epoch on and is said; any other is refused with the reason.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cvtrain.config.readable_keys import AFTER_TRAINING
from cvtrain.errors import UsageError
from cvtrain.outside import SEALS

ABSENT = object()
"""The value of a key that is not there."""

_NEW_RUN = "start a new run from these weights with backbone.weights=RUN_DIR"
_REFUSED = {
    "optimizer.name": f"what this one has gathered is of no use to another; {_NEW_RUN}",
    "optimizer.library": f"what this one has gathered is of no use to another; {_NEW_RUN}",
    "optimizer._target_": f"what this one has gathered is of no use to another; {_NEW_RUN}",
    "seed": f"all draws of the epochs so far follow from it; omit it, or {_NEW_RUN}",
    "task.name": f"the weights are for this task; {_NEW_RUN}",
    "task._target_": f"the weights are for this task; {_NEW_RUN}",
    "task.monitor": f"best.ckpt was chosen by it; {_NEW_RUN}",
    "task.mode": f"best.ckpt was chosen by it; {_NEW_RUN}",
    "data.image_size": f"the model was built for it; {_NEW_RUN}",
    "data.resize": f"the model has learned from images of this shape; {_NEW_RUN}",
    "data.channels": f"the model was built for it; {_NEW_RUN}",
    "data.classes": f"the model was built for these classes; {_NEW_RUN}",
    "data.name": f"this is another data set; {_NEW_RUN}",
    "data.folder": "the folders below it were settled at the start; data.root may change",
    "data.download": "this run has its data",
    "data.reader._target_": f"this is another data set; {_NEW_RUN}",
    "callbacks.ema._target_": f"the averaged weights are part of the checkpoint; {_NEW_RUN}",
    "loss.name": f"the loss belongs to the model that is trained; {_NEW_RUN}",
    "loss._target_": f"the loss belongs to the model that is trained; {_NEW_RUN}",
    "loss.class_weights": f"the weights of the classes are part of the checkpoint; {_NEW_RUN}",
    "backbone": f"the weights are those of this backbone; {_NEW_RUN}",
    "model": f"the weights are those of this model; {_NEW_RUN}",
    "transfer": f"which layers learn, and how fast, was settled at the start; {_NEW_RUN}",
    "study": "a resumed run is one run",
}
"""Key, or the beginning of one -> why it cannot change."""

_TAKEN = (
    *("trainer", "optimizer", "scheduler", "augment", "data", "loss", "callbacks", "logger"),
    *("proposals", "task.inference", *AFTER_TRAINING),
)
"""Keys, or beginnings, that take effect."""

_OPTIMIZER = ("lr", "weight_decay", "betas", "eps", "momentum", "dampening", "nesterov", "alpha")
"""Numbers that an optimizer reads anew at every step."""

_ONE_COMMAND = (
    *("command", "overrides", "resume", "resume_data", "trust", "ckpt", "source", "split", "what"),
    *("out", "sweep_dir", "score_threshold", "latency_runs", "run_dir", "k"),
    SEALS,
)
"""Keys that say nothing of a training."""

_COPIES = (
    ("data", "data.reader"),
    ("loss", "model.loss"),
    ("data.scene_seed", "data.reader.seed"),
    ("data.batch_size", "task.inference.batch_size"),
    ("augment.close_epoch", "model.close_epoch"),
)
"""Where one key was written to a second place when the run was composed: node or key, its copy."""


@dataclass(frozen=True)
class Change:
    """One key that is no longer what it was; ``ABSENT``: it is not there."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} {_shown(self.before)} -> {_shown(self.after)}"


def refusal(key: str) -> str:
    """Why a resumed run cannot take another value of ``key``; empty if it can."""
    first, _, last = key.partition(".")
    if first == "optimizer" and key not in _REFUSED and last.split(".")[0] not in _OPTIMIZER:
        return f"the optimizer's state was gathered with it as it was; {_NEW_RUN}"
    taken = _longest(key, _TAKEN)
    refused = _longest(key, _REFUSED)
    if refused and len(refused) > len(taken):
        return _REFUSED[refused]
    return "" if taken else "a resumed run does not read it"


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], typed: Collection[str] = ()
) -> list[Change]:
    """What is different between two configurations of one run, every change of it allowed.

    Args:
        before: of the checkpoint.
        after: of config.yaml and the command line; ``with_copies`` has been at it.
        typed: keys of the command line, known to exist.

    Raises:
        UsageError: changes that cannot take effect, all of them named.
    """
    found = [c for c in _differences(before, after) if not _is_copy(c, after)]
    refused = []
    for change in found:
        reason = _is_nobodys(change, before, typed) or refusal(change.key) or _is_whole(change)
        if reason:
            refused.append(f"{change} ({reason})")
    if refused:
        raise UsageError(
            "the run's configuration was changed where a resumed run cannot follow: "
            f"{'; '.join(refused)}"
        )
    return found


def with_copies(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """``after`` with every changed key brought to the second place that it was copied to.

    Raises:
        UsageError: the two places were given different values.
    """
    settled = copy.deepcopy(dict(after))
    for source, target in _copies(before):
        old = _pick(before, source)
        new, copied = _pick(settled, source), _pick(settled, target)
        if ABSENT in (new, copied) or _same(new, copied):
            continue
        if _same(copied, old):
            _put(settled, target, new)
        elif _same(new, old):
            _put(settled, source, copied)
        else:
            raise UsageError(
                f"{source} and {target} are the same thing: {_shown(new)} and {_shown(copied)} "
                "cannot both hold"
            )
    return settled


def _copies(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys with the keys that repeat them in this configuration."""
    for source, target in _COPIES:
        node, copied = _pick(config, source), _pick(config, target)
        if isinstance(node, Mapping) and isinstance(copied, Mapping):
            pairs = [
                (f"{source}.{key}", f"{target}.{key}") for key in _leaves(node) if key != "name"
            ]
        else:
            pairs = [(source, target)]
        for pair in pairs:
            values = [_pick(config, key) for key in pair]
            if ABSENT not in values and _same(*values):
                yield pair


def _is_copy(change: Change, after: Mapping[str, Any]) -> bool:
    """Whether the change is that of another key, which ``with_copies`` brought here."""
    for source, target in _COPIES:
        if change.key == target or change.key.startswith(f"{target}."):
            original = source + change.key.removeprefix(target)
            if _same(_pick(after, original), change.after):
                return True
    return False


def _differences(before: Any, after: Any, path: str = "") -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            if path or key not in _ONE_COMMAND:
                name = f"{path}.{key}" if path else str(key)
                yield from _differences(before.get(key, ABSENT), after.get(key, ABSENT), name)
    elif not _same(before, after) and not (before is ABSENT and after is None):
        yield Change(path, before, after)


def _is_nobodys(change: Change, before: Mapping[str, Any], typed: Collection[str]) -> str:
    """Why a key that was added by hand is read by nobody."""
    group, _, rest = change.key.partition(".")
    if change.before is not ABSENT or change.key in typed or group not in ("trainer", "data"):
        return ""
    known = list(_leaves(before.get(group) or {}))
    close = difflib.get_close_matches(rest, known, n=1)
    return f"there is no such key{f'; did you mean {group}.{close[0]}?' if close else ''}"


def _is_whole(change: Change) -> str:
    """Why a whole node cannot come or go."""
    if change.key in ("callbacks", "callbacks.ema"):
        return "the averaged weights are part of the checkpoint, or are missing from it"
    if "." not in change.key and change.key not in ("logger", "proposals"):
        return "it was settled at the start whether there is any"
    return ""


def _longest(key: str, beginnings: Collection[str]) -> str:
    fitting = [b for b in beginnings if key == b or key.startswith(f"{b}.")]
    return max(fitting, key=len, default="")


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in node.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def _pick(node: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node


def _put(node: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value


def _same(first: Any, second: Any) -> bool:
    """Equal, NaN to itself; ``True`` is not 1, a tuple is a list."""
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, bool) is not isinstance(second, bool):
        return False
    both = isinstance(first, float) and isinstance(second, float)
    return bool(first == second) or (both and math.isnan(first) and math.isnan(second))


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "(nothing)"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(v) for v in value)}]"
    return str(value)
