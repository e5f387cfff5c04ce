"""The files a run leaves behind: results.json, predictions.json, ground_truth.json.

Every file is written beside its name and renamed, so that a reader, a kill or a full disk never
meets half of one. No value is rounded; what JSON cannot say (NaN, infinity) becomes null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cvtrain.errors import RunError
from cvtrain.metrics.base import Metrics


def jsonable(value: Any) -> Any:
    """Plain JSON of a nested value: NaN and infinity to None, arrays and tensors to lists.

    Raises:
        TypeError: a value that is none of number, string, path, array, mapping or sequence.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return jsonable(value.tolist())
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: {value!r}")


def write_json_atomic(path: str | Path, obj: Any) -> Path:
    """Write one value as indented JSON; the old file stays until the new one is whole.

    Raises:
        RunError: the file cannot be written (no space, no permission).
    """
    text = json.dumps(jsonable(obj), indent=2, allow_nan=False)
    return write_atomic(path, lambda file: file.write(text + "\n"))


def write_json_list_atomic(path: str | Path, entries: Iterable[Any]) -> Path:
    """Write a JSON list, an entry a line, without holding more than one entry as text.

    Raises:
        RunError: the file cannot be written (no space, no permission).
    """

    def write(file: IO[str]) -> None:
        file.writelines(_list_lines(entries))

    return write_atomic(path, write)


def write_atomic(path: str | Path, write: Callable[[IO[str]], Any]) -> Path:
    """Call ``write`` on a text file beside ``path``, then rename it; on failure nothing is left.

    Raises:
        RunError: the file cannot be written (no space, no permission).
    """
    path = Path(path)
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to instead of ``path``; it takes its place at the end, or vanishes.

    The name keeps the suffix, by which some writers choose the format.

    Raises:
        RunError: writing failed in the operating system (no space, no permission).
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free some space there or choose "
            "another run_dir=DIR"
        ) from error


def write_results(
    run_dir: str | Path,
    task: str,
    model: str,
    data: str,
    split: str,
    metrics: Mapping[str, float],
    seconds: float,
    **extra: Any,
) -> Path:
    """Write ``results.json``: what was evaluated, and the metrics (0..1, null where undefined).

    Args:
        run_dir: the run's folder.
        task: name of the task family.
        model: its name.
        data: its name.
        split: which part of the data was evaluated.
        metrics: names without a split prefix: ``mAP50``, ``accuracy``, ...
        seconds: how long the evaluation took.
        extra: further keys, as they are (``per_class=``, ``notes=``, ``epoch=``, ...).

    Raises:
        RunError: the file cannot be written.
    """
    results = {
        "task": task,
        "model": model,
        "data": data,
        "split": split,
        "metrics": dict(metrics),
        "seconds": seconds,
        **extra,
    }
    return write_json_atomic(Path(run_dir) / "results.json", results)


def write_predictions(
    run_dir: str | Path, metrics: Metrics, truth: Mapping[str, Any] | None = None
) -> tuple[Path, Path]:
    """Write ``predictions.json`` and ``ground_truth.json`` of everything ``metrics`` has seen.

    ``truth`` is ``metrics.ground_truth_json()``, where it is known already.

    ``pycocotools.coco.COCO(ground_truth)`` and its ``loadRes(predictions)`` take them as they are.

    Raises:
        RunError: a file cannot be written.
    """
    folder = Path(run_dir)
    truth = metrics.ground_truth_json() if truth is None else truth

    def write(file: IO[str]) -> None:
        file.write("{\n")
        for n, (key, value) in enumerate(truth.items()):
            file.write((",\n" if n else "") + json.dumps(key) + ": ")
            if isinstance(value, list):
                file.writelines(_list_lines(value))
            else:
                file.write(_line(value))
        file.write("}\n")

    predictions = write_json_list_atomic(folder / "predictions.json", metrics.iter_predictions())
    return predictions, write_atomic(folder / "ground_truth.json", write)


def _list_lines(entries: Iterable[Any]) -> Iterator[str]:
    separator = "[\n"
    for entry in entries:
        yield separator + _line(entry)
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _line(value: Any) -> str:
    return json.dumps(jsonable(value), allow_nan=False)
