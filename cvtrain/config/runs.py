"""Run folders on the command line: where a run writes, how one is resumed, evaluated, predicted."""

from __future__ import annotations

import copy
import glob
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvtrain.config import readable_keys, rules, suggest
from cvtrain.config.command import CommandLine
from cvtrain.config.compose import (
    Composed,
    absolute,
    check_options,
    check_paths,
    check_reads,
    compose_command,
    configure,
    finish,
    hydra_session,
)
from cvtrain.config.groups import ConfDirs, load, pick
from cvtrain.config.moved import up_to_date
from cvtrain.config.overrides import Typed, by_key, parse
from cvtrain.config.resume import OWN, with_typed
from cvtrain.errors import UsageError
from cvtrain.instantiate import judge
from cvtrain.outside import (
    check_stored,
    download_unless_strange,
    outside,
    refuse_links,
    refuse_outside,
    with_seals,
)
from cvtrain.storage import holds_run, refuse_data_folder

MODEL_INPUT = ("image_size", "resize", "channels", "classes", "val_fraction", "split_seed")
"""Keys of ``data`` that training fixes, as ``cvtrain.engine.evaluate`` has them."""

_WITHOUT_CONFIG = "without the file, eval and predict take the configuration from the checkpoint"
"""What else helps where a run's config.yaml is broken."""


