"""``cvtrain list``: what there is to choose from, a line each. Reads YAML files; no torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from cvtrain.config.command import Command, CommandLine
from cvtrain.config.groups import GROUPS, ConfDirs, timm_names
from cvtrain.errors import UsageError

COMMAND = Command(
    "list",
    "what there is to choose: list models, list backbones filter=convnext*, ...",
    start="cvtrain.commands.list:show_list",
    reads=("filter",),
    takes_words=True,
    prints_only=True,
    order=9,
)

_PLURALS = {
    "tasks": "task",
    "models": "model",
    "backbones": "backbone",
    "losses": "loss",
    "augments": "augment",
    "augmentations": "augment",
    "datasets": "data",
    "optimizers": "optimizer",
    "schedulers": "scheduler",
    "trainers": "trainer",
    "callback": "callbacks",
    "loggers": "logger",
    "experiments": "experiment",
    "timm": "backbone",
    "transfers": "transfer",
    "regimes": "transfer",
}

Rows = list[list[str]]


def show_list(command: CommandLine, conf: ConfDirs) -> int:
    """Print what ``list`` was asked for; the exit code.

    Raises:
        UsageError: a group that is not there, or a key other than ``filter=``.
    """
    from cvtrain.terminal import print_table

    pattern = _pattern(command.overrides)
    if not command.words:
        if pattern is not None:
            raise UsageError(f"filter={pattern} of what? cvtrain list backbones filter={pattern}")
        print_table(["group", "options"], [[g, " ".join(conf.options(g))] for g in GROUPS])
        print("\ncvtrain list GROUP says what each option is, e.g. cvtrain list models")
        return 0
    if len(command.words) > 1:
        raise UsageError(f"list one group at a time: cvtrain list {command.words[0]}")
    group = _group(command.words[0])
    titles, rows = _rows(group, conf)
    if pattern is not None:
        rows = [r for r in rows if _matches(r[0], pattern)]
        if group == "backbone":
            rows += _timm(pattern, {r[0] for r in rows})
        if not rows:
            raise UsageError(f"filter={pattern}: no {group} matches")
    print_table(titles, rows)
    if group == "backbone" and pattern is None:
        print(
            f"\nand any of timm's {len(timm_names())} names, e.g. backbone=convnext_base: "
            "cvtrain list backbones filter='convnext*'"
        )
    return 0


def _pattern(overrides: Sequence[str]) -> str | None:
    pattern = None
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in ("filter", "timm"):
            raise UsageError(f"{override}: list reads only filter=PATTERN")
        pattern = value.strip("'\"")
    return pattern


def _matches(name: str, pattern: str) -> bool:
    """Whether a name has the pattern in it; with ``*``, ``?`` or ``[`` it is a shell pattern."""
    if any(c in pattern for c in "*?["):
        return fnmatch.fnmatch(name, pattern)
    return pattern in name


def _group(word: str) -> str:
    from cvtrain.config import suggest

    name = _PLURALS.get(word.lower(), word.lower())
    if name in GROUPS:
        return name
    close = suggest.nearest(name, [*GROUPS, *_PLURALS])
    hint = f"did you mean cvtrain list {close}?" if close else f"there are {', '.join(GROUPS)}"
    raise UsageError(f"list {word}: there is no such group; {hint}")


def _rows(group: str, conf: ConfDirs) -> tuple[list[str], Rows]:
    options = conf.options(group)
    if group == "model":
        by_year = sorted(options, key=lambda o: (_year(conf, o), o))
        rows = [
            [o, _year(conf, o), ", ".join(conf.tasks_of(o)), conf.about("model", o)]
            for o in by_year
        ]
        return ["model", "year", "tasks", "what it is"], rows
    if group == "task":
        rows = [
            [o, " ".join(conf.models_for(o)) or "(none yet)", conf.about("task", o)]
            for o in options
        ]
        return ["task", "models", "what is predicted"], rows
    if group == "loss":
        rows = [[o, " ".join(_users(conf, o)), conf.about("loss", o)] for o in options]
        return ["loss", "models", "what it is"], rows
    return [group, "what it is"], [[o, conf.about(group, o)] for o in options]


def _year(conf: ConfDirs, model: str) -> str:
    """The year of the model's paper, for people and for sorting."""
    return str(conf.node("model", model).get("year") or "")


def _users(conf: ConfDirs, loss: str) -> list[str]:
    """The models whose yaml lists the loss."""
    return [m for m in conf.options("model") if loss in (conf.node("model", m).get("losses") or [])]


def _timm(pattern: str, listed: set[str]) -> Rows:
    rows = []
    for name, tags in timm_names().items():
        if name not in listed and _matches(name, pattern):
            weights = f"timm; pretrained: {', '.join(tags)}" if tags else "timm; no weights"
            rows.append([name, weights])
    return rows
