"""Optimizers by name, from torch.optim or timm.optim, with every argument checked."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from cvtrain.errors import UsageError
from cvtrain.optim.groups import parameter_groups
from cvtrain.optim.names import refused_optimizer

TIMM_MOMENTUM = 0.9
"""Of timm's optimizers that have one, where ``optimizer.momentum`` is not given: timm's own."""

Factory = Callable[..., torch.optim.Optimizer]


def build_optimizer(
    module: nn.Module,
    config: Mapping[str, Any],
    factory: Factory | None = None,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer that ``config`` describes, over the trainable parameters of ``module``.

    Args:
        module: whose parameters are trained.
        config: ``name``, ``library`` (torch or timm), ``lr``, ``weight_decay``; every other key is
            an argument of the optimizer.
        factory: a class of the user's own, called in place of one found by name.
        rates: name of a parameter -> the part of ``lr`` it learns at, where that is not all.

    Raises:
        UsageError: an unknown name or argument, or a value the optimizer refuses.
    """
    found, name, arguments = _read(config, factory)
    decay = arguments.pop("weight_decay", None)
    if rates and arguments.get("lr") is None:
        raise UsageError("transfer=fine_tune gives parts of optimizer.lr: give optimizer.lr")
    groups = parameter_groups(module, 0.0 if decay is None else decay, arguments.get("lr"), rates)
    if not groups:
        raise UsageError("the model has no trainable parameter: nothing to optimize")
    if not _accepts(found, "weight_decay"):
        if decay:
            raise UsageError(f"optimizer.weight_decay={decay}: {name} takes none; set it to 0")
        groups = _one_a_rate(groups)
    try:
        return found(groups, **arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer.name={name} takes other values: {error}") from error


def check_optimizer(config: Mapping[str, Any], factory: Factory | None = None) -> None:
    """Judge what ``build_optimizer`` is to be called with, before there is a model.

    Raises:
        UsageError: an unknown name or argument.
    """
    _read(config, factory)


def _read(
    config: Mapping[str, Any], factory: Factory | None
) -> tuple[Factory, str, dict[str, Any]]:
    """What is called, its name, and its arguments."""
    arguments = {k: v for k, v in config.items() if k not in ("name", "library", "_target_")}
    name = str(config.get("name") or getattr(factory, "__name__", "optimizer"))
    found = factory or find_optimizer(name, str(config.get("library") or "torch"))
    for key, value in arguments.items():
        arguments[key] = _number(key, value)
    _check_arguments(found, name, {k: v for k, v in arguments.items() if k != "weight_decay"})
    return found, name, arguments


def _one_a_rate(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups joined where they differ in weight decay alone."""
    joined: dict[float | None, dict[str, Any]] = {}
    for group in groups:
        rate = {key: group[key] for key in ("lr",) if key in group}
        joined.setdefault(rate.get("lr"), {"params": [], **rate})["params"] += group["params"]
    return list(joined.values())


def find_optimizer(name: str, library: str = "torch") -> Factory:
    """The class of that name, upper and lower case aside.

    Raises:
        UsageError: no such library or class, with the nearest names, or one that cannot train here.
    """
    if message := refused_optimizer(name, library):
        raise UsageError(message)
    known = _torch_optimizers() if library == "torch" else _timm_optimizers()
    if name.lower() not in known:  # a library whose source says less than it holds
        raise UsageError(
            f"optimizer.name={name}: {library}.optim has no such optimizer; it has "
            f"{', '.join(sorted(known))}"
        )
    try:
        return known[name.lower()]()
    except (AssertionError, ImportError) as error:  # timm's names for optimizers of other packages
        raise UsageError(f"optimizer.name={name}: {error}") from error


def _torch_optimizers() -> dict[str, Callable[[], Factory]]:
    return {
        key.lower(): partial(getattr, torch.optim, key)
        for key, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }


def _timm_optimizers() -> dict[str, Callable[[], Factory]]:
    from timm.optim import list_optimizers

    return {str(name): partial(_timm_optimizer, str(name)) for name in list_optimizers()}


def _timm_optimizer(name: str) -> Factory:
    """With timm's own defaults, those of its ``create_optimizer_v2`` among them."""
    from timm.optim import get_optimizer_class, get_optimizer_info

    found: Factory = get_optimizer_class(name, bind_defaults=True)
    return (
        partial(found, momentum=TIMM_MOMENTUM) if get_optimizer_info(name).has_momentum else found
    )


def _number(key: str, value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; text that is a number becomes one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            if key in ("lr", "weight_decay"):
                raise UsageError(f"optimizer.{key}={value}: expected a number") from None
    return value


def _parameters(factory: Factory) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(factory).parameters


def _accepts(factory: Factory, name: str) -> bool:
    parameters = _parameters(factory)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return name in parameters or open_ended


def _check_arguments(factory: Factory, name: str, arguments: Mapping[str, Any]) -> None:
    for key in arguments:
        if not _accepts(factory, key):
            takes = list(_parameters(factory))[1:]
            near = difflib.get_close_matches(key, takes, n=1)
            hint = f"did you mean optimizer.{near[0]}?" if near else f"it takes {', '.join(takes)}"
            raise UsageError(f"optimizer.{key}: {name} takes no such argument; {hint}")
