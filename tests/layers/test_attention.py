"""Attention against torch's own module, positions against the formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cvtrain.layers.attention import EncoderLayer, SelfAttention, sine_positions


def test_it_is_torchs_attention() -> None:
    torch.manual_seed(0)
    own, theirs = SelfAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([own.query_key.weight, own.value.weight]))
        own.join.bias.normal_()
        own.query_key.bias.normal_()
        theirs.in_proj_bias.copy_(torch.cat([own.query_key.bias, own.value.bias]))
        theirs.out_proj.load_state_dict(own.join.state_dict())
    x, position = torch.randn(3, 5, 8), torch.randn(5, 8)
    seen = torch.rand(3, 5, 5) < 0.5
    seen |= torch.eye(5, dtype=torch.bool)
    for mask in (None, seen):
        hidden = None if mask is None else (~mask).repeat_interleave(2, dim=0)  # (B * heads, N, N)
        want, _ = theirs(x + position, x + position, x, attn_mask=hidden, need_weights=False)
        torch.testing.assert_close(own(x, position, mask), want)


def test_who_is_not_seen_changes_nothing() -> None:
    layer = SelfAttention(8, 2)
    x, position = torch.randn(1, 4, 8), torch.zeros(4, 8)
    mask = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]]).bool()
    changed = x.clone()
    changed[:, 2:] += 1
    torch.testing.assert_close(
        layer(changed, position, mask)[:, :2], layer(x, position, mask)[:, :2]
    )
    assert not torch.allclose(layer(changed, position, mask)[:, 3], layer(x, position, mask)[:, 3])


def test_positions_are_the_formula() -> None:
    found = sine_positions(3, 4, 8, torch.device("cpu"))
    assert found.shape == (12, 8)
    for i in range(3):
        for j in range(4):
            waves = [1.0, 10_000**-0.5]
            want = [f(at * w) for at in (j, i) for f in (math.sin, math.cos) for w in waves]
            torch.testing.assert_close(found[i * 4 + j], torch.tensor(want))


def test_a_layer_knows_where_cells_are_by_their_positions_alone() -> None:
    layer = EncoderLayer(8, 2, 16)
    x, order = torch.randn(1, 6, 8), torch.tensor([3, 1, 5, 0, 2, 4])
    position = sine_positions(2, 3, 8, torch.device("cpu"))
    moved = layer(x[:, order], position[order])
    torch.testing.assert_close(moved, layer(x, position)[:, order])
    assert not torch.allclose(layer(x[:, order], position), layer(x, position)[:, order])


def test_numbers_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="channels=8 must be a multiple of heads=3"):
        SelfAttention(8, 3)
    with pytest.raises(ValueError, match="channels=6 must be a multiple of 4"):
        sine_positions(1, 1, 6, torch.device("cpu"))
