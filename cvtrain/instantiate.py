"""Builds objects from ``_target_`` nodes, from an allow-list judged by what a name resolves to.

A checkpoint carries its run's config, so a config is as untrusted as a file from the net. Two
things are asked of every target before anything in the tree is built:

1. Its text begins with a known package (or one in ``trust``), so that nothing else is imported.
2. The object it resolves to is *defined* in a known place: ``torch.nn.modules.module.torch.load``
   begins well, but is ``torch.serialization.load``, and is refused.

Classes are judged by ``CLASSES``, functions by the shorter ``FUNCTIONS``; methods, builtins and
instances are refused. Packages of the user's own come in by ``trust=[pkg]`` on the command line.

Nothing here imports torch until a target names it.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cvtrain.errors import CvtrainError, UsageError

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
        "least_batch",
        "default_image_size",
        "default_resize",
    }
)
"""Keys that describe a node for ``cvtrain list`` and the other groups. They reach a target only
where it has a parameter of that name."""

CLASSES = (
    "cvtrain.augment",
    "cvtrain.callbacks",
    "cvtrain.data",
    "cvtrain.layers",
    "cvtrain.losses",
    "cvtrain.metrics",
    "cvtrain.models",
    "cvtrain.optim",
    "cvtrain.proposals",
    "cvtrain.tasks",
    "torch.nn",
    "torch.optim",
    "timm.layers",
    "timm.loss",
    "timm.models",
    "timm.optim",
    "timm.scheduler",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "torchmetrics.aggregation",
    "torchmetrics.classification",
    "torchmetrics.collections",
    "torchmetrics.detection",
    "torchmetrics.segmentation",
    "torchmetrics.wrappers",
    "albumentations.augmentations",
    "albumentations.core",
    "albumentations.pytorch",
    "pytorch_lightning.callbacks",
    "pytorch_lightning.loggers",
    "pytorch_lightning.profilers",
    "pytorch_lightning.strategies",
)
"""Modules (and all below them) whose classes a config may name."""

FUNCTIONS = (
    "cvtrain.augment",
    "cvtrain.layers",
    "cvtrain.losses",
    "cvtrain.models",
    "cvtrain.optim",
    "torch.nn.functional",
    "torch.nn.init",
    "torchvision.models",
    "torchvision.ops",
)
"""Modules whose functions a config may name; timm's are not among them, as some unpickle files."""

_KEYWORDS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})


def instantiate(node: Mapping[str, Any] | None, *, trust: Sequence[str] = (), **kwargs: Any) -> Any:
    """Build what ``node`` describes, children first.

    Args:
        node: a plain tree of dicts and lists; dicts with ``_target_`` are called with their other
            entries as keywords (``_args_``: positional ones). ``_partial_: true`` gives a
            ``functools.partial``; ``_recursive_: false`` leaves the children plain. Anything
            without ``_target_`` comes back as a plain copy; None comes back as None.
        trust: packages the user allowed on the command line.
        kwargs: go to the top call, over the node's own entries.

    Raises:
        UsageError: a target that is unknown or not allowed, arguments it does not take, or a
            ValueError or TypeError from its constructor.
    """
    if node is None:
        return None
    judge(node, trust=trust)
    return _build(node, trust, "", kwargs)


def judge(node: Any, *, trust: Sequence[str] = ()) -> None:
    """Raise UsageError if any ``_target_`` in the tree may not be built. Builds nothing."""
    for path, target in targets(node):
        resolve(target, trust=trust, path=path)


def targets(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every ``_target_`` in a tree, as (dotted path of its node, target)."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node["_target_"]
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}[{i}]")


def resolve(target: Any, *, trust: Sequence[str] = (), path: str = "") -> Callable[..., Any]:
    """The class or function ``target`` names, if it may be used.

    Raises:
        UsageError: not a dotted name, not found, or not allowed.
    """
    where = f"{path}._target_" if path else "_target_"
    if not isinstance(target, str) or not all(
        p.isidentifier() and not p.startswith("__") for p in target.split(".")
    ):
        raise UsageError(f"{where}={target!r} is not the dotted name of a class")
    package = target.split(".")[0]
    if package not in {p.split(".")[0] for p in (*CLASSES, *trust)}:
        raise UsageError(_refusal(where, target, package))
    found = _locate(where, target)
    if isinstance(found, type):
        known: Sequence[str] = CLASSES
    elif isinstance(found, types.FunctionType):
        known = FUNCTIONS
    else:
        kind = type(found).__name__
        raise UsageError(f"{where}={target} is a {kind}; only classes and functions can be built")
    # Where it is defined, not where it was found. The second look stops an object that only claims
    # to come from a known module.
    module, name = str(found.__module__), found.__qualname__
    home = _walk(sys.modules.get(module), name.split("."))
    if home is not found or not _below(module, (*known, *trust)):
        raise UsageError(_refusal(where, target, module.split(".")[0], f"{module}.{name}"))
    return found


def _refusal(where: str, target: str, package: str, real: str = "") -> str:
    is_real = f" (which is {real})" if real and real != target else ""
    if package in {p.split(".")[0] for p in CLASSES} | sys.stdlib_module_names:
        return f"{where}={target}{is_real} is not among the things a config may build"
    return (
        f"{where}={target}{is_real} is not in a package cvtrain knows; "
        f"if you trust it, add trust=[{package}] to the command"
    )


def _below(module: str, prefixes: Sequence[str]) -> bool:
    return any(module == p or module.startswith(p + ".") for p in prefixes)


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


def _build(node: Any, trust: Sequence[str], path: str, kwargs: Mapping[str, Any]) -> Any:
    if isinstance(node, (list, tuple)):
        return [_build(value, trust, f"{path}[{i}]", {}) for i, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    deep = node.get("_recursive_", True)
    entries = {
        key: _build(value, trust, f"{path}.{key}" if path else str(key), {}) if deep else value
        for key, value in node.items()
        if key not in _KEYWORDS and key not in kwargs
    }
    if "_target_" not in node:
        return {**entries, **kwargs}
    target = resolve(node["_target_"], trust=trust, path=path)
    positional = _build(list(node.get("_args_") or []), trust, path, {})
    return _call(
        target, positional, {**entries, **kwargs}, path, partial=bool(node.get("_partial_"))
    )


def _call(
    target: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], path: str, *, partial: bool
) -> Any:
    where = f"{path}: {target.__name__}" if path else target.__name__
    signature = _signature(target)
    if signature is not None:
        named = signature.parameters
        kwargs = {k: v for k, v in kwargs.items() if k not in META_KEYS or k in named}
        try:
            signature.bind_partial(*args, **kwargs) if partial else signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UsageError(f"{where}: {error}{_nearest(kwargs, signature)}") from error
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
        raise UsageError(f"{where}: {text}") from error


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
