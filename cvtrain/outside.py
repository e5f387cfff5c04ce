"""What a stored configuration reaches outside its run, and whether somebody here typed it.

A run folder may come from a stranger, and whatever it says of itself may be a lie. So it is judged
by its values: addresses, files to read, where loggers send. The ones a user typed are sealed with a
key that lies in the user's own folder (``key_file``): such a run goes on here as it was begun. What
carries no seal of this user's is refused until it is typed on the command line again.

The data set itself (``data.root``) is what a run is evaluated on, and not judged.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cvtrain.errors import UsageError
from cvtrain.text import printable

SEALS = "seals"
"""The key of a stored configuration that holds the seals, by dotted key."""

FILES = frozenset({"weights", "tree", "path", "tracking_uri", "entity"})
"""Last parts of keys whose text is a file or an address, wherever it leads."""

_TEXT = frozenset({"about", "paper", "classes", "tags", "year", "tasks", "losses", "_target_"})
_OWN = frozenset({"run_dir", "sweep_dir", "data.root", "data.classification_root", SEALS})
_MOST, _DEEPEST = 100_000, 64


def check_stored(config: Mapping[str, Any], where: str | Path) -> None:
    """Refuse a stored configuration that no run of cvtrain wrote: the names in it become paths and
    words of a command.

    Raises:
        UsageError: values within themselves or too many, a name that is a path, a seed that is
            no number.
    """
    for count, (_, _, depth) in enumerate(_leaves(config)):
        if count > _MOST or depth > _DEEPEST:
            raise UsageError(f"{where}: its configuration is too large to be a run's")
    for group in ("task", "model", "data", "proposals", "backbone", "loss"):
        node = config.get(group)
        name = node.get("name") if isinstance(node, Mapping) else None
        typed = group in ("task", "proposals")  # a word of a command that is composed again
        if name is not None and not _is_name(name, "$={}[]'\"," if typed else ""):
            raise UsageError(f"{where}: {group}.name={name!r} is no name")
    seed = config.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise UsageError(f"{where}: seed={seed!r} is no number")


def _is_name(name: Any, without: str = "") -> bool:
    if not isinstance(name, str) or not name or not name.isprintable() or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not set(name) & set(without)


def _leaves(node: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    """(dotted key, value, depth) of every value of a tree; containers too."""
    if depth > _DEEPEST + 1:
        return
    yield path, node, depth
    items: Any = ()
    if isinstance(node, Mapping):
        items = ((f"{path}.{key}" if path else str(key), value) for key, value in node.items())
    elif isinstance(node, (list, tuple)):
        items = ((f"{path}.{i}", value) for i, value in enumerate(node))
    for key, value in items:
        yield from _leaves(value, key, depth + 1)


def outside(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of all that leads out of the run: files, addresses, what asks the net."""
    found: dict[str, Any] = {}
    data = config.get("data")
    root = data.get("root") if isinstance(data, Mapping) else None
    for key, value, _ in _leaves(config):
        parts = key.split(".")
        if key in _OWN or parts[0] in _OWN or _TEXT & set(parts):
            continue
        if isinstance(value, str) and not (key == "data.reader.root" and value == root):
            if parts[-1] in FILES or _leads_out(value):
                found[_typed_as(key)] = value
        elif value is True and (parts[-1] == "pretrained" or key == "data.download"):
            found[_typed_as(key)] = value
        elif isinstance(value, Mapping) and str(value.get("_target_")).endswith(".Wandb"):
            mode = value.get("mode", "auto")
            found |= {f"{key}.mode": mode} if mode != "offline" else {}
    return found


def _typed_as(key: str) -> str:
    """The key one types for it: a model takes over its backbone's."""
    begin = "model.backbone."
    return f"backbone.{key.removeprefix(begin)}" if key.startswith(begin) else key


def _leads_out(text: str) -> bool:
    """Whether a text is an address, an absolute path, or one that climbs."""
    climbs = ".." in text.replace("\\", "/").split("/")
    return "://" in text or text.startswith(("/", "~", "\\\\")) or climbs


