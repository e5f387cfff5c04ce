"""The ``cvtrain`` command: parse, compose, refuse what is wrong, hand the rest to the engine.

Nothing here imports torch; the engine is imported once the command is known to be right.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvtrain import failures, signals, streams
from cvtrain.cli import args
from cvtrain.cli.args import Command
from cvtrain.config.groups import ConfDirs

JOBS = {
    "train": "cvtrain.engine.train:train",
    "eval": "cvtrain.engine.evaluate:evaluate",
    "predict": "cvtrain.engine.predict:predict",
    "export": "cvtrain.export.backbone:export",
    "compare": "cvtrain.commands.compare:compare",
    "check": "cvtrain.commands.check:check",
    "show": "cvtrain.commands.show:show",
    "proposals": "cvtrain.commands.proposals:proposals",
    "anchors": "cvtrain.commands.anchors:anchors",
}
"""What runs a verb: a function of the plain configuration that returns an exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code.

    Args:
        argv: the words after ``cvtrain``; default: the process's own.

    Returns:
        0 done, 1 the data or the run failed, 2 the command was wrong, 130 Ctrl-C, 143 SIGTERM,
        129 SIGHUP (the terminal was closed).
    """
    if argv is not None:
        return _main(list(argv))
    words = sys.argv[1:]
    signals.leave_at_once()
    streams.guard(pipe_warns=not _prints_only(words) and not {*words} & {*JOBS} - {"train"})
    code = _main(words)
    if code == failures.DONE and _prints_only(words) and streams.was_lost():
        code = failures.FAILED  # what it was asked for is nowhere
    signals.ends_with(code)
    return code


def _main(words: Sequence[str]) -> int:
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except BaseException as error:  # signals too: every end has its exit code
        return failures.report(error, debug="--debug" in words)


def _prints_only(words: Sequence[str]) -> bool:
    """Whether a command leaves no file: all that it gives is what it prints."""
    given = {word.partition("=")[0] for word in words}
    printing = ("list", "cache", "help", "-h", "--help", "--version", "--cfg", "-c")
    return not words or bool(given & {*printing, "--shell-completion", "-sc"})


def _run(words: Sequence[str]) -> int:
    if not words:
        return _help(Command())
    command = args.parse(words)
    if command.help:
        return _help(command)
    if command.version:
        from cvtrain.version import __version__

        print(f"cvtrain {__version__}")
        return failures.DONE
    conf = ConfDirs(command.config_dirs)
    if command.completion is not None:
        from cvtrain.cli.completion import complete

        return complete(command.completion, conf)
    if command.verb == "list":
        from cvtrain.commands.list import show_list

        return show_list(command, conf)
    if command.verb == "cache":
        from cvtrain.commands.cache import cache

        return cache(command)
    if command.verb == "train":
        from cvtrain.sweep.study import is_study, run_study

        if is_study(command, conf):
            with signals.interruptible():
                return run_study(command, conf)
    if command.multirun:
        from cvtrain.sweep.runner import multirun

        with signals.interruptible():
            return multirun(command, conf)
    if command.cfg is not None:
        return _print_config(command, conf)
    config = configuration(command, conf)
    return dispatch(command.verb, config)


def _help(command: Command) -> int:
    from shutil import get_terminal_size

    from cvtrain.cli.help import text
    from cvtrain.text import wrapped

    page = text(ConfDirs(command.config_dirs))
    print(wrapped(page, get_terminal_size().columns) if sys.stdout.isatty() else page)
    return failures.DONE


def _print_config(command: Command, conf: ConfDirs) -> int:
    """``--cfg job``: the composed configuration as YAML."""
    from omegaconf import OmegaConf

    from cvtrain.config.compose import compose_command, hydra_session, plain
    from cvtrain.errors import UsageError

    if command.verb in ("eval", "predict", "export", "compare"):
        raise UsageError(f"--cfg job: the configuration of {command.verb} is the checkpoint's own")
    with hydra_session(conf):
        config = compose_command(command, conf).config
        if command.resolve:
            config = OmegaConf.create(plain(config, resolve=True))
        print(OmegaConf.to_yaml(config), end="")
    return failures.DONE


def configuration(command: Command, conf: ConfDirs) -> dict[str, Any]:
    """The plain, resolved configuration that a verb's job is called with.

    Raises:
        UsageError: anything that is wrong with the command.
    """
    from cvtrain.config import runs
    from cvtrain.config.compose import compose_command, finish, hydra_session

    if command.verb in ("eval", "predict"):
        config = runs.checkpoint_config(command, conf)
    elif command.verb == "export":
        from cvtrain.commands.export import export_config

        config = export_config(command)
    elif command.verb == "compare":
        from cvtrain.commands.compare import compare_config

        config = compare_config(command)
    elif any(o.partition("=")[0] == "resume" for o in command.overrides):
        config = runs.resume_config(command, conf)
    else:
        with hydra_session(conf):
            composed = compose_command(command, conf)
            config = finish(composed)
            task = runs.task_of_data(config, composed.typed) if command.verb == "show" else None
            if task is not None:
                command = replace(command, overrides=[*command.overrides, f"task={task}"])
                composed = compose_command(command, conf)
                config = finish(composed)
        if command.verb == "train":
            runs.place_run(config)
        config["overrides"] = list(dict.fromkeys(t.text for t in composed.typed))
    if config.get("trust") and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a package of the user's own, beside their images
    return config


def dispatch(verb: str, config: dict[str, Any]) -> int:
    """Import what runs the verb, and run it.

    OpenMP's threads wait asleep, not spinning: with loader processes beside them, and whatever
    else a machine does, spinning ones took up to ten times as long (two cores, a second training
    beside). It must be said before torch is imported; a value of the user's own stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module, name = JOBS[verb].split(":")
    job: Callable[[dict[str, Any]], int] = getattr(importlib.import_module(module), name)
    with signals.interruptible():
        return int(job(config))
