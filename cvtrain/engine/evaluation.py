"""Evaluates a task on a split and writes what an evaluation leaves: numbers, files, pictures."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import ClusterEnvironment
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cvtrain.callbacks.console import LOG, console
from cvtrain.callbacks.masks import MaskFiles
from cvtrain.callbacks.pictures import Pictures, displayable
from cvtrain.callbacks.signal_handlers import KeepSignals
from cvtrain.data.dataset import VisionDataset
from cvtrain.data.table import Table
from cvtrain.engine.detection_limits import TASKS as OBJECT_TASKS
from cvtrain.engine.detection_limits import objects_of, too_few
from cvtrain.engine.device import Device
from cvtrain.engine.logs import log_quietly
from cvtrain.engine.rundir import RunDir
from cvtrain.engine.trainer import build_trainer
from cvtrain.metrics.instance_segmentation import InstanceSegmentationMetrics
from cvtrain.metrics.semantic_segmentation import mask_file
from cvtrain.report.fingerprint import fingerprint
from cvtrain.report.results import write_predictions, write_results
from cvtrain.structures import ImageInfo, Prediction, Target
from cvtrain.tasks.base import Task
from cvtrain.terminal import Terminal

WORST_DRAWN = 8
"""Images of the segmentation tasks that are drawn as the worst."""


def score(
    task: Task,
    loader: Callable[[pl.Trainer], DataLoader[Any]],
    config: Mapping[str, Any],
    device: Device,
    environment: ClusterEnvironment | None,
    run: RunDir,
    callbacks: Mapping[str, Any],
) -> float:
    """Validate ``task`` on ``loader``, on every process of the run; ``task.scores`` has the result.

    ``loader`` makes this process's batches, given the Trainer; of the callbacks, ``progress`` and
    ``pictures`` take part.

    Returns:
        The seconds it took.
    """
    started = time.perf_counter()
    parts: list[pl.Callback] = [KeepSignals()]
    for name in ("progress", "pictures"):
        callback = callbacks.get(name)
        if isinstance(callback, Pictures):
            callback.path = run.plots / "predictions.png"
        if callback is not None:
            parts.append(callback)
    parts.append(MaskFiles(run.path))
    trainer = build_trainer(config, device, environment, run.path, parts, [])
    trainer.validate(task, loader(trainer), verbose=False)
    return time.perf_counter() - started


def write_scores(
    run: RunDir,
    task: Task,
    config: Mapping[str, Any],
    callbacks: Mapping[str, Any],
    table: Table,
    split: str,
    seconds: float,
    title: str,
    dataset: Dataset[Any],
    **extra: Any,
) -> None:
    """Write results.json, predictions.json, ground_truth.json and plots, and print the table.

    On rank 0 alone, after ``score``; ``table`` holds the images that were scored, ``dataset`` their
    samples.

    Raises:
        RunError: a file cannot be written.
    """
    from cvtrain.report.plots import plot_details
    from cvtrain.report.table import results_table

    details = dict(task.metrics.details())
    if task.name in OBJECT_TASKS:
        scored = [info.index for info in task.metrics.infos()]
        message = too_few(config["model"], objects_of(table)[scored])
        details["notes"] = [*details["notes"], *([message] if message else [])]
    pictures = callbacks.get("pictures")
    if isinstance(pictures, Pictures):
        pictures.draw(task)
    plot_details(details, run.plots)
    if task.name in ("semantic_segmentation", "instance_segmentation"):
        assert isinstance(dataset, VisionDataset)
        _draw_worst(run, task, details["worst"], dataset)
    truth = task.metrics.ground_truth_json()
    write_predictions(run.path, task.metrics, truth)
    write_results(
        run.path,
        task.name,
        config["model"]["name"],
        config["data"]["name"],
        split,
        task.scores,
        seconds,
        images=len(task.metrics),
        scored=fingerprint(truth, _pixels(task, table)),
        losses={k: v for k, v in task.results.items() if k not in task.scores},
        per_class=details["per_class"],
        notes=details["notes"],
        **({"worst": details["worst"]} if "worst" in details else {}),
        **extra,
    )
    LOG.info(title)
    shown = results_table(task.scores, details)
    console().print(shown)
    plain = Terminal(file=io.StringIO())
    plain.print(shown)
    log_quietly(plain.file.getvalue())  # type: ignore[attr-defined]


def _pixels(task: Task, table: Table) -> dict[str, bytes] | None:
    """Digests of the pixels of the images scored, by name; None where no files were opened."""
    if table.digests is None:
        return None
    return {info.file_name: table.digests[info.index].tobytes() for info in task.metrics.infos()}


def _draw_worst(
    run: RunDir, task: Task, worst: Sequence[Mapping[str, Any]], dataset: VisionDataset
) -> None:
    """The images on which the task did worst, truth and prediction side by side, as worst.png."""
    from cvtrain.report.plots import plot_predictions

    images, predictions, truths, infos, message = [], [], [], [], []
    for entry in worst[:WORST_DRAWN]:
        image = dataset.image(entry["index"])
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, C, H, W)
        images.append(displayable(pixels)[0])
        height, width = image.shape[:2]
        name = entry["file_name"]
        infos.append(ImageInfo(entry["index"], name, name, height, width))
        if isinstance(task.metrics, InstanceSegmentationMetrics):
            predicted, truth = task.metrics.shown(entry["index"])
            message.append(_counted(entry))
        else:
            predicted, truth = _class_maps(run, task, entry, dataset)
            right = f"{entry['pixel_accuracy']:.0%} of pixels right"
            message.append(f"IoU {entry['mean_iou']:.2f}, {right}")
        predictions.append(predicted)
        truths.append(truth)
    if images:
        path = run.plots / "worst.png"
        names = task.classes.names
        plot_predictions(images, predictions, truths, names, path, infos=infos, said=message)


def _class_maps(
    run: RunDir, task: Task, entry: Mapping[str, Any], dataset: VisionDataset
) -> tuple[Prediction, Target]:
    """The class map that was written of an image, and its true one."""
    keep = getattr(task.metrics, "keep_suffix", False)
    mask = dataset.scene(entry["index"]).mask
    assert mask is not None
    with Image.open(run.path / mask_file(entry["file_name"], keep)) as file:
        predicted = Prediction(mask=torch.from_numpy(np.array(file)))
    return predicted, Target(mask=torch.from_numpy(mask))


def _counted(entry: Mapping[str, Any]) -> str:
    """What became of an image's objects, in words."""
    return (
        f"quality {entry['quality']:.2f}: {entry['found']} found, {entry['missed']} missed, "
        f"{entry['wrong']} wrong"
    )
