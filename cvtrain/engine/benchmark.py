"""What a trained model costs: parameters, FLOPs, latency, images per second, memory.

Each model is measured in a process of its own, so that none finds another's memory or caches, and
one that is killed for memory takes nothing with it. All have the same threads and device.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cvtrain.data.collate import collate
from cvtrain.data.datamodule import build_datamodule
from cvtrain.data.worker import leave_signals_to_parent, starting_workers
from cvtrain.engine.checkpoint import load_model
from cvtrain.engine.device import Device, choose_device
from cvtrain.engine.evaluate import set_key
from cvtrain.errors import CvtrainError, DataError, RunError
from cvtrain.failures import translate
from cvtrain.models.base import Model
from cvtrain.structures import Batch

WARM_UP = (5, 2.0)
"""Runs before any is timed, and the seconds after which they end (one there is always)."""

MOST_SECONDS = 30.0
"""Timed runs at batch 1 end after so long, but there are LEAST of them."""

LEAST = 5
BATCHES = (3, 5.0)
"""Full batches that are timed at least, and the seconds that they take together at least."""


@dataclass(frozen=True)
class Job:
    """One model to measure.

    Attributes:
        checkpoint: its file.
        config: of the run folder: whose data the images are of.
        split: that the images are of.
        runs: timed images at batch 1.
        data_root: where the data set is now; None: where it was.
        batch_size: of a full batch; None: the run's own.
        accelerator, precision: as in ``config["trainer"]``.
        trust: packages that the config may name.
    """

    checkpoint: str
    config: Mapping[str, Any]
    split: str
    runs: int
    data_root: str | None = None
    batch_size: int | None = None
    accelerator: str = "auto"
    precision: str = "auto"
    trust: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cost:
    """What came of it.

    Attributes:
        parameters: numbers that the model has as parameters, fixed ones too.
        flops: of one image, a multiplication and an addition counted as two; convolutions, matrix
            products and attention, nothing else (no RoIAlign, no NMS, no normalization).
        latency, latency_p10, latency_p90: seconds of one image at batch 1, from uint8 pixels on the
            device to boxes there, decoding and NMS included: median, 10th, 90th percentile.
        runs: images that were timed for it.
        images_per_s: at batches of ``batch_size``.
        batch_size: of those; less than asked for where a model takes too long.
        memory: bytes: the peak over all that, less what was held before the model was made. Of the
            GPU where there is one, else of the process.
        proposals: seconds of one core that the proposals of an image took, NOT part of the latency;
            None: the model takes none, or they are from a file that does not say.
        takes_proposals: whether the model is given boxes.
        device: where, in words, with precision and threads.
    """

    parameters: int
    flops: float
    latency: float
    latency_p10: float
    latency_p90: float
    runs: int
    images_per_s: float
    batch_size: int
    memory: int
    proposals: float | None
    takes_proposals: bool
    device: str


def measure_all(jobs: Sequence[Job]) -> Iterator[Cost | CvtrainError]:
    """Each job's cost, in order, or the error that it ended with."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for job in jobs:
        with starting_workers("run compare outside of it"):
            pool = ProcessPoolExecutor(1, context, initializer=leave_signals_to_parent)
            future = pool.submit(measure, job)
        try:
            yield future.result()
        except CvtrainError as error:
            yield error
        except BrokenProcessPool:
            yield RunError("its process was killed, most likely for memory; lower data.batch_size")
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def measure(job: Job) -> Cost:
    """Measure one model, in this process.

    Raises:
        CvtrainError: the images cannot be read, the checkpoint cannot be loaded, no memory.
    """
    device = choose_device(
        {"accelerator": job.accelerator, "precision": job.precision, "devices": 1}
    )
    try:
        return _measure(job, device)
    except Exception as error:
        known = translate(error, job.config)
        if known is None:
            raise
        raise known from error


