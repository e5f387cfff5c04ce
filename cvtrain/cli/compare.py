"""``cvtrain compare RUN...``: accuracy, speed and size of runs that were scored on one split.

Everything that can be refused is before torch is imported.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvtrain.cli import child, errors, suggest, values
from cvtrain.cli.args import Command
from cvtrain.cli.compose import absolute, check_reads
from cvtrain.cli.conf import pick
from cvtrain.cli.reads import COMPARE
from cvtrain.cli.runs import check_root, own_folder, run_config
from cvtrain.cli.typed import by_key, parse
from cvtrain.errors import CvtrainError, UsageError

if TYPE_CHECKING:
    from cvtrain.engine.measure import Cost
    from cvtrain.report.comparison import Comparison, Row

RESULTS = "results.json"
_MOST_BLOCKS = 2  # of classes on the terminal; more are in the files alone


@dataclass(frozen=True)
class Run:
    """A finished run's folder.

    Attributes:
        folder: absolute; ``shown`` as it is printed.
        config: of its config.yaml.
        results: of its results.json.
        checkpoint: the file that was scored.
        scored: the fingerprint of what it was scored on.
        train_seconds, epochs: of the training run; None: not known.
    """

    folder: Path
    shown: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    checkpoint: Path
    scored: Mapping[str, Any]
    train_seconds: float | None
    epochs: int | None

    def names(self) -> list[str]:
        """What tells runs apart, the most telling first."""
        model = self.config["model"]
        loss = model.get("loss")
        parts = [str(model.get("name")), self.backbone, self.size]
        parts.append(str(loss.get("name")) if isinstance(loss, dict) else "")
        return parts

    @property
    def backbone(self) -> str:
        """Its name, "" for a model without one."""
        node = self.config.get("backbone") or self.config["model"].get("backbone") or {}
        return str(node.get("name") or "")

    @property
    def size(self) -> str:
        """Of the network's input, height x width where they differ."""
        size = self.config["data"]["image_size"]
        return "x".join(map(str, size)) if isinstance(size, list) else str(size)


def compare_config(command: Command) -> dict[str, Any]:
    """What ``compare`` is called with: the folders typed, and the keys that it reads.

    Raises:
        UsageError: a key it does not read, a wrong value, no runs.
    """
    typed = parse(command.overrides)
    check_reads(command.verb, typed)
    check_root([t for t in typed if "." not in t.key], command.verb)
    given = by_key(typed)
    for t in typed:
        said = values.wrong(t.key, t.value, typed=t.shown) if t.key in COMPARE else None
        if said:
            raise UsageError(said)
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
    folder = own_folder(cfg, "compare")
    runs, skipped = find(cfg["runs"])
    refuse(runs)
    for line in skipped:
        print(line)
    first = runs[0]
    title = f"{_data(first)}, {first.results['split']}: {first.scored['images']:,} images"
    print(f"{len(runs)} run{'s' if len(runs) != 1 else ''} on {title}", flush=True)
    costs = _measure(runs, cfg)
    failed = [cost for cost in costs if isinstance(cost, CvtrainError)]
    if len(failed) == len(runs):
        raise failed[0]
    from cvtrain.report.pareto import plot_pareto
    from cvtrain.report.results import write_atomic

    comparison = _comparison(runs, costs, title)
    _print(comparison)
    command = " ".join(shlex.quote(word) for word in ["cvtrain", "compare", *cfg["words"]])
    text = comparison.markdown(command)
    paths = [write_atomic(folder / "compare.md", lambda file: file.write(text))]
    paths.append(plot_pareto(comparison, folder / "compare.png"))
    paths.append(comparison.write_csv(folder / "compare.csv"))
    print(f"\n{', '.join(child.near(path) for path in paths)}")
    return errors.FAILED if failed else errors.DONE


# Which runs -------------------------------------------------------------------------------------


