"""Did you mean: the error for an unknown key or option, with what was probably meant."""

from __future__ import annotations

import difflib
import os.path
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cvtrain.config import aliases
from cvtrain.config.groups import GROUPS, ConfDirs, dotted_keys, is_timm, joined, pick, timm_names
from cvtrain.config.overrides import Typed, for_shell
from cvtrain.config.readable_keys import root_keys
from cvtrain.optim.names import LIBRARIES, optimizer_names, unfit_optimizer

_OPEN = ("model", "backbone", "loss", "augment", "callbacks", "logger", "optimizer", "scheduler")
"""Groups that take arguments of one's own by ``+group.key=``."""


def unknown_keys(
    typed: Sequence[Typed], base: dict[str, Any], conf: ConfDirs, verb: str
) -> str | None:
    """The error for all keys that are nobody's, in one line; None if every key is known.

    ``base`` is the composed configuration without the typed values, plain and unresolved.
    """
    known = set(dotted_keys({k: v for k, v in base.items() if k != "command"}))
    wrong = [t for t in typed if t.kind != "group" and not _is_known(t, base, known)]
    if not wrong:
        return None
    together = aliases.both({t.key: t.shown for t in wrong})
    replaced = []
    for t in wrong:
        new = together.get(t.key) or aliases.replacement(t.key, t.shown, verb)
        if new is not None and not new.startswith(f"{t.key}="):
            replaced.append((t, new))
    if replaced:
        left = ", ".join(t.text for t, _ in replaced)
        right = " ".join(dict.fromkeys(new for _, new in replaced))
        return f"{left}: no such key here; write {right}"
    return _unknown(wrong[0], base, known, conf)


def _is_known(t: Typed, base: dict[str, Any], known: set[str]) -> bool:
    group = t.key.split(".")[0]
    if t.kind in ("add", "force") and group in _OPEN and "." in t.key:
        return has(base, t.key.rpartition(".")[0])
    if t.key.startswith("hydra."):
        return True
    return t.key in known or has(base, t.key)


def has(node: Any, key: str) -> bool:
    """Whether a dotted key, list indices included, is in a plain tree."""
    for part in key.split("."):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return False
    return True


def _unknown(t: Typed, base: dict[str, Any], known: set[str], conf: ConfDirs) -> str:
    parent, _, leaf = t.key.rpartition(".")
    shown = for_shell(t.shown)
    group = t.key.split(".")[0]
    if group == "study" and "study" not in base:
        return f"{t.key}= is read by a study: experiment=transfer_study"
    inner = t.key.removeprefix("model.")
    if inner.split(".")[0] in ("backbone", "loss") and has(base, inner):
        return f"unknown key {t.key}; did you mean {inner}={shown}?"
    if parent and group in (*GROUPS, "study"):
        node = pick(base, group)
        if node is None:
            others = _options_with(conf, group, t.key.removeprefix(group + "."))
            hint = f"; {t.key} is a key of {group}={' | '.join(others)}" if others else ""
            return f"{t.key}= is not read: there is no {group} in this run ({group}=null){hint}"
        option = node.get("name") if isinstance(node, dict) else None
        message = f"{group}={option}" if isinstance(option, str) else group
        others = _options_with(conf, group, t.key.removeprefix(group + "."))
        siblings = pick(base, parent)
        inside = list(siblings) if isinstance(siblings, dict) else []
        own = [k for k in inside if not k.startswith("_")]
        if leaf == "strength" and "magnitude" in own:
            now = pick(base, f"{parent}.magnitude")
            return f"{message} has no {t.key}; did you mean {parent}.magnitude ({now} here)?"
        close = difflib.get_close_matches(
            leaf, inside if leaf.startswith("_") else own, n=1, cutoff=0.6
        )
        if close:
            return f"{message} has no {t.key}; did you mean {parent}.{close[0]}={shown}?"
        if others:
            return f"{t.key} is a key of {group}={' | '.join(others)}, not of {message}"
        elsewhere = _close_key(t, known)
        if elsewhere:
            return f"{message} has no {t.key}; did you mean {elsewhere}={shown}?"
        add = f"; a new argument: +{t.key}={shown}" if group in _OPEN and t.shown else ""
        return f"{message} has no {t.key}; {parent} has {joined(own)}{add}"
    option = _as_option(t, conf)
    if option:
        return f"unknown key {t.key}; did you mean {option}?"
    close_key = _close_key(t, known)
    if close_key:
        return f"unknown key {t.key}; did you mean {close_key}={shown}?"
    return f"unknown key {t.key}; groups are {joined(GROUPS, 20)}; see cvtrain --help"


def _close_key(t: Typed, known: set[str]) -> str | None:
    """The known key most like the typed one: by its last part, then as a whole, then a group."""
    leaf = t.key.rpartition(".")[2]
    if not leaf.startswith("_"):  # _target_ and its like are nobody's slip
        known = {k for k in known if not k.rpartition(".")[2].startswith("_")}
    same = sorted((k for k in known if k.rpartition(".")[2] == leaf), key=lambda k: k.count("."))
    if same:
        return same[0]
    close = difflib.get_close_matches(t.key, [*root_keys(), *GROUPS, *known], n=1, cutoff=0.75)
    if close:
        return close[0]
    leaves: dict[str, str] = {}
    for key in sorted(known, key=lambda k: (k.count("."), k)):
        leaves.setdefault(key.rpartition(".")[2], key)
    close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)
    return leaves[close[0]] if close else None