def unapproved(config: Mapping[str, Any], typed: Collection[str] = ()) -> dict[str, Any]:
    """What of ``outside`` neither carries a seal of this user's nor was typed now."""
    kept = config.get(SEALS)
    kept = kept if isinstance(kept, Mapping) else {}
    found = {key: value for key, value in outside(config).items() if key not in typed}
    return {k: v for k, v in found.items() if not is_sealed(k, v, kept.get(k))}


def is_sealed(name: str, value: Any, seal: Any) -> bool:
    """Whether a seal is the one that this user's key gives a value."""
    if not isinstance(seal, str):
        return False
    made = seals({name: value}).get(name)
    return made is not None and hmac.compare_digest(made.encode(), seal.encode())


def refuse_outside(
    config: Mapping[str, Any],
    reads: Callable[[str], bool],
    verb: str,
    typed: Collection[str] = (),
    remedy: str = "",
) -> None:
    """Refuse what leads out of the run, is read, and was not typed by this user.

    Args:
        config: as it was stored.
        reads: whether the command reads a dotted key.
        verb: what the message calls the command.
        typed: keys that were typed now.
        remedy: what to do where the command does not take such a key.

    Raises:
        UsageError: lists the keys, and says what to type.
    """
    found = {k: v for k, v in unapproved(config, typed).items() if reads(k)}
    found.pop("data.download", None)  # see ``download_unless_strange``
    if found:
        shown = [f"{key}={_spelled(value)}" for key, value in found.items()]
        many = f", ... ({len(shown)} in all)" if len(shown) > 4 else ""
        listed = " ".join(shown[:4]) + many
        raise UsageError(
            f"this run did not begin here, and {verb} would use {listed}; "
            f"{remedy or f'if that is right, type it: {listed}'}"
        )


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else printable(str(value))


def download_unless_strange(config: dict[str, Any], typed: Collection[str] = ()) -> None:
    """Turn ``data.download`` off where the run did not begin here and nobody typed it."""
    if "data.download" in unapproved(config, typed):
        config["data"] = {**config["data"], "download": False}


def with_seals(config: Mapping[str, Any], keys: Collection[str] | None = None) -> dict[str, Any]:
    """The configuration with seals for what leads out of it.

    Args:
        config: as it is to be stored.
        keys: those that were typed; None: all.
    """
    found = outside(config)
    made = seals({k: v for k, v in found.items() if keys is None or k in keys})
    kept = config.get(SEALS)
    every = {**(kept if isinstance(kept, Mapping) else {}), **made}
    rest = {k: v for k, v in config.items() if k != SEALS}
    return {**rest, SEALS: every} if every else rest


def seals(values: Mapping[str, Any]) -> dict[str, str]:
    """A seal of each key and value; none where this user's key can't be kept."""
    key = _key() if values else None
    if key is None:
        return {}
    return {
        name: hmac.new(key, json.dumps([name, value]).encode(), hashlib.sha256).hexdigest()
        for name, value in values.items()
    }


def key_file() -> Path:
    """``$XDG_STATE_HOME/cvtrain/key``, by default below ``~/.local/state``."""
    home = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(home) / "cvtrain" / "key"


def _key() -> bytes | None:
    """This user's secret, made at first use; None where the folder cannot be written to."""
    path = key_file()
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".key.{os.getpid()}")
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(partial, path)
            partial.unlink(missing_ok=True)
        return path.read_bytes()
    except OSError:  # a home that is not to be written to: nothing is sealed, and later typed again
        return None


def refuse_links(folder: Path) -> None:
    """Refuse a run folder that has links which lead out of it: what is written there lands
    elsewhere. W&B's own links and the folder itself may be anything.

    Raises:
        UsageError: names the first.
    """
    home = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent) / name
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise UsageError(
                    f"{printable(str(path))} is a link to {printable(str(path.resolve()))}, "
                    "outside the run, which would be written to; put a copy there, or remove it"
                )
        if "wandb" in folders:
            folders.remove("wandb")
