"""Score a checkpoint on a split of its own data or of another data set."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvtrain.augment.config import refuse_views, shown_as
from cvtrain.callbacks.console import LOG
from cvtrain.distributed import rank
from cvtrain.engine.build import build_task, evaluation_callbacks
from cvtrain.engine.checkpoint import LoadedRun, load_model
from cvtrain.engine.data import load_data, make_boxes
from cvtrain.engine.device import choose_device
from cvtrain.engine.evaluation import score, write_scores
from cvtrain.engine.launch import launch, started_elsewhere
from cvtrain.engine.process_group import join_world
from cvtrain.engine.rundir import RunDir, claimed, new_run_dir, stored_config
from cvtrain.engine.session import session
from cvtrain.errors import DataError, UsageError
from cvtrain.outside import download_unless_strange, outside, refuse_outside, with_seals
from cvtrain.signals import exit_code
from cvtrain.storage import write_json_atomic
from cvtrain.text import relative

# How a run was trained that its evaluation does not take over: where, and on how much.
_HERE = {
    "accelerator": "auto",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "limit_train_batches": None,
    "limit_val_batches": None,
    "overfit_batches": 0,
    "profiler": None,
    "compile": False,
}

MODEL_INPUT = ("image_size", "resize", "channels", "classes", "val_fraction", "split_seed")
"""Keys of ``data`` that training fixes: other data is brought to the model's input and classes, and
validation images are drawn as they were, so that none that was trained on is among them."""


def evaluate(config: dict[str, Any]) -> int:
    """Evaluate ``config["ckpt"]``; the exit code.

    Args:
        config: ``ckpt`` (file or run folder), ``split``, ``run_dir`` (None: a new folder),
            ``trust``, ``overrides``: ``{"data": a whole data node or None, "proposals": the same,
            or {} for none, "set": {key: value}, "typed": what the command line holds}``.

    Raises:
        CvtrainError: one line for the user.
    """
    with session(config) as log:
        loaded = load_model(config["ckpt"], config.get("trust") or (), model_changes(config))
        run_config = run_settings(loaded, config)
        _check_root(run_config["data"], config["ckpt"])
        device = choose_device(run_config["trainer"])
        if device.world_size > 1 and not started_elsewhere():
            run = _run_dir(config, run_config)
            return launch(
                "cvtrain.engine.evaluate:evaluate",
                {**config, "run_dir": str(run.path)},
                device.processes,
                device.nodes,
            )
        environment = join_world(device)
        try:
            with claimed(config, lambda: _run_dir(config, run_config)) as run:
                _evaluate(loaded, run_config, config, device, environment, run, log)
        except BaseException as error:
            code = exit_code(error)
            if code is None:
                raise
            LOG.info("stopped; the evaluation was not finished")
            return code
    return 0


def _check_root(data: Mapping[str, Any], ckpt: str) -> None:
    """Raise UsageError where the data set is not where it was, saying how to name its new place.

    A public set's own reader says how it is fetched.
    """
    root = data.get("root")
    if isinstance(root, str) and data.get("download") is None and not Path(root).is_dir():
        raise UsageError(
            f"the data of this run are no longer in {root}; where they are now says "
            f"cvtrain eval ckpt={shlex.quote(relative(Path(ckpt)))} data.root=FOLDER"
        )


def _evaluate(
    loaded: LoadedRun,
    run_config: dict[str, Any],
    config: Mapping[str, Any],
    device: Any,
    environment: Any,
    run: RunDir,
    log: Any,
) -> None:
    trust = list(config.get("trust") or [])
    split = str(config.get("split") or "val")
    data, report = load_data(run_config, trust=trust, splits=[split])
    there = data.classes.names
    data.take_classes(loaded.classes)
    if absent := [name for name in data.classes.names if name not in there]:
        LOG.info(f"note: the data does not have {', '.join(map(repr, absent[:12]))}")
    _same_classes(loaded, data.classes.names)
    task = build_task(run_config, loaded.model, data.classes, trust=trust)
    callbacks = evaluation_callbacks(run_config)
    make_boxes(data, [split])
    if rank() == 0:
        run.create(stored_config(run_config, run), [])
        log.open(run.log)
        write_json_atomic(run.check, report.to_json())
    LOG.info(f"{loaded.path} (epoch {loaded.epoch + 1}), on {device}")
    seconds = score(
        task,
        lambda trainer: _loader(data, split, trainer),
        run_config,
        device,
        environment,
        run,
        callbacks,
    )
    if rank() == 0:
        write_scores(
            run,
            task,
            run_config,
            callbacks,
            data.table(split),
            split,
            seconds,
            f"{run_config['data']['name']}, {split}, {len(task.metrics):,} images:",
            data.dataset(split),
            checkpoint=str(loaded.path),
            epoch=loaded.epoch,
        )
        LOG.info(f"results: {run}")


def _loader(data: Any, split: str, trainer: Any) -> Any:
    data.trainer = trainer
    return data.loader(split)


def run_settings(loaded: LoadedRun, config: Mapping[str, Any]) -> dict[str, Any]:
    """The run's own config with this command's changes.

    Raises:
        UsageError: a key the run does not have, boxes and ``task.inference`` that do not go
            together.
    """
    settings = copy.deepcopy(loaded.config)
    settings["trainer"].update(_HERE)
    overrides = config.get("overrides") or {}
    if overrides.get("data"):
        fixed = {k: settings["data"][k] for k in MODEL_INPUT if k in settings["data"]}
        settings["data"] = {**fixed, **overrides["data"]}
    if overrides.get("proposals") is not None:  # {}: none
        settings["proposals"] = overrides["proposals"] or None
        if not overrides["proposals"] and settings["model"].get("proposals") is True:
            name = settings["model"].get("name")
            raise UsageError(f"proposals=null: model={name} is given its boxes, it needs some")
    for key, value in (overrides.get("set") or {}).items():
        set_key(settings, key, value)
    inference = settings["task"].get("inference")
    if inference and inference["mode"] is None:
        inference["mode"] = shown_as(settings)
    if config.get("seed") is not None:
        settings["seed"] = config["seed"]
    refuse_views(settings)
    settings["overrides"] = list(overrides.get("typed") or ())
    return _inside(settings, config)


def _inside(settings: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, once nothing that the command reads leads anywhere the user did not say."""
    verb = str(config.get("command") or "eval")
    overrides = config.get("overrides") or {}
    whole = tuple(f"{group}." for group in ("data", "proposals") if overrides.get(group))
    typed = [k for k in outside(settings) if k.startswith(whole) or k in overrides.get("set", {})]
    reads = ("data.", "proposals.") if verb == "eval" else ("proposals.",)
    refuse_outside(settings, lambda key: key.startswith(reads), verb, typed)
    download_unless_strange(settings, typed)
    return with_seals(settings, typed)


