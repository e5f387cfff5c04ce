"""The files a run leaves behind: results.json, predictions.json, ground_truth.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cvtrain.metrics.base import Metrics
from cvtrain.storage import (
    json_line,
    json_list_lines,
    write_atomic,
    write_json_atomic,
    write_json_list_atomic,
)


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
                file.writelines(json_list_lines(value))
            else:
                file.write(json_line(value))
        file.write("}\n")

    predictions = write_json_list_atomic(folder / "predictions.json", metrics.iter_predictions())
    return predictions, write_atomic(folder / "ground_truth.json", write)
