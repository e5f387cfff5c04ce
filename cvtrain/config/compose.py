"""Composes a command's configuration with Hydra and refuses what it would not read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvtrain.augment.config import refuse_views, settled, shown_as
from cvtrain.config import aliases, augments, proposals, readable_keys, rules, suggest
from cvtrain.config.command import CommandLine
from cvtrain.config.groups import (
    GROUPS,
    ConfDirs,
    is_hidden,
    is_timm,
    joined,
    load,
    pick,
    timm_has,
    unreadable,
)
from cvtrain.config.overrides import RECIPES, Typed, by_key, make, parse
from cvtrain.config.transfer import check_weights, settle
from cvtrain.errors import UsageError
from cvtrain.instantiate import judge
from cvtrain.models.backbones.weights_path import find_weights
from cvtrain.optim.names import refused_optimizer
from cvtrain.optim.schedules import Schedule

if TYPE_CHECKING:
    from omegaconf import DictConfig


@contextmanager
def hydra_session(conf: ConfDirs) -> Iterator[None]:
    """Hydra initialized on the folders of ``conf``, those of the user before cvtrain's own."""
    from hydra import initialize_config_dir
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class UserFolders(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in reversed(session_folders):
                search_path.prepend("cvtrain-user", f"file://{folder}")

    session_folders = list(conf.user)
    Plugins.instance().register(UserFolders)
    try:
        with initialize_config_dir(str(conf.own), job_name="cvtrain", version_base="1.3"):
            yield
    finally:
        session_folders.clear()  # Hydra keeps plugins for good


def hydra_compose(overrides: Sequence[str]) -> DictConfig:
    """What the overrides compose to, inside a ``hydra_session``.

    Raises:
        UsageError: whatever Hydra objects to, in one line.
    """
    import yaml
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return compose("config", [o for o in overrides if o])
    except yaml.MarkedYAMLError as error:  # of a file that another one's defaults name
        mark = error.problem_mark or error.context_mark
        raise UsageError(unreadable(mark.name if mark else "a yaml", error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks and OmegaConf's notes on types."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [x for x in lines if x and not x.startswith(("full_key:", "object_type="))]
    return " ".join(kept) or type(error).__name__


def plain(config: Any, *, resolve: bool = False) -> dict[str, Any]:
    """A config as plain dicts and lists.

    Raises:
        UsageError: an interpolation that leads nowhere.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        container = OmegaConf.to_container(config, resolve=resolve)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "")
        raw = pick(OmegaConf.to_container(config), key) if key else None
        where = f"{key}={raw}: " if isinstance(raw, str) else ""
        missing = re.fullmatch("Interpolation key '(.*)' not found", one_line(error))
        message = f"there is no key {missing[1]} to take it from" if missing else one_line(error)
        raise UsageError(f"{where}{message}") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def configure(command: CommandLine, conf: ConfDirs) -> dict[str, Any]:
    """The plain, resolved configuration of a verb that composes one.

    Raises:
        UsageError: anything that is wrong with the command.
    """
    with hydra_session(conf):
        composed = compose_command(command, conf)
        return {**finish(composed), "overrides": composed.texts}


class Composed:
    """A composed and checked configuration.

    Attributes:
        config: the OmegaConf tree, interpolations still in it, void defaults null.
        typed: what the user typed, with what it implied (``task=`` from ``model=``).
        void: keys that are null as nothing reads them, whatever range they have otherwise.
    """

    def __init__(self, config: DictConfig, typed: list[Typed], void: Collection[str] = ()) -> None:
        self.config = config
        self.typed = typed
        self.void = void

    @property
    def texts(self) -> list[str]:
        """What was typed, each word once."""
        return list(dict.fromkeys(t.text for t in self.typed))


def compose_command(command: CommandLine, conf: ConfDirs) -> Composed:
    """Compose train, check, show or proposals; check every typed word. In a ``hydra_session``.

    Raises:
        UsageError: anything that is wrong with the command.
    """
    typed = parse(command.overrides)
    check_reads(command.verb, typed)
    typed = check_options(typed, conf)
    typed = with_task(typed, conf)
    groups = [t.override for t in typed if t.kind == "group"]
    groups += proposals.implied(command.verb, typed, conf)
    base = hydra_compose(groups)
    augments.name(base)
    flat = plain(base)
    check_pair(flat, conf, typed, command.verb)
    check_keys(typed, base, conf, command.verb)
    config = apply(base, typed)
    from omegaconf import open_dict

    void: set[str] = set()
    with open_dict(config):
        config.command = command.verb
        for group in GROUPS:
            if group not in config and group not in RECIPES:
                config[group] = None
        if command.verb == "train":
            if pick(plain(config), "task.inference") and config.task.inference.mode is None:
                config.task.inference.mode = shown_as(plain(config))
            mode = pick(plain(config), "task.inference.mode")
            if message := readable_keys.of_tiles([t.key for t in typed if not t.sweep], mode):
                raise UsageError(message)
            _drop_void(config, typed, conf)
            proposals.check(config, typed)
            proposals.check_joint(config)
            refuse_views(plain(config))
            void = settle(config, typed)
            augments.check(config, typed)
        _fix_paths(config)
        _fix_trust(config, typed)
    return Composed(config, typed, void)


def apply(config: DictConfig, typed: Sequence[Typed]) -> DictConfig:
    """Set the typed values on what the group choices composed to, as Hydra does.

    Raises:
        UsageError: a value that does not fit, or nothing to delete.
    """
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    for t in typed:
        if t.kind == "group":
            continue
        try:
            if t.kind != "delete":
                new = t.kind in ("add", "force")
                OmegaConf.update(config, t.key, t.value, merge=True, force_add=new)
                continue
            parent, _, leaf = t.key.rpartition(".")
            node = OmegaConf.select(config, parent) if parent else config
            with open_dict(config):
                del node[leaf]
        except (OmegaConfBaseException, KeyError, TypeError) as error:
            raise UsageError(f"{t.text}: {one_line(error)}") from error
    return config


def check_reads(verb: str, typed: Sequence[Typed], *, multirun: bool = False) -> None:
    """Refuse keys that this verb does not read, and ``hydra.*`` outside a multirun."""
    for t in typed:
        if t.key == "resume_data" and "resume" not in by_key(typed):
            raise UsageError(f"{t.text} is read only beside resume=RUN_DIR")
        if t.key == "command":
            raise UsageError(f"{t.text}: write {aliases.replacement(t.key, t.shown)}")
        if t.key.startswith("hydra") and not multirun:
            raise UsageError(f"{t.text}: hydra's own settings are read only by a multirun (-m)")
        message = readable_keys.complaint(verb, t.key, multirun=multirun)
        if message:
            raise UsageError(message)


def check_options(typed: Sequence[Typed], conf: ConfDirs) -> list[Typed]:
    """Refuse options no group has; a timm name becomes ``backbone=timm backbone.name=...``."""
    result = []
    for t in typed:
        if t.kind != "group" or t.sweep:
            result.append(t)
            continue
        for option in t.value if isinstance(t.value, list) else [t.value]:
            if option is None:
                continue
            if isinstance(option, str) and conf.path(t.key, option) and not is_hidden(option):
                _check_file(conf, t.key, option)
                continue
            if t.key == "backbone" and is_timm(str(option)):
                _refuse_second_name(t, typed)
                result += [
                    replace(make("backbone", "timm"), text=t.text, shown="timm"),
                    replace(make("backbone.name", str(option)), text=t.text),
                ]
                break
            raise UsageError(suggest.unknown_option(t.key, rules.spell(option), conf))
        else:
            if t.key == "augment" and isinstance(t.value, list):
                augments.check_list(t, conf)
            result.append(t)
    return result


def _check_file(conf: ConfDirs, group: str, option: str) -> None:
    """Refuse a yaml of the user's that cannot be read, or is empty where keys are needed."""
    path = conf.path(group, option)
    if path is None or conf.is_own(group, option):
        return
    if not load(path) and group in ("task", "model", "backbone", "loss", "data", "optimizer"):
        raise UsageError(f"{path} is empty; write the keys of this {group} there")


def _refuse_second_name(t: Typed, typed: Sequence[Typed]) -> None:
    second = by_key(typed).get("backbone.name")
    if second is not None:
        raise UsageError(f"{t.text} and {second.text} both name a backbone; omit one")


def with_task(typed: list[Typed], conf: ConfDirs) -> list[Typed]:
    """Add ``task=`` where a model but no task was typed: the first task its yaml lists."""
    given = by_key(typed)
    model = given.get("model")
    if model is None or "task" in given or not isinstance(model.value, str):
        return typed
    tasks = conf.tasks_of(model.value)
    experiment = given.get("experiment")
    if experiment is not None and isinstance(experiment.value, str):
        chosen = conf.override_of("experiment", experiment.value, "task")
        if chosen in tasks:
            return typed
    if not tasks:
        raise UsageError(
            f"model={model.value}: its yaml lists no tasks (model.tasks: [detection]); "
            "add them, or type task="
        )
    return [*typed, replace(make("task", tasks[0]), text=model.text)]


def check_pair(flat: dict[str, Any], conf: ConfDirs, typed: Sequence[Typed], verb: str) -> None:
    """Refuse a task and a model that do not go together, with the right choices."""
    task, model = pick(flat, "task.name"), pick(flat, "model.name")
    if verb != "train" and "model" not in by_key(typed):
        return
    serving = conf.models_for(str(task))
    if model is None:
        if verb == "train" and not serving:
            able = [t for t in conf.options("task") if conf.models_for(t)]
            raise UsageError(
                f"task={task}: no model serves it yet (check and show work); "
                f"tasks with models: {joined(able)}"
            )
        if verb == "train":
            raise UsageError(f"task={task} needs a model: model={' | '.join(serving)}")
        return
    tasks = pick(flat, "model.tasks") or []
    if task not in tasks:
        choices = f"model={' | '.join(serving)}" if serving else "no model yet"
        raise UsageError(
            f"task={task} and model={model} do not go together: {model} serves {joined(tasks)}; "
            f"for {task} there is {choices}"
        )


def check_keys(typed: Sequence[Typed], base: DictConfig, conf: ConfDirs, verb: str) -> None:
    """Refuse unknown keys and values of another type than the default's."""
    flat = plain(base)
    message = suggest.unknown_keys(typed, flat, conf, verb)
    if message:
        raise UsageError(message)
    for t in typed:
        group = t.key.split(".")[0]
        void = readable_keys.VOID.get((group, str(pick(flat, f"{group}.name")), t.key))
        if void:
            raise UsageError(f"{t.text} would not be read: {void}")
        message = readable_keys.other_task(t.key, pick(flat, "task.name"))
        if message:
            raise UsageError(f"{t.text} would not be read: {message}")
        message = proposals.unread(t, flat, verb)
        if message:
            raise UsageError(message)
        if t.kind == "add" and suggest.has(flat, t.key):
            raise UsageError(f"{t.text}: the key is there already; write {t.key}={t.shown}")
        if t.kind in ("set", "add", "force") and not t.sweep and not _is_interpolation(t.value):
            message = rules.wrong(t.key, t.value, _default(base, flat, t.key), typed=t.shown)
            if message:
                raise UsageError(message)


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _default(base: DictConfig, flat: dict[str, Any], key: str) -> Any:
    """The value a key would have had, resolved; None where that says nothing of its type."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    raw = pick(flat, key)
    if raw == "???" or key in readable_keys.PATHS:
        return None
    if not _is_interpolation(raw):
        return raw
    try:
        value = OmegaConf.select(base, key)
    except OmegaConfBaseException:
        return None
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _drop_void(config: DictConfig, typed: Sequence[Typed], conf: ConfDirs) -> None:
    """Null the backbone and the loss that this model does not read; refuse typed ones.

    Keys of other tasks become null too.
    """
    from omegaconf import OmegaConf

    for key, tasks in readable_keys.OF_TASKS.items():
        if suggest.has(plain(config), key) and config.task.name not in tasks:
            OmegaConf.update(config, key, None)
    for group in ("backbone", "loss"):
        mine = [t for t in typed if t.key.split(".")[0] == group]
        model = pick(plain(config), "model.name")
        if not _references(plain(config), group):
            if mine:
                raise UsageError(
                    f"{mine[0].text} would not be read: model={model} takes no {group} of its own"
                )
            config[group] = None
        elif group == "loss":
            _check_loss(config, typed, conf, str(model))


def _check_loss(config: DictConfig, typed: Sequence[Typed], conf: ConfDirs, model: str) -> None:
    allowed = pick(plain(config), "model.losses")
    chosen = by_key(typed).get("loss")
    name = chosen.value if chosen is not None else pick(plain(config), "loss.name")
    task, serves = pick(plain(config), "task.name"), pick(plain(config), "loss.tasks")
    if serves and task not in serves:
        fitting = [o for o in conf.options("loss") if task in conf.node("loss", o).get("tasks", [])]
        fitting = [o for o in fitting if not allowed or o in allowed]
        instead = f"; for {task} there is loss={' | '.join(fitting)}" if fitting else ""
        raise UsageError(f"loss={name} serves task={' | '.join(serves)}, not {task}{instead}")
    if not allowed or name in allowed or not conf.is_own("loss", str(name)):
        return
    raise UsageError(
        f"loss={name} does not go with model={model}, which trains with "
        f"loss={' | '.join(map(str, allowed))}"
    )


def _references(flat: dict[str, Any], group: str) -> bool:
    """Whether anything outside a group's node interpolates it."""

    def mentions(node: Any) -> bool:
        if isinstance(node, dict):
            return any(mentions(v) for v in node.values())
        if isinstance(node, list):
            return any(mentions(v) for v in node)
        return isinstance(node, str) and (f"${{{group}}}" in node or f"${{{group}." in node)

    return any(mentions(node) for key, node in flat.items() if key != group)


def _fix_paths(config: DictConfig) -> None:
    """Relative paths, typed or from a yaml, become absolute."""
    from omegaconf import OmegaConf

    flat = plain(config)
    for key in readable_keys.PATHS:
        value = pick(flat, key)
        if isinstance(value, str) and value != "???" and not _is_interpolation(value):
            OmegaConf.update(config, key, absolute(value))


def absolute(path: str | Path) -> str:
    """A path as typed, ``~`` and all -> absolute, with ``..`` folded and symlinks kept."""
    import os.path

    # Path.expanduser raises where there is no such user; Path.absolute keeps "..".
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def _fix_trust(config: DictConfig, typed: Sequence[Typed]) -> None:
    if config.trust and "trust" not in by_key(typed):
        names = ",".join(map(str, config.trust))
        raise UsageError(
            f"trust is given only on the command line, not in a yaml: add trust=[{names}]"
        )


def finish(composed: Composed) -> dict[str, Any]:
    """The plain, resolved configuration, every mandatory value there and every value in range.

    Raises:
        UsageError: a missing or wrong value, a path that is not there.
    """
    missing = sorted(_missing_keys(plain(composed.config)))
    if missing:
        raise UsageError(_missing(missing, plain(composed.config)))
    flat = plain(composed.config, resolve=True)
    for key in rules.RULES:
        if suggest.has(flat, key) and key not in composed.void:
            message = rules.wrong(key, pick(flat, key))
            if message:
                raise UsageError(message)
    if flat["command"] == "train":
        judge(flat, trust=flat.get("trust") or ())
    settled(flat.get("augment"))
    check_backbone(flat)
    if flat["command"] == "train":
        rules.check_words(flat)
    check_subset(flat)
    if flat.get("command") == "train" and pick(flat, "data.sampler") == "balanced":
        from cvtrain.data.image_labels import check_sampler

        check_sampler("balanced", str(pick(flat, "task.name")))
    check_paths(flat, composed.typed)
    if flat["command"] == "train":
        check_training(flat)
        check_tree(flat)
        check_weights(flat)
        rules.check_batch(flat)
    return flat


def _missing_keys(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing_keys(value, f"{path}.{key}" if path else str(key))
    elif node == "???":
        yield path


def _missing(keys: Sequence[str], flat: dict[str, Any]) -> str:
    if "data.root" in keys:
        return f"data={pick(flat, 'data.name')} needs data.root=FOLDER, the folder of the images"
    return f"{keys[0]}= is needed: give it a value"


def check_backbone(flat: dict[str, Any]) -> None:
    """Refuse a timm backbone whose name timm does not have, and options that are not a config's."""
    from cvtrain.models.backbones.options import refused_option

    target, name = pick(flat, "backbone._target_"), pick(flat, "backbone.name")
    if str(target).endswith(".TimmBackbone") and not timm_has(str(name)):
        raise UsageError(suggest.unknown_timm(str(name)))
    message = refused_option(pick(flat, "backbone.options") or {})
    if message:
        raise UsageError(message)


def check_training(flat: dict[str, Any]) -> None:
    """Refuse an optimizer that is none of its library's or cannot train here, and a schedule that
    does not exist or takes other values.
    """
    optimizer = flat.get("optimizer") or {}
    if optimizer.get("name") and not optimizer.get("_target_"):
        message = refused_optimizer(
            str(optimizer["name"]), str(optimizer.get("library") or "torch")
        )
        if message:
            raise UsageError(message)
    Schedule(flat.get("scheduler"), total_steps=1, epochs=1)


def check_subset(flat: dict[str, Any]) -> None:
    """Refuse ``data.train_per_class`` where images have no class of their own."""
    number, task = pick(flat, "data.train_per_class"), pick(flat, "task.name")
    if number is not None and flat["command"] in ("train", "show") and task != "classification":
        raise UsageError(
            f"data.train_per_class={number} counts images by their class: it is for "
            f"task=classification, not for {task}"
        )


def check_tree(flat: dict[str, Any]) -> None:
    """Refuse a file that is no tree of classes, before any data are read."""
    path = pick(flat, "model.tree")
    if isinstance(path, str):
        from cvtrain.data.tree_file import read_tree

        read_tree(path)


def check_paths(flat: dict[str, Any], typed: Sequence[Typed]) -> None:
    """Refuse paths that are not there: the data set, weights to start from, a file of boxes."""
    given = by_key(typed)
    root = pick(flat, "data.root")
    if isinstance(root, str) and not Path(root).is_dir():
        download = pick(flat, "data.download")
        shown = _shown(given, "data.root", root)
        if download is False:
            raise UsageError(
                f"data={pick(flat, 'data.name')} is not in {root}; "
                "data.download=true fetches it, data.root=FOLDER says where it lies"
            )
        if download is None and Path(root).exists():
            raise UsageError(f"data.root={shown} is a file; give its folder")
        if download is None:
            raise UsageError(suggest.missing_path("data.root", shown, Path(root)))
    for key in (
        "backbone.weights",
        "model.weights",
        "proposals.path",
        "model.tree",
        "data.classification_root",
    ):
        path = pick(flat, key)
        if isinstance(path, str) and not Path(path).exists():
            raise UsageError(suggest.missing_path(key, _shown(given, key, path), Path(path)))
        if isinstance(path, str) and key.endswith(".weights"):
            find_weights(Path(path), key)


def _shown(given: dict[str, Typed], key: str, value: str) -> str:
    return given[key].shown if key in given else value
