"""``cvtrain compare RUN...``: accuracy, speed and size of runs that were scored on one split.

Everything that can be refused is before torch is imported.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvtrain.config.command import Command, CommandLine
from cvtrain.config.groups import GROUPS, ConfDirs, pick
from cvtrain.errors import CvtrainError, UsageError
from cvtrain.text import relative, say

if TYPE_CHECKING:
    from cvtrain.commands._compared_runs import Run
    from cvtrain.engine.benchmark import Cost
    from cvtrain.report.comparison import Comparison, Row

_OF_ALL_RUNS = ("data.root", "data.batch_size", "trainer.accelerator", "trainer.precision")
"""Keys of groups that are read, the same for all runs."""

COMMAND = Command(
    "compare",
    "accuracy, speed and size of runs on one split: RUN... (or a sweep) [latency_runs=]",
    run="cvtrain.commands.compare:compare",
    configure="cvtrain.commands.compare:compare_config",
    reads=("run_dir", "latency_runs", *_OF_ALL_RUNS),
    unread={
        f"{group}.": "{key}= is not read by compare: it comes from each run" for group in GROUPS
    },
    takes_words=True,
    order=4,
)

_MOST_BLOCKS = 2  # of classes on the terminal; more are in the files alone


def compare_config(command: CommandLine, conf: ConfDirs) -> dict[str, Any]:
    """What ``compare`` is called with: the folders typed, and the keys that it reads.

    Raises:
        UsageError: a key it does not read, a wrong value, no runs.
    """
    from cvtrain.config import rules, suggest
    from cvtrain.config.compose import absolute, check_reads
    from cvtrain.config.overrides import by_key, parse
    from cvtrain.config.runs import check_root

    typed = parse(command.overrides)
    check_reads(command.verb, typed)
    check_root([t for t in typed if "." not in t.key], command.verb)
    given = by_key(typed)
    for t in typed:
        message = rules.wrong(t.key, t.value, typed=t.shown) if t.key in _OF_ALL_RUNS else None
        if message:
            raise UsageError(message)
    if not command.words:
        raise UsageError(
            "compare needs run folders, or the folder of a sweep: cvtrain compare runs/a runs/b"
        )
    value = {key: t.value for key, t in given.items()}
    root = value.get("data.root")
    if isinstance(root, str) and not Path(absolute(root)).exists():
        shown = given["data.root"].shown
        raise UsageError(suggest.missing_path("data.root", shown, Path(absolute(root))))
    return {
        "command": command.verb,
        "runs": list(command.words),
        "run_dir": absolute(value["run_dir"]) if value.get("run_dir") else None,
        "latency_runs": value.get("latency_runs", 50),
        "data_root": absolute(root) if isinstance(root, str) else None,
        "batch_size": value.get("data.batch_size"),
        "accelerator": value.get("trainer.accelerator", "auto"),
        "precision": value.get("trainer.precision", "auto"),
        "trust": value.get("trust") or [],
        "words": [*command.words, *command.overrides],
    }


def compare(cfg: Mapping[str, Any]) -> int:
    """Compare runs; writes compare.csv, compare.md and compare.png, prints the tables.

    Args:
        cfg: of ``compare_config``.

    Returns:
        0; 1 where a model could not be measured (the rest is written).

    Raises:
        UsageError: not runs, or runs that do not compare.
        CvtrainError: none could be measured, or nothing can be written.
    """
    from cvtrain import failures
    from cvtrain.commands._compared_runs import data_name, find, refuse
    from cvtrain.config.runs import own_folder
    from cvtrain.outside import refuse_outside

    folder = own_folder(cfg, "compare")
    runs, skipped = find(cfg["runs"])
    refuse(runs)
    for run in runs:
        refuse_outside(
            run.config,
            lambda key: key.startswith(("data.", "proposals.")),
            "compare",
            remedy=f"if that is right, type it for cvtrain eval ckpt={run.shown}, and compare the "
            "folder that this names",
        )
    for line in skipped:
        say(line)
    first = runs[0]
    title = f"{data_name(first)}, {first.results['split']}: {first.scored['images']:,} images"
    say(f"{len(runs)} run{'s' if len(runs) != 1 else ''} on {title}")
    costs = _measure(runs, cfg)
    failed = [cost for cost in costs if isinstance(cost, CvtrainError)]
    if len(failed) == len(runs):
        raise failed[0]
    from cvtrain.report.pareto import plot_pareto
    from cvtrain.storage import mark_run_folder, write_atomic

    comparison = _comparison(runs, costs, title)
    _print(comparison)
    command = " ".join(shlex.quote(word) for word in ["cvtrain", "compare", *cfg["words"]])
    text = comparison.markdown(command)
    mark_run_folder(folder)
    paths = [write_atomic(folder / "compare.md", lambda file: file.write(text))]
    paths.append(plot_pareto(comparison, folder / "compare.png"))
    paths.append(comparison.write_csv(folder / "compare.csv"))
    say(f"\n{', '.join(relative(path) for path in paths)}")
    return failures.FAILED if failed else failures.DONE


# What is said -----------------------------------------------------------------------------------


def _measure(runs: Sequence[Run], cfg: Mapping[str, Any]) -> list[Cost | CvtrainError]:
    """Each run's cost, said as it comes."""
    from cvtrain import failures
    from cvtrain.commands._compared_runs import labels
    from cvtrain.engine.benchmark import Job, measure_all
    from cvtrain.outside import download_unless_strange

    jobs = []
    for run in runs:
        config = dict(run.config)
        download_unless_strange(config)
        jobs.append(
            Job(
                str(run.checkpoint),
                config,
                str(run.results["split"]),
                cfg["latency_runs"],
                cfg["data_root"],
                cfg["batch_size"],
                cfg["accelerator"],
                cfg["precision"],
                list(cfg["trust"]),
            )
        )
    costs: list[Cost | CvtrainError] = []
    names = labels(runs)
    for n, cost in enumerate(measure_all(jobs)):
        costs.append(cost)
        head = f"[{n + 1}/{len(runs)}] {names[n]}: "
        if isinstance(cost, CvtrainError):
            say(f"{head}not measured: {failures.line(cost)}")
        else:
            say(f"{head}{cost.latency * 1000:,.1f} ms per image")
    return costs


