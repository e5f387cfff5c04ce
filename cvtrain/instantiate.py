"""Builds objects from ``_target_`` nodes, of which a configuration may name few.

A checkpoint carries its run's config, so a config is as untrusted as a file from the net. In every
slot (``model``, ``loss``, ``data.reader``, ...) it may name what cvtrain's own yamls name there, to
the letter; in ``augment`` the transforms of ``cvtrain.augment.known`` too. A list of the packages
that are fine would not do: others write them, and one function that loads a file is enough.
Everything else, the user's own classes among it, comes in by ``trust=`` on the command line: a
package (``trust=[pkg]``; what it is defined in counts, not what it imports), or one class by its
whole name.

The whole tree is judged, and all arguments are bound, before anything in it is built. Nothing here
imports torch until a target names it.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cvtrain.augment.known import ALBUMENTATIONS, NOT_TAKEN
from cvtrain.errors import CvtrainError, UsageError
from cvtrain.shipped import shipped_targets, slot_of, targets

META_KEYS = frozenset(
    {
        "name",
        "tasks",
        "year",
        "about",
        "paper",
        "losses",
        "heads",
        "proposals",
        "joint",
        "min_batch_size",
        "default_image_size",
        "default_resize",
    }
)
"""Keys that describe a node for ``cvtrain list`` and the other groups. They reach a target only
where it has a parameter of that name."""

LIBRARIES = (
    *("cvtrain", "torch", "torchvision", "torchmetrics", "timm", "albumentations"),
    *("pytorch_lightning", "lightning_fabric"),
)
"""Packages of which one class at a time is to be trusted, as each holds ways to run code."""

_KEYWORDS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})


def instantiate(
    node: Mapping[str, Any] | None, *, where: str, trust: Sequence[str] = (), **kwargs: Any
) -> Any:
    """Build what ``node`` describes; everything is judged and its arguments bound before anything
    is built.

    Args:
        node: a plain tree of dicts and lists; dicts with ``_target_`` are called with their other
            entries as keywords (``_args_``: positional ones). ``_partial_: true`` gives a
            ``functools.partial``; ``_recursive_: false`` leaves the children plain. Anything
            without ``_target_`` comes back as a plain copy; None comes back as None.
        where: the dotted path of the node in a run's configuration (``model``, ``data.reader``,
            ``augment.transforms[0]``), by which it is known what it may name.
        trust: packages and targets the user allowed on the command line.
        kwargs: go to the top call, over the node's own entries.

    Raises:
        UsageError: a target that is unknown or not allowed, arguments it does not take, or a
            ValueError or TypeError from its constructor.
    """
    if node is None:
        return None
    judge(node, where=where, trust=trust)
    return _plan(node, trust, where, kwargs)()


def judge(node: Any, *, where: str = "", trust: Sequence[str] = ()) -> None:
    """Raise UsageError if any ``_target_`` in the tree may not be built. Imports nothing.

    Args:
        node: a tree, or a whole configuration.
        where: the dotted path at which it lies; "" for a whole configuration.
        trust: packages and targets the user allowed on the command line.
    """
    for path, target in targets(node, where):
        _permit(target, trust, path)


@functools.cache
def allowed(slot: str) -> frozenset[str]:
    """The targets that a configuration may name in a slot without ``trust=``."""
    names = shipped_targets().get(slot, frozenset())
    return names | ALBUMENTATIONS if slot == "augment" else names


def resolve(target: Any, *, path: str, trust: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function ``target`` names, if the node at the dotted ``path`` may be it.

    Raises:
        UsageError: not a dotted name, not found, or not allowed.
    """
    _permit(target, trust, path)
    where = f"{path}._target_"
    found = _locate(where, target)
    if not isinstance(found, (type, types.FunctionType)):
        kind = type(found).__name__
        raise UsageError(f"{where}={target} is a {kind}; only classes and functions can be built")
    if target in allowed(slot_of(path)) or target in trust:
        return found
    # Trusted by its package: judged by where it is defined, not where it was found. The second look
    # stops an object that only claims to come from a known module.
    module, name = str(found.__module__), found.__qualname__
    home = _walk(sys.modules.get(module), name.split("."))
    if home is not found or not _below(module, trust):
        raise UsageError(_refusal(where, target, path, f"{module}.{name}"))
    return found


def _permit(target: Any, trust: Sequence[str], path: str) -> None:
    """Raise UsageError where a target's text alone says that it may not be built."""
    where = f"{path}._target_"
    if not isinstance(target, str) or not all(
        p.isidentifier() and not p.startswith("__") for p in target.split(".")
    ):
        raise UsageError(f"{where}={target!r} is not the dotted name of a class")
    if target not in allowed(slot_of(path)) and not _below(target, trust):
        raise UsageError(_refusal(where, target, path))


