"""Learning rate schedules: pure functions of the step's number, so that a resume cannot drift."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from cvtrain.errors import UsageError

WARMUP_LIMIT = 0.1
"""A warm-up takes at most this part of a run, so that short runs train too."""

_KEYS: dict[str, dict[str, Any]] = {
    "cosine": {"warmup_epochs": 1.0, "warmup_start": 0.01, "final": 0.01},
    "step": {
        "warmup_epochs": 1.0,
        "warmup_start": 0.01,
        "milestones": (0.6, 0.85),
        "gamma": 0.1,
    },
    "one_cycle": {"rise": 0.3, "start": 0.04, "final": 1e-4},
    "none": {"warmup_epochs": 0.0, "warmup_start": 0.01},
}


class Schedule:
    """The factor of the learning rate at each optimizer step.

    Args:
        config: ``name`` (cosine, step, one_cycle, none) and that schedule's own keys.
        total_steps: optimizer steps in the whole run.
        epochs: epochs in the whole run; the unit of ``warmup_epochs`` and ``milestones``.

    Raises:
        UsageError: an unknown name or key, or a value out of range.
    """

    def __init__(self, config: Mapping[str, Any] | None, total_steps: int, epochs: int) -> None:
        config = {"name": "none", **(config or {})}
        self.name = str(config.pop("name"))
        if self.name not in _KEYS:
            near = difflib.get_close_matches(self.name, _KEYS, n=1)
            hint = f"; did you mean scheduler={near[0]}?" if near else ""
            raise UsageError(f"scheduler.name={self.name}: it takes {' | '.join(_KEYS)}{hint}")
        known = _KEYS[self.name]
        for key in config:
            if key not in known:
                raise UsageError(
                    f"scheduler.{key}: {self.name} has no such key; it has {', '.join(known)}"
                )
        self.total_steps = max(1, int(total_steps))
        self.epochs = max(1, int(epochs))
        self.values = {**known, **config}
        for key, value in self.values.items():
            self._check(key, value)
        warmup = float(self.values.get("warmup_epochs", 0.0)) * self.total_steps / self.epochs
        self.warmup_steps = round(min(warmup, WARMUP_LIMIT * self.total_steps))

    def __call__(self, step: int) -> float:
        """The factor at optimizer step ``step``, from 0; after the last step, the last factor."""
        step = min(step, self.total_steps - 1)
        if self.name == "one_cycle":
            return self._one_cycle(step)
        if step < self.warmup_steps:
            start = float(self.values["warmup_start"])
            return start + (1 - start) * step / self.warmup_steps
        if self.name == "cosine":
            rest = max(1, self.total_steps - 1 - self.warmup_steps)
            return _cosine(1.0, float(self.values["final"]), (step - self.warmup_steps) / rest)
        if self.name == "step":
            return float(self.values["gamma"]) ** sum(step >= m for m in self.milestone_steps())
        return 1.0

    def milestone_steps(self) -> list[int]:
        """The steps at which the rate is cut; fractions of the run lie below 1, epochs from 1."""
        per_epoch = self.total_steps / self.epochs
        return [
            round(m * self.total_steps) if m < 1 else round(m * per_epoch)
            for m in map(float, self.values["milestones"])
        ]

    def _one_cycle(self, step: int) -> float:
        position = step / max(1, self.total_steps - 1)
        rise = float(self.values["rise"])
        if position < rise:
            return _cosine(float(self.values["start"]), 1.0, position / rise)
        return _cosine(1.0, float(self.values["final"]), (position - rise) / max(1e-12, 1 - rise))

    def _check(self, key: str, value: Any) -> None:
        values = value if key == "milestones" and isinstance(value, (list, tuple)) else [value]
        for v in values:
            if isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 <= v < math.inf:
                raise UsageError(f"scheduler.{key}={value}: expected a number, 0 or more")
        if key in ("rise", "start", "final", "warmup_start") and value > 1:
            raise UsageError(f"scheduler.{key}={value}: expected a share between 0 and 1")


def _cosine(start: float, end: float, position: float) -> float:
    """From ``start`` at position 0 to ``end`` at 1 along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2
