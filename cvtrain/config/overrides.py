"""The overrides of a command line, parsed: what was typed, for which key, of which kind."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cvtrain.config import aliases
from cvtrain.config.groups import GROUPS, LISTS
from cvtrain.config.moved import new_key
from cvtrain.config.readable_keys import PATHS
from cvtrain.errors import UsageError

RECIPES = ("experiment", "debug")
"""Groups that have no node of their own: they change those of others."""

OPTIONAL = (*RECIPES, "transfer", "proposals")
"""Groups of which nothing is chosen by default."""

_WANTED = {
    "data.root": "the folder of the images",
    "backbone.weights": "a weights file or a run's folder, or null",
    "model.weights": "a weights file or a run's folder, or null",
    "proposals.path": "a file of boxes",
    "model.tree": "a file",
    "data.classification_root": "a folder, or null",
}
"""What a path is to be where it was left empty; other paths have rules of their own."""


@dataclass(frozen=True)
class Typed:
    """One override.

    Attributes:
        text: as typed.
        key: dotted, without ``+`` or ``~``.
        shown: the value as typed.
        value: the value parsed; None for a sweep and a deletion.
        kind: ``group`` (model=yolo), ``set``, ``add`` (+key=), ``delete`` (~key).
        override: what Hydra is given; empty for a choice of nothing where there is nothing.
        sweep: several values, for ``-m``.
    """

    text: str
    key: str
    shown: str
    value: Any
    kind: str
    override: str
    sweep: bool = False


def parse(texts: Sequence[str], *, multirun: bool = False) -> list[Typed]:
    """Parse overrides in Hydra's grammar; values of path keys are taken literally.

    Raises:
        UsageError: a value Hydra cannot read, the same key twice, a key's name of an earlier
            version, several values without ``-m``.
    """
    found = [_one(text, multirun) for text in texts]
    seen: dict[str, Typed] = {}
    for typed in found:
        if typed.key in seen:
            raise UsageError(f"{typed.key} is given twice: {seen[typed.key].text} and {typed.text}")
        seen[typed.key] = typed
    return found


def make(key: str, value: str) -> Typed:
    """An override that the command implies (``task=`` from ``model=``)."""
    return _one(f"{key}={value}", False)


def _one(text: str, multirun: bool) -> Typed:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    left, equals, shown = text.partition("=")
    key = left.lstrip("+~").strip()
    override = text
    if (current := new_key(key)) != key:
        raise UsageError(
            f"{text}: {key} has another name now; write {left.replace(key, current)}{equals}{shown}"
        )
    if key in PATHS and equals:
        if key in _WANTED and shown.strip() in ("", "''", '""'):  # it would be this very folder
            raise UsageError(f"{text}: it is empty; give {_WANTED[key]}")
        override = f"{left}={_literal(shown, multirun)}"
    elif equals and shown and not shown.strip():  # Hydra drops blanks: a separator may be one
        override = f"{left}={quote(shown)}"
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise UsageError(_unreadable(text, left, shown, error)) from error
    if parsed.package is not None:
        raise UsageError(f"{text}: groups keep their place here; omit @{parsed.package}")
    if parsed.is_sweep_override() and not multirun:
        new = aliases.replacement(key, shown)
        if new is not None:
            raise UsageError(f"{text}: no such key here; write {new}")
        if key in LISTS:
            raise UsageError(f"{text}: together they are {left}=[{shown}]; one run each: add -m")
        raise UsageError(
            f"{text}: several values make a multirun; add -m, or for one text value "
            f"quote it twice: {left}='\"{shown}\"'"
        )
    kind = "group" if key in GROUPS else "set"
    if parsed.is_delete() and shown not in ("", "null") and key not in GROUPS:
        raise UsageError(f"{text}: write ~{key}, without a value")
    if parsed.is_delete():
        kind = "delete"
    elif parsed.is_add() and not parsed.is_force_add() and kind != "group":
        kind = "add"
    elif parsed.is_force_add() and kind != "group":
        kind = "force"
    if left.startswith("+") and key in GROUPS:
        raise UsageError(f"{text}: write {key}={shown}, without +")
    if left.startswith("~") and key in GROUPS:
        return replace(_one(f"{key}=null", multirun), text=text)
    sweep = parsed.is_sweep_override()
    if kind == "group" and not sweep and parsed.value() is None:
        override = "" if key in OPTIONAL else f"~{key}"  # Hydra's own way to choose nothing
    value = None if sweep or parsed.is_delete() else _plain(parsed.value())
    return Typed(text, key, shown, value, kind, override, sweep)


def _plain(value: Any) -> Any:
    """Hydra's parsed value without its own classes (quoted strings)."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    return value


def quote(text: str) -> str:
    """A text in Hydra's single quotes."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def for_shell(shown: str) -> str:
    """A value as typed, quoted for a shell where it holds what a shell would take away."""
    if not set(shown) & set(" \t'\"\\|&;<>()$`*?#!"):
        return shown
    if "'" in shown and not set(shown) & set('"\\$`!'):
        return f'"{shown}"'
    return shlex.quote(shown)


def _literal(shown: str, multirun: bool) -> str:
    """A path as typed: no grammar applies but null, quotes, ``${...}`` and, with -m, sweeps."""
    stripped = shown.strip()
    if stripped in ("", "null") or "${" in stripped:
        return stripped or "''"
    if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "'\"":
        return stripped
    if multirun and ("," in stripped or stripped.startswith(("glob(", "choice("))):
        return stripped
    return quote(stripped)


def _unreadable(text: str, left: str, shown: str, error: Exception) -> str:
    if not re.fullmatch(r"[+~]*[\w.@/${}-]+", left):
        return f"{text}: {left!r} is not a key; keys are words with dots, like trainer.max_epochs"
    new = aliases.replacement(left, shown)
    if new is not None:
        return f"{left}= is not a key here; write {new}"
    if left.startswith("study.overrides"):
        return f"{text}: quote each key: \"{left}=['augment=light','transfer.layer_decay=0.6']\""
    if any(c in shown for c in "[]{}"):
        opened = sum(shown.count(c) for c in "[{(")
        if opened != sum(shown.count(c) for c in "]})"):
            return f"{text}: a bracket is missing or left over"
    if left in GROUPS:  # an option's name is a plain word: quotes would not help
        if left == "data":
            return f"{text}: there is no such data; for a folder write data=auto data.root={shown}"
        return f"{text}: there is no such {left}; see cvtrain list {left}"
    return f'{text}: Hydra cannot read this value; quote it: {left}="{quote(shown)}"'


def by_key(typed: Iterable[Typed]) -> dict[str, Typed]:
    """The overrides by their keys."""
    return {t.key: t for t in typed}
