"""Which classes an epoch's labels named: an augmentation must not lose one in silence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from cvtrain.distributed import broadcast, gather
from cvtrain.structures import Target

_SHOWN = 5
"""Classes named; of more, how many they are."""


class Coverage:
    """Counts the labels of training batches; names the classes that had none at the end.

    Args:
        names: of the classes.
        present: of some classes, those that the training data have.
    """

    def __init__(
        self, names: Sequence[str], present: Callable[[Sequence[int]], Sequence[int]]
    ) -> None:
        self.names, self.present = names, present
        self.counts = torch.zeros(len(names), dtype=torch.int64)
        self.of_pixels = False

    def add(self, targets: Iterable[Target]) -> None:
        """Take in a batch's targets, on the CPU."""
        for target in targets:
            labels = _labels(target)
            self.of_pixels |= target.mask is not None
            if labels is not None:
                inside = labels[(labels >= 0) & (labels < len(self.counts))]
                self.counts += torch.bincount(inside, minlength=len(self.counts))

    def missing(self) -> list[int]:
        """Classes that the data have and no label of any process named (every one must call)."""
        parts = gather(self.counts)
        found: list[int] = []
        if parts is not None:
            seen = torch.stack(list(parts)).sum(dim=0)  # (processes, K) -> (K,)
            unseen = [k for k, count in enumerate(seen.tolist()) if not count]
            found = list(self.present(unseen)) if unseen else []
        return broadcast(found)

    def report(self) -> None:
        """Warn in one line, with what to do, where a class was lost (every process must call)."""
        missing = self.missing()
        if not missing:
            return
        shown = ", ".join(self.names[k] for k in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        least = "" if self.of_pixels else " lower augment.min_area or augment.min_visibility,"
        logging.getLogger("cvtrain").warning(
            f"not one {'pixel' if self.of_pixels else 'label'} of {shown}{more} was left in the "
            "first epoch: objects are cropped away or too small; raise data.image_size,"
            f"{least} or choose a milder augment="
        )


def _labels(target: Target) -> Tensor | None:
    """int64 ``(N,)``: every class that a target names."""
    if target.probs is not None:
        return torch.nonzero(target.probs > 0).reshape(-1)
    if target.mask is not None:
        return target.mask.reshape(-1)
    if target.labels is not None:
        return target.labels if target.ignore is None else target.labels[~target.ignore]
    return None if target.label is None else target.label.reshape(1)
