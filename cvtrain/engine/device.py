"""What a run runs on: accelerator, number of processes, precision."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch

from cvtrain.errors import RunError, UsageError

PRECISIONS = (
    "bf16-mixed", "16-mixed", "32-true",
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """Where a run computes.

    Attributes:
        accelerator: ``gpu``, ``cpu`` or ``mps``.
        processes: on this machine.
        nodes: machines.
        precision: one of PRECISIONS.
    """

    accelerator: str
    processes: int
    nodes: int
    precision: str

    @property
    def world_size(self) -> int:
        """Processes of the whole run."""
        return self.processes * self.nodes

    def torch_device(self, local_rank: int = 0) -> torch.device:
        """The device of one of this machine's processes."""
        if self.accelerator == "gpu":
            return torch.device("cuda", local_rank)
        return torch.device(self.accelerator)

    def autocast(self) -> AbstractContextManager[None]:
        """What a forward pass outside Lightning runs in, for the device's precision."""
        kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)
        if kind is None:
            return nullcontext()
        return cast("AbstractContextManager[None]", torch.autocast(self.torch_device().type, kind))

    def __str__(self) -> str:
        name = self.accelerator
        if name == "gpu":
            name = torch.cuda.get_device_name(0)
        if self.world_size > 1:
            name = f"{self.world_size} x {name}"
        return f"{name}, {self.precision}"


def choose_device(trainer: Mapping[str, Any]) -> Device:
    """The device that ``config["trainer"]`` asks for.

    Raises:
        RunError: a GPU that is not there.
        UsageError: a value that is none of the choices.
    """
    accelerator = _accelerator(str(trainer.get("accelerator") or "auto"))
    processes = _processes(trainer.get("devices", 1), accelerator)
    nodes = 1 if trainer.get("num_nodes") is None else trainer["num_nodes"]
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise UsageError(f"trainer.num_nodes={nodes}: expected a number of machines, 1 or more")
    precision = _precision(str(trainer.get("precision") or "auto"), accelerator)
    return Device(accelerator, processes, nodes, precision)


def _accelerator(name: str) -> str:
    if name == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if name in ("gpu", "cuda"):
        if not torch.cuda.is_available():
            raise RunError(
                f"trainer.accelerator={name}: no GPU is visible to torch {torch.__version__}; "
                "set trainer.accelerator=cpu, or check the driver and CUDA_VISIBLE_DEVICES"
            )
        return "gpu"
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise RunError("trainer.accelerator=mps: this machine has none; use cpu")
        return name
    if name != "cpu":
        raise UsageError(f"trainer.accelerator={name}: expected auto, cpu, gpu or mps")
    return name


def _processes(devices: Any, accelerator: str) -> int:
    try:
        count = int(devices)
    except (TypeError, ValueError):
        raise UsageError(
            f"trainer.devices={devices}: expected a number of processes, or -1 for all GPUs "
            "(CUDA_VISIBLE_DEVICES picks which)"
        ) from None
    available = torch.cuda.device_count() if accelerator == "gpu" else 1
    if count == -1:
        return available
    if count < 1:
        raise UsageError(f"trainer.devices={devices}: expected 1 or more, or -1 for all GPUs")
    if accelerator == "gpu" and count > available:
        raise RunError(f"trainer.devices={count}: this machine has {available} GPU(s)")
    return count


def _precision(name: str, accelerator: str) -> str:
    if name == "auto":
        fast = accelerator == "gpu" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if fast else "32-true"
    name = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(name, name)
    if name not in PRECISIONS:
        raise UsageError(f"trainer.precision={name}: expected auto or {', '.join(PRECISIONS)}")
    if name == "16-mixed" and accelerator == "cpu":
        raise UsageError("trainer.precision=16-mixed needs a GPU; on a CPU use bf16-mixed")
    return name
