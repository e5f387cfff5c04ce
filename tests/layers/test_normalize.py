from __future__ import annotations

import pytest
import torch

from cvtrain.layers.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize

MEAN = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_integers_are_scaled_by_their_range(dtype: torch.dtype, scale: int) -> None:
    values = torch.tensor([0, scale // 3, scale]).to(dtype)
    images = values.view(3, 1, 1, 1).expand(3, 3, 2, 2)
    want = (values.float().view(3, 1, 1, 1).expand(3, 3, 2, 2) / scale - MEAN) / STD
    torch.testing.assert_close(Normalize()(images), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floats_are_in_0_to_1_as_they_come(dtype: torch.dtype) -> None:
    images = torch.full((1, 3, 2, 2), 0.5, dtype=dtype)
    out = Normalize()(images)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, ((0.5 - MEAN) / STD).expand(1, 3, 2, 2))


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_other_channels_take_the_average(channels: int) -> None:
    norm = Normalize(channels)
    assert norm.mean.shape == (1, channels, 1, 1)
    assert norm.mean.flatten().tolist() == pytest.approx([sum(IMAGENET_MEAN) / 3] * channels)
    assert norm(torch.zeros(2, channels, 4, 4, dtype=torch.uint8)).shape == (2, channels, 4, 4)


def test_given_numbers_are_buffers_of_the_checkpoint() -> None:
    norm = Normalize(2, mean=(0.25, 0.5), std=(0.5, 0.25))
    assert norm.state_dict().keys() == {"mean", "std"}
    assert norm(torch.ones(1, 2, 1, 1)).flatten().tolist() == [1.5, 2.0]


def test_memory_format_is_kept() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8).to(memory_format=torch.channels_last)
    assert Normalize()(images).is_contiguous(memory_format=torch.channels_last)


def test_wrong_input_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"images have 1 channels, .* 3 \(data.channels\)"):
        Normalize()(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"images are torch.int64; uint8, uint16 or float"):
        Normalize()(torch.zeros(1, 3, 4, 4, dtype=torch.int64))
