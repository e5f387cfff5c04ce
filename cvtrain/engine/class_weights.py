"""Class weights of a run's loss, once the training images have been counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cvtrain.errors import UsageError
from cvtrain.losses.weights import ClassWeighted
from cvtrain.models.base import Model

SHOWN = 12
"""So many classes are named one by one in the log."""


def weigh_classes(
    model: Model,
    names: Sequence[str],
    counts: Callable[[], tuple[list[int], int | list[int]]],
    sampler: str,
) -> str | None:
    """Fix the class weights of the model's losses by the training set.

    Args:
        model: built, not yet trained.
        names: of the K classes.
        counts: gives the training images of each class, or its pixels, and what these are a part
            of, see ``ClassWeighted.weigh``; called where weights are wanted.
        sampler: ``data.sampler``.

    Returns:
        A line on the weights; None where the losses have none.

    Raises:
        UsageError: ``loss.class_weights`` is a list of another length, or of another kind.
    """
    losses = [m for m in model.modules() if isinstance(m, ClassWeighted)]
    losses = [loss for loss in losses if loss.class_weights is not None]
    if not losses:
        return None
    seen, whole = counts()
    for loss in losses:
        given = loss.class_weights
        if not isinstance(given, str) and given is not None and len(given) != len(names):
            listed = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            raise UsageError(
                f"loss.class_weights has {len(given)} number{'s' if len(given) > 1 else ''}, "
                f"the data {len(names)} classes: {listed}"
            )
        try:
            loss.weigh(seen, whole)
        except ValueError as error:
            raise UsageError(f"loss.{error}") from error
    message = _said(losses[0], names, seen, "images" if isinstance(whole, int) else "pixels")
    if sampler == "balanced" and isinstance(losses[0].class_weights, str):
        message += "; with data.sampler=balanced rare classes are favored twice: choose one of both"
    return message


def _said(loss: ClassWeighted, names: Sequence[str], counts: Sequence[int], unit: str) -> str:
    assert loss.weights is not None
    weights = loss.weights.tolist()
    kind = loss.class_weights if isinstance(loss.class_weights, str) else "given"
    parts = [
        f"{name} {weight:.3g} ({count:,})"
        for name, weight, count in zip(names, weights, counts, strict=True)
    ]
    if len(parts) > SHOWN:
        order = sorted(range(len(parts)), key=lambda k: weights[k])
        low, high = (", ".join(parts[k] for k in ks) for ks in (order[:3], order[-3:]))
        listed = f"{low} ... {high}"
    else:
        listed = ", ".join(parts)
    what = "of positives" if loss.multi_label else "of classes"
    return f"weights {what}, {kind} (training {unit}): {listed}"