def _as_option(t: Typed, conf: ConfDirs) -> str | None:
    """``resnet18=true``: an option's name in the place of a key."""
    for group in GROUPS:
        if t.key in conf.options(group):
            return f"{group}={t.key}"
    return None


def _options_with(conf: ConfDirs, group: str, key: str) -> list[str]:
    return [o for o in conf.options(group) if has(conf.node(group, o), key)]


def unknown_option(group: str, value: Any, conf: ConfDirs) -> str:
    """The error for ``group=value`` where the group has no such option."""
    options = conf.options(group)
    text = str(value)
    special = _special_option(group, text, options)
    if special:
        return f"{group}={text}: there is no such {group}; {special}"
    names: list[str] = list(options)
    if group == "backbone":
        if text.partition(".")[0] in timm_names():
            return unknown_timm(text)
        names += list(timm_names())
    close = few(text, names, options) if group == "backbone" else nearest(text, names)
    if close:
        return f"{group}={text}: there is no such {group}; did you mean {group}={close}?"
    more = ", and any timm name" if group == "backbone" else ""
    return f"{group}={text}: there is no such {group}; there is {joined(options)}{more}"


def _special_option(group: str, text: str, options: list[str]) -> str | None:
    lower = text.lower()
    if lower in options:
        return f"write {group}={lower}"
    if group == "optimizer":
        for library in LIBRARIES:
            by_lower = {name.lower(): name for name in optimizer_names(library)}
            if lower in by_lower:
                return f"write optimizer={library} optimizer.name={by_lower[lower]}"
            if why := unfit_optimizer(text, library):
                return why
    if group == "data":
        return _special_data(text)
    if group == "model":
        if is_timm(lower.partition(".pt")[0]):
            return f"as a classifier write model=classifier backbone={lower.partition('.pt')[0]}"
        if lower.endswith((".pt", ".pth", ".ckpt", ".safetensors")):
            return f"weights to start from are backbone.weights={text}, to evaluate ckpt={text}"
    if group == "task":
        task = aliases.words([lower], [], True)
        if task and "task=" in task:
            return f"write task={task.rpartition('task=')[2]}"
    return None


def _special_data(text: str) -> str | None:
    """``data=coco128.yaml`` and ``data=/my/photos``: a path in the place of a format."""
    path = Path(os.path.expanduser(text))  # noqa: PTH111 (Path's own raises for ~nobody)
    if path.suffix in (".yaml", ".yml"):
        folder = path.parent if path.is_file() else "FOLDER"
        return f"for a data.yaml write data=yolo data.root={folder}"
    if path.is_dir() or "/" in text:
        return f"for a folder write data=auto data.root={text}"
    return None


def _fold(text: str) -> str:
    """Look-alike characters (0 O, 1 l) and separators made the same."""
    return text.lower().translate(str.maketrans("oli-.", "011__"))


def few(text: str, names: Iterable[str], favored: Iterable[str] = (), count: int = 3) -> str:
    """The names most like ``text``, as ``a, b or c``; of names alike, the favored ones first."""
    own, matcher = set(favored), difflib.SequenceMatcher()
    matcher.set_seq2(_fold(text))
    scores = {}
    for name in names:
        folded = _fold(name)
        matcher.set_seq1(folded)
        ratio = 0.6 if folded.startswith(_fold(text)) else 0.0
        if matcher.real_quick_ratio() >= 0.6 and matcher.quick_ratio() >= 0.6:
            ratio = max(ratio, matcher.ratio())
        if ratio >= 0.6:
            scores[name] = ratio + 0.08 * (name in own)
    best = sorted(scores, key=lambda name: (-scores[name], len(name), name))[:count]
    return " or ".join(filter(None, [", ".join(best[:-1]), *best[-1:]]))


def nearest(text: str, names: Iterable[str]) -> str | None:
    """The name most like ``text``; look-alike characters (0 O, 1 l) count as the same."""
    listed = list(names)
    folded: dict[str, str] = {}
    for name in listed:
        folded.setdefault(_fold(name), name)
    wanted = _fold(text)
    if wanted in folded:
        return folded[wanted]
    close = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def unknown_timm(name: str) -> str:
    """The error for ``backbone.name=resnet5O``."""
    architecture, _, tag = name.partition(".")
    tags = timm_names().get(architecture)
    if tags is not None and tag:
        listed = joined([f"{architecture}.{t}" for t in tags]) or "none"
        return f"backbone {name}: timm has no such weights of {architecture}; it has {listed}"
    close = few(name, timm_names())
    hint = f"did you mean {close}? " if close else ""
    return f"backbone.name={name}: timm has no such model; {hint}see cvtrain list backbones"


def missing_path(key: str, typed: str, path: Path) -> str:
    """The error for a path that is not there, with the nearest name in its folder."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        names = [p.name for p in parent.iterdir()]
    except OSError:
        names = []
    close = nearest(path.name, names)
    hint = f"; did you mean {parent / close}?" if close else ""
    if not close and 0 < len(names) <= 5:
        hint = f"; {parent} holds {', '.join(sorted(names))}"
    return f"{key}={typed}: there is no such file or folder{hint}"