def model_changes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the model that this command sets."""
    changes = (config.get("overrides") or {}).get("set") or {}
    begin = "model."
    return {k.removeprefix(begin): v for k, v in changes.items() if k.startswith(begin)}


def set_key(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, also where it was taken over: ``data.root`` and the like by the reader,
    ``data.image_size`` and ``data.batch_size`` by ``task.inference``.
    """
    *path, last = key.split(".")
    node: Any = settings
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise UsageError(f"{key}: the run's configuration has no such key")
    old = node.get(last)
    node[last] = value
    reader = node.get("reader")
    if path == ["data"] and isinstance(reader, dict) and last in reader and reader[last] == old:
        reader[last] = value
    inference = (settings.get("task") or {}).get("inference")
    taken = {"image_size": "tile_size", "batch_size": "batch_size"}.get(last)
    if path == ["data"] and taken and isinstance(inference, dict) and inference[taken] == old:
        inference[taken] = value


def _run_dir(config: Mapping[str, Any], run_config: Mapping[str, Any]) -> RunDir:
    if config.get("run_dir"):
        run = RunDir(config["run_dir"])
        run.raise_if_used(run_config["data"].get("root"))
        return run
    return new_run_dir(run_config["task"]["name"], run_config["model"]["name"], "-eval")


def _same_classes(loaded: LoadedRun, names: tuple[str, ...]) -> None:
    """Raise DataError where the data's classes are not those the model was trained on."""
    known = loaded.classes.names
    if names == known:
        return
    missing = [n for n in known if n not in names]
    extra = [n for n in names if n not in known]
    if missing or extra:
        message = "; ".join(
            f"{what}: {', '.join(which[:5])}{' ...' if len(which) > 5 else ''}"
            for what, which in (("not in the data", missing), ("not in the model", extra))
            if which
        )
    else:
        message = "the same names in another order"
    raise DataError(
        f"the data's {len(names)} classes are not the {len(known)} that "
        f"{Path(loaded.path).name} was trained on ({message}); use the classes of the training data"
    )