def process_rank() -> int | None:
    """This process's rank where a launcher (torchrun, SLURM) started several; else None."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ:
            several = "SLURM" not in name or int(os.environ.get("SLURM_NTASKS", "1")) > 1
            return int(os.environ[name]) if several else None
    return None


def place_run(config: dict[str, Any]) -> None:
    """Fill in ``run_dir`` and refuse one that holds a run already.

    Raises:
        UsageError: a used folder, one of the data set, a file in its place, or ranks that could
            not agree on a folder.
    """
    rank = process_rank()
    if config["run_dir"] is None:
        config["run_dir"] = absolute(_default_run_dir(config, rank))
        config["run_dir_is_typed"] = rank is not None  # a launcher's name is no other run's
    folder = Path(config["run_dir"])
    if folder.is_file():
        raise UsageError(f"run_dir={folder} is a file; give a folder")
    refuse_data_folder("run_dir", folder, config["data"].get("root"))
    if holds_run(folder) and not rank:
        raise UsageError(
            f"run_dir={folder} already holds a run; resume={folder} continues it, "
            "or choose another folder"
        )


def _default_run_dir(config: Mapping[str, Any], rank: int | None) -> Path:
    """``runs/<task>/<model>/<timestamp>``; under a launcher a name that all ranks share."""
    parent = Path("runs", config["task"]["name"], config["model"]["name"])
    if rank is None:
        return unused(parent / time.strftime("%Y-%m-%d_%H-%M-%S"))
    if "SLURM_JOB_ID" in os.environ:
        return parent / f"slurm-{os.environ['SLURM_JOB_ID']}"
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run_id != "none":
        return parent / f"torchrun-{run_id}"
    raise UsageError(
        "the processes of one run need one folder: give run_dir=DIR (or torchrun --rdzv-id)"
    )


def unused(path: Path) -> Path:
    """The path itself, or with -2, -3, ... where that is taken."""
    free, count = path, 1
    while free.exists():
        count += 1
        free = path.with_name(f"{path.name}-{count}")
    return free


def own_folder(config: Mapping[str, Any], verb: str) -> Path:
    """Where a verb that trains nothing writes: ``run_dir``, or ``runs/<verb>/<timestamp>``.

    Raises:
        UsageError: a file, the folder of a training run, or one of the data set.
    """
    if not config.get("run_dir"):
        return unused(Path("runs", verb, time.strftime("%Y-%m-%d_%H-%M-%S")))
    folder = Path(config["run_dir"])
    if folder.is_file():
        raise UsageError(f"run_dir={folder} is a file; give a folder")
    if (folder / "config.yaml").exists() or (folder / "checkpoints").exists():
        raise UsageError(f"run_dir={folder} holds a training run; choose another folder")
    refuse_data_folder("run_dir", folder, (config.get("data") or {}).get("root"))
    return folder


def train_config(command: CommandLine, conf: ConfDirs) -> dict[str, Any]:
    """The configuration of a run: a new one, or that of ``resume=RUN_DIR``.

    Raises:
        UsageError: anything that is wrong with the command.
    """
    if any(o.partition("=")[0] == "resume" for o in command.overrides):
        return resume_config(command, conf)
    config = configure(command, conf)
    place_run(config)
    return config


def resume_config(command: CommandLine, conf: ConfDirs) -> dict[str, Any]:
    """The configuration of the run that ``resume=RUN_DIR`` goes on with.

    Raises:
        UsageError: not a run folder; keys beside ``resume=`` that a resumed run cannot follow.
    """
    typed = parse(command.overrides)
    check_reads(command.verb, typed)
    given = by_key(typed)
    text = given["resume"].value
    if not isinstance(text, str) or text.lower() in ("true", "last", "auto", "1", ""):
        raise UsageError(f"resume= takes the run's folder{_newest_run('resume')}")
    folder = Path(absolute(text))
    if not folder.exists():
        raise UsageError(suggest.missing_path("resume", given["resume"].shown, folder))
    if folder.is_file():
        parent = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
        raise UsageError(f"resume={text} is a file; give the run's folder: resume={parent}")
    config = run_config(folder)
    if config is None:
        raise UsageError(f"resume={text} is not a run folder: it has no config.yaml")
    trust = given["trust"].value if "trust" in given else []
    message = rules.wrong("trust", trust)
    if message:
        raise UsageError(message)
    refuse_links(folder)
    there = outside(config)
    again = [t for t in typed if t.key in there and t.kind == "set"]
    changed = [t for t in typed if t not in again]
    config = with_typed(_typed_again(config, again), changed, folder, conf)
    judge(config, trust=trust)
    starts_over = not (folder / "checkpoints" / "last.ckpt").is_file()  # its weights are read
    starts = ("weights", "pretrained")
    keys = [t.key for t in typed]
    refuse_outside(
        config, lambda key: starts_over or key.rpartition(".")[2] not in starts, "resume", keys
    )
    download_unless_strange(config, keys)
    return {
        **with_seals(config, keys),
        "command": "train",
        "run_dir": str(folder),
        "resume": str(folder),
        "resume_data": given["resume_data"].value if "resume_data" in given else None,
        "trust": trust,
        "overrides": [t.text for t in typed if t.key not in OWN],
    }


def _typed_again(config: dict[str, Any], typed: Sequence[Typed]) -> dict[str, Any]:
    """The stored configuration with the typed values of what leads out of the run."""
    config = copy.deepcopy(config)
    for t in typed:
        *path, last = t.key.split(".")
        for parts in (path, ["model", *path]):
            node = pick(config, ".".join(parts))
            if isinstance(node, dict) and (parts is path or path[:1] == ["backbone"]):
                node[last] = _value(t)
    return config


def run_config(folder: Path) -> dict[str, Any] | None:
    """The config.yaml of a run folder; None where it has none.

    Raises:
        UsageError: a config.yaml that is no run's.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        config = load(path)
    except UsageError as error:
        raise UsageError(f"{error}; {_WITHOUT_CONFIG}") from error
    if not config:
        raise UsageError(f"{path} is empty: restore it; {_WITHOUT_CONFIG}")
    for group in ("task", "model", "data", "trainer"):
        if not isinstance(config.get(group), dict):
            raise UsageError(
                f"{path} is not the configuration of a run: it has no {group}; {_WITHOUT_CONFIG}"
            )
    check_stored(config, path)
    return up_to_date(config)


def checkpoint_config(command: CommandLine, conf: ConfDirs) -> dict[str, Any]:
    """What ``eval`` and ``predict`` hand to the engine.

    Returns:
        command, ckpt (absolute), split, source, score_threshold, run_dir, trust, seed (None where
        not typed) and ``overrides``: ``data``, a whole data node where ``data=NAME`` was typed
        (keys in MODEL_INPUT left out where neither typed nor known), ``proposals``, a whole node
        where any of its keys was, and ``set``, dotted keys to set on the run's own configuration.

    Raises:
        UsageError: a key the verb does not read, a wrong value, a path that is not there.
    """
    typed = parse(command.overrides)
    check_reads(command.verb, typed)
    check_options(typed, conf)
    given = by_key(typed)
    checkpoint = existing_checkpoint(command.verb, given)
    run = _run_of(checkpoint)
    plain_keys = [t for t in typed if "." not in t.key and t.kind != "group"]
    check_root(plain_keys, command.verb)
    source = None
    if command.verb == "predict":
        source = _existing_source(given)
    overrides: dict[str, Any] = {"data": None, "proposals": None, "set": {}}
    nested = [t for t in typed if "." in t.key or t.kind == "group"]
    with hydra_session(conf):
        if "data" in given:
            overrides["data"] = _other_data(nested, run, conf)
            nested = [t for t in nested if t.key.split(".")[0] != "data"]
        if any(t.key.split(".")[0] == "proposals" for t in nested):
            overrides["proposals"] = _other_boxes(nested, run, conf)
            nested = [t for t in nested if t.key.split(".")[0] != "proposals"]
        _check_nested(nested, run, conf, command.verb)
    overrides["typed"] = [t.text for t in typed]
    overrides["set"] = {t.key: _value(t) for t in nested if t.kind != "group"}
    return {
        "command": command.verb,
        "ckpt": str(checkpoint),
        "split": given["split"].value if "split" in given else "val",
        "source": source,
        "score_threshold": _typed_value(given, "score_threshold", 0.25),
        "run_dir": absolute(given["run_dir"].value) if "run_dir" in given else None,
        "trust": _typed_value(given, "trust", []),
        "seed": _typed_value(given, "seed", None),
        "overrides": overrides,
    }


