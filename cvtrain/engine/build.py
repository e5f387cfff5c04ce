"""Config nodes -> model, task, callbacks, loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from cvtrain.callbacks.pictures import PICTURES, Pictures
from cvtrain.callbacks.progress import ProgressBar
from cvtrain.data.table import Classes
from cvtrain.errors import UsageError
from cvtrain.instantiate import instantiate, resolve
from cvtrain.metrics import metrics_for
from cvtrain.models.base import Model
from cvtrain.optim.optimizers import Factory
from cvtrain.tasks.base import Task
from cvtrain.transfer.regimes import Transfer


def build_model(config: Mapping[str, Any], num_classes: int, trust: Sequence[str] = ()) -> Model:
    """The model that ``config["model"]`` describes.

    Args:
        config: a resolved run config.
        num_classes: K, without a background class.
        trust: packages of the user's own.

    Raises:
        UsageError: no model, one that is not a ``cvtrain.models.base.Model``, wrong arguments.
    """
    node = config.get("model")
    if not node:
        task = (config.get("task") or {}).get("name")
        raise UsageError(f"task={task} has no model yet: choose one with model=NAME")
    model = instantiate(node, where="model", trust=trust, num_classes=num_classes, **_head(config))
    if not isinstance(model, Model):
        raise UsageError(
            f"model._target_={node.get('_target_')}: expected a subclass of "
            "cvtrain.models.base.Model"
        )
    return model


def _head(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``transfer`` asks to be put on the model's features; nothing: the model's own."""
    transfer = config.get("transfer") or {}
    if transfer.get("head") in (None, "linear"):
        return {}
    keys = ("hidden", "C", "k")
    given = {key: transfer[key] for key in keys if transfer.get(key) is not None}
    return {"head": {"name": transfer["head"], **given}}


def build_task(
    config: Mapping[str, Any],
    model: Model,
    classes: Classes,
    trust: Sequence[str] = (),
    transfer: Transfer | None = None,
) -> Task:
    """The task that ``config["task"]`` describes, around a model.

    ``transfer`` says which stages of its backbone learn; None: all of them.

    Raises:
        UsageError: a task without ``_target_``, unknown metrics, wrong arguments.
    """
    node = dict(config["task"])
    if "_target_" not in node:
        raise UsageError(f"task={node.get('name')}: no system trains for it yet")
    optimizer = config.get("optimizer") or {}
    task = instantiate(
        node,
        where="task",
        trust=trust,
        model=model,
        classes=classes,
        metrics=metrics_for(node["name"], classes),
        optimizer=optimizer,
        scheduler=config.get("scheduler"),
        optimizer_factory=optimizer_factory(optimizer, trust),
        channels_last=bool(config["trainer"].get("channels_last", False)),
        transfer=transfer,
    )
    if not isinstance(task, Task):
        raise UsageError(f"task._target_={node['_target_']}: expected a subclass of Task")
    return task


def optimizer_factory(node: Mapping[str, Any], trust: Sequence[str] = ()) -> Factory | None:
    """The optimizer class of the user's own that a config names; None: it is one found by name.

    Raises:
        UsageError: a class that is not there, or not trusted.
    """
    target = node.get("_target_")
    return resolve(target, trust=trust, path="optimizer") if target else None


def build_transfer(config: Mapping[str, Any], model: Model) -> Transfer | None:
    """The regime that ``config["transfer"]`` describes, begun on ``model``; None: none was chosen.

    Raises:
        UsageError: a regime that this model cannot be trained by.
    """
    node = config.get("transfer")
    if not node:
        return None
    transfer = Transfer(node, model)
    transfer.begin(model)
    return transfer


def build_callbacks(config: Mapping[str, Any], trust: Sequence[str] = ()) -> dict[str, pl.Callback]:
    """The callbacks of the config by name; those set to null are left out.

    Raises:
        UsageError: a node that is no Lightning callback.
    """
    built = {}
    for name, node in (config.get("callbacks") or {}).items():
        if node is None:
            continue
        built[name] = instantiate(node, where=f"callbacks.{name}", trust=trust)
        if not isinstance(built[name], pl.Callback):
            raise UsageError(
                f"callbacks.{name} is no callback: give it callbacks.{name}._target_, a subclass "
                "of pytorch_lightning.Callback, or set it to null"
            )
    return built


def evaluation_callbacks(config: Mapping[str, Any]) -> dict[str, pl.Callback]:
    """The bar and the pictures of an evaluation: cvtrain's own, whatever a checkpoint names.

    Raises:
        UsageError: a count that is none.
    """
    built: dict[str, pl.Callback] = {"progress": ProgressBar()}
    stored = config.get("callbacks") or {}
    node = stored.get("pictures", {})
    if isinstance(node, Mapping):  # null: the run draws none
        count = node.get("count", PICTURES)
        if isinstance(count, bool) or not isinstance(count, int):
            raise UsageError(f"callbacks.pictures.count={count!r}: expected 1 or more")
        built["pictures"] = Pictures(count)
    return built


def build_loggers(config: Mapping[str, Any], run_dir: Path, trust: Sequence[str] = ()) -> list[Any]:
    """The loggers of the config beside metrics.csv, writing into the run folder.

    Raises:
        UsageError: a logger that is not installed, or wrong arguments.
    """
    name = "/".join([config["task"]["name"], config["model"]["name"], run_dir.name])
    loggers = []
    for key, node in (config.get("logger") or {}).items():
        if isinstance(node, Mapping) and "_target_" in node:
            own = str(node["_target_"]).startswith("cvtrain.callbacks.loggers.")
            extra = {"run_name": name} if own else {}
            loggers.append(
                instantiate(
                    node, where=f"logger.{key}", trust=trust, save_dir=str(run_dir), **extra
                )
            )
    return loggers
