from __future__ import annotations

import math
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from cvtrain.errors import RunError, UsageError
from cvtrain.structures import Prediction


def trainer(**options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        inference_mode=False, **options,
    )  # fmt: skip


def loader(*batches) -> DataLoader:
    return DataLoader(list(batches), batch_size=None)


def test_training_and_validation_go_through_the_model(make_task, batch) -> None:
    task = make_task(optimizer={"name": "sgd", "lr": 20.0})
    trainer(max_epochs=30).fit(task, loader(replace(batch, truths=None)), loader(batch))
    assert task.results["mAP50"] == 1.0
    assert task.scores["mAP"] > 0.9
    assert set(task.results) > {"loss", "w", "h", "num_objects", "mAP50"}
    assert task.results["num_objects"] == 2.0
    assert task.results["loss"] == pytest.approx(task.results["w"] + task.results["h"])


def test_what_is_logged_can_be_monitored_by_any_callback(make_task, batch) -> None:
    task, fitter = make_task(), trainer(max_epochs=1)
    fitter.fit(task, loader(replace(batch, truths=None)), loader(batch))
    assert float(fitter.callback_metrics["val/mAP50"]) == task.results["mAP50"]
    assert float(fitter.callback_metrics["val/loss"]) == pytest.approx(task.results["loss"])


def test_predictions_meet_truths_in_original_pixels(make_task, batch) -> None:
    task = make_task()
    with torch.no_grad():
        task.model.size.fill_(16.0)
    trainer().validate(task, loader(batch), verbose=False)
    entries = task.metrics.predictions_json()
    assert [e["file_name"] for e in entries] == ["0.png", "1.png"]
    assert entries[0]["bbox"] == [0.0, 0.0, 10.0, 20.0]  # (16 - 8) / 0.8, 16 / 0.8
    assert task.scores["mAP"] == pytest.approx(1.0)


def test_classification_predictions_are_left_alone(classification_task, batch) -> None:
    prediction = Prediction(probs=torch.tensor([0.25, 0.75]))
    assert classification_task.to_original(prediction, batch.infos[0]) is prediction


def test_a_box_cannot_be_mapped_back_through_a_random_warp(make_task, batch) -> None:
    warped = replace(batch.infos[0], placement=None)
    prediction = Prediction(boxes=torch.zeros(1, 4), scores=torch.ones(1), labels=torch.zeros(1))
    with pytest.raises(ValueError, match=r"0\.png"):
        make_task().to_original(prediction, warped)


def test_an_unknown_monitor_says_what_there_is(make_task, batch) -> None:
    with pytest.raises(UsageError, match=r"task.monitor=accuracy.*mAP50"):
        trainer().validate(make_task(monitor="accuracy"), loader(batch), verbose=False)


def test_a_mode_is_max_or_min(make_task) -> None:
    with pytest.raises(UsageError, match=r"task\.mode=best"):
        make_task(mode="best")


def test_the_schedule_is_set_at_every_step(make_task, batch) -> None:
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            rates.append(pl_module.learning_rate())

    task = make_task(scheduler={"name": "cosine", "warmup_epochs": 0, "final": 0.0})
    plain = replace(batch, truths=None)
    trainer(max_epochs=2, callbacks=[Watch()]).fit(task, loader(plain, plain, plain), loader(batch))
    wanted = [0.1 * (1 + math.cos(math.pi * k / 5)) / 2 for k in range(6)]
    assert rates == pytest.approx(wanted)


def test_accumulation_counts_optimizer_steps(make_task, batch) -> None:
    task, fitter = make_task(), trainer(max_epochs=1, accumulate_grad_batches=2)
    plain = replace(batch, truths=None)
    fitter.fit(task, loader(plain, plain, plain), loader(batch))
    assert fitter.global_step == 2
    assert task.train_results()["num_objects"] == 6.0


def test_the_state_dict_holds_the_model_alone(make_task) -> None:
    assert list(make_task().state_dict()) == ["model.size"]


def test_one_loss_may_overflow_but_not_all(make_task, batch) -> None:
    task = make_task()
    loss, odd = task.model.compute_loss, [0.0, math.inf]
    task.model.compute_loss = lambda *a: {**loss(*a), "odd": torch.tensor(odd.pop(0))}
    infos = [replace(info, index=info.index + 2) for info in batch.infos]
    trainer().validate(task, loader(batch, replace(batch, infos=infos)), verbose=False)
    assert task.results["loss"] == math.inf
    odd.append(math.inf)
    with pytest.raises(RunError, match="diverged, no validation loss is finite"):
        trainer().validate(task, loader(batch), verbose=False)


def test_weights_that_are_no_numbers_are_an_error(make_task, batch) -> None:
    task = make_task()
    with torch.no_grad():
        task.model.size[0] = math.nan
    none = Prediction(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0))
    task.model.decode = lambda outputs: [none, none]
    with pytest.raises(RunError, match="diverged, the weights are not finite"):
        trainer().validate(task, loader(batch), verbose=False)
