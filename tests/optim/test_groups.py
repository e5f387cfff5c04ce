from __future__ import annotations

import pytest
import torch
from torch import nn

from cvtrain.optim.groups import parameter_groups


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 4, 8))
        self.proj = nn.Linear(8, 8)

    def no_weight_decay(self) -> set[str]:
        return {"position"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.tokens = Tokens()


def names(net: nn.Module, group: dict) -> set[str]:
    ids = {id(p) for p in group["params"]}
    return {name for name, p in net.named_parameters() if id(p) in ids}


def test_norms_biases_and_named_exceptions_are_not_decayed() -> None:
    net = Net()
    decayed, plain = parameter_groups(net, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert names(net, decayed) == {"conv.weight", "tokens.proj.weight"}
    assert names(net, plain) == {
        "conv.bias", "norm.weight", "norm.bias", "tokens.position", "tokens.proj.bias",
    }  # fmt: skip


def test_frozen_parameters_are_in_no_group() -> None:
    net = Net()
    net.conv.requires_grad_(False)
    seen = set().union(*(names(net, g) for g in parameter_groups(net, 0.1)))
    assert not {"conv.weight", "conv.bias"} & seen


def test_an_empty_group_is_left_out() -> None:
    groups = parameter_groups(nn.BatchNorm1d(3), 0.1)
    assert [g["weight_decay"] for g in groups] == [0.0]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_step_without_gradient_shrinks_kernels_alone(decay: float) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(net, decay), lr=0.1)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    after = net.state_dict()
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * (1 - 0.1 * decay))
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(after[name], before[name])
