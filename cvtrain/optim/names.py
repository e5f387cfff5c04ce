"""The optimizers that the installed torch and timm list, and which of them train here. No torch.

The names are read from the libraries' sources: a command is judged before torch is imported.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
from pathlib import Path

LIBRARIES = ("torch", "timm")

_UNFIT = {
    ("torch", "lbfgs"): "it evaluates the loss several times a step, training here does so once; "
    "write optimizer=torch optimizer.name=AdamW",
    ("torch", "sparseadam"): "it takes sparse gradients alone, these models have dense ones; "
    "write optimizer=torch optimizer.name=Adam",
    ("torch", "muon"): "it takes matrices alone, no convolutions, norms or biases; timm's takes "
    "all: write optimizer=timm optimizer.name=muon",
    ("timm", "adahessian"): "it needs second derivatives, which training here does not compute; "
    "write optimizer=timm optimizer.name=adamw",
}
"""(library, name) -> why it trains no model here, and what to type instead."""

_PACKAGES = {"bnb": "bitsandbytes", "fused": "apex"}
"""How timm's names begin of optimizers that another package brings -> that package."""

_TORCH = re.compile(r"^from torch\.optim\.\w+ import (\w+) as \1$", re.MULTILINE)
_TIMM = re.compile(r"\bname=['\"](\w+)['\"]|\.register_alias\('(\w+)'")


@functools.cache
def optimizer_names(library: str) -> tuple[str, ...]:
    """The names that train here, as the library spells them; empty where its source is unknown."""
    listed = _listed(library)
    return tuple(name for name in listed if not unfit_optimizer(name, library))


def refused_optimizer(name: str, library: str) -> str | None:
    """What is wrong with ``optimizer.name=NAME``, in one line; None where it trains."""
    if library not in LIBRARIES:
        return f"optimizer.library={library}: it takes {' | '.join(LIBRARIES)}"
    if why := unfit_optimizer(name, library):
        return f"optimizer.name={name}: {why}"
    listed = _listed(library)
    if not listed or name.lower() in {known.lower() for known in listed}:
        return None
    other = next(lib for lib in LIBRARIES if lib != library)
    if name.lower() in {known.lower() for known in optimizer_names(other)}:
        return f"optimizer.name={name} is {other}'s: write optimizer={other} optimizer.name={name}"
    by_lower = {known.lower(): known for known in optimizer_names(library)}
    near = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.7)]
    hint = (
        f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(by_lower.values())}"
    )
    return f"optimizer.name={name}: {library}.optim has no such optimizer; {hint}"


def unfit_optimizer(name: str, library: str) -> str:
    """Why an optimizer that the library lists trains no model here; empty if it does."""
    lower = name.lower()
    if why := _UNFIT.get((library, lower)):
        return why
    if library == "timm":
        for begin, package in _PACKAGES.items():
            if lower.startswith(begin) and importlib.util.find_spec(package) is None:
                return f"it needs the package {package}, which is not installed"
    return ""


@functools.cache
def _listed(library: str) -> tuple[str, ...]:
    """All names of the library's own list."""
    file, pattern = {
        "torch": ("optim/__init__.py", _TORCH),
        "timm": ("optim/_optim_factory.py", _TIMM),
    }[library]
    spec = importlib.util.find_spec(library)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / file
        if path.is_file():
            found = pattern.finditer(path.read_text(encoding="utf-8"))
            names = dict.fromkeys(match[match.lastindex or 0] for match in found)
            return tuple(name for name in names if name not in _NO_OPTIMIZERS)
    return ()


_NO_OPTIMIZERS = ("Optimizer", "swap_in_optimizer_params_and_state")
"""What else torch.optim's modules give."""
