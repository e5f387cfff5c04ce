"""Splits a command line into verb, flags and ``key=value`` overrides. No Hydra, no torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from cvtrain.config import aliases, command
from cvtrain.config.command import CommandLine
from cvtrain.errors import UsageError

_SWITCHES = {
    "-h": "help",
    "--help": "help",
    "--version": "version",
    "--debug": "debug",
    "-m": "multirun",
    "--multirun": "multirun",
    "--resolve": "resolve",
}
_OPTIONS = {
    "--config-dir": "config_dirs",
    "-cd": "config_dirs",
    "--cfg": "cfg",
    "-c": "cfg",
    "--shell-completion": "completion",
    "-sc": "completion",
}


def parse(argv: Sequence[str]) -> CommandLine:
    """What ``argv`` (without the program's name) spells.

    Raises:
        UsageError: unknown flags and words, a flag without its value, two verbs.
    """
    line = CommandLine()
    command.trust_commands(_trusted(argv))
    if any(a in ("-h", "--help") for a in argv):
        line.help = True
        return line
    known = command.names()
    verbs: list[str] = []
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in _SWITCHES:
            setattr(line, _SWITCHES[word], True)
        elif name in _OPTIONS:
            if not equals and not rest:
                raise UsageError(f"{name} needs a value: {_example(name)}")
            _set_option(line, name, value if equals else rest.pop(0))
        elif word.startswith("-") and not _is_number(word):
            takes = bool(rest) and "=" not in word and "=" not in rest[0] and rest[0] not in known
            raise UsageError(_unknown_flag(word, rest[0] if takes else None))
        elif name == "hydra.searchpath":
            line.config_dirs += _search_path(value)
        elif equals or (word.startswith("~") and not _take_words(verbs)):
            line.overrides.append(word)  # ~key deletes; to compare it is somebody's home
        elif word in known and not _take_words(verbs):
            verbs.append(word)
        else:
            words.append(word)
    if len(verbs) > 1:
        raise UsageError(f"one verb a command: {' or '.join(verbs)}, not {' and '.join(verbs)}")
    if words[:1] == ["help"]:
        topics = [*words[1:], *verbs]
        if len(topics) > 1:
            raise UsageError(f"help: one topic, not {' and '.join(topics)}")
        line.help, line.topic = True, topics[0] if topics else ""
    line.verb = verbs[0] if verbs else "train"
    if line.help:
        return line
    if command.command(line.verb).takes_words:
        line.words = words
    elif words:
        raise UsageError(_unknown_words(words, line.overrides, bool(verbs)))
    return line


def _take_words(verbs: Sequence[str]) -> bool:
    return any(command.command(verb).takes_words for verb in verbs)


def _trusted(argv: Sequence[str]) -> list[str]:
    """The packages of ``trust=a`` and ``trust=[a,b]``."""
    values = [word.partition("=")[2] for word in argv if word.startswith("trust=")]
    entries = (entry.strip(" '\"") for value in values for entry in value.strip("[] ").split(","))
    return [entry for entry in entries if entry]


def _search_path(value: str) -> list[str]:
    """The folders of ``hydra.searchpath=[file:///a,file:///b]``, Hydra's name for --config-dir."""
    entries = [entry.strip(" '\"") for entry in value.strip("[] '\"").split(",")]
    for entry in entries:
        if not entry or ("://" in entry and not entry.startswith("file://")):
            raise UsageError(f"hydra.searchpath={value}: write --config-dir FOLDER")
    return [entry.removeprefix("file://") for entry in entries]


def _set_option(line: CommandLine, flag: str, value: str) -> None:
    name = _OPTIONS[flag]
    if name == "config_dirs":
        line.config_dirs.append(value)
    elif name == "cfg":
        if value != "job":
            raise UsageError(f"--cfg {value}: the configuration that is shown is --cfg job")
        line.cfg = value
    else:
        line.completion = value


def _example(flag: str) -> str:
    return {
        "config_dirs": "--config-dir=conf",
        "cfg": "--cfg job",
        "completion": 'eval "$(cvtrain -sc install=bash)"',
    }[_OPTIONS[flag]]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _unknown_flag(word: str, value: str | None) -> str:
    """``--epochs 3``, ``--epochs=3``, ``--hlep``."""
    typed = word if value is None else f"{word} {value}"
    name, equals, inline = word.lstrip("-").partition("=")
    if equals:
        value = inline
    flags = [*_SWITCHES, *_OPTIONS]
    close = difflib.get_close_matches("--" + name, flags, n=1, cutoff=0.75)
    if close and aliases.replacement(name.replace("-", "_"), value or "") is None:
        return f"unknown flag {word}; did you mean {close[0]}?"
    key = name.replace("-", "_")
    new = aliases.replacement(key, value if value is not None else "VALUE")
    if new is None and value is None and key in aliases.SWITCHES:
        new = aliases.SWITCHES[key]
    if new is None:
        new = f"{name if '.' in name else key}={value if value is not None else 'VALUE'}"
        return f"unknown flag {typed}; keys are written key=value: {new}, see cvtrain --help"
    return f"unknown flag {typed}; write {new}"


def _unknown_words(words: Sequence[str], overrides: Sequence[str], has_verb: bool) -> str:
    """Words that are neither verbs nor ``key=value``."""
    habit = aliases.words(words, overrides, has_verb)
    if habit:
        return habit
    word = words[0]
    close = difflib.get_close_matches(word, command.names(), n=1, cutoff=0.6)
    if close:
        return f"unknown verb {word}; did you mean {close[0]}?"
    verbs = ", ".join(verb.name for verb in command.commands())
    return f"{word} is neither a verb ({verbs}) nor key=value; see cvtrain --help"
