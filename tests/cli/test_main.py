"""Exit codes and their one line; help; list."""

from __future__ import annotations

import errno
import re
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cvtrain import failures
from cvtrain.cli import help
from cvtrain.cli import main as cli_main
from cvtrain.commands import list as listing
from cvtrain.config import command as command_module
from cvtrain.config.command import Command, commands, function, names
from cvtrain.config.groups import GROUPS, ConfDirs, first_sentence, timm_names
from cvtrain.errors import CheckpointError, DataError, RunError, UsageError
from cvtrain.signals import Interrupted

Cli = Callable[..., Any]


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


class MisconfigurationException(Exception):
    """As Lightning names its own."""


def chained() -> Exception:
    error = RuntimeError("unexpected pos 64 vs 0")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/runs/last.ckpt")
    return error


RAISED = [
    (UsageError("write a=1"), 2, "write a=1"),
    (RunError("3 errors\n  in 2 files"), 1, "3 errors in 2 files"),
    (DataError("no image"), 1, "no image"),
    (RunError("loss is not finite"), 1, "loss is not finite"),
    (CheckpointError("truncated"), 1, "truncated"),
    (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    (Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM"),
    (Interrupted(signal.SIGHUP), 129, "stopped by SIGHUP"),
    (SystemExit(7), 7, ""),
    (SystemExit(None), 0, ""),
    (SystemExit("library said no"), 1, "library said no"),
    (OutOfMemoryError("CUDA out of memory. Tried to allocate"), 1, "data.batch_size"),
    (MemoryError(), 1, "data.image_size"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "precision"),
    (OSError(errno.ENOSPC, "No space left on device", "/x/last.ckpt"), 1, "disk is full: /x/"),
    (chained(), 1, "disk is full: /runs/last.ckpt"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "permission denied: /x"),
    (MisconfigurationException("No supported gpu backend found!"), 1, "trainer.accelerator=cpu"),
    (MisconfigurationException("devices=\n0"), 1, "devices= 0"),
    (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero (unexpected"),
]


@pytest.mark.parametrize(("error", "code", "said"), RAISED, ids=lambda x: str(x)[:30])
def test_every_end_has_its_code_and_line(
    error: BaseException,
    code: int,
    said: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(verb: str, config: dict[str, Any]) -> int:
        raise error

    monkeypatch.setattr(cli_main, "dispatch", fail)
    assert cli_main.main(["model=yolo"]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == (1 if said else 0)
    assert said in err


def test_the_engines_code_is_the_exit_code(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for code in (0, 1, 130):
        monkeypatch.setattr(cli_main, "dispatch", lambda verb, config, code=code: code)
        assert cli_main.main(["model=yolo"]) == code
    assert capsys.readouterr().err == ""


def test_other_ranks_say_who_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert failures.report(RunError("no")) == 1
    assert capsys.readouterr().err == "cvtrain [process 3]: no\n"


def test_every_verb_names_functions_that_exist() -> None:
    for verb in commands():
        named = [verb.start] if verb.start else [verb.run, verb.configure]
        for target in [*named, *filter(None, [verb.sweep])]:
            assert callable(function(target)), f"{verb.name}: {target}"


def test_dispatch_calls_the_verbs_function(monkeypatch: pytest.MonkeyPatch) -> None:
    check = replace(cli_main.command("check"), run="builtins:len")
    monkeypatch.setattr(cli_main, "command", lambda verb: check)
    assert cli_main.dispatch("check", {"a": 1, "b": 2}) == 2


def test_the_longest_entry_decides_what_a_verb_reads() -> None:
    verb = Command("v", "", reads=("seed", "data.", "task.inference."), unread={"data.cache": "no"})
    read = ("seed", "data", "data.root", "data.cache.x", "task.inference", "task.inference.mode")
    unread = ("seeds", "data.cache", "datas", "task", "task.name", "model")
    assert [key for key in (*read, *unread) if verb.does_read(key)] == list(read)


def test_a_verb_of_a_package_of_ones_own(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_module, "_PACKAGES", ["cvtrain.commands"])
    monkeypatch.syspath_prepend(str(here))
    folder = here / "shelf" / "commands"
    folder.mkdir(parents=True)
    (folder / "count.py").write_text(
        "from cvtrain.config.command import Command\n"
        "COMMAND = Command('count', 'counts', run='shelf.commands.count:count', reads=('data.',))\n"
        "def count(config):\n    print(config['data']['name'])\n    return 0\n"
    )
    names.cache_clear()
    try:
        assert cli_main.main(["count", "data=shapes", "trust=[shelf]"]) == 0
        assert capsys.readouterr().out == "shapes\n"
        assert cli_main.main(["count", "model=yolo", "trust=[shelf]"]) == 2
        assert "not by count" in capsys.readouterr().err
        assert cli_main.main(["--help", "trust=[shelf]"]) == 0
        assert "  count     counts" in capsys.readouterr().out
    finally:
        names.cache_clear()
    monkeypatch.setattr(command_module, "_PACKAGES", ["cvtrain.commands"])
    names.cache_clear()
    assert cli_main.main(["count", "data=shapes"]) == 2
    assert "count is neither a verb" in capsys.readouterr().err


# --help ----------------------------------------------------------------------------------------


def test_a_trusted_module_is_not_imported_to_parse_a_command(cli: Cli, here: Path) -> None:
    (here / "my_nets.py").write_text("raise RuntimeError('imported')")
    done = cli("task=detection model=yolo trust=[my_nets] run_dir=a")
    assert (done.code, done.config["trust"]) == (0, ["my_nets"])


def test_help_of_a_topic_is_its_guide_or_what_a_verb_reads(cli: Cli) -> None:
    for topic, part in {
        "data": "## The gate",
        "conf": "three_convs",
        "add": "## Add a verb",
        "predict": "source= score_threshold=",
    }.items():
        done = cli(f"help {topic}")
        assert (done.code, part in done.out) == (0, True), topic
        assert "<!--" not in done.out
    assert "did you mean augment?" in cli("help augmnt").line
    assert cli("help data model").code == 2


def test_help_fits_and_names_everything(cli: Cli) -> None:
    for command in ("--help", "-h", "help", "train model=nonsense --help"):
        done = cli(command)
        assert (done.code, done.err) == (0, "")
    text = done.out
    assert max(map(len, text.splitlines())) <= help.WIDTH == 100
    conf = ConfDirs()
    for word in (*names(), *GROUPS, *(o for g in GROUPS for o in conf.options(g))):
        assert word in text


def test_no_words_at_all_is_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli_main.main([]) == 0
    bare = capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["cvtrain", "--help"])
    assert cli_main.main() == 0
    assert capsys.readouterr().out == bare


def test_version(cli: Cli) -> None:
    from cvtrain import __version__

    assert cli("--version").out == f"cvtrain {__version__}\n"


def test_there_are_ten_examples() -> None:
    assert len(help.EXAMPLES) == 10


@pytest.mark.parametrize("command", help.EXAMPLES)
def test_examples_are_true(
    cli: Cli, finished_run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for name in ("JPEGImages", "Annotations", "cats", "dogs"):
        (here / "photos" / name).mkdir(parents=True)
    (here / "photos" / "annotations").mkdir()
    (here / "photos" / "annotations" / "instances_train.json").write_text(
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}'
    )
    (here / "new").mkdir()
    (here / "new" / "a.jpg").touch()
    ran: list[list[str]] = []
    monkeypatch.setattr("cvtrain.sweep.child.run", lambda words: ran.append(words) or 0)
    words = shlex.split(command)
    assert words.pop(0) == "cvtrain"
    done = cli(*words)
    assert done.code == 0, done.err
    assert done.verb is not None or ran or done.out
    assert len(ran) == (2 if "-m" in words else 0)


# list ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_list_says_a_line_of_each_option(cli: Cli, group: str) -> None:
    conf = ConfDirs()
    done = cli(f"list {group}")
    assert done.code == 0
    lines = done.out.splitlines()
    for option in conf.options(group):
        (line,) = [x for x in lines[1:] if x.split()[:1] == [option]]
        about = conf.about(group, option)
        assert len(about) > 5, f"conf/{group}/{option}.yaml begins with no comment"
        assert about in line
    assert [x for x in lines if "╺" in x or "━" in x] == [], "plain in a pipe"


def test_list_models_gives_year_and_tasks(cli: Cli) -> None:
    (line,) = [x for x in cli("list models").out.splitlines() if x.startswith("yolo ")]
    assert line.split()[1:3] == ["2015", "detection"]


def test_plurals_and_overview(cli: Cli) -> None:
    for plural, group in listing._PLURALS.items():
        assert cli(f"list {plural}").out == cli(f"list {group}").out
    overview = cli("list").out
    assert all(group in overview for group in GROUPS)


def test_list_searches_timm(cli: Cli) -> None:
    assert str(len(timm_names())) in cli("list backbones").out
    found = cli("list", "backbones", "filter=convnext_tin*").out.splitlines()[1:]
    assert [x.split()[0] for x in found] == [
        "convnext_tiny",
        *(n for n in timm_names() if n.startswith("convnext_tin") and n != "convnext_tiny"),
    ]
    assert "resnet26d" in cli("list", "backbones", "filter=26d").out
    assert cli("list", "models", "filter=yol*").out.splitlines()[1:][0].startswith("yolo")


def test_list_on_a_terminal_is_a_table(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert cli_main.main(["list", "data"]) == 0
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 100
    conf = ConfDirs()
    for option in conf.options("data"):
        (line,) = [x for x in lines if x.split()[:1] == [option]]
        about = conf.about("data", option)
        assert about[:40] in line
    text = " ".join(" ".join(lines).split())
    assert all(conf.about("data", option) in text for option in conf.options("data"))


def test_first_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "# @package _global_\n# YOLO, Redmon et al. 2015:\n# one look. And more.\n# x\na: 1\n# no\n"
    )
    assert first_sentence(path) == "YOLO, Redmon et al. 2015: one look"
    path.write_text("a: 1\n")
    assert first_sentence(path) == ""
