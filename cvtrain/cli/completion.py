"""Shell completion: ``eval "$(cvtrain -sc install=bash)"``, zsh and fish alike.

The shell asks ``cvtrain -sc query=SHELL`` with the line so far in ``COMP_LINE`` and gets one
candidate a line: verbs, flags, groups, options, keys, values, paths.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cvtrain.commands.cache import ALL, CLEAR
from cvtrain.config import readable_keys, rules
from cvtrain.config.command import CommandLine, command, names
from cvtrain.config.groups import GROUPS, LISTS, ConfDirs, pick, timm_names
from cvtrain.config.overrides import OPTIONAL, RECIPES
from cvtrain.errors import UsageError
from cvtrain.optim.names import LIBRARIES, optimizer_names
from cvtrain.storage import CACHE_KINDS

_FLAGS = ("--help", "--version", "--debug", "--cfg", "--resolve", "--config-dir", "--multirun")

_BASH = """_cvtrain_complete() {
    local line="${COMP_LINE:0:$COMP_POINT}" IFS=$'\\n'
    COMPREPLY=($(COMP_LINE="$line" "${COMP_WORDS[0]}" -sc query=bash 2>/dev/null))
    local word="${line##* }"
    if [[ $COMP_WORDBREAKS == *=* && $word == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
    fi
    local i
    for i in "${!COMPREPLY[@]}"; do
        [[ ${COMPREPLY[i]} == *[=./] ]] || COMPREPLY[i]+=" "
    done
}
complete -o nospace -F _cvtrain_complete cvtrain
"""

_ZSH = """(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_cvtrain_complete() {
    local -a found
    found=(${(f)"$(COMP_LINE="${(j: :)words[1,CURRENT]}" $words[1] -sc query=zsh 2>/dev/null)"})
    compadd -Q -S '' -- $found
}
compdef _cvtrain_complete cvtrain
"""

_FISH = """function __cvtrain_complete
    set -lx COMP_LINE (commandline -cp)
    set -l words (commandline -cpo)
    $words[1] -sc query=fish 2>/dev/null
end
complete -c cvtrain -f -a '(__cvtrain_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_UNINSTALL = {
    "bash": "complete -r cvtrain; unset -f _cvtrain_complete",
    "zsh": "compdef -d cvtrain; unfunction _cvtrain_complete",
    "fish": "complete -e -c cvtrain; functions -e __cvtrain_complete",
}


def complete(argument: str, conf: ConfDirs) -> int:
    """Serve ``-sc install=SHELL``, ``uninstall=SHELL`` and ``query=SHELL``; the exit code.

    Raises:
        UsageError: another argument, or another shell.
    """
    what, _, shell = argument.partition("=")
    if what not in ("install", "uninstall", "query") or shell not in _SCRIPTS:
        raise UsageError(
            f"-sc {argument}: write -sc install={'|'.join(_SCRIPTS)}, uninstall= or query="
        )
    if what == "install":
        print(_SCRIPTS[shell], end="")
    elif what == "uninstall":
        print(_UNINSTALL[shell])
    else:
        for candidate in candidates(os.environ.get("COMP_LINE", ""), conf):
            print(candidate)
    return 0


def candidates(line: str, conf: ConfDirs) -> list[str]:
    """What the last word of a command line can become, sorted.

    Args:
        line: from the program's name to the cursor.
        conf: the configuration folders; ``--config-dir`` in the line replaces them.
    """
    words = line.split()[1:]
    word = "" if not words or line.endswith((" ", "\t")) else words.pop()
    verb = next((w for w in words if w in names()), "train")
    user = [b for a, b in itertools.pairwise(words) if a == "--config-dir"]
    user += [w.partition("=")[2] for w in words if w.startswith("--config-dir=")]
    if user:
        there = [d for d in user if os.path.isdir(os.path.expanduser(d))]  # noqa: PTH111, PTH112
        conf = ConfDirs(there, own=conf.own)
    if word.startswith("--config-dir=") or (words and words[-1] == "--config-dir"):
        head, equals, path = word.rpartition("=")
        return [head + equals + p for p in _paths(path)]
    if words and words[-1] == "--cfg":
        found: Iterable[str] = ["job"]
    elif word.startswith("-"):
        found = _FLAGS
    elif verb == "list":
        found = GROUPS
    elif verb == "cache":
        found = [*CACHE_KINDS, ALL] if CLEAR in words else [CLEAR]
    elif verb == "compare" and "=" not in word:
        found = [*_paths(word), *_keys(word, words, verb, conf)]
    elif "=" in word:
        key, _, value = word.partition("=")
        found = [f"{key}={v}" for v in _values(key, value, words, conf)]
    else:
        found = _keys(word, words, verb, conf)
        if not any(w in names() for w in words) and not any("=" in w for w in words):
            found = [*names(), *found]
    return sorted({c for c in found if c.startswith(word)})


def _keys(word: str, words: Sequence[str], verb: str, conf: ConfDirs) -> list[str]:
    """Groups and root keys, or below ``data.`` the keys there, one level at a time."""
    taken = {w.partition("=")[0] for w in words}
    parent, dot, _ = word.rpartition(".")
    if dot:
        node = pick(_composed(words, conf), parent)
        found = {
            f"{parent}.{k}" + ("." if isinstance(v, dict) else "=")
            for k, v in (node.items() if isinstance(node, dict) else ())
            if not str(k).startswith("_")
        }
    else:
        found = {f"{k}=" for k in (*GROUPS, *readable_keys.root_keys())}
        chosen = ({*taken, verb} & {*GROUPS}) - {*RECIPES}
        found |= {f"{g}." for g in GROUPS if g not in OPTIONAL or g in chosen}
    multirun = any(w in ("-m", "--multirun") for w in words)
    this = command(verb)

    def is_read(candidate: str) -> bool:
        if candidate.endswith("."):
            return this.reads_below(candidate[:-1])
        return not readable_keys.complaint(verb, candidate.rstrip("="), multirun=multirun)

    return [f for f in found if f.rstrip("=") not in taken and is_read(f)]


def _values(key: str, value: str, words: Sequence[str], conf: ConfDirs) -> list[str]:
    if key in readable_keys.PATHS:
        return _paths(value)
    if key in LISTS and value.startswith("["):
        head, *rest = value.rpartition("," if "," in value else "[")
        begun = head + rest[0]
        there = begun.strip("[").split(",")
        return [begun + option for option in conf.options(key) if option not in there]
    if key in GROUPS:
        timm = list(timm_names()) if key == "backbone" and value else []
        return [*conf.options(key), *timm]
    if key == "backbone.name":
        return list(timm_names()) if value else []
    if key == "optimizer.name":
        library = pick(_composed(words, conf), "optimizer.library")
        return list(optimizer_names(library)) if library in LIBRARIES else []
    group, _, last = key.rpartition(".")
    if group in ("model", "backbone", "loss") and last in rules.WORDS:
        return [str(word) for word in rules.WORDS[last]]
    rule = rules.RULES.get(key)
    if rule is not None and rule.choices:
        return list(rule.choices)
    default = pick(_composed(words, conf), key)
    if isinstance(default, bool):
        return ["true", "false"]
    if default is None or isinstance(default, dict) or default == "???":
        return []
    return [rules.spell(default).replace(" ", "")]


def _composed(words: Sequence[str], conf: ConfDirs) -> dict[str, Any]:
    """The configuration with the group choices made so far; with none if they do not compose."""
    from cvtrain.config.compose import compose_command, hydra_session, plain

    verb = next((w for w in words if w in ("proposals", "anchors")), "train")
    choices = [w for w in words if w.partition("=")[0] in GROUPS and "=" in w]
    with hydra_session(conf):
        for overrides in (choices, []):
            try:
                return plain(compose_command(CommandLine(verb, overrides), conf).config)
            except UsageError:
                continue
    return {}


def _paths(text: str) -> list[str]:
    """Files and folders that begin with ``text``, folders with a slash."""
    folder, slash, name = text.rpartition("/")
    place = Path(os.path.expanduser(folder + slash) if slash else "")  # noqa: PTH111 (~nobody)
    if not place.is_dir():
        return []
    return [
        f"{folder}{slash}{p.name}{'/' if p.is_dir() else ''}"
        for p in place.iterdir()
        if p.name.startswith(name) and (name or not p.name.startswith("."))
    ]
