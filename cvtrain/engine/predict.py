"""Predict on images without ground truth: predictions.json and the images with them drawn."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from cvtrain.callbacks.console import LOG, console
from cvtrain.callbacks.pictures import displayable
from cvtrain.data.datamodule import is_native
from cvtrain.data.image_folder import ImageFolder, Unreadable
from cvtrain.engine.build import build_task
from cvtrain.engine.checkpoint import load_model
from cvtrain.engine.device import Device, choose_device
from cvtrain.engine.evaluate import model_changes, run_settings
from cvtrain.engine.logs import log_quietly
from cvtrain.engine.rundir import RunDir, claimed, new_run_dir, stored_config
from cvtrain.engine.session import session
from cvtrain.errors import CvtrainError, DataError, RunError
from cvtrain.failures import translate
from cvtrain.instantiate import instantiate
from cvtrain.metrics.semantic_segmentation import (
    SemanticSegmentationMetrics,
    mask_file,
    must_keep_suffix,
)
from cvtrain.report.draw import draw, save, save_mask, shrunk
from cvtrain.signals import exit_code
from cvtrain.storage import write_json_list_atomic
from cvtrain.structures import Batch, ImageInfo, Prediction
from cvtrain.tasks.base import Task
from cvtrain.text import output_file, printable, relative

SHOWN = 20
"""Images in the printed table; all are in predictions.json."""

_OF_THE_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors in writing that the next image would meet, too."""


def predict(config: dict[str, Any]) -> int:
    """Predict on ``config["source"]``; the exit code.

    Args:
        config: ``ckpt`` (file or run folder), ``source`` (file, folder or glob),
            ``score_threshold`` (detections below it are left out), ``run_dir`` (None: a new
            folder), ``trust``, ``overrides`` as for ``evaluate``.

    Returns:
        0; 1 where an image was dropped: one that cannot be read, predicted, drawn or named costs
        itself alone, and is named.

    Raises:
        CvtrainError: one line for the user.
    """
    with session(config) as log, ExitStack() as stack:
        try:
            loaded = load_model(config["ckpt"], config.get("trust") or (), model_changes(config))
            settings = run_settings(loaded, config)
            data = settings["data"]
            device = choose_device({**settings["trainer"], "devices": 1, "num_nodes": 1})
            images = ImageFolder(
                config["source"],
                data["image_size"],
                data["resize"],
                data["channels"],
                instantiate(
                    settings.get("proposals"),
                    where="proposals",
                    trust=config.get("trust") or (),
                ),
                is_native(settings),
            )
            run = stack.enter_context(claimed(config, lambda: _run_dir(config, settings)))
            task = build_task(settings, loaded.model, loaded.classes, config.get("trust") or ())
            run.create(stored_config(settings, run), [])
            log.open(run.log)
            LOG.info(f"{loaded.path} (epoch {loaded.epoch + 1}), on {device}")
            for line in images.notes:
                LOG.warning(line)
            job = _Predicting(task, images, settings, device, run, config["score_threshold"])
            return job.go()
        except BaseException as error:
            code = exit_code(error)
            if code is None:
                raise
            LOG.info("stopped; not all images were predicted")
            return code


def _run_dir(config: Mapping[str, Any], settings: Mapping[str, Any]) -> RunDir:
    if config.get("run_dir"):
        run = RunDir(config["run_dir"])
        run.raise_if_used(config["source"])
        return run
    return new_run_dir(settings["task"]["name"], settings["model"]["name"], "-predict")


