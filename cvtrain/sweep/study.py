"""Runs a study: each run in a process and a folder of its own, then one table and one plot.

The folder holds a folder a run and study.csv, study.md, study.png, study.json. A run that is
finished is not run again; one that was interrupted goes on from its last epoch.
"""

from __future__ import annotations

import csv
import json
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvtrain import failures
from cvtrain.config.command import CommandLine
from cvtrain.config.compose import (
    absolute,
    check_reads,
    compose_command,
    finish,
    hydra_session,
)
from cvtrain.config.groups import ConfDirs, pick
from cvtrain.config.overrides import Typed, by_key, parse
from cvtrain.config.runs import process_rank, unused
from cvtrain.errors import RunError, UsageError
from cvtrain.lock import LOCK, locked
from cvtrain.outside import is_sealed, seals
from cvtrain.signals import SIGNALS, Interrupted
from cvtrain.storage import RUN_MARKER, mark_run_folder, write_atomic, write_json_atomic
from cvtrain.sweep import child
from cvtrain.sweep.plan import NAME, SCRATCH, Plan, StudyJob, make_plan, study_of, words_of
from cvtrain.text import duration, printable, relative, say

if TYPE_CHECKING:
    from cvtrain.report.study import Grid

STUDY_FILE = "study.json"
"""In a study's folder: its command, what it varies, and what each run gave."""

_LOG = "job.log"  # in a run's folder: what it printed


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        exit_code: None: not run yet, or cut off.
        monitor, metric: the task's metric of the best epoch, on val.
        results: of results.json.
        seconds: of the last start; None: not known.
    """

    exit_code: int | None = None
    monitor: str | None = None
    metric: float | None = None
    results: Mapping[str, Any] | None = None
    seconds: float | None = None


def is_study(command: CommandLine, conf: ConfDirs) -> bool:
    """Whether a command is a study's, or goes on with one."""
    if command.verb != "train" or command.cfg is not None or "~study" in command.overrides:
        return False  # ~study: one of its runs
    given = dict(text.split("=", 1) for text in command.overrides if "=" in text)
    if "resume" in given:
        return (Path(absolute(given["resume"].strip("'\""))) / STUDY_FILE).is_file()
    return study_of(given.get("experiment"), conf)


def run_study(command: CommandLine, conf: ConfDirs) -> int:
    """Run what is left of a study; 0 if every run succeeded, else 1.

    Raises:
        UsageError: anything wrong with the study or one of its runs, before the first starts.
        DataError: the data set cannot be used.
        CvtrainError: weights that cannot be fetched or do not fit.
    """
    if command.multirun:
        raise UsageError(
            "a study is a sweep already: omit -m and list values in study.backbones, "
            "study.train_per_class, study.seeds"
        )
    if process_rank() is not None:
        raise UsageError("a study starts its own processes: run it without torchrun or srun")
    words, folder, trust, flags = _read_command(command)
    if flags is not None:
        command = replace(command, config_dirs=flags)
        conf = ConfDirs(flags)
    with hydra_session(conf):
        plan = make_plan(command, words, trust, conf)
    with locked(folder, "sweep_dir"):
        study = _Study(plan, folder, trust, command, conf)
        study.check_folder()
        if study.left:
            study.check_data()
            study.check_backbones()
        return study.run()


def _read_command(command: CommandLine) -> tuple[list[str], Path, list[str], list[str] | None]:
    """Words, folder, the ``trust=`` word, and the stored ``--config-dir``s of a study gone on with.

    Raises:
        UsageError: a key that a study does not read.
    """
    typed = parse(command.overrides)
    given = by_key(typed)
    trust = [given["trust"].text] if "trust" in given else []
    if "resume" in given:
        check_reads("train", typed)
        if others := [t.text for t in typed if t.key not in ("resume", "trust")]:
            raise UsageError(
                f"resume= continues the study as it was planned; omit {others[0]}, or "
                "start another one"
            )
        folder = Path(absolute(given["resume"].value))
        stored = _stored(folder)
        return stored["words"], folder, trust, stored["config_dirs"]
    if "run_dir" in given:
        raise UsageError("run_dir= is each run's own in a study; give sweep_dir=DIR")
    check_reads("train", [t for t in typed if t.key != "sweep_dir"])
    words = words_of(typed)
    folder = _folder(given.get("sweep_dir"))
    if len(words) == 1 and (folder / STUDY_FILE).is_file():
        stored = _stored(folder)
        if words[0] in stored["words"]:
            return stored["words"], folder, trust, stored["config_dirs"]
    return words, folder, trust, None


