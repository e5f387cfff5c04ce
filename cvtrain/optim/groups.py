"""Parameter groups: which parameters weight decay is for."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels with weight decay, everything else without.

    Biases, the scales and shifts of norms and all other parameters with fewer than two dimensions
    are not decayed, nor are those that a submodule names in ``no_weight_decay()`` (timm's
    convention for position embeddings and tokens). Frozen parameters are in no group.

    Args:
        module: whose parameters are trained.
        weight_decay: of the first group.

    Returns:
        Groups for a torch optimizer; an empty one is left out.
    """
    exempt = set()
    for prefix, child in module.named_modules():
        names = getattr(child, "no_weight_decay", None)
        if callable(names):
            exempt |= {f"{prefix}.{name}" if prefix else name for name in names()}
    decayed, plain = [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or name.endswith(".bias") or name in exempt:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
