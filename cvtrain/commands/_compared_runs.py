"""The runs that ``cvtrain compare`` is given: found, read, refused, named. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtrain.config import suggest
from cvtrain.config.compose import absolute
from cvtrain.config.groups import pick
from cvtrain.config.runs import run_config
from cvtrain.errors import UsageError
from cvtrain.report.fingerprint import differing, fingerprint
from cvtrain.text import relative

RESULTS = "results.json"


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


# Which runs -------------------------------------------------------------------------------------


def find(words: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs that the words name, and a line for each of a sweep's that is not finished.

    Raises:
        UsageError: neither a run nor a sweep, a run that was not finished.
    """
    runs: list[Run] = []
    skipped: list[str] = []
    for word in words:
        folder = Path(absolute(word))
        if not folder.exists():
            message = suggest.missing_path("RUN", word, folder).removeprefix(f"RUN={word}: ")
            raise UsageError(f"{word}: {message}")
        if folder.is_file():
            parent = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
            raise UsageError(f"{word} is a file; give the run's folder: {relative(parent)}")
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
            last = relative(jobs[-1])
            raise UsageError(
                f"{word}: none of its {len(jobs)} runs was finished; the last, {last}, "
                f"{_unfinished(jobs[-1], last)}"
            )
        skipped += [
            f"skipped: {relative(p)} {_unfinished(p, relative(p))}" for p in jobs if p not in done
        ]
        runs += [_read(p, relative(p)) for p in done]
    return runs, skipped


def _read(folder: Path, shown: str) -> Run:
    config = run_config(folder)
    assert config is not None
    results = _results(folder, shown, config)
    name = results.get("checkpoint") or "checkpoints/best.ckpt"
    checkpoint = folder / str(name)
    if not checkpoint.is_file():
        raise UsageError(f"{shown}: its checkpoint is gone ({relative(checkpoint)})")
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
        raise UsageError(f"{shown} {_unfinished(folder, shown)}")
    results = _json(path)
    for key, kind in (("task", str), ("split", str), ("metrics", dict), ("per_class", list)):
        if not isinstance(results.get(key), kind):
            raise UsageError(f"{path} is not the result of a run: it has no {key}; {_again(path)}")
    monitor = pick(config, "task.monitor")
    if monitor not in results["metrics"]:
        raise UsageError(f"{path} has no {monitor}, which decides which epoch is best")
    return results


def _unfinished(folder: Path, shown: str) -> str:
    """Why a run without results cannot be compared, and what to do."""
    if not any((folder / "checkpoints").glob("*.ckpt")):
        return f"did not finish (no {RESULTS}), and none of its epochs was: train it again"
    return (
        f"did not finish (no {RESULTS}): cvtrain resume={shown} finishes it, or "
        f"cvtrain eval ckpt={shown} scores it as it is; compare takes the folder that this names"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read ({why}); {_again(path)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not the result of a run; {_again(path)}")
    return content


def _again(path: Path) -> str:
    """What to do about a broken file of results."""
    return (
        f"score it again: cvtrain eval ckpt={relative(path.parent)}; compare takes the folder "
        "that this names"
    )


def _of_ground_truth(folder: Path, shown: str) -> dict[str, Any]:
    """The fingerprint of a run that wrote none, as before 0.2: all but the images' pixels."""
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
        message = _difference(first, run)
        if message:
            raise UsageError(f"{first.shown} and {run.shown} do not compare: {message}")


def _difference(one: Run, other: Run) -> str | None:
    """How what two runs were scored on differs; None: it does not."""
    tasks = [str(run.results["task"]) for run in (one, other)]
    if tasks[0] != tasks[1]:
        return f"one is of task={tasks[0]}, the other of task={tasks[1]}"
    monitors = [str(pick(run.config, "task.monitor")) for run in (one, other)]
    if monitors[0] != monitors[1]:
        return f"best epochs by {monitors[0]} and by {monitors[1]}"
    part = differing(one.scored, other.scored)
    if part is None:
        return None
    where = [f"{data_name(run)}, {run.results['split']}" for run in (one, other)]
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


def data_name(run: Run) -> str:
    """The data set in few words."""
    root = pick(run.config, "data.root")
    name = str(run.results.get("data") or pick(run.config, "data.name"))
    return f"{name} {Path(root).name}" if isinstance(root, str) else name


# What they are called ----------------------------------------------------------------------------


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
