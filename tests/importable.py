"""Which importable classes and functions a configuration may name, by slot; JSON on the last line.

    python tests/importable.py torch torchvision timm albumentations pytorch_lightning

Imports every module of the packages, some of which do odd things: a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pkgutil
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

from cvtrain.errors import UsageError
from cvtrain.instantiate import resolve
from cvtrain.shipped import SLOTS

PLACES = {"part": "model.x", "reader": "data.reader", "callbacks": "callbacks.x"} | {
    "logger": "logger.x",
    "augment": "augment.transforms[0]",
    "": "anything.else",
}
"""Slot -> where such a node lies, where that is not the slot's own name."""


def modules(name: str) -> Iterator[types.ModuleType]:
    """The module and all below it that can be imported."""
    try:
        module = importlib.import_module(name)
    except BaseException:  # what it needs is not installed, or it exits: there is nothing to name
        return
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}."):
        if not info.name.endswith(".__main__"):
            yield from modules(info.name)


def main(packages: list[str]) -> None:
    names: set[str] = set()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for package in packages:
            for module in modules(package):
                for name in dir(module):
                    value: Any = getattr(module, name, None)
                    if isinstance(value, (type, types.FunctionType)):
                        names.add(f"{module.__name__}.{name}")
    passed: dict[str, list[str]] = {slot: [] for slot in (*SLOTS, "")}
    for slot in passed:
        for name in sorted(names):
            with contextlib.suppress(UsageError):
                resolve(name, path=PLACES.get(slot, slot))
                passed[slot].append(name)
    print({slot or "elsewhere": len(found) for slot, found in passed.items()})
    print(json.dumps({"names": len(names), "passed": passed}))


if __name__ == "__main__":
    main(sys.argv[1:])
