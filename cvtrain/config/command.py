"""What a verb is: its line of help, the keys that it reads, what runs it. No torch here.

A verb is a file ``cvtrain/commands/NAME.py`` with ``COMMAND = Command(...)``, or such a file in the
folder ``commands`` of a package that ``trust=`` names. Help, completion, dispatch and the refusal
of keys that a verb does not read all come from there.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvtrain.errors import UsageError

CHECKPOINT = "{key}= is not read by {verb}: it comes from the checkpoint (ckpt=)"
"""For ``Command.unread``: what is settled by training."""

OF_TRAINING = {"data.sampler": "", "data.classification_root": ""}
"""For ``Command.unread``: keys of the data that only train reads."""


@dataclass
class CommandLine:
    """A parsed command line.

    Attributes:
        verb: the name of a Command.
        overrides: the ``key=value`` words, as typed and in order.
        words: what follows a verb that takes words.
        config_dirs: folders given with ``--config-dir``.
        cfg: ``job`` with ``--cfg job``: print the composed configuration and stop.
        topic: what ``help`` is asked about; empty: everything.
        completion: the argument of ``-sc``, e.g. ``install=bash``.
    """

    verb: str = "train"
    overrides: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    cfg: str | None = None
    completion: str | None = None
    resolve: bool = False
    multirun: bool = False
    help: bool = False
    topic: str = ""
    version: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Command:
    """A verb.

    Functions are named as ``module:function``, so that nothing is imported before it is needed.

    Attributes:
        name: the word typed.
        about: its line of help.
        run: called with the plain, resolved configuration; returns the exit code.
        configure: called with the CommandLine and the ConfDirs, returns that configuration.
        start: called with both instead of ``configure`` and ``run``; returns the exit code.
        sweep: called with both first; returns the exit code, or None where one run was typed.
        reads: the keys that it reads: ``seed`` that key or, of a group, its choice alone;
            ``data.`` a group with all its keys. Each verb that leaves a file reads ``trust``, too.
        unread: keys, written as in ``reads``, that it does not read, with the message (``{key}``,
            ``{verb}`` and ``{readers}`` are filled in; empty: the usual one). Of all entries that
            fit a key, the longest counts.
        defaults: what is chosen of a group where neither the user nor an experiment does.
        order: its place in the help; those of one place by name.
        takes_words: whether words other than ``key=value`` may follow.
        prints_only: whether what it prints is all that it gives: it leaves no file.
    """

    name: str
    about: str
    run: str = ""
    configure: str = "cvtrain.config.compose:configure"
    start: str = ""
    sweep: str = ""
    reads: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    order: int = 100
    takes_words: bool = False
    prints_only: bool = False

    def entry(self, key: str) -> str | None:
        """The longest entry of ``reads`` and ``unread`` that fits a key; None where none does."""
        fits = [e for e in (*self.reads, *self.unread) if _fits(e, key)]
        return max(fits, key=lambda e: len(e.rstrip(".")) + (not e.endswith(".")), default=None)

    def does_read(self, key: str) -> bool:
        """Whether it reads a key, dotted; of a group, its choice."""
        if key == "trust":
            return not self.prints_only
        entry = self.entry(key)
        return entry is not None and entry not in self.unread

    def reads_below(self, group: str) -> bool:
        """Whether it reads any key of a group."""
        prefix = f"{group}."
        return self.does_read(prefix) or any(e.startswith(prefix) for e in self.reads)


def _fits(entry: str, key: str) -> bool:
    if entry.endswith("."):
        return key == entry[:-1] or key.startswith(entry)
    return entry == key


def function(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names."""
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found


_PACKAGES: list[str] = ["cvtrain.commands"]
"""Packages a module of which is a verb."""


def trust_commands(packages: Sequence[str]) -> None:
    """Find verbs in the ``commands`` folders of packages of the user's own, too.

    Args:
        packages: the values of ``trust=``; single classes, and packages without such a folder, add
            nothing and are not imported.
    """
    if packages:
        search_here()
    for package in packages:
        name = f"{package}.commands"
        if "." in package or name in _PACKAGES:
            continue
        try:
            spec = importlib.util.find_spec(package)
        except ValueError:  # __main__, which is no package
            continue
        folders = (spec.submodule_search_locations or []) if spec else []  # none: trust= says so
        if any((Path(folder) / "commands").is_dir() for folder in folders):
            _PACKAGES.append(name)
            names.cache_clear()


def search_here() -> None:
    """Let Python find packages of the user's own in the working folder, beside their images."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


@functools.cache
def names() -> tuple[str, ...]:
    """The verbs, by name; nothing is imported for it."""
    return tuple(sorted(module.rpartition(".")[2] for module in _modules()))


def commands() -> list[Command]:
    """All verbs, in the order of the help."""
    found = [_load(module) for module in _modules()]
    return sorted(found, key=lambda command: (command.order, command.name))


def _modules() -> list[str]:
    """The modules that are verbs, by their whole names."""
    return [
        f"{package}.{module.name}"
        for package in _PACKAGES
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
        if not module.name.startswith("_")
    ]


def command(verb: str) -> Command:
    """The verb of that name.

    Raises:
        KeyError: there is none.
    """
    for package in reversed(_PACKAGES):
        if importlib.util.find_spec(f"{package}.{verb}") is not None:
            return _load(f"{package}.{verb}")
    raise KeyError(verb)


def _load(module: str) -> Command:
    found = getattr(importlib.import_module(module), "COMMAND", None)
    if not isinstance(found, Command) or module.rpartition(".")[2] != found.name:
        raise UsageError(f"{module} is no verb: it needs COMMAND = Command(name=its file's name)")
    return found