def _typed_value(given: Mapping[str, Typed], key: str, default: Any) -> Any:
    return given[key].value if key in given else default


def _value(t: Typed) -> Any:
    is_path = t.key in readable_keys.PATHS and isinstance(t.value, str)
    return absolute(t.value) if is_path else t.value


def check_root(typed: Iterable[Typed], verb: str) -> None:
    """Refuse keys that are no root keys, and values out of range."""
    known = dict.fromkeys(readable_keys.root_keys())
    for t in typed:
        if t.kind != "set" or t.key not in known:
            message = suggest.unknown_keys([t], known, ConfDirs(), verb)
            raise UsageError(message or f"{t.text}: write {t.key}=VALUE")
        message = rules.wrong(t.key, t.value, typed=t.shown)
        if message:
            raise UsageError(message)


def existing_checkpoint(verb: str, given: Mapping[str, Typed]) -> Path:
    """The file or run folder of ``ckpt=``, which must be there."""
    if "ckpt" not in given or not isinstance(given["ckpt"].value, str):
        raise UsageError(f"{verb} needs ckpt=FILE_OR_RUN_FOLDER{_newest_run('ckpt')}")
    path = Path(absolute(given["ckpt"].value))
    shown = given["ckpt"].shown
    if not path.exists():
        raise UsageError(suggest.missing_path("ckpt", shown, path))
    if path.is_dir() and not any((path / "checkpoints").glob("*.ckpt")):
        if any(path.glob("*.ckpt")):
            return path
        raise UsageError(f"ckpt={shown}: the folder holds no checkpoints/best.ckpt")
    return path


def _newest_run(key: str) -> str:
    found = Path("runs").glob("*/*/*/checkpoints/last.ckpt")
    newest = max(found, key=lambda p: p.stat().st_mtime, default=None)
    return f"; the newest run here is {key}={newest.parents[1]}" if newest else ""


def _run_of(checkpoint: Path) -> dict[str, Any] | None:
    """The configuration beside a checkpoint: that of its run folder."""
    folders = [checkpoint] if checkpoint.is_dir() else [checkpoint.parent]
    folders.append(folders[0].parent)
    if folders[0].name != "checkpoints":
        folders.pop()
    for folder in folders:
        config = run_config(folder)
        if config is not None:
            return config
    return None


def _existing_source(given: Mapping[str, Typed]) -> str:
    if "source" not in given or not isinstance(given["source"].value, str):
        raise UsageError("predict needs source=IMAGE, FOLDER or GLOB")
    source = absolute(given["source"].value)
    if Path(source).exists():
        return source
    if any(c in source for c in "*?["):
        if not glob.glob(source, recursive=True):  # noqa: PTH207 (an absolute pattern)
            raise UsageError(f"source={given['source'].shown}: no file matches")
        return source
    raise UsageError(suggest.missing_path("source", given["source"].shown, Path(source)))


def _other_data(
    nested: Sequence[Typed], run: Mapping[str, Any] | None, conf: ConfDirs
) -> dict[str, Any]:
    """The node of ``data=NAME``, with the model's own input where the run's config is there."""
    texts = [t.text for t in nested if t.key.split(".")[0] == "data"]
    task, model = pick(run, "task.name"), pick(run, "model.name")
    if task and conf.path("task", str(task)):
        texts.append(f"task={task}")
    if model and conf.path("model", str(model)):
        texts.append(f"model={model}")
    # `show` composes data and model without asking that they train together.
    composed: Composed = compose_command(CommandLine(verb="show", overrides=texts), conf)
    flat = finish(composed)
    node = dict(flat["data"])
    typed_keys = {t.key for t in nested}
    for key in MODEL_INPUT:
        if f"data.{key}" not in typed_keys:
            known = pick(run, f"data.{key}")
            if known is None:
                node.pop(key, None)
            else:
                node[key] = known
    return node


