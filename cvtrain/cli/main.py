"""The ``cvtrain`` command: parse, compose, refuse what is wrong, hand the rest to the verb.

Nothing here imports torch; the engine is imported once the command is known to be right.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from cvtrain import failures, signals, streams
from cvtrain.cli import args
from cvtrain.config.command import Command, CommandLine, command, function, names, search_here
from cvtrain.config.groups import ConfDirs
from cvtrain.errors import UsageError


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
    prints_only = _prints_only(words)
    streams.guard(pipe_warns=not prints_only and not {*words} & {*names()} - {"train"})
    code = _main(words)
    if code == failures.DONE and prints_only and streams.was_lost():
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
    flags = ("help", "-h", "--help", "--version", "--cfg", "-c", "--shell-completion", "-sc")
    verbs = given & {*names()}
    return not words or bool(given & {*flags}) or any(command(v).prints_only for v in verbs)


def _run(words: Sequence[str]) -> int:
    if not words:
        return _help(CommandLine())
    line = args.parse(words)
    if line.help:
        return _help(line)
    if line.version:
        from cvtrain.version import __version__

        print(f"cvtrain {__version__}")
        return failures.DONE
    conf = ConfDirs(line.config_dirs)
    if line.completion is not None:
        from cvtrain.cli.completion import complete

        return complete(line.completion, conf)
    verb = command(line.verb)
    if line.multirun and not verb.sweep:
        raise UsageError(f"-m runs train, not {verb.name}")
    if verb.start:
        return int(function(verb.start)(line, conf))
    if verb.sweep:
        with signals.interruptible():
            code = function(verb.sweep)(line, conf)
        if code is not None:
            return int(code)
    if line.cfg is not None:
        return _print_config(verb, line, conf)
    return dispatch(verb.name, configuration(line, conf))


def _help(line: CommandLine) -> int:
    from shutil import get_terminal_size

    from cvtrain.cli.help import about, text
    from cvtrain.text import wrapped

    conf = ConfDirs(line.config_dirs)
    page = about(line.topic, conf) if line.topic else text(conf)
    if sys.stdout.isatty() and page.startswith("# "):  # a guide
        from rich.markdown import Markdown

        from cvtrain.terminal import Terminal

        Terminal().print(Markdown(page, hyperlinks=False))
    else:
        print(wrapped(page, get_terminal_size().columns) if sys.stdout.isatty() else page)
    return failures.DONE


def _print_config(verb: Command, line: CommandLine, conf: ConfDirs) -> int:
    """``--cfg job``: the composed configuration as YAML."""
    from omegaconf import OmegaConf

    from cvtrain.config.compose import compose_command, hydra_session, plain

    if verb.does_read("ckpt") or verb.takes_words:
        raise UsageError(f"--cfg job: the configuration of {verb.name} is the checkpoint's own")
    with hydra_session(conf):
        config = compose_command(line, conf).config
        if line.resolve:
            config = OmegaConf.create(plain(config, resolve=True))
        print(OmegaConf.to_yaml(config), end="")
    return failures.DONE


def configuration(line: CommandLine, conf: ConfDirs) -> dict[str, Any]:
    """The plain, resolved configuration that a verb is called with.

    Raises:
        UsageError: anything that is wrong with the command.
    """
    config: dict[str, Any] = function(command(line.verb).configure)(line, conf)
    if config.get("trust"):
        search_here()
    return config


def dispatch(verb: str, config: dict[str, Any]) -> int:
    """Import what runs the verb, and run it.

    OpenMP's threads wait asleep, not spinning: with loader processes beside them, and whatever
    else a machine does, spinning ones took up to ten times as long (two cores, a second training
    beside). It must be said before torch is imported; a value of the user's own stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with signals.interruptible():
        return int(function(command(verb).run)(config))
