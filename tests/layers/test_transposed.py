"""The transposed convolution is the matrix of the convolution, transposed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cvtrain.layers.transposed import Upsample, bilinear_kernel, convolution_matrix

KERNEL = torch.tensor([[1.0, 4, 1], [1, 4, 3], [3, 3, 1]])


def test_the_example_of_a_kernel_of_3_x_3() -> None:
    small = torch.tensor([[2.0, 1], [4, 4]])
    matrix = convolution_matrix(KERNEL, (4, 4))
    assert matrix.shape == (4, 16)
    assert matrix[0].tolist() == [1, 4, 1, 0, 1, 4, 3, 0, 3, 3, 1, 0, 0, 0, 0, 0]
    large = (matrix.T @ small.flatten()).reshape(4, 4)
    assert large.tolist() == [[2, 9, 6, 1], [6, 29, 30, 7], [10, 29, 33, 13], [12, 24, 16, 4]]
    assert torch.equal(F.conv_transpose2d(small[None, None], KERNEL[None, None])[0, 0], large)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        ((3, 3), 1, 0, (5, 6)),
        ((2, 4), 2, 1, (8, 9)),
        ((4, 4), 2, 1, (8, 6)),
        ((5, 3), 3, 2, (11, 7)),
        ((1, 1), 2, 0, (5, 5)),
        ((7, 2), 1, 3, (4, 3)),
    ],
)
def test_forward_and_gradient_on_random_shapes(kernel, stride, padding, size) -> None:
    generator = torch.Generator().manual_seed(stride + padding)
    weight = torch.randn(kernel, generator=generator, dtype=torch.float64)
    image = torch.randn(size, generator=generator, dtype=torch.float64)
    matrix = convolution_matrix(weight, size, stride, padding)
    small = F.conv2d(image[None, None], weight[None, None], stride=stride, padding=padding)
    torch.testing.assert_close((matrix @ image.flatten()).reshape(small.shape), small)

    x = torch.randn(small.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    reach = [(n - 1) * stride + k - 2 * padding for n, k in zip(x.shape[2:], kernel, strict=True)]
    rest = [s - r for s, r in zip(size, reach, strict=True)]  # what the stride skipped at the end
    large = F.conv_transpose2d(
        x, weight[None, None], stride=stride, padding=padding, output_padding=rest
    )
    torch.testing.assert_close(large.flatten(), matrix.T @ x.flatten())
    back = torch.randn(large.shape, generator=generator, dtype=torch.float64)
    large.backward(back)
    torch.testing.assert_close(x.grad.flatten(), matrix @ back.flatten())


def test_a_kernel_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="a kernel of 3 x 3 does not fit into 2 x 5"):
        convolution_matrix(KERNEL, (2, 5))


@pytest.mark.parametrize("stride", [2, 4, 8, 32])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("size", [(5, 7), (1, 3), (1, 1)])
def test_it_starts_as_bilinear_interpolation(stride, learned, size) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    layer = Upsample(3, stride, learned)
    expected = F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert [p.shape for p in layer.parameters()] == [(3, 3, 2 * stride, 2 * stride)] * learned
    assert len(layer.state_dict()) == 1


def test_the_kernel_is_a_tent() -> None:
    tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
    torch.testing.assert_close(bilinear_kernel(2), torch.outer(tent, tent))
    with pytest.raises(ValueError, match="stride=3 must be an even number from 2"):
        Upsample(1, 3)
