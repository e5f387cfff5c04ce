"""``cvtrain check``: the gate alone, as a page for people and as check.json for programs.

No torch here: a data set is checked before anything heavy is imported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvtrain.config.command import OF_TRAINING, Command
from cvtrain.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from cvtrain.data.gate.run import GateReport
    from cvtrain.data.table import Problem

COMMAND = Command(
    "check",
    "look for everything wrong in a data set, without training: data= data.root=",
    run="cvtrain.commands.check:check",
    reads=("seed", "run_dir", "data.", "task.", "model", "experiment"),
    unread={
        **OF_TRAINING,
        **dict.fromkeys(
            (
                *("data.batch_size", "data.image_size", "data.resize", "data.cache"),
                "data.scene_size",
            ),
            "{key}= is not read by check, which looks only at the files",
        ),
    },
    order=5,
)

_EXAMPLES = 3
"""Places shown of each kind of problem; check.json has all."""


def check(cfg: Mapping[str, Any]) -> int:
    """Checks the data set that ``cfg["data"]`` describes.

    Args:
        cfg: the resolved config: ``data``, ``seed``, ``trust``, ``run_dir`` (None:
            ``runs/check/<timestamp>``), ``task`` where one was typed (see ``overrides``).

    Returns:
        1 where there are errors that train would stop for, else 0.

    Raises:
        DataError: there is no data set that could be checked.
        RunError: check.json cannot be written.
        UsageError: ``run_dir`` is a folder of the data set.
    """
    from cvtrain.data.gate.run import label_options, run_gate
    from cvtrain.data.source import make_reader, split_seed
    from cvtrain.storage import refuse_data_folder
    from cvtrain.terminal import Terminal

    data = cfg["data"]
    folder = _run_dir(cfg)
    refuse_data_folder("run_dir", folder, data.get("root"))
    reader = make_reader(data, cfg.get("trust") or (), cfg.get("overrides") or ())
    console = Terminal()
    found = getattr(reader, "found", None)
    if found:
        console.print(found, soft_wrap=True)
    report = run_gate(
        reader,
        _typed_task(cfg),
        on_bad=data["on_bad"],
        val_fraction=data["val_fraction"],
        seed=split_seed(data, cfg["seed"]),
        channels=data["channels"],
        object_choice=data.get("object"),
        workers=data.get("num_workers") or None,
        strict=False,
        **label_options(data),
    )
    report.select(data, cfg["seed"])
    path = write_check(folder, report)
    _print(console, report, path)
    return 1 if report.stopping else 0


def write_check(folder: Path, report: GateReport) -> Path:
    """Writes ``folder/check.json``.

    Raises:
        RunError: no room, or no right to write there.
    """
    from cvtrain.storage import mark_run_folder, write_json_atomic

    mark_run_folder(folder)
    return write_json_atomic(folder / "check.json", report.to_json())


def _typed_task(cfg: Mapping[str, Any]) -> str | None:
    """The task that the user typed; the default one would be held against the data."""
    typed = [text for text in cfg.get("overrides") or () if text.startswith(("task=", "model="))]
    return (cfg["task"] or {}).get("name") if typed else None  # task=null: none


def _run_dir(cfg: Mapping[str, Any]) -> Path:
    if cfg.get("run_dir"):
        return Path(cfg["run_dir"])
    path = Path("runs", "check", time.strftime("%Y-%m-%d_%H-%M-%S"))
    count = 1
    while path.exists():
        count += 1
        path = path.with_name(f"{path.name.partition('-n')[0]}-n{count}")
    return path


def _print(console: Console, report: GateReport, path: Path) -> None:
    from rich.table import Table as Page
    from rich.text import Text

    console.print(f"\n{report.root}  ({report.reader})", style="bold", soft_wrap=True)
    console.print(_classes_line(report), soft_wrap=True)
    numbers = Page(box=None, pad_edge=False, header_style="dim")
    boxes = any(count.annotations for count in report.counts.values())
    titles = ["split", "images", "used", "dropped", *(("objects", "used") if boxes else ())]
    for title in titles:
        numbers.add_column(title, justify="left" if title == "split" else "right")
    for name, count in report.counts.items():
        row = (count.images, count.used, count.rejected, count.annotations, count.annotations_used)
        numbers.add_row(name, *(f"{value:,}" for value in row[: len(titles) - 1]))
    console.print(numbers)
    for line in [] if report.selection is None else report.selection.lines:
        console.print(line, soft_wrap=True)
    _print_problems(console, "error", "red", report.errors)
    _print_problems(console, "note", "yellow", report.notes)
    for line in report.warnings:
        console.print(f"\n{line}", style="yellow", soft_wrap=True)
    verdict, style = _verdict(report)
    console.print()
    console.print(
        Text(printable(verdict), style=f"bold {style}"), soft_wrap=not console.is_terminal
    )
    opened = report.files - report.cached
    known = f", {report.cached:,} known from the last time" if report.cached else ""
    console.print(
        f"{opened:,} files opened{known}, {report.seconds:.1f} s; all of it: {path}",
        markup=False,
        style="dim",
        soft_wrap=True,
    )


def _classes_line(report: GateReport) -> str:
    names = report.classes.names
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return printable(f"{len(names)} class{'' if len(names) == 1 else 'es'}: {shown}")


def _print_problems(console: Console, title: str, style: str, problems: Sequence[Problem]) -> None:
    """Problems by code, the most frequent first, each with a few places and what to do."""
    from rich.text import Text

    if not problems:
        return
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.code, []).append(problem)
    console.print()
    console.print(Text(_counted(len(problems), title), style=f"bold {style}"))
    for code, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        console.print(Text.assemble((f"{len(group):>7,}  ", style), (code, "bold")))
        for problem in group[:_EXAMPLES]:
            place = " ".join(part for part in (problem.file, problem.where) if part)
            action = f" ({problem.action})" if problem.action else ""
            line = Text.assemble(
                (printable(place), "cyan"), f": {printable(problem.message)}{action}"
            )
            _indented(console, line)
        if len(group) > _EXAMPLES:
            _indented(console, Text(f"... and {len(group) - _EXAMPLES:,} more", style="dim"))
        _indented(console, Text(f"-> {group[0].fix}", style="green"))


def _indented(console: Console, line: Any) -> None:
    """A line below a heading; wrapped for a terminal alone, so that a log can be searched."""
    from rich.padding import Padding
    from rich.text import Text

    if console.is_terminal:
        console.print(Padding(line, (0, 0, 0, 9), expand=False))
    else:
        console.print(Text(" " * 9).append_text(line), soft_wrap=True)


def _verdict(report: GateReport) -> tuple[str, str]:
    from cvtrain.data.gate.report import cure

    stopping = len(report.stopping)
    if stopping:
        end = "data.on_bad=fix repairs what can be, data.on_bad=drop drops it"
        end = cure(report.stopping, report.on_bad, end)
        return f"{_counted(stopping, 'error')}: training stops; {end}", "red"
    if report.errors:
        left = f"{report.rejected:,} of {report.images:,} images dropped"
        return f"continues with data.on_bad={report.on_bad}: {left}", "yellow"
    if not report.notes:
        return "no errors; no notes", "green"
    if report.rejected:  # by a choice of the user's, data.object=only
        left = f"{report.rejected:,} of {report.images:,} images dropped, as asked"
        return f"no errors; {_counted(len(report.notes), 'note')}; {left}", "green"
    lose = "loses" if len(report.notes) == 1 else "lose"
    return f"no errors; {_counted(len(report.notes), 'note')}, which {lose} nothing", "green"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
