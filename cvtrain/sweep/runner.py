"""``-m``: several runs from one command, each in a process and a folder of its own.

Hydra's sweepers and launchers decide which jobs there are and where they run; a job is
``python -m cvtrain train OVERRIDES run_dir=SWEEP_DIR/N``, so that with several processes every rank
trains that job's own configuration, and a job that fails takes nothing with it.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cvtrain import failures
from cvtrain.config import suggest
from cvtrain.config.command import CommandLine
from cvtrain.config.compose import (
    absolute,
    check_options,
    check_reads,
    compose_command,
    finish,
    hydra_compose,
    hydra_session,
    one_line,
    plain,
)
from cvtrain.config.groups import ConfDirs, is_timm
from cvtrain.config.overrides import Typed, by_key, parse, quote
from cvtrain.config.runs import unused
from cvtrain.errors import RunError, UsageError
from cvtrain.lock import locked
from cvtrain.signals import Interrupted
from cvtrain.storage import (
    mark_run_folder,
    refuse_data_folder,
    write_atomic,
    write_json_atomic,
)
from cvtrain.sweep import child
from cvtrain.terminal import print_table
from cvtrain.text import relative, say

if TYPE_CHECKING:
    from omegaconf import DictConfig


NOT_STARTED = "not started"
"""In the place of an exit code: a signal came before the job."""


def sweep(command: CommandLine, conf: ConfDirs) -> int | None:
    """Run a study or a multirun, where the command is one; the exit code, else None.

    Raises:
        UsageError: anything that is wrong with the command.
        RunError: a sweeper or launcher that failed.
    """
    from cvtrain.sweep.study import is_study, run_study

    if is_study(command, conf):
        return run_study(command, conf)
    return multirun(command, conf) if command.multirun else None


def multirun(command: CommandLine, conf: ConfDirs) -> int:
    """Run every combination of the values typed; 0 if all succeeded, else 1.

    Raises:
        UsageError: anything wrong with any of the jobs, before the first one starts.
        RunError: a sweeper or launcher that failed.
    """
    if command.cfg is not None:
        raise UsageError("--cfg job shows one run; omit -m and give one value per key")
    typed = parse(command.overrides, multirun=True)
    check_reads("train", typed, multirun=True)
    given = by_key(typed)
    if "resume" in given:
        raise UsageError("resume= continues one run; omit -m")
    jobs = [t for t in typed if t.key != "sweep_dir"]
    folder = _sweep_dir(given.get("sweep_dir"))
    flags = [f"--config-dir={d}" for d in conf.user]
    if command.debug:
        flags.append("--debug")
    with hydra_session(conf):
        planned = _check_jobs(jobs, command, conf, folder)
        with locked(folder, "sweep_dir"):
            mark_run_folder(folder)
            try:
                _sweep(check_options(_timm_names(jobs, conf), conf), Job(flags), folder)
            except child.STOPS:
                _summary(folder, planned)
                raise
            return _summary(folder, planned)


def _timm_names(typed: Sequence[Typed], conf: ConfDirs) -> list[Typed]:
    """``backbone=resnet18,resnet26d`` -> ``backbone=timm backbone.name=resnet18,resnet26d``.

    Hydra itself knows only the backbones that have a yaml.
    """
    result = []
    for t in typed:
        if t.key != "backbone" or not t.sweep:
            result.append(t)
            continue
        names = [text.partition("=")[2] for (text,) in _combinations([t])]
        if all(conf.path("backbone", name) for name in names):
            result.append(t)
        elif all(is_timm(name) for name in names):
            result += parse(["backbone=timm", f"backbone.name={','.join(names)}"], multirun=True)
        else:
            other = next(name for name in names if not is_timm(name))
            raise UsageError(f"{t.text}: {other} is not timm's; run it in a sweep of its own")
    return result


def _sweep_dir(typed: Typed | None) -> Path:
    if typed is None or typed.value is None:
        return Path(absolute(unused(Path("runs", "sweeps", time.strftime("%Y-%m-%d_%H-%M-%S")))))
    folder = Path(absolute(typed.value))
    if folder.is_file():
        raise UsageError(f"sweep_dir={typed.shown} is a file; give a folder")
    if folder.is_dir() and any(_job_folders(folder)):
        raise UsageError(f"sweep_dir={typed.shown} already holds a sweep; choose another folder")
    return folder


def _job_folders(folder: Path) -> list[Path]:
    found = [
        p
        for p in folder.iterdir()
        if (p / child.JOB_FILE).is_file() or (p / "config.yaml").is_file()
    ]
    return sorted(found, key=lambda p: (len(p.name), p.name))


def _check_jobs(
    typed: Sequence[Typed], command: CommandLine, conf: ConfDirs, folder: Path
) -> list[list[str]]:
    """Compose every job once; of an unknown sweeper's ranges, what does not vary.

    Returns:
        The words of every job, as typed, in the order in which they run; empty where a sweeper
        other than Hydra's basic one chooses them.
    """
    own = [t for t in typed if not t.key.startswith("hydra")]
    roots = [t for t in own if "." not in t.key and t.kind != "group"]
    message = suggest.unknown_keys(roots, plain(hydra_compose([])), conf, "train")
    if message:
        raise UsageError(message)
    planned = _combinations(own)
    for texts in planned:
        single = replace(command, overrides=texts, multirun=False)
        try:
            config = finish(compose_command(single, conf))
            refuse_data_folder("sweep_dir", folder, config["data"].get("root"))
        except UsageError as error:
            varied = any(t.sweep for t in own)
            where = f"in the job {' '.join(texts)}: " if varied else ""
            raise UsageError(f"{where}{error}") from error
    chosen_later = any(t.sweep and not _is_discrete(t) for t in own)
    return [] if chosen_later or any(t.key == "hydra/sweeper" for t in typed) else planned


def _is_discrete(typed: Typed) -> bool:
    """Whether a sweep has its values in it, and is no range without an end."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(typed.override).is_discrete_sweep()