def _refusal(where: str, target: str, path: str, real: str = "") -> str:
    message = f"{where}={target}{f' (which is {real})' if real and real != target else ''}"
    slot = slot_of(path)
    package, _, rest = (real or target).partition(".")
    if package not in LIBRARIES and package not in sys.stdlib_module_names:
        return (
            f"{message} is not in a package cvtrain knows; "
            f"if you trust it, add trust=[{package}] to the command"
        )
    message += " is not among the things a config may build"
    if slot == "augment" and package == "albumentations" and rest in NOT_TAKEN:
        return f"{message}: it {NOT_TAKEN[rest]}"
    last = target.rpartition(".")[2]
    known = {t.rpartition(".")[2]: t for t in allowed(slot) if t.startswith(f"{package}.")}
    if close := difflib.get_close_matches(last, known, n=1, cutoff=0.8):
        return f"{message}; did you mean {known[close[0]]}?"
    if package in LIBRARIES and last[:1].isupper():  # no function
        message += f"; if you trust it, add trust=[{target}] to the command"
    return message


def _below(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def _walk(found: Any, names: Sequence[str]) -> Any:
    for name in names:
        found = getattr(found, name, None)
    return found


def _locate(where: str, target: str) -> Any:
    """Import the longest module prefix of ``target`` and walk the rest as attributes."""
    parts = target.split(".")
    module: Any = None
    rest = parts
    for i in range(1, len(parts) + 1):
        name = ".".join(parts[:i])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and not (name + ".").startswith(error.name + "."):
                raise UsageError(f"{where}={target} needs {error.name}, not installed") from error
            break
        rest = parts[i:]
    if module is None:
        raise UsageError(f"{where}={target}: there is no package {parts[0]} on the Python path")
    found = module
    for name in rest:
        if not hasattr(found, name):
            holder = target[: target.rindex("." + name)] if "." in target else target
            close = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"{where}={target}: {holder} has no {name}{hint}")
        found = getattr(found, name)
    return found


def _plan(
    node: Any, trust: Sequence[str], path: str, kwargs: Mapping[str, Any]
) -> Callable[[], Any]:
    """What builds ``node``, once everything in it is resolved and its arguments are bound."""
    if isinstance(node, (list, tuple)):
        plans = [_plan(value, trust, f"{path}[{i}]", {}) for i, value in enumerate(node)]
        return lambda: [plan() for plan in plans]
    if not isinstance(node, Mapping):
        return lambda: node
    deep = node.get("_recursive_", True)
    entries: dict[str, Callable[[], Any]] = {
        key: _plan(value, trust, f"{path}.{key}", {}) if deep else functools.partial(_same, value)
        for key, value in node.items()
        if key not in _KEYWORDS and key not in kwargs
    }
    entries |= {key: functools.partial(_same, value) for key, value in kwargs.items()}
    if "_target_" not in node:
        return lambda: {key: plan() for key, plan in entries.items()}
    target = resolve(node["_target_"], trust=trust, path=path)
    positional = [
        _plan(value, trust, f"{path}._args_[{i}]", {})
        for i, value in enumerate(node.get("_args_") or [])
    ]
    partial = bool(node.get("_partial_"))
    keywords = _bound(target, positional, entries, path, partial=partial)

    def build() -> Any:
        args = [plan() for plan in positional]
        return _call(target, args, {k: plan() for k, plan in keywords.items()}, path, partial)

    return build


def _same(value: Any) -> Any:
    return value


def _bound(
    target: Callable[..., Any],
    args: list[Any],
    kwargs: Mapping[str, Any],
    path: str,
    *,
    partial: bool,
) -> dict[str, Any]:
    """The keywords that reach ``target``.

    Raises:
        UsageError: arguments that it does not take, or lacks.
    """
    signature = _signature(target)
    if signature is None:
        return dict(kwargs)
    named = signature.parameters
    kwargs = {k: v for k, v in kwargs.items() if k not in META_KEYS or k in named}
    try:
        signature.bind_partial(*args, **kwargs) if partial else signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(
            f"{path}: {target.__name__}: {error}{_nearest(kwargs, signature)}"
        ) from error
    return kwargs


def _call(
    target: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], path: str, partial: bool
) -> Any:
    if partial:
        return functools.partial(target, *args, **kwargs)
    try:
        with warnings.catch_warnings():
            # albumentations only warns of an argument it does not know.
            warnings.filterwarnings("error", message=r"Argument\(s\)")
            return target(*args, **kwargs)
    except CvtrainError:
        raise
    except (TypeError, ValueError, UserWarning) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{path}: {target.__name__}: {text}") from error


def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):  # a class written in C; its own call says what is wrong
        return None


def _nearest(kwargs: Mapping[str, Any], signature: inspect.Signature) -> str:
    named = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(named) < len(signature.parameters):
        return ""
    for key in kwargs:
        if key not in named:
            close = difflib.get_close_matches(key, named, n=1)
            return f"; did you mean {close[0]}?" if close else f"; it takes {', '.join(named)}"
    return ""
