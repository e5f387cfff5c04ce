"""What is fixed stays bit for bit what it was; what learns, learns at its own rate."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cvtrain.engine.train import train
from cvtrain.errors import RunError, UsageError
from cvtrain.instantiate import instantiate
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.classification.classifier import Classifier
from cvtrain.optim.optimizers import build_optimizer
from cvtrain.transfer.regimes import Transfer

from .conftest import BLOCKS, DETECTOR, WIDTHS

Compose = Callable[..., dict[str, Any]]
State = Callable[..., dict[str, torch.Tensor]]
PREFIX = "model.backbone."


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(DarknetTiny(WIDTHS, BLOCKS, narrow=None), nn.CrossEntropyLoss(), 3)


def changed(weights: Path, now: dict[str, torch.Tensor]) -> set[int]:
    """Stages of the backbone of which any tensor differs from the file's."""
    file = torch.load(weights, weights_only=True)
    names = {k.removeprefix(PREFIX): v for k, v in now.items() if k.startswith(PREFIX)}
    assert names.keys() == file.keys()
    differing = [k for k, v in names.items() if not torch.equal(v, file[k])]
    return {int(k.split(".")[1]) for k in differing}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Whole runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "stages"),
    [
        (["transfer=feature_extraction", "transfer.cache=false"], set()),
        (["transfer=fine_tune"], {0, 1, 2}),
        (["transfer=partial", "transfer.stages=1"], {2}),
        (["transfer=partial", "transfer.stages=2"], {1, 2}),
        (["transfer=partial", "transfer.unfreeze_every=1"], {2}),
        (["transfer=partial", "transfer.unfreeze_every=1", "trainer.max_epochs=3"], {1, 2}),
        (["transfer=null"], {0, 1, 2}),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_fixed_stages_are_bit_equal_after_epochs_statistics_too(
    words: list[str], stages: set[int], compose: Compose, state: State, weights: Path
) -> None:
    assert train(compose(*words)) == 0
    assert changed(weights, state()) == stages
    assert not torch.equal(state()["model.fc.weight"], classifier().fc.weight)


def test_averaging_leaves_what_is_fixed_bit_equal(
    compose: Compose, state: State, weights: Path
) -> None:
    words = ["transfer=feature_extraction", "transfer.cache=false", "callbacks=default"]
    assert train(compose(*words, "callbacks.pictures=null")) == 0
    assert changed(weights, state()) == set()
    assert changed(weights, state(key="current_model_state")) == set()


@pytest.mark.parametrize(
    ("words", "stages"),
    [(["transfer=feature_extraction"], set()), (["transfer=partial", "transfer.stages=1"], {2})],
)
def test_a_detector_with_a_fixed_backbone(
    words: list[str], stages: set[int], compose: Compose, state: State, weights: Path
) -> None:
    config = compose(*DETECTOR, *words)
    assert config["augment"]["name"] == "yolo", "its images are augmented as ever"
    assert train(config) == 0
    assert changed(weights, state()) == stages
    before = state()["model.out.weight"]
    assert train(compose(*DETECTOR, *words, "trainer.max_epochs=3", run="longer")) == 0
    assert not torch.equal(before, state("longer")["model.out.weight"]), "what is on top learns"


def test_the_run_says_once_what_is_trained(compose: Compose, tmp_path: Path) -> None:
    assert train(compose("transfer=partial", "trainer.max_epochs=1")) == 0
    message = (tmp_path / "run" / "train.log").read_text()
    assert message.count("transfer=partial: 2 of 3 stages train, 1.5 k of 1.7 k parameters") == 1


def test_a_run_that_is_killed_while_the_backbone_is_fixed_goes_on_exactly(
    compose: Compose, state: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed in epoch 1 (fixed) and in epoch 3 (all train): the same weights at the end."""
    from cvtrain.tasks.base import Task

    words = ["transfer=fine_tune", "transfer.freeze_epochs=2", "trainer.max_epochs=4"]
    words += ["callbacks=default", "callbacks.pictures=null"]
    assert train(compose(*words, run="whole")) == 0
    original = Task.on_train_epoch_start
    config = compose(*words, run="cut")
    for epoch in (1, 3):

        def stop(self: Task, at: int = epoch) -> None:
            if self.current_epoch == at:
                raise RunError("the power went")
            original(self)

        monkeypatch.setattr(Task, "on_train_epoch_start", stop)
        with pytest.raises(RunError, match="the power went"):
            train(config)
        config["resume"] = config["run_dir"]
    monkeypatch.setattr(Task, "on_train_epoch_start", original)
    assert train(config) == 0
    for key in ("state_dict", "current_model_state"):
        whole, cut = state("whole", key=key), state("cut", key=key)
        assert all(torch.equal(whole[name], cut[name]) for name in whole)
    metrics = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / run)]
               for run in ("whole", "cut")]  # fmt: skip
    assert metrics[0] == metrics[1]


# Modes ------------------------------------------------------------------------------------------


def test_what_is_fixed_stays_in_eval_mode_whatever_train_is_called() -> None:
    model = classifier().train()
    transfer = Transfer({"name": "partial", "stages": 1}, model)
    transfer.begin(model)
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for call in (model.train, model.backbone.train, lambda: model.train(True)):
        call()
        assert [m.training for m in norms] == [False, False, True]
    model.eval()
    assert not any(m.training for m in model.modules())
    grads = [p.requires_grad for p in model.backbone.blocks[0].parameters()]
    assert grads
    assert not any(grads)


def test_stages_come_free_again_and_what_was_fixed_on_purpose_does_not() -> None:
    model = classifier().train()
    own = model.backbone.blocks[0][0].conv.weight
    own.requires_grad_(False)  # the network's own choice
    model.backbone.freeze_stages(3)
    model.train()
    assert not any(m.training for m in model.backbone.modules())
    model.backbone.freeze_stages(1)
    model.train()
    assert [block.training for block in model.backbone.blocks] == [False, True, True]
    model.backbone.freeze_stages(0)
    model.train()
    assert all(m.training for m in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "backbone.blocks.0.0.conv.weight"
    ]


def test_a_model_that_fixes_layers_itself_is_heard() -> None:
    """Phases of a model and of the regime: what either fixes is fixed."""
    model = classifier().train()
    transfer = Transfer({"name": "partial", "unfreeze_every": 1}, model)
    transfer.begin(model)
    assert model.has_frozen_epochs
    for epoch, trained in enumerate([0, 1, 2, 3, 3]):
        transfer.unfreeze(model)
        model.backbone.blocks[2].requires_grad_(epoch != 2)  # as its on_epoch_start would
        transfer.freeze(model, epoch)
        free = [all(p.requires_grad for p in block.parameters()) for block in model.backbone.blocks]
        assert free == [i >= 3 - trained and not (i == 2 and epoch == 2) for i in range(3)]


# Rates ------------------------------------------------------------------------------------------


def test_rates_are_those_of_a_table_made_by_hand() -> None:
    model = classifier()
    transfer = Transfer({"name": "fine_tune", "layer_decay": 0.5, "freeze_epochs": 1}, model)
    transfer.begin(model)
    assert model.has_frozen_epochs
    assert all(p.requires_grad for p in model.parameters()), "the optimizer takes all"
    config = {"name": "adamw", "lr": 0.8, "weight_decay": 0.1}
    optimizer = build_optimizer(model, config, rates=transfer.lr_factors(model))
    names = {id(p): name for name, p in model.named_parameters()}
    table = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    kernel, norm = "backbone.blocks.{}.0.conv.weight", "backbone.blocks.{}.0.norm.{}"
    expected = {"fc.weight": (0.8, 0.1), "fc.bias": (0.8, 0.0)}
    for stage, lr in enumerate([0.1, 0.2, 0.4]):
        expected[kernel.format(stage)] = (lr, 0.1)
        expected |= {norm.format(stage, n): (lr, 0.0) for n in ("weight", "bias")}
    assert table.keys() == expected.keys()
    for name, (lr, decay) in expected.items():
        assert table[name] == (pytest.approx(lr), decay), name


def test_rates_follow_the_schedule_and_the_highest_is_reported(
    compose: Compose, tmp_path: Path
) -> None:
    words = ["transfer=fine_tune", "transfer.layer_decay=0.5", "optimizer=sgd", "optimizer.lr=0.1"]
    assert train(compose(*words, "scheduler=none")) == 0
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    rates = sorted({group["lr"] for group in saved["optimizer_states"][0]["param_groups"]})
    assert rates == pytest.approx([0.0125, 0.025, 0.05, 0.1])
    assert float(rows(tmp_path / "run")[-1]["lr"]) == pytest.approx(0.1)


def test_the_whole_backbone_at_a_part_of_the_rate() -> None:
    model = classifier()
    config = {"name": "fine_tune", "layer_decay": 1.0, "backbone_rate": 0.1}
    transfer = Transfer(config, model)
    rates = transfer.lr_factors(model)
    assert set(rates.values()) == {0.1}
    assert rates.keys() == {n for n, _ in model.named_parameters() if n.startswith("backbone.")}
    assert "the backbone's at 0.1 of optimizer.lr" in transfer.summary(model, 1)
    both = Transfer({**config, "layer_decay": 0.5}, model)
    assert sorted(set(both.lr_factors(model).values())) == pytest.approx([0.0125, 0.025, 0.05])
    assert "at 0.013 (next to the image) to 0.05 of optimizer.lr" in both.summary(model, 1)


def test_parts_of_no_rate_are_refused() -> None:
    model = classifier()
    rates = Transfer({"name": "fine_tune", "layer_decay": 0.5}, model).lr_factors(model)
    with pytest.raises(UsageError, match=r"give optimizer\.lr"):
        build_optimizer(model, {"name": "adamw"}, rates=rates)


# What cannot be ---------------------------------------------------------------------------------


def test_more_stages_than_there_are() -> None:
    with pytest.raises(UsageError, match=r"transfer\.stages=4: this backbone has 3 stages"):
        Transfer({"name": "partial", "stages": 4}, classifier())


def test_a_model_without_a_backbone() -> None:
    model = classifier()
    model.backbone = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"Classifier keeps none as self\.backbone"):
        Transfer({"name": "fine_tune"}, model)


def test_stages_that_leave_something_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()
    stages = model.backbone.stages()[1:]
    monkeypatch.setattr(type(model.backbone), "stages", lambda self: stages)
    with pytest.raises(UsageError, match=r"name blocks\.0\.0\.conv\.weight 0 times"):
        Transfer({"name": "fine_tune"}, model)


def test_an_unknown_regime() -> None:
    with pytest.raises(UsageError, match=r"transfer\.name=gentle: expected one of scratch"):
        Transfer({"name": "gentle"}, classifier())


def test_yaml_and_code_agree(compose: Compose) -> None:
    for name in ("feature_extraction", "fine_tune", "partial"):
        config = compose(f"transfer={name}")
        model = instantiate(config["model"], where="model", num_classes=3)
        assert Transfer(config["transfer"], model).name == name
    config = compose("transfer=scratch", scratch=True)
    assert Transfer(config["transfer"], classifier()).trained(0) == 3