def _combinations(typed: Sequence[Typed]) -> list[list[str]]:
    """The overrides of every job, as Hydra's basic sweeper would make them.

    Ranges without an end (``interval(0, 1)``, for optimizing sweepers) are left out.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    swept = parser.parse_overrides([t.override for t in typed if t.sweep])
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        for o in swept
        if o.is_discrete_sweep()
    ]
    fixed = [t.text for t in typed if not t.sweep]
    return [[*fixed, *job] for job in itertools.product(*choices)]


def _sweep(typed: Sequence[Typed], job: Job, folder: Path) -> None:
    """Hand the jobs to Hydra's sweeper."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    given = {t.key for t in typed}
    settings = {
        "hydra.sweep.dir": quote(str(folder)),
        "hydra.sweep.subdir": "${hydra.job.num}",
        "hydra.output_subdir": "null",  # the run folder has a config.yaml of its own
        "hydra/job_logging": "none",
        "hydra/hydra_logging": "none",
    }
    overrides = [f"{k}={v}" for k, v in settings.items() if k not in given]
    overrides += [t.override for t in typed if t.override]
    try:
        hydra.multirun("config", job, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise RunError(one_line(error)) from error


class Job:
    """The task function that Hydra calls for a job, here or in a launcher's process.

    Args:
        flags: go before the job's overrides.
    """

    def __init__(self, flags: Sequence[str]) -> None:
        self.flags = list(flags)

    def __call__(self, config: DictConfig) -> float:
        """Run the job; its metric, or the worst there is where it failed (for sweepers)."""
        from hydra.core.hydra_config import HydraConfig

        settings = HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        overrides = [str(o) for o in settings.overrides.task]
        say(f"job {settings.job.num}: {' '.join(overrides)}")
        command = [sys.executable, "-m", "cvtrain", "train", *self.flags, *overrides]
        code = failures.TERMINATED
        try:
            code = child.run([*command, f"run_dir={folder}"])
        except child.STOPS as stop:
            # One that had come to its end before the signal is not stopped by it.
            ended = (folder / "results.json").is_file()
            code = failures.DONE if ended else child.stop_code(stop)
            raise
        finally:
            name, metric, mode = child.monitored(folder)
            record = {"overrides": overrides, "exit_code": code, "monitor": name, "metric": metric}
            write_json_atomic(folder / child.JOB_FILE, record)
        if code == failures.INTERRUPTED:  # the job alone heard it
            raise Interrupted(signal.SIGINT)
        if code:
            say(f"job {settings.job.num} failed with exit code {code}")
        worst = float("inf") if mode == "min" else float("-inf")
        return worst if code or metric is None else metric


def _summary(folder: Path, planned: Sequence[Sequence[str]]) -> int:
    """Print and write what became of each job (sweep.csv); 1 if any failed.

    Args:
        folder: of the sweep.
        planned: the words of every job; empty: not known beforehand.
    """
    records = {
        path.name: json.loads((path / child.JOB_FILE).read_text(encoding="utf-8"))
        for path in _job_folders(folder)
        if (path / child.JOB_FILE).is_file()
    }
    typed = {name: list(record["overrides"]) for name, record in records.items()}
    typed |= {str(number): list(words) for number, words in enumerate(planned)}
    lines = [["job", "exit_code", "monitor", "metric", "overrides"]]
    varied = []
    shared = set.intersection(*map(set, typed.values())) if typed else set()
    for name, words in typed.items():
        record = records.get(name, {"exit_code": NOT_STARTED, "monitor": None, "metric": None})
        own = [word for word in words if word not in shared or len(typed) == 1]
        varied.append(shlex.join(own))
        value = "" if record["metric"] is None else repr(record["metric"])
        code = str(record["exit_code"])
        lines.append([name, code, record["monitor"] or "", value, shlex.join(words)])
    write_atomic(folder / "sweep.csv", lambda file: csv.writer(file).writerows(lines))
    failed = sum(record["exit_code"] != 0 for record in records.values())
    _print_table([lines[0], *([*row[:4], own] for row, own in zip(lines[1:], varied, strict=True))])
    left = len(typed) - len(records)
    missing = f", {left} {NOT_STARTED}" if left else ""
    say(f"{len(typed)} jobs, {failed} failed{missing}: {relative(folder / 'sweep.csv')}")
    return failures.FAILED if failed or left or not records else failures.DONE


def _print_table(lines: Sequence[Sequence[str]]) -> None:
    rounded = [
        [*row[:3], f"{float(row[3]):.4f}" if re.match(r"-?[\d.]", row[3]) else row[3], row[4]]
        for row in lines[1:]
    ]
    print_table(lines[0], rounded)
