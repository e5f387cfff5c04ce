"""What a model costs: counted by hand where that can be done, and measured at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from cvtrain.engine import benchmark as measuring
from cvtrain.engine.benchmark import Cost, Job, measure, measure_all
from cvtrain.engine.evaluate import evaluate
from cvtrain.errors import CheckpointError, CvtrainError, DataError
from cvtrain.structures import Prediction


@pytest.fixture
def job(trained: Path) -> Job:
    config = yaml.safe_load((trained / "config.yaml").read_text())
    return Job(
        str(trained / "checkpoints/best.ckpt"), config, "val", 4, None, None, "cpu", "32-true"
    )


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "BATCHES", (1, 0.0))


def test_a_model_is_measured(job: Job) -> None:
    cost = measure(job)
    state = torch.load(job.checkpoint, weights_only=True)["state_dict"]
    buffers = ("mean", "std", "running_mean", "running_var", "num_batches_tracked")
    held = {k: v for k, v in state.items() if k.rpartition(".")[2] not in buffers}
    assert cost.parameters == sum(v.numel() for v in held.values())
    assert cost.flops > 2 * cost.parameters
    assert 0 < cost.latency_p10 <= cost.latency <= cost.latency_p90
    assert (cost.runs, cost.batch_size) == (4, 4)
    assert cost.images_per_s > 0
    assert cost.memory > 0
    assert cost.proposals is None
    assert not cost.takes_proposals
    assert cost.device == "cpu, 32-true, 1 thread"


class Counted(nn.Module):
    """A convolution and a linear layer whose operations a person can count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 5, bias=False)
        self.seen: list[tuple[int, int]] = []

    def predict(self, images: Tensor, proposals: list[Tensor] | None = None) -> list[Prediction]:
        self.seen.append((len(images), 0 if proposals is None else len(proposals[0])))
        with torch.no_grad():
            self.head(self.conv(images.float()).mean((2, 3)))
        return []


def given(job: Job, monkeypatch: pytest.MonkeyPatch, seconds: float) -> tuple[Cost, Counted]:
    """The cost of ``Counted`` on the job's images, with three boxes each."""
    model = Counted()
    samples, _ = measuring._images(job)
    boxes = np.zeros((3, 4), np.float32)
    monkeypatch.setattr(
        measuring, "_images", lambda _: ([replace(s, proposals=boxes) for s in samples], seconds)
    )
    loaded = type("Loaded", (), {"model": model})
    monkeypatch.setattr(measuring, "load_model", lambda *_, **__: loaded)
    return measure(job), model


def test_operations_by_hand_and_boxes_that_are_handed_on(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, model = given(job, monkeypatch, 0.25)
    assert cost.flops == 2 * (64 * 64 * 3 * 8 * 9 + 8 * 5)
    assert cost.parameters == 3 * 8 * 9 + 8 * 5
    assert cost.proposals == 0.25
    assert cost.takes_proposals
    assert {boxes for _, boxes in model.seen} == {3}
    assert {size for size, _ in model.seen} == {1, 4}
    assert given(job, monkeypatch, 0.0)[0].proposals is None, "a file does not say"


def test_a_slow_model_gets_smaller_batches(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MOST_SECONDS", 1e-9)
    cost, model = given(job, monkeypatch, 0.0)
    assert cost.batch_size == 1
    assert {size for size, _ in model.seen} == {1}


def test_data_that_is_gone_and_checkpoints_that_are_none(job: Job, tmp_path: Path) -> None:
    reader = {"_target_": "cvtrain.data.formats.coco.COCOReader", "root": "/before"}
    data = {**job.config["data"], "root": "/before", "reader": reader}
    with pytest.raises(DataError, match="gone"):
        measure(replace(job, config={**job.config, "data": data}, data_root=str(tmp_path / "gone")))
    (tmp_path / "x.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        measure(replace(job, checkpoint=str(tmp_path / "x.ckpt")))


def test_what_a_run_was_scored_on_is_the_same_in_its_evaluation(
    trained: Path, tmp_path: Path, command: Callable[..., dict[str, Any]]
) -> None:
    words = ["eval", f"ckpt={trained}", f"run_dir={tmp_path / 'e'}", "trainer.accelerator=cpu"]
    assert evaluate(command(*words, "data.num_workers=0")) == 0
    one, other = (
        json.loads((folder / "results.json").read_text())["scored"]
        for folder in (trained, tmp_path / "e")
    )
    assert one == other
    assert one["images"] == 5


@pytest.mark.slow
def test_each_model_has_a_process_of_its_own(job: Job, tmp_path: Path) -> None:
    """Starts processes that import torch: about 15 s."""
    (tmp_path / "x.ckpt").write_bytes(b"x")
    wrong = replace(job, checkpoint=str(tmp_path / "x.ckpt"))
    first, second, third = measure_all([job, wrong, job])
    assert isinstance(first, Cost)
    assert isinstance(second, CvtrainError)
    assert isinstance(third, Cost)
    assert first.flops == third.flops