def find(words: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs that the words name, and a line for each of a sweep's that is not finished.

    Raises:
        UsageError: neither a run nor a sweep, a run without a finished validation.
    """
    runs: list[Run] = []
    skipped: list[str] = []
    for word in words:
        folder = Path(absolute(word))
        if not folder.exists():
            said = suggest.missing_path("RUN", word, folder).removeprefix(f"RUN={word}: ")
            raise UsageError(f"{word}: {said}")
        if folder.is_file():
            parent = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
            raise UsageError(f"{word} is a file; give the run's folder: {child.near(parent)}")
        if (folder / "config.yaml").is_file():
            runs.append(_read(folder, word))
            continue
        jobs = [p for p in folder.iterdir() if (p / "config.yaml").is_file()]
        if not jobs:
            raise UsageError(
                f"{word} is neither a run (it has no config.yaml) nor a sweep of finished runs"
            )
        jobs.sort(key=lambda p: (len(p.name), p.name))
        done = [p for p in jobs if (p / RESULTS).is_file()]
        if not done:
            raise UsageError(f"{word}: none of its {len(jobs)} runs has a finished validation")
        skipped += [
            f"left out, no finished validation: {child.near(p)}" for p in jobs if p not in done
        ]
        runs += [_read(p, child.near(p)) for p in done]
    return runs, skipped


def _read(folder: Path, shown: str) -> Run:
    config = run_config(folder)
    assert config is not None
    results = _results(folder, shown, config)
    name = results.get("checkpoint") or "checkpoints/best.ckpt"
    checkpoint = folder / str(name)
    if not checkpoint.is_file():
        raise UsageError(f"{shown}: its checkpoint is gone ({child.near(checkpoint)})")
    trained = results
    if "train_seconds" not in results:  # the folder of an evaluation: ask the run it evaluated
        path = checkpoint.parents[1] / RESULTS
        trained = _json(path) if path.is_file() else {}
    seconds, epochs = trained.get("train_seconds"), trained.get("epochs")
    scored = results.get("scored")
    if scored is None:
        scored = _of_ground_truth(folder, shown)
    return Run(folder, shown, config, results, checkpoint, scored, seconds, epochs)


def _results(folder: Path, shown: str, config: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / RESULTS
    if not path.is_file():
        if (folder / "predictions.json").is_file():
            raise UsageError(f"{shown} holds predictions without a score: give the run itself")
        go_on = f"; cvtrain resume={shown} goes on with it"
        has_any = any((folder / "checkpoints").glob("*.ckpt"))
        raise UsageError(
            f"{shown} has no finished validation (no {RESULTS}){go_on if has_any else ''}"
        )
    results = _json(path)
    for key, kind in (("task", str), ("split", str), ("metrics", dict), ("per_class", list)):
        if not isinstance(results.get(key), kind):
            raise UsageError(f"{path} is not the result of a run: it has no {key}")
    monitor = pick(config, "task.monitor")
    if monitor not in results["metrics"]:
        raise UsageError(f"{path} has no {monitor}, which decides which epoch is best")
    return results


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not the result of a run")
    return content


def _of_ground_truth(folder: Path, shown: str) -> dict[str, Any]:
    """The fingerprint of a run that wrote none, as before 0.2: all but the images' pixels."""
    from cvtrain.report.scored import fingerprint

    path = folder / "ground_truth.json"
    if not path.is_file():
        raise UsageError(
            f"{shown} does not say what it was scored on (no {path.name}); score it again: "
            f"cvtrain eval ckpt={shown}"
        )
    return fingerprint(_json(path), None)


# What does not compare --------------------------------------------------------------------------


def refuse(runs: Sequence[Run]) -> None:
    """Raise UsageError where two runs are one, or were not scored on the same images."""
    seen: dict[Path, Run] = {}
    for run in runs:
        checkpoint = run.checkpoint.resolve()
        if checkpoint in seen:
            other = seen[checkpoint]
            if other.folder.resolve() == run.folder.resolve():
                raise UsageError(f"{run.shown} is given twice")
            raise UsageError(f"{other.shown} and {run.shown} scored the same checkpoint; leave one")
        seen[checkpoint] = run
    first = runs[0]
    for run in runs[1:]:
        said = _difference(first, run)
        if said:
            raise UsageError(f"{first.shown} and {run.shown} do not compare: {said}")


def _difference(one: Run, other: Run) -> str | None:
    """How what two runs were scored on differs; None: it does not."""
    from cvtrain.report.scored import differing

    tasks = [str(run.results["task"]) for run in (one, other)]
    if tasks[0] != tasks[1]:
        return f"one is of task={tasks[0]}, the other of task={tasks[1]}"
    monitors = [str(pick(run.config, "task.monitor")) for run in (one, other)]
    if monitors[0] != monitors[1]:
        return f"best epochs by {monitors[0]} and by {monitors[1]}"
    part = differing(one.scored, other.scored)
    if part is None:
        return None
    where = [f"{_data(run)}, {run.results['split']}" for run in (one, other)]
    both = where[0] if where[0] == where[1] else f"{where[0]}, and {where[1]}"
    if part == "classes":
        return f"other classes ({_only(_classes(one), _classes(other), 'class')}; {both})"
    if part == "files":
        counts = [f"{run.scored['images']:,}" for run in (one, other)]
        many = f"{counts[0]} and {counts[1]} images; " if counts[0] != counts[1] else ""
        return f"other images ({many}{_only(_files(one), _files(other), 'image')}; {both})"
    if part == "truths":
        return f"the same images with other annotations ({both})"
    return f"images of the same names and sizes with other pixels ({both})"


def _classes(run: Run) -> list[str]:
    return [str(row["name"]) for row in run.results["per_class"]]


def _files(run: Run) -> list[str]:
    path = run.folder / "ground_truth.json"
    if not path.is_file():
        return []
    return [f"{i['file_name']} {i['width']}x{i['height']}" for i in _json(path)["images"]]


def _only(first: Sequence[str], second: Sequence[str], what: str) -> str:
    """The first that only one of them has."""
    for names, others, which in ((first, second, "first"), (second, first, "second")):
        alone = sorted({*names} - {*others})
        if alone:
            more = f" and {len(alone) - 1:,} more" if len(alone) > 1 else ""
            return f"{alone[0]}{more} only in the {which}"
    return f"no {what} is known by name"


def _data(run: Run) -> str:
    """The data set in few words."""
    root = pick(run.config, "data.root")
    name = str(run.results.get("data") or pick(run.config, "data.name"))
    return f"{name} {Path(root).name}" if isinstance(root, str) else name


# What is said -----------------------------------------------------------------------------------


def labels(runs: Sequence[Run]) -> list[str]:
    """Short names: the model, and of those that share it what tells them apart."""
    parts = [run.names() for run in runs]
    names = [part[0] for part in parts]
    for k in range(1, len(parts[0])):
        counts = Counter(names)
        varied = {
            name
            for name in counts
            if len({p[k] for p, n in zip(parts, names, strict=True) if n == name}) > 1
        }
        names = [
            f"{n} {p[k] or 'none'}" if n in varied else n for n, p in zip(names, parts, strict=True)
        ]
    counts = Counter(names)
    names = [
        n if counts[n] == 1 else f"{n} {_folder_name(run)}"
        for n, run in zip(names, runs, strict=True)
    ]
    counts = Counter(names)
    return [n if counts[n] == 1 else f"{n} #{i + 1}" for i, n in enumerate(names)]


def _folder_name(run: Run) -> str:
    """The folder's name; with its parent's where it is a sweep's number."""
    folder = run.folder
    return f"{folder.parent.name}/{folder.name}" if folder.name.isdigit() else folder.name


def _measure(runs: Sequence[Run], cfg: Mapping[str, Any]) -> list[Cost | CvtrainError]:
    """Each run's cost, said as it comes."""
    from cvtrain.engine.measure import Job, measure_all

    jobs = []
    for run in runs:
        config = dict(run.config)
        if cfg["data_root"] is not None:
            config["data"] = moved(config["data"], cfg["data_root"])
        jobs.append(
            Job(
                str(run.checkpoint),
                config,
                str(run.results["split"]),
                cfg["latency_runs"],
                cfg["batch_size"],
                cfg["accelerator"],
                cfg["precision"],
                list(cfg["trust"]),
            )
        )
    costs: list[Cost | CvtrainError] = []
    names = labels(runs)
    with child.sigterm_raises():
        for n, cost in enumerate(measure_all(jobs)):
            costs.append(cost)
            head = f"[{n + 1}/{len(runs)}] {names[n]}: "
            if isinstance(cost, CvtrainError):
                print(f"{head}not measured: {errors.line(cost)}", flush=True)
            else:
                print(f"{head}{cost.latency * 1000:,.1f} ms an image", flush=True)
    return costs


def moved(data: Mapping[str, Any], root: str) -> dict[str, Any]:
    """A data node whose files are now in ``root``; also where the reader took the old one over."""
    reader = data.get("reader")
    if isinstance(reader, Mapping) and "root" in reader:
        return {**data, "root": root, "reader": {**reader, "root": root}}
    return {**data, "root": root}


def _comparison(
    runs: Sequence[Run], costs: Sequence[Cost | CvtrainError], title: str
) -> Comparison:
    from cvtrain.report.comparison import Comparison

    score = _class_score(runs[0])
    rows: list[Row] = [
        _row(run, name, cost, score)
        for run, name, cost in zip(runs, labels(runs), costs, strict=True)
    ]
    config = runs[0].config
    mode = str(pick(config, "task.mode") or "max")
    said = f"{runs[0].results['task'].replace('_', ' ')} on {title}"
    return Comparison(rows, str(pick(config, "task.monitor")), mode, said, score)


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
    from rich.console import Console

    from cvtrain.report.comparison import PROPOSED

    console = Console(highlight=False, emoji=False)
    width = console.width if sys.stdout.isatty() else 10_000
    table = comparison.table()
    for columns in blocks(table, width):
        console.print()
        _print_block(console, table, columns)
    classes = comparison.class_table()
    parts = blocks(classes, width) if len(comparison.classes) > 1 else []
    if len(parts) > _MOST_BLOCKS:
        console.print(
            f"\n{len(comparison.classes)} classes: their {comparison.score} is in the files"
        )
        parts = []
    for n, columns in enumerate(parts):
        console.print(f"\n{comparison.score} by class" if n == 0 else "", style="bold")
        _print_block(console, classes, columns)
    console.print()
    said = f"* Pareto front of {comparison.monitor} over latency; {comparison.device}"
    notes = [said, *([PROPOSED] if comparison.proposed else [])]
    for note in [*notes, "what each column counts: compare.md"]:
        console.print(note, style="dim", markup=False, soft_wrap=not sys.stdout.isatty())


def blocks(table: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns of a table that fit beside each other; the first column begins every block."""
    wide = [max(len(row[c]) for row in table) for c in range(len(table[0]))]
    found: list[list[int]] = []
    used = width
    for column in range(1, len(wide)):
        if not found or used + 2 + wide[column] > width:
            found.append([0])
            used = wide[0]
        found[-1].append(column)
        used += 2 + wide[column]
    return found


def _print_block(console: Any, table: Sequence[Sequence[str]], columns: Sequence[int]) -> None:
    from rich.table import Table as Page
    from rich.text import Text

    page = Page(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for c in columns:
        text = c == 0 or table[0][c] in ("model", "backbone")
        page.add_column(Text(table[0][c]), justify="left" if text else "right", no_wrap=True)
    for row in table[1:]:
        page.add_row(*(Text(row[c]) for c in columns))
    if not sys.stdout.isatty():
        console.width = max(console.width, sum(max(len(r[c]) for r in table) + 2 for c in columns))
    console.print(page)