def _stored(folder: Path) -> dict[str, Any]:
    path = folder / STUDY_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        words = [str(word) for word in content["words"]]
        stored = {"words": words, "config_dirs": [str(d) for d in content["config_dirs"]]}
        seal = content.get("seal")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not the record of a study ({error})") from error
    if not is_sealed("study", stored, seal):
        command = [*(f"--config-dir={d}" for d in stored["config_dirs"]), *words]
        raise UsageError(
            f"this study did not begin here; if it is right, type it: cvtrain "
            f"{printable(' '.join(map(shlex.quote, command)))} sweep_dir={relative(folder)}"
        )
    return stored


def _folder(typed: Typed | None) -> Path:
    if typed is None or typed.value is None:
        return Path(absolute(unused(Path("runs", "studies", time.strftime("%Y-%m-%d_%H-%M-%S")))))
    folder = Path(absolute(typed.value))
    if folder.is_file():
        raise UsageError(f"sweep_dir={typed.shown} is a file; give a folder")
    held = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    if set(held) - {RUN_MARKER, LOCK} and STUDY_FILE not in held:
        raise UsageError(f"sweep_dir={typed.shown} holds something else; choose another folder")
    return folder


class _Study:
    """A plan in its folder."""

    def __init__(
        self, plan: Plan, folder: Path, trust: Sequence[str], command: CommandLine, conf: ConfDirs
    ) -> None:
        self.plan, self.folder, self.trust = plan, folder, list(trust)
        self.config_dirs = [str(d) for d in conf.user]
        self.flags = [f"--config-dir={d}" for d in conf.user]
        if command.debug:
            self.flags.append("--debug")
        self.mode = str(pick(plan.config, "task.mode") or "max")
        self.monitor = str(pick(plan.config, "task.monitor"))
        self.classes = 0
        self.outcomes = {job.name: self._outcome(job) for job in plan.jobs}

    # Before the first run ----------------------------------------------------------------------

    def check_folder(self) -> None:
        """Refuse a folder whose runs of the same names had other settings."""
        for job in self.plan.jobs:
            record = self._record(job)
            if record is not None and record["overrides"] != list(job.overrides):
                before = [o for o in record["overrides"] if o not in job.overrides]
                now = [o for o in job.overrides if o not in record["overrides"]]
                raise UsageError(
                    f"{relative(self.folder)} holds a study with other settings: {job.name} ran "
                    f"with {' '.join(before) or 'less'}, now it would with "
                    f"{' '.join(now) or 'less'}; choose another sweep_dir="
                )

    def check_data(self) -> None:
        """Pass the data set through the gate once, with the most images per class asked for.

        Raises:
            DataError, UsageError: what every run would stop for.
        """
        from cvtrain.data.gate.run import label_options, run_gate
        from cvtrain.data.source import make_reader, split_seed

        config = self.plan.config
        data, seed = config["data"], self.plan.study["seeds"][0]
        report = run_gate(
            make_reader(data, config.get("trust") or (), self.plan.words),
            config["task"]["name"],
            on_bad=data["on_bad"],
            val_fraction=data["val_fraction"],
            seed=split_seed(data, seed),
            channels=data["channels"],
            **label_options(data),
        )
        numbers = [n for n in self.plan.study["train_per_class"] if n is not None]
        report.select({**data, "train_per_class": max(numbers, default=None)}, seed)
        chosen = report.selection
        self.classes = len(report.classes if chosen is None else chosen.classes)
        for line in report.summary_lines():
            say(line)

    def check_backbones(self) -> None:
        """Build each backbone with its weights once: what is to be fetched is, what fits not, said.

        Raises:
            CvtrainError: weights that cannot be fetched, read, or are of another architecture.
        """
        from cvtrain.engine.build import build_model

        first = {j.backbone: j for j in reversed(self.left) if j.regime != SCRATCH}
        conf = ConfDirs(self.config_dirs)
        for job in first.values():
            single = CommandLine(overrides=[*job.overrides, *self.trust])
            with hydra_session(conf):
                config = finish(compose_command(single, conf))
            try:
                build_model(config, self.classes, trust=config.get("trust") or ())
            except RunError as error:  # no network; a study has another key for it
                raise RunError(f"{error}; in a study: study.weights=DIR/{NAME}.pt") from error

    # Runs --------------------------------------------------------------------------------------

    @property
    def left(self) -> list[StudyJob]:
        """The runs that are not finished."""
        return [job for job in self.plan.jobs if self.outcomes[job.name].exit_code != 0]

    def run(self) -> int:
        """Run what is left; the exit code."""
        left, total = self.left, len(self.plan.jobs)
        done = total - len(left)
        study = self.plan.study
        keys = {"backbones": "backbone", "regimes": "regime", "seeds": "seed"}
        keys["train_per_class"] = "number of images"
        counts = [_counted(len(study[k]), what) for k, what in keys.items() if len(study[k]) > 1]
        varied = f" ({' x '.join(counts)})" if len(counts) > 1 else ""
        before = f", {done} finished before" if done else ""
        say(f"{_counted(total, 'run')}{varied}{before}: {relative(self.folder)}")
        mark_run_folder(self.folder)
        self._write_record()
        try:
            for number, job in enumerate(left, start=done + 1):
                self._run_job(job)
                self._write_record()
                say(self._progress(job, number))
        except child.STOPS:
            self._report()
            say(f"stopped; to resume: cvtrain resume={relative(self.folder)}")
            raise
        return self._report()

    def _run_job(self, job: StudyJob) -> None:
        folder = self.folder / job.name
        started = (folder / "config.yaml").is_file()
        words = [f"resume={folder}"] if started else [*job.overrides, f"run_dir={folder}"]
        command = [sys.executable, "-m", "cvtrain", "train", *self.flags, *words, *self.trust]
        folder.mkdir(exist_ok=True)
        record: dict[str, Any] = {"overrides": list(job.overrides), "exit_code": None}
        write_json_atomic(folder / child.JOB_FILE, record)
        begun = time.monotonic()
        code = failures.TERMINATED
        try:
            code = child.run(command, folder / _LOG)
        except child.STOPS as stop:
            code = child.stop_code(stop)
            raise
        finally:
            name, metric, _ = child.monitored(folder)
            record |= {"exit_code": code, "monitor": name, "metric": metric if code == 0 else None}
            record["seconds"] = round(time.monotonic() - begun, 1)
            write_json_atomic(folder / child.JOB_FILE, record)
            self.outcomes[job.name] = self._outcome(job)
        if code == failures.INTERRUPTED:  # the job alone heard it
            raise Interrupted(signal.SIGINT)

    def _record(self, job: StudyJob) -> dict[str, Any] | None:
        path = self.folder / job.name / child.JOB_FILE
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return {**record, "overrides": [str(o) for o in record["overrides"]]}
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is not the record of a run ({error}); delete it") from error

    def _outcome(self, job: StudyJob) -> Outcome:
        record = self._record(job)
        if record is None:
            return Outcome()
        path = self.folder / job.name / "results.json"
        code = record.get("exit_code")
        results = None
        if code == 0:
            if not path.is_file():  # somebody deleted it: the run is to be resumed
                return Outcome()
            results = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(
            code, record.get("monitor"), record.get("metric"), results, record.get("seconds")
        )

    def _progress(self, job: StudyJob, number: int) -> str:
        """One line on a run that has ended, and how long the rest may take."""
        outcome = self.outcomes[job.name]
        several = len(self.plan.study["train_per_class"]) > 1
        what = f"{job.backbone} {job.regime}{f' {job.images} a class' if several else ''}"
        head = f"[{number}/{len(self.plan.jobs)}] {what} seed {job.seed}: "
        if outcome.exit_code:
            return f"{head}failed with exit code {outcome.exit_code}: {self._why(job)}"
        value = "no value" if outcome.metric is None else f"{outcome.metric:.4f}"
        taken = f"{outcome.seconds:.0f} s" if outcome.seconds is not None else ""
        rest = self._seconds_left(number)
        more = "" if rest is None else f"; about {duration(rest)} left"
        return f"{head}{outcome.monitor or self.monitor} {value}, {taken}{more}"

    def _seconds_left(self, number: int) -> float | None:
        """Of the runs still to come, each taken to last as those of its regime did."""
        known = [o.seconds for o in self.outcomes.values() if o.exit_code == 0 and o.seconds]
        rest = self.plan.jobs[number:]
        if not known or not rest:
            return None
        total = 0.0
        for job in self.left:
            alike = [
                o.seconds
                for other in self.plan.jobs
                if (o := self.outcomes[other.name]).exit_code == 0
                and o.seconds
                and (other.regime, other.backbone) == (job.regime, job.backbone)
            ]
            taken = alike or known
            total += sum(taken) / len(taken)
        return total

    def _why(self, job: StudyJob) -> str:
        """The last line a failed run printed."""
        path = self.folder / job.name / _LOG
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        message = [line for line in lines if line.startswith("cvtrain: ")] or lines or ["no output"]
        return f"{message[-1].removeprefix('cvtrain: ')} ({relative(path)})"

    # What it leaves ----------------------------------------------------------------------------

    def _write_record(self) -> None:
        plan = self.plan
        runs = []
        for job in plan.jobs:
            outcome = self.outcomes[job.name]
            runs.append(
                {
                    "job": job.name,
                    "regime": job.regime,
                    "backbone": job.backbone,
                    "train_per_class": job.train_per_class,
                    "seed": job.seed,
                    "exit_code": outcome.exit_code,
                    "metric": outcome.metric,
                    "overrides": list(job.overrides),
                }
            )
        content = {
            "words": plan.words,
            "config_dirs": self.config_dirs,
            "study": plan.study,
            "task": pick(plan.config, "task.name"),
            "model": pick(plan.config, "model.name"),
            "data": pick(plan.config, "data.name"),
            "monitor": self.monitor,
            "mode": self.mode,
            "runs": runs,
        }
        begun = {key: list(content[key]) for key in ("words", "config_dirs")}
        content["seal"] = seals({"study": begun}).get("study")
        write_json_atomic(self.folder / STUDY_FILE, content)

    def _grid(self) -> Grid:
        from cvtrain.report.study import Grid, Result

        results = [
            Result(j.backbone, j.regime, j.images, j.seed, self.outcomes[j.name].metric)
            for j in self.plan.jobs
        ]
        return Grid(results, minimize=self.mode == "min")

    def _report(self) -> int:
        """Write and print the tables and the plot; 1 if any run failed or is missing."""
        from cvtrain.report.study import markdown, plot
        from cvtrain.report.table import Blocks
        from cvtrain.terminal import Terminal

        grid = self._grid()
        self._write_csv()
        x_title, panel_title = "images per class", "backbone"
        table = markdown(grid, self.monitor, x_title, panel_title)
        command = " ".join(shlex.quote(word) for word in ["cvtrain", *self.plan.words])
        text = f"# {self._title()}\n\n{table}\n\n"
        text += f"On val, each run's best epoch by val/{self.monitor}.\n\n```\n{command}\n```\n"
        write_atomic(self.folder / "study.md", lambda file: file.write(text))
        plot(grid, self.folder / "study.png", f"val/{self.monitor}", x_title, self._title())
        Terminal().print(Blocks(grid.rows(x_title, panel_title), text=(0,)))
        stopped = (None, failures.DONE, *(128 + number for number in SIGNALS))
        failed = [j for j in self.plan.jobs if self.outcomes[j.name].exit_code not in stopped]
        for job in failed:
            say(f"failed: {job.name}: {self._why(job)}")
        missing = len(self.left) - len(failed)
        count = f"{_counted(len(self.plan.jobs), 'run')}, {len(failed)} failed"
        count += f", {missing} not finished" if missing else ""
        say(f"{count}: {relative(self.folder / 'study.md')}, study.png, study.csv")
        return failures.FAILED if self.left else failures.DONE

    def _title(self) -> str:
        config = self.plan.config
        names = [pick(config, key) for key in ("task.name", "model.name")]
        root = pick(config, "data.root")
        data = Path(root).name if isinstance(root, str) else pick(config, "data.name")
        return f"{data}: {', '.join(str(n) for n in names)}"

    def _write_csv(self) -> None:
        titles = ["job", "backbone", "regime", "train_per_class", "seed", "exit_code"]
        titles += [self.monitor, "epoch", "epochs", "train_seconds"]
        rows = []
        for job in self.plan.jobs:
            outcome = self.outcomes[job.name]
            results = outcome.results or {}
            varied = [job.name, job.backbone, job.regime, job.train_per_class, job.seed]
            value = None if outcome.metric is None else repr(outcome.metric)
            trained = [results.get(key) for key in ("epoch", "epochs", "train_seconds")]
            cells = [*varied, outcome.exit_code, value, *trained]
            rows.append(["" if cell is None else str(cell) for cell in cells])
        write_atomic(
            self.folder / "study.csv",
            lambda file: csv.writer(file, lineterminator="\n").writerows([titles, *rows]),
        )


def _counted(number: int, what: str) -> str:
    """``3 seeds``, ``2 numbers of images``."""
    noun, *rest = what.split(" ", 1)
    return " ".join([str(number), noun if number == 1 else f"{noun}s", *rest])
