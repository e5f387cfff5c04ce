"""Tiles that cover, weights that add up to one, maps that come out as of the whole image."""

from __future__ import annotations

import pytest
import torch

from cvtrain.layers.tiles import ALIGN, Blend, Spans


@pytest.mark.parametrize("size", [1, 31, 64, 65, 388, 389, 1000, 5000])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0.0), (64, 0.25), (388, 0.5), (16, 0.9)])
@pytest.mark.parametrize("align", [ALIGN, 1])
def test_tiles_cover_and_their_weights_add_up_to_one(size, tile, overlap, align) -> None:
    spans = Spans.over(size, tile, overlap, align)
    seen, total = torch.zeros(size), torch.zeros(size)
    for k, weight in enumerate(spans.weights()):
        start = spans.starts[k]
        assert len(weight) == spans.stop(k) - start
        assert bool((weight >= 0).all())
        seen[start : spans.stop(k)] += 1
        total[start : spans.stop(k)] += weight
    assert bool((seen > 0).all())
    assert torch.allclose(total, torch.ones(size), atol=1e-6)
    shared = [a + spans.length - b for a, b in zip(spans.starts, spans.starts[1:], strict=False)]
    if tile >= align:
        assert all(start % align == 0 for start in spans.starts[:-1])
    assert all(pixels >= int(tile * overlap) for pixels in shared) or tile < 2 * align
    if align == 1:
        assert spans.starts[-1] + spans.length == size


def test_weights_rise_and_fall_smoothly_in_what_is_shared_alone() -> None:
    first, second = Spans.over(96, 64, 0.5).weights()
    assert torch.equal(first[:32], torch.ones(32))
    assert torch.equal(second[32:], torch.ones(32))
    assert bool((first[32:].diff() < 0).all())
    assert torch.allclose(first[32:], second[:32].flip(0))


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("wanted", [None, (0, 40), (50, 131)])
def test_strips_of_a_pointwise_map_are_those_of_the_whole_image(together, wanted) -> None:
    images = torch.randn(2, 3, 150, 131, generator=torch.Generator().manual_seed(0))
    seen = []

    def see(crops, around, windows):
        seen.extend(windows)
        left, right, top, bottom = around
        inner = crops[..., top : crops.shape[-2] - bottom, left : crops.shape[-1] - right]
        return torch.cat([inner, inner.square()], dim=1)  # (n B, 2 C, h, w)

    rows, columns = Spans.over(150, 64, 0.5), Spans.over(131, 64, 0.5)
    blend = Blend(images, rows, columns, see, 7, wanted, together)
    strips = [blend.rows(top, min(150, top + 13)) for top in range(0, 150, 13)]
    left, right = wanted or (0, 131)
    want = torch.cat([images, images.square()], dim=1)[..., left:right]
    assert torch.allclose(torch.cat(strips, dim=2), want, atol=1e-5)
    assert len(seen) == len(set(seen))  # each tile once
    assert all(w.left < right and w.right > left for w in seen)
    with pytest.raises(ValueError, match="row 0 is gone"):
        blend.rows(0, 1)


def test_what_is_held_is_a_row_of_tiles_not_the_map() -> None:
    images = torch.zeros(1, 1, 2000, 64)
    blend = Blend(
        images,
        Spans.over(2000, 64, 0.25),
        Spans.over(64, 64, 0.25),
        lambda crops, around, windows: crops.expand(-1, 5, -1, -1),
    )
    most = 0
    for top in range(0, 2000, 10):
        blend.rows(top, top + 10)
        assert blend.held is not None
        most = max(most, blend.held.shape[2])
    assert most <= 3 * 64