def _other_boxes(
    nested: Sequence[Typed], run: Mapping[str, Any] | None, conf: ConfDirs
) -> dict[str, Any]:
    """The node of ``proposals=NAME``, or the run's own with what was typed of it changed; ``{}``
    for ``proposals=null``.
    """
    mine = [t for t in nested if t.key.split(".")[0] == "proposals"]
    own = pick(run, "proposals") or {}
    if run is not None and not own and not pick(run, "model.proposals"):
        model = pick(run, "model.name")
        raise UsageError(f"{mine[0].text} would not be read: model={model} makes its own boxes")
    chosen = any(t.kind == "group" for t in mine)
    if any(t.kind == "group" and t.value is None for t in mine):
        if other := next((t for t in mine if t.kind != "group"), None):
            raise UsageError(f"{other.text} would not be read: proposals=null looks at none")
        return {}
    texts = [t.text for t in mine] + [f"seed={pick(run, 'seed') or 0}"]
    if not chosen and own:
        texts.append(f"proposals={own['name']}")
    composed = compose_command(CommandLine(verb="proposals", overrides=texts), conf)
    node = dict(finish(composed)["proposals"])
    if chosen or not own:
        return node
    typed_keys = {t.key.split(".")[1] for t in mine}
    return {key: node[key] if key in typed_keys else own.get(key, node[key]) for key in node}


def _check_nested(
    typed: Sequence[Typed], run: Mapping[str, Any] | None, conf: ConfDirs, verb: str
) -> None:
    """Check dotted keys against the run's config, or against all the keys there can be."""
    if not typed:
        return
    base = dict(run) if run is not None else _all_keys(conf)
    inference = pick(base, "task.inference")
    for t in typed:
        if run is not None and t.key.startswith("task.inference.") and not inference:
            raise UsageError(f"{t.text} would not be read: it is for task=semantic_segmentation")
    base = {k: base[k] for k in ("data", "trainer") if k in base}
    base["task"] = {"inference": inference or {}}
    base["model"] = _after_training(run)
    message = suggest.unknown_keys(typed, base, conf, verb)
    if message:
        raise UsageError(message)
    for t in typed:
        if t.kind not in ("set", "group"):
            raise UsageError(f"{t.text}: write {t.key}={t.shown or 'VALUE'}")
        other = readable_keys.other_task(t.key, pick(run, "task.name")) if run is not None else ""
        if other:
            raise UsageError(f"{t.text} would not be read: {other}")
        default = pick(base, t.key)
        default = None if t.key in readable_keys.PATHS or default == "???" else default
        if t.kind == "set" and not (isinstance(default, str) and "${" in default):
            wrong = rules.wrong(t.key, t.value, default, typed=t.shown)
            if wrong:
                raise UsageError(wrong)
    mode = by_key(typed).get("task.inference.mode")
    chosen = pick(run, "task.inference.mode") if mode is None else mode.value
    if message := readable_keys.of_tiles([t.key for t in typed], chosen):
        raise UsageError(message)
    root = by_key(typed).get("data.root")
    if root is not None:
        check_paths({"data": {"root": absolute(root.value)}}, typed)


def _after_training(run: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of the model eval and predict read, of this run's or of any."""
    known: dict[str, Any] = {}
    for key in ("model.name", *readable_keys.AFTER_TRAINING):
        *path, last = key.split(".")[1:]
        there: Any = run.get("model") if run is not None else {}
        node = known
        for part in path:
            there = there.get(part) if isinstance(there, Mapping) else None
            node = node.setdefault(part, {})
        if run is None or (isinstance(there, Mapping) and last in there):
            node[last] = (there or {}).get(last)
    return {k: v for k, v in known.items() if v != {}}


def _all_keys(conf: ConfDirs) -> dict[str, Any]:
    """Every key that some option of a group has, for a checkpoint without its folder."""
    return {
        group: {k: v for option in conf.options(group) for k, v in conf.node(group, option).items()}
        for group in ("data", "trainer", "task")
    }
