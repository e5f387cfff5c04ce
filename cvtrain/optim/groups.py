"""Parameter groups: which parameters weight decay is for, and how fast each learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    lr: float | None = None,
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels with weight decay, everything else without.

    With ``rates``, two of each rate.

    Biases, the scales and shifts of norms and all other parameters with fewer than two dimensions
    are not decayed, nor are those that a submodule names in ``no_weight_decay()`` (timm's
    convention for position embeddings and tokens). Frozen parameters are in no group.

    Args:
        module: whose parameters are trained.
        weight_decay: of the first group.
        lr: the learning rate that ``rates`` are parts of.
        rates: name of a parameter -> its part of ``lr``; 1 for those it does not name.

    Returns:
        Groups for a torch optimizer; an empty one is left out. One with a rate of its own has
        ``lr``.
    """
    rates = rates or {}
    exempt = set()
    for prefix, child in module.named_modules():
        names = getattr(child, "no_weight_decay", None)
        if callable(names):
            exempt |= {f"{prefix}.{name}" if prefix else name for name in names()}
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or name.endswith(".bias") or name in exempt
        found.setdefault((rates.get(name, 1.0), plain), []).append(parameter)
    groups = []
    for rate, plain in sorted(found):  # kernels of a rate first, then the rest
        group: dict[str, Any] = {"params": found[rate, plain]}
        group["weight_decay"] = 0.0 if plain else weight_decay
        if lr is not None and rate != 1:
            group["lr"] = lr * rate
        groups.append(group)
    return groups
