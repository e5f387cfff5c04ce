"""The configuration folders as files: groups, their options, what each says of itself.

Reads YAML alone; Hydra is not needed to list, to suggest or to find the task of a model.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os.path
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cvtrain.errors import UsageError
from cvtrain.shipped import package_conf

GROUPS = (
    "task",
    "model",
    "backbone",
    "transfer",
    "loss",
    "augment",
    "data",
    "proposals",
    "optimizer",
    "scheduler",
    "trainer",
    "callbacks",
    "logger",
    "experiment",
    "debug",
)
"""Config groups, in the order in which help shows them."""

LISTS = ("augment", "logger")
"""Groups of which several options compose: ``augment=[geometric,weather]``."""


class ConfDirs:
    """The user's configuration folders, first, then cvtrain's own.

    Args:
        user: folders given with ``--config-dir``.
        own: cvtrain's folder; default: the one it ships.
    """

    def __init__(self, user: Sequence[str | Path] = (), own: Path | None = None) -> None:
        self.own = own or package_conf()
        self.user = [Path(os.path.expanduser(f)).absolute() for f in user]  # noqa: PTH111 (~nobody)
        for folder, typed in zip(self.user, user, strict=True):
            if not folder.is_dir():
                raise UsageError(f"--config-dir {typed}: there is no such folder")
            if not any((folder / group).is_dir() for group in GROUPS):
                raise UsageError(
                    f"--config-dir {typed} has none of the folders model, data, ...; "
                    "it should hold e.g. model/mynet.yaml"
                )

    @property
    def all(self) -> list[Path]:
        return [*self.user, self.own]

    def options(self, group: str) -> list[str]:
        """The names a group can take, e.g. ``["classifier", "yolo"]``; hidden ones are left out."""
        found = {
            path.relative_to(folder / group).with_suffix("").as_posix()
            for folder in self.all
            for path in (folder / group).rglob("*.yaml")
        }
        return sorted(name for name in found if not is_hidden(name))

    def path(self, group: str, option: str) -> Path | None:
        """The file of an option; the user's own wins."""
        for folder in self.all:
            path = folder / group / f"{option}.yaml"
            if path.is_file():
                return path
        return None

    def is_own(self, group: str, option: str) -> bool:
        """Whether the option is one cvtrain ships."""
        path = self.path(group, option)
        return path is not None and path.is_relative_to(self.own)

    def node(self, group: str, option: str) -> dict[str, Any]:
        """What the option's file and those it extends say below its group's key, not composed."""
        path = self.path(group, option)
        if path is None:
            return {}
        content = load(path)
        node: dict[str, Any] = {}
        for entry in content.get("defaults") or []:
            base, _, package = str(entry).partition("@")
            base = base.removeprefix(f"/{group}/")
            if isinstance(entry, str) and base not in (option, "_self_"):
                below = self.node(group, base)
                if package not in ("", group):  # a part of the group's node: parts.dice
                    first, *deeper = package.split(".")
                    for name in reversed(deeper):
                        below = {name: below}
                    below = {first: {**node.get(first, {}), **below}} if deeper else {first: below}
                node |= below
        return node | {k: v for k, v in _group_node(content, group).items() if k != "defaults"}

    def about(self, group: str, option: str) -> str:
        """One line on an option: its ``about`` key, or the first sentence of its comment."""
        path = self.path(group, option)
        if path is None:
            return ""
        message = _group_node(load(path), group).get("about")
        return str(message) if message else first_sentence(path)

    def tasks_of(self, model: str) -> list[str]:
        """The tasks a model's yaml lists; one that extends another model's yaml has that one's."""
        return self._inherited("model", model, "tasks", set()) or []

    def _inherited(self, group: str, option: str, key: str, seen: set[str]) -> Any:
        path = self.path(group, option)
        if path is None or option in seen:
            return None
        seen.add(option)
        content = load(path)
        value = _group_node(content, group).get(key)
        if value:
            return value
        for entry in content.get("defaults") or []:
            base = entry if isinstance(entry, str) else next(iter(dict(entry).items()), ("", ""))[1]
            if isinstance(base, str) and self.path(group, base) is not None:
                value = self._inherited(group, base, key, seen)
                if value:
                    return value
        return None

    def models_for(self, task: str) -> list[str]:
        """The models that serve a task."""
        return [m for m in self.options("model") if task in self.tasks_of(m)]

    def override_of(self, group: str, option: str, other: str) -> str | None:
        """What the option's defaults list chooses for the group ``other``, e.g. a task's model."""
        path = self.path(group, option)
        for entry in (load(path).get("defaults") or []) if path else []:
            if isinstance(entry, dict):
                for key, value in entry.items():
                    if str(key).removeprefix("override").strip().lstrip("/") == other:
                        return None if value is None else str(value)
        return None