def _comparison(
    runs: Sequence[Run], costs: Sequence[Cost | CvtrainError], title: str
) -> Comparison:
    from cvtrain.commands._compared_runs import labels
    from cvtrain.report.comparison import Comparison

    score = _class_score(runs[0])
    rows: list[Row] = [
        _row(run, name, cost, score)
        for run, name, cost in zip(runs, labels(runs), costs, strict=True)
    ]
    config = runs[0].config
    mode = str(pick(config, "task.mode") or "max")
    message = f"{runs[0].results['task'].replace('_', ' ')} on {title}"
    return Comparison(rows, str(pick(config, "task.monitor")), mode, message, score)


def _row(run: Run, name: str, cost: Cost | CvtrainError, score: str) -> Row:
    from cvtrain.report.comparison import Row

    return Row(
        name=name,
        folder=run.shown,
        model=run.names()[0],
        backbone=run.backbone,
        size=run.size,
        scores={key: _number(value) for key, value in run.results["metrics"].items()},
        per_class={c["name"]: _number(c.get(score)) for c in run.results["per_class"]},
        train_seconds=_number(run.train_seconds),
        epochs=run.epochs,
        cost={} if isinstance(cost, CvtrainError) else asdict(cost),
    )


def _class_score(run: Run) -> str:
    """The first fraction that results.json has of a class: AP, accuracy, IoU, ..."""
    for row in run.results["per_class"]:
        for key, value in row.items():
            if isinstance(value, float):
                return str(key)
    return "score"


def _number(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if known else None


def _print(comparison: Comparison) -> None:
    """The tables, in blocks of as many columns as the terminal has room for."""
    from rich.text import Text

    from cvtrain.report.comparison import PROPOSED
    from cvtrain.report.table import Blocks
    from cvtrain.terminal import Terminal

    console = Terminal()
    table = comparison.table()
    text = [c for c, title in enumerate(table[0]) if title in ("model", "backbone")]
    console.print("", Blocks(table, text))
    classes = Blocks(comparison.class_table())
    if len(classes.split(console.width)[1]) > _MOST_BLOCKS:
        console.print(
            f"\n{len(comparison.classes)} classes: their {comparison.score} is in the files"
        )
    elif len(comparison.classes) > 1:
        console.print(Text(f"\n{comparison.score} per class", style="bold"), classes)
    message = f"\n* Pareto front of {comparison.monitor} over latency; {comparison.device}"
    notes = [message, *([PROPOSED] if comparison.proposed else [])]
    for note in [*notes, "what each column counts: compare.md"]:
        console.print(note, style="dim", soft_wrap=not console.is_terminal)
