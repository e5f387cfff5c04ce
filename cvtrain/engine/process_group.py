"""Joins the processes of a run before any of them works."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from cvtrain.engine.device import Device
from cvtrain.engine.launch import refuse_taken_port, started_elsewhere
from cvtrain.errors import RunError


def join_world(device: Device) -> ClusterEnvironment | None:
    """Make this process one of its run's; None where it is the only one.

    Every process must call it. The environment it returns goes to Lightning's Trainer.

    Raises:
        RunError: torchrun or SLURM started another number of processes than the config says.
    """
    environment = _environment(device)
    if environment is None:
        return None
    if environment.world_size() != device.world_size:
        raise RunError(
            f"{environment.world_size()} processes were started, but trainer.devices x "
            f"trainer.num_nodes is {device.processes} x {device.nodes}: make them agree"
        )
    if device.world_size > 1 and not dist.is_initialized():
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        listens = environment.global_rank() == 0
        if listens and not isinstance(environment, TorchElasticEnvironment):  # its agent listens
            refuse_taken_port()
        if device.accelerator == "gpu":
            torch.cuda.set_device(environment.local_rank())
        dist.init_process_group(
            "nccl" if device.accelerator == "gpu" else "gloo",
            rank=environment.global_rank(),
            world_size=environment.world_size(),
        )
    return environment


def leave_world() -> None:
    """Undo ``join_world``, so that the same process can do other work."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _environment(device: Device) -> ClusterEnvironment | None:
    if not started_elsewhere():
        return None
    environment: Any
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        # A requeue by Lightning would save in the middle of an epoch; a resume needs whole ones.
        return SLURMEnvironment(auto_requeue=False)
    environment = LightningEnvironment()
    environment.set_world_size(int(os.environ.get("WORLD_SIZE", device.world_size)))
    rank = environment.node_rank() * device.processes + environment.local_rank()
    environment.set_global_rank(rank)
    return environment


def speaks() -> bool:
    """Whether this process is the one of its run that prints; known before the run is joined."""
    if not started_elsewhere():
        return True
    numbers = (os.environ.get(key) for key in ("RANK", "SLURM_PROCID"))
    rank = next((n for n in numbers if n is not None), None)
    if rank is None:
        node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
        return node == "0" and os.environ.get("LOCAL_RANK", "0") == "0"
    return rank == "0"