def is_hidden(option: str) -> bool:
    """Whether a name (``_base``) is for other yamls to extend, not for anyone to choose."""
    return any(part.startswith("_") for part in option.split("/"))


def _group_node(content: dict[str, Any], group: str) -> dict[str, Any]:
    """The group's own part of a file, whether it is global (has the group's key) or not."""
    inner = content.get(group)
    return inner if isinstance(inner, dict) else content


@functools.lru_cache(maxsize=512)
def _parse(path: Path, stamp: int) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(unreadable(path, error)) from error
    if content is not None and not isinstance(content, dict):
        kind = "list" if isinstance(content, list) else "single value"
        raise UsageError(f"{path} holds a {kind}; write keys and their values: `key: value`")
    return content or {}


def unreadable(path: str | Path, error: Exception) -> str:
    """One line on a file that is no YAML: where, and what to do."""
    if isinstance(error, UnicodeDecodeError):
        line = error.object.count(b"\n", 0, error.start) + 1
        return f"{path}, line {line}: not UTF-8 text; save the file as UTF-8"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:  # a character that YAML has no place for, or the operating system's reason
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        return (
            f"{path} cannot be read: {' '.join(str(reason).split())}; correct or restore the file"
        )
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or "unclear"
    return (
        f"{path}, line {mark.line + 1}: not YAML ({' '.join(str(problem).split())}); correct this "
        "line or the one before it"
    )


def load(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, {} of an empty file.

    Raises:
        UsageError: it is no YAML (with the line), or no mapping.
    """
    return _parse(path, path.stat().st_mtime_ns)


def first_sentence(path: Path) -> str:
    """The first sentence of the comment a YAML file begins with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        if not text.startswith("@package"):
            lines.append(text)
    return re.split(r"(?<=\.)\s+(?=[A-Z`])|:\s+(?=`|cvtrain)", " ".join(lines))[0].rstrip(".: ")


def dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a tree in dotted form, inner nodes and list indices included."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, (dict, list)):
            yield from dotted_keys(value, name + ".")


def pick(node: Any, key: str) -> Any:
    """The value at a dotted key of a plain tree; None where there is none."""
    for part in key.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return None
    return node


@functools.cache
def timm_names() -> dict[str, tuple[str, ...]]:
    """The architectures of timm with the tags of their pretrained weights."""
    text = (Path(__file__).parent / "timm_names.txt").read_text(encoding="utf-8")
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {words[0]: tuple(words[1:]) for words in lines if words}


def is_timm(name: str) -> bool:
    """Whether timm has this architecture (and tag, where one is given)."""
    architecture, _, tag = name.partition(".")
    tags = timm_names().get(architecture)
    return tags is not None and (not tag or tag in tags)


def joined(names: Iterable[str], limit: int = 12) -> str:
    """``a, b, c``; after ``limit`` names, how many there are more."""
    listed = list(names)
    more = f", ... ({len(listed)} in all)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def timm_has(name: str) -> bool:
    """Whether timm has this name: the shipped list, else the sources of the installed timm."""
    if is_timm(name):
        return True
    listed = (Path(__file__).parent / "timm_names.txt").open(encoding="utf-8").readline().split()[2]
    try:
        if importlib.metadata.version("timm") == listed.rstrip(":"):
            return False
    except importlib.metadata.PackageNotFoundError:
        return False
    spec = importlib.util.find_spec("timm")
    folders = list(spec.submodule_search_locations or []) if spec else []
    architecture, _, tag = name.partition(".")
    wanted = f"'{name}'" if tag else f"def {architecture}("
    files = (path for folder in folders for path in (Path(folder) / "models").glob("*.py"))
    return any(wanted in path.read_text(encoding="utf-8") for path in files)