class _Predicting:
    """One pass over the images."""

    def __init__(
        self,
        task: Task,
        images: ImageFolder,
        settings: Mapping[str, Any],
        device: Device,
        run: RunDir,
        threshold: float,
    ) -> None:
        self.task, self.images, self.run = task, images, run
        self.settings, self.threshold = settings, float(threshold)
        self.device = device.torch_device()
        self.autocast = device.autocast
        self.pictures = run.path / "images"
        self.rows: list[tuple[str, str]] = []
        self.left_out: list[Unreadable] = []
        self.keep_suffix = must_keep_suffix(images.files)
        if isinstance(task.metrics, SemanticSegmentationMetrics):
            task.metrics.keep_suffix = self.keep_suffix

    def go(self) -> int:
        """Predict, write, draw and print; the exit code: 1 where an image was left out.

        Raises:
            DataError: no image could be predicted.
            RunError: nothing can be written.
        """
        started = time.perf_counter()
        path = write_json_list_atomic(self.run.path / "predictions.json", self._entries())
        seconds = time.perf_counter() - started
        left_out = sorted(self.images.unreadable + self.left_out, key=lambda bad: bad.file)
        for bad in left_out:
            LOG.warning(f"skipped: {_named(bad)}")
        if not self.rows:
            raise DataError(f"none of the {len(self.images)} images could be predicted")
        self._print()
        count = len(self.rows)
        message = f"{count} image{'s' if count != 1 else ''} in {seconds:.1f} s"
        if left_out:
            message += f", {len(left_out)} skipped (named above)"
        LOG.info(message)
        LOG.info(f"predictions: {relative(path)}")
        LOG.info(f"images with them drawn: {relative(self.pictures)}")
        if (folder := self.run.path / "masks").exists():
            LOG.info(f"class maps: {relative(folder)}")
        return 1 if left_out else 0

    def _entries(self) -> Iterator[dict[str, Any]]:
        data = self.settings["data"]
        self.task.model.to(self.device)
        workers = data.get("num_workers")
        batch_size = int(data["batch_size"])
        # A few images are sooner read than processes started.
        few = len(self.images) <= 4 * batch_size
        workers = 0 if few else (min(os.cpu_count() or 1, 8) if workers is None else workers)
        if self.images.native:  # of any size: one at a time
            batch_size, workers = 1, min(workers, self.images.most_workers())
        for batch in self.images.batches(batch_size, workers):
            for info, prediction in self._predicted(batch):
                try:
                    entries = self._written(prediction, info)
                except (CvtrainError, OSError) as error:
                    self._leave_out(info, error)
                else:
                    yield from entries

    def _predicted(self, batch: Batch) -> Iterator[tuple[ImageInfo, Prediction]]:
        """Each image's prediction; of a batch that fails, those of the images that do not."""
        try:
            with self.autocast():
                originals = self.task.predict_batch(batch.to(self.device))
        except (CvtrainError, MemoryError, torch.OutOfMemoryError) as error:
            if len(batch) == 1:
                self._leave_out(batch.infos[0], translate(error, self.settings) or error)
                return
            for k in range(len(batch)):
                yield from self._predicted(_single(batch, k))
            return
        yield from zip(batch.infos, originals, strict=True)

    def _written(self, prediction: Prediction, info: ImageInfo) -> list[dict[str, Any]]:
        """The entries of predictions.json of an image; its class map and its picture are drawn.

        Raises:
            CvtrainError, OSError: for this image that cannot be done.
        """
        original = self._cut(prediction).cpu()
        entries = list(self._entries_of(original, info))
        if original.mask is not None:
            name = mask_file(info.file_name, self.keep_suffix)
            save_mask(self.run.path / name, original.mask, self.task.classes.names)
        try:
            self._draw(original, info)
        except (CvtrainError, OSError):
            raise
        except Exception as error:
            why = f"{info.file_name} cannot be drawn ({type(error).__name__}: {error})"
            raise RunError(why) from error
        self.rows.append((info.file_name, self._say(original)))
        return entries

    def _entries_of(self, prediction: Prediction, info: ImageInfo) -> Iterator[dict[str, Any]]:
        """The entries of predictions.json of an image.

        Raises:
            RunError: the prediction is not finite: here that is the image's fault, not training's.
        """
        try:
            yield from self.task.metrics.prediction_entries(prediction, info)
        except RunError as error:
            raise RunError(
                f"{info.file_name}: its prediction is not finite; look for odd pixel values"
            ) from error

    def _leave_out(self, info: ImageInfo, error: Exception) -> None:
        """Note that an image was not predicted, and why.

        Raises:
            RunError, OSError: the error is none of this image's: the place is full, or read-only.
        """
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _OF_THE_PLACE:
            raise error
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.left_out.append(Unreadable(info.file_name, why))

    def _cut(self, prediction: Prediction) -> Prediction:
        """Without the detections below the threshold; of guesses at one object the best stays."""
        if prediction.scores is None:
            return prediction
        keep = prediction.scores >= self.threshold
        if prediction.probs is not None:
            keep[:1] = True
        return prediction.of(keep)

    def _draw(self, prediction: Prediction, info: ImageInfo) -> None:
        image, mask = self.images.image(info.index), None
        if prediction.mask is not None:  # of a large image more than anyone looks at
            image, mask = shrunk(image), shrunk(prediction.mask.numpy(), smooth=False)
        picture = displayable(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
        drawn = draw(
            picture,
            _array(prediction.boxes, (0, 4)),
            _array(prediction.labels, (0,)).astype(np.int64),
            list(self.task.classes.names),
            scores=None if prediction.scores is None else _array(prediction.scores, (0,)),
            masks=prediction.rles,
            mask=mask,
        )
        if prediction.probs is not None:
            drawn = self._caption(drawn, prediction)
        stem = str(PurePosixPath(info.file_name).with_suffix(""))
        path = self.pictures / output_file(stem, ".png")
        if path.exists():  # a.jpg and a.png in one folder
            path = self.pictures / output_file(info.file_name, ".png")
        save(path, drawn, durable=False)

    def _caption(self, image: np.ndarray, prediction: Prediction) -> np.ndarray:
        from cvtrain.report.draw import grid

        return grid([image], 1, [self._say(prediction)])

    def _say(self, prediction: Prediction) -> str:
        """A line: the best class, all that are likely, or how many objects of each."""
        names = self.task.classes.names
        threshold = getattr(self.task.metrics, "threshold", None)
        if prediction.probs is not None and threshold is not None:  # any number of classes
            order = prediction.probs.argsort(descending=True).tolist()
            found = [k for k in order if prediction.probs[k] >= threshold]
            message = ", ".join(f"{names[k]} {float(prediction.probs[k]):.2f}" for k in found)
            return message or f"nothing ({names[order[0]]} {float(prediction.probs[order[0]]):.2f})"
        if prediction.probs is not None:
            best, score = prediction.best()
            bare = prediction.boxes is not None and not len(prediction.boxes)
            return f"{names[best]} {score:.2f}{', no box' if bare else ''}"
        if prediction.mask is not None:
            return self._say_shares(prediction.mask)
        if prediction.labels is None:
            return ""
        counts = torch.bincount(prediction.labels, minlength=len(names)).tolist()
        return ", ".join(f"{n} {names[k]}" for k, n in enumerate(counts) if n) or "nothing"

    def _say_shares(self, mask: Tensor) -> str:
        """How much of the image each class has, the largest first."""
        names = self.task.classes.names
        shares = torch.bincount(mask.flatten(), minlength=len(names)) / mask.numel()
        order = shares.argsort(descending=True, stable=True).tolist()
        return ", ".join(f"{names[k]} {float(shares[k]):.1%}" for k in order if shares[k] > 0)

    def _print(self) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(overflow="fold")
        table.add_column(overflow="fold")
        for name, message in self.rows[:SHOWN]:
            table.add_row(printable(name), printable(message))
        if len(self.rows) > SHOWN:
            table.add_row(f"({len(self.rows) - SHOWN} more)", "", style="dim")
        console().print(table)
        log_quietly("\n".join(printable(f"{name}  {message}") for name, message in self.rows))


def _single(batch: Batch, k: int) -> Batch:
    """A batch of one image of another."""
    part = slice(k, k + 1)
    boxes = None if batch.proposals is None else batch.proposals[part]
    return Batch(batch.images[part], batch.targets[part], batch.infos[part], proposals=boxes)


def _array(tensor: Tensor | None, empty: tuple[int, ...]) -> np.ndarray:
    return np.zeros(empty) if tensor is None else tensor.float().numpy()


def _named(bad: Unreadable) -> str:
    return bad.why if bad.file in bad.why else f"{bad.file}: {bad.why}"
