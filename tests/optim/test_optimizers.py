from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from cvtrain.errors import UsageError
from cvtrain.optim.optimizers import build_optimizer, find_optimizer

CONF = Path(__file__).parents[2] / "conf" / "optimizer"


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_yaml_builds_and_steps(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    model = net()
    optimizer = build_optimizer(model, config)
    before = model[0].weight.clone()
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)
    decays = sorted(g["weight_decay"] for g in optimizer.param_groups)
    assert decays == sorted([0.0, config["weight_decay"]])


@pytest.mark.parametrize(
    ("name", "library", "kind"),
    [
        ("RMSprop", "torch", torch.optim.RMSprop),
        ("rmsprop", "torch", torch.optim.RMSprop),
        ("nadam", "torch", torch.optim.NAdam),
        ("AdamW", "torch", torch.optim.AdamW),
    ],
)
def test_torch_names_in_any_case(name: str, library: str, kind: type) -> None:
    assert find_optimizer(name, library) is kind


def test_timm_names() -> None:
    optimizer = build_optimizer(net(), {"name": "lion", "library": "timm", "lr": 1e-4})
    assert type(optimizer).__name__ == "Lion"


def test_further_arguments_reach_the_optimizer() -> None:
    config = {"name": "rmsprop", "library": "torch", "lr": 0.1, "momentum": 0.7}
    assert build_optimizer(net(), config).defaults["momentum"] == 0.7


def test_numbers_that_yaml_reads_as_text() -> None:
    assert build_optimizer(net(), {"name": "sgd", "lr": "1e-3"}).defaults["lr"] == 1e-3


def test_an_optimizer_without_weight_decay() -> None:
    assert len(build_optimizer(net(), {"name": "lbfgs", "lr": 1.0}).param_groups) == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "adamx"}, "optimizer.name=adamx"),
        ({"name": "adamw", "library": "keras"}, "optimizer.library=keras"),
        ({"name": "sgd", "lr": 0.1, "betas": [0.9, 0.9]}, "optimizer.betas"),
        ({"name": "sgd", "lr": -1.0}, "-1.0"),
        ({"name": "sgd", "lr": "fast"}, "optimizer.lr=fast"),
        ({"name": "lbfgs", "lr": 1.0, "weight_decay": 0.1}, "weight_decay=0.1"),
        ({"name": "sparseadam", "lr": 0.1, "weight_decay": 0.1}, "weight_decay=0.1"),
    ],
)
def test_one_line_for_what_is_wrong(config: dict, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_optimizer(net(), config)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_near_names_are_offered() -> None:
    with pytest.raises(UsageError, match="adamw"):
        find_optimizer("adamww")


def test_a_frozen_model_is_refused() -> None:
    model = net().requires_grad_(False)
    with pytest.raises(UsageError, match="no trainable parameter"):
        build_optimizer(model, {"name": "sgd", "lr": 0.1})


def test_a_class_of_the_users_own() -> None:
    class Mine(torch.optim.SGD):
        pass

    config = {"_target_": "x.Mine", "name": "mine", "lr": 0.1, "momentum": 0.5}
    optimizer = build_optimizer(net(), config, factory=Mine)
    assert isinstance(optimizer, Mine)
    assert optimizer.defaults["momentum"] == 0.5
