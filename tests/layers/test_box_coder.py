"""Box codes: by hand, there and back, against torchvision, and at the edges of the numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from cvtrain.layers.box_coder import BoxCoder, decode_ltrb, encode_ltrb

ANCHOR = torch.tensor([[10.0, 10.0, 30.0, 20.0]])


def test_by_hand() -> None:
    """A center 5 to the right of (20, 15), twice as wide, half as high."""
    box = torch.tensor([[5.0, 12.5, 45.0, 17.5]])
    code = BoxCoder((10, 10, 5, 5)).encode(box, ANCHOR)
    expected = [10 * 5 / 20, 0, 5 * math.log(2), 5 * math.log(0.5)]
    torch.testing.assert_close(code, torch.tensor([expected]))
    torch.testing.assert_close(BoxCoder((10, 10, 5, 5)).decode(code, ANCHOR), box)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (10, 10, 5, 5)])
def test_equal_to_torchvision(weights: Any, random_boxes: Any) -> None:
    boxes, anchors = random_boxes(50, seed=1), random_boxes(50, seed=2)
    mine, theirs = BoxCoder(weights), TorchvisionCoder(tuple(map(float, weights)))
    codes = mine.encode(boxes, anchors)
    torch.testing.assert_close(codes, theirs.encode_single(boxes, anchors), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.decode(codes, anchors), boxes, rtol=1e-4, atol=1e-4)
    wild = codes * 20
    expected = theirs.decode_single(wild, anchors)
    torch.testing.assert_close(mine.decode(wild, anchors), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_worst_stays_finite(dtype: torch.dtype) -> None:
    coder = BoxCoder()
    flat = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert torch.isfinite(coder.encode(flat, ANCHOR)).all()
    assert torch.isfinite(coder.encode(ANCHOR, flat)).all()
    code = torch.tensor([[0.0, 0.0, 1e4, 1e4]]).to(dtype).requires_grad_()
    box = coder.decode(code, ANCHOR)
    assert box.dtype == torch.float32
    torch.testing.assert_close(box[0, 2] - box[0, 0], torch.tensor(20 * 1000 / 16))
    box.sum().backward()
    assert torch.isfinite(code.grad).all()


def test_nothing_and_batches() -> None:
    coder, none = BoxCoder(), torch.zeros(0, 4)
    assert coder.encode(none, none).shape == coder.decode(none, none).shape == (0, 4)
    codes = torch.zeros(2, 3, 4)
    anchors = ANCHOR.repeat(3, 1)
    torch.testing.assert_close(coder.decode(codes, anchors), anchors.expand(2, 3, 4))
    with pytest.raises(ValueError, match="four numbers above 0"):
        BoxCoder((1, 1, 1, 0))


def test_distances_to_the_sides() -> None:
    point = torch.tensor([[12.0, 18.0], [0.0, 0.0]])
    distances = encode_ltrb(ANCHOR.repeat(2, 1), point)
    assert distances.tolist() == [[2, 8, 18, 2], [-10, -10, 30, 20]]
    assert torch.equal(decode_ltrb(distances, point), ANCHOR.repeat(2, 1))
    pairs = encode_ltrb(ANCHOR[None], point[:, None])  # (2, 1, 4): every point, every box
    assert torch.equal(pairs[:, 0], distances)
    assert decode_ltrb(distances.half(), point).dtype == torch.float32
