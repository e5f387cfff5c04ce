from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from cvtrain.errors import UsageError
from cvtrain.optim.names import LIBRARIES, optimizer_names, refused_optimizer
from cvtrain.optim.optimizers import (
    _timm_optimizers,
    _torch_optimizers,
    build_optimizer,
    find_optimizer,
)

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


@pytest.mark.filterwarnings("ignore:.*opt_einsum")  # of timm's kron
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_name_of_a_library_trains_or_is_refused(library: str) -> None:
    """Names that need a package of others are refused where that is not installed."""
    known = list(_torch_optimizers() if library == "torch" else _timm_optimizers())
    refused = {name for name in known if refused_optimizer(name, library)}
    assert {name.lower() for name in optimizer_names(library)} == {*known} - refused
    for name in optimizer_names(library):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = build_optimizer(model, {"name": name, "library": library, "lr": 1e-3})
        for _ in range(2):  # the first of some only begins their averages
            optimizer.zero_grad()
            model(torch.randn(2, 3, 4, 4)).square().sum().backward()
            with torch.compiler.set_stance("force_eager"):  # kron compiles itself
                optimizer.step()
        after = list(model.parameters())
        assert not all(map(torch.equal, before, after)), name
        assert all(bool(p.isfinite().all()) for p in after), name


@pytest.mark.parametrize(
    ("name", "library", "said"),
    [
        ("LBFGS", "torch", "several times a step, training here does so once; write optimizer="),
        ("SparseAdam", "torch", "write optimizer=torch optimizer.name=Adam"),
        ("Muon", "torch", "write optimizer=timm optimizer.name=muon"),
        ("adahessian", "timm", "second derivatives"),
        ("AdmaW", "torch", "did you mean AdamW"),
        ("lion", "torch", "is timm's: write optimizer=timm optimizer.name=lion"),
        ("lams", "timm", "did you mean lars or lamb?"),
        ("qqq", "torch", "it has Adafactor, "),
        ("adamw", "keras", "optimizer.library=keras: it takes torch | timm"),
    ],
)
def test_names_that_do_not_train(name: str, library: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_optimizer(name, library)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "momentum"), [("sgd", {}, 0.9), ("lars", {"momentum": 0.5}, 0.5)]
)
def test_timms_momentum(name: str, given: dict[str, float], momentum: float) -> None:
    config = {"name": name, "library": "timm", "lr": 0.1, **given}
    assert build_optimizer(net(), config).defaults["momentum"] == momentum


def test_an_optimizer_without_weight_decay() -> None:
    class Plain(torch.optim.Optimizer):
        def __init__(self, params: object, lr: float = 0.1) -> None:
            super().__init__(params, {"lr": lr})

    config = {"name": "plain", "lr": 1.0}
    assert len(build_optimizer(net(), config, factory=Plain).param_groups) == 1
    with pytest.raises(UsageError, match=r"weight_decay=0\.1: plain takes none; set it to 0"):
        build_optimizer(net(), {**config, "weight_decay": 0.1}, factory=Plain)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "adamx"}, "optimizer.name=adamx"),
        ({"name": "adamw", "library": "keras"}, "optimizer.library=keras"),
        ({"name": "sgd", "lr": 0.1, "betas": [0.9, 0.9]}, "optimizer.betas"),
        ({"name": "sgd", "lr": -1.0}, "-1.0"),
        ({"name": "sgd", "lr": "fast"}, "optimizer.lr=fast"),
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