def _measure(job: Job, device: Device) -> Cost:
    images, seconds = _images(job)
    place = device.torch_device()
    one = [collate([image]) for image in images]
    before = _held(place)
    loaded = load_model(job.checkpoint, trust=job.trust)
    predict = _Predict(loaded.model.to(place), device)
    with FlopCounterMode(display=False) as counter:
        predict(one[0])
    times = _latencies(predict, one, job.runs)
    median = float(np.median(times))
    wanted = job.batch_size or int(job.config["data"]["batch_size"])
    size = max(1, min(wanted, int(MOST_SECONDS / median)))
    full = collate([images[i % len(images)] for i in range(size)])
    speed = _throughput(predict, full)
    proposals = images[0].proposals is not None
    return Cost(
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        flops=float(counter.get_total_flops()),
        latency=median,
        latency_p10=float(np.percentile(times, 10)),
        latency_p90=float(np.percentile(times, 90)),
        runs=len(times),
        images_per_s=speed,
        batch_size=size,
        memory=_peak(place) - before,
        proposals=seconds if proposals and seconds > 0 else None,
        takes_proposals=proposals,
        device=_in_words(device),
    )


def _images(job: Job) -> tuple[list[Any], float]:
    """Samples of the split, evenly spaced, and the mean seconds that their proposals took."""
    config = copy.deepcopy(dict(job.config)) | {"augment": None}
    if config["task"].get("inference"):
        config["task"]["inference"]["mode"] = "fit"  # at data.image_size, as the others
    if job.data_root is not None:
        set_key(config, "data.root", job.data_root)
    data, _ = build_datamodule(
        config,
        config["task"]["name"],
        seed=int(config.get("seed") or 0),
        trust=job.trust,
        splits=[job.split],
        images=job.runs,
        progress=False,
    )
    data.make_boxes([job.split])
    samples = data.dataset(job.split)
    if not len(samples):
        raise DataError(f"the {job.split} split has no images to measure on")
    images = [samples[i] for i in range(len(samples))]
    if data.proposals is None:
        return images, 0.0
    seconds = [float(data.proposals.boxes(i.info.file_name).seconds) for i in images]
    return images, float(np.mean(seconds))


class _Predict:
    """A model's predictions, waited for."""

    def __init__(self, model: Model, device: Device) -> None:
        self.model, self.autocast = model, device.autocast
        self.place = device.torch_device()
        self.wait = _waiter(device.torch_device())

    def __call__(self, batch: Batch) -> float:
        """Seconds of one batch, once it is on the device."""
        batch = batch.to(self.place)
        self.wait()
        begun = time.perf_counter()
        with self.autocast():
            self.model.predict(batch.images, batch.proposals)
        self.wait()
        return time.perf_counter() - begun


def _waiter(place: torch.device) -> Callable[[], None]:
    """Waits until the device has done all it was told to."""
    if place.type == "cuda":
        return torch.cuda.synchronize
    return torch.mps.synchronize if place.type == "mps" else lambda: None


def _latencies(predict: _Predict, images: Sequence[Batch], runs: int) -> list[float]:
    """Seconds of single images, after some that do not count."""
    count, enough = WARM_UP
    spent = 0.0
    for i in range(count):
        spent += predict(images[i % len(images)])
        if spent > enough:
            break
    times: list[float] = []
    while len(times) < runs and (len(times) < LEAST or sum(times) < MOST_SECONDS):
        times.append(predict(images[len(times) % len(images)]))
    return times


def _throughput(predict: _Predict, batch: Batch) -> float:
    """Images per second; a batch that does not count goes first, where that is quick."""
    count, enough = BATCHES
    first = predict(batch)
    if first > MOST_SECONDS / 4:
        return len(batch) / first
    times: list[float] = []
    while len(times) < count or sum(times) < enough:
        times.append(predict(batch))
    return len(batch) / float(np.median(times))


def _held(place: torch.device) -> int:
    """Bytes in use now; the peak counts from here."""
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    if sys.platform != "linux":
        return _resident()
    # 5 resets the peak; where a kernel does not let us, reading the images counts too.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(place: torch.device) -> int:
    """The most bytes in use so far."""
    if place.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return _status("VmHWM") if sys.platform == "linux" else _resident()


def _status(key: str) -> int:
    """Of this process: unlike getrusage's, these peaks are not those of the process before it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RunError(f"/proc/self/status has no {key}: memory cannot be measured")


def _resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _in_words(device: Device) -> str:
    if device.accelerator == "gpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' if threads != 1 else ''}"
