"""Losses of pixels: each against a loop, its gradient against differences, and void everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.losses.boundary_weighted import BoundaryWeighted, objects, two_nearest
from cvtrain.losses.cross_entropy import CrossEntropy
from cvtrain.losses.focal import FocalLoss
from cvtrain.losses.lovasz import LovaszLoss, lovasz_gradient
from cvtrain.losses.overlap import DiceLoss, JaccardLoss, TverskyLoss
from cvtrain.losses.sums import SumLoss
from cvtrain.losses.targets import mask_targets
from cvtrain.losses.weights import median_frequency
from cvtrain.structures import Target

K = 4
WEIGHTS = [1.0, 2.0, 0.5, 3.0]
LOSSES = {
    "cross_entropy": CrossEntropy(),
    "smoothed": CrossEntropy(0.1),
    "weighted": CrossEntropy(class_weights=WEIGHTS),
    "focal": FocalLoss(2.0, WEIGHTS),
    "dice": DiceLoss(),
    "jaccard": JaccardLoss(0.0),
    "tversky": TverskyLoss(0.3, 0.7, 0.5),
    "lovasz": LovaszLoss(),
    "lovasz_image": LovaszLoss(per_image=True),
    "boundary": BoundaryWeighted(class_weights=WEIGHTS),
    "sum": SumLoss({"ce": CrossEntropy(), "dice": DiceLoss()}, {"dice": 0.5}),
}


def scene(seed: int = 0, shape: tuple[int, int] = (6, 7)) -> tuple[Tensor, Tensor]:
    """Random logits; masks of classes 0 to 2 with void, class 3 absent."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, K, *shape, generator=generator, dtype=torch.float64) * 2
    masks = torch.randint(0, 3, (2, *shape), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = 255
    return logits, masks


def pixels(logits: Tensor, masks: Tensor):
    """(image, probabilities, label) of each pixel that is not void."""
    probs = logits.softmax(1)
    for b, y, x in np.ndindex(*masks.shape):
        if masks[b, y, x] != 255:
            yield b, [float(v) for v in probs[b, :, y, x]], int(masks[b, y, x])


def slow_overlap(logits, masks, alpha, beta, smooth):
    found = list(pixels(logits, masks))
    losses = []
    for c in range(K):
        tp = sum(p[c] for _, p, label in found if label == c)
        fp = sum(p[c] for _, p, label in found if label != c)
        fn = sum(1 - p[c] for _, p, label in found if label == c)
        if any(label == c for _, _, label in found):
            losses.append(1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth))
    return sum(losses) / len(losses)


def slow_lovasz(found):
    """The Lovasz extension by its definition: the rise of the IoU loss, error after error."""
    losses = []
    for c in sorted({label for _, _, label in found}):
        errors = [(1 - p[c] if label == c else p[c], label == c) for _, p, label in found]
        errors.sort(key=lambda e: -e[0])
        total, lost, won, before, value = sum(own for _, own in errors), 0, 0, 0.0, 0.0
        for error, own in errors:
            lost, won = lost + own, won + (not own)
            now = 1 - (total - lost) / (total + won)
            value += error * (now - before)
            before = now
        losses.append(value)
    return sum(losses) / len(losses)


def slow_map(mask, w0, sigma):
    """Flood fill, then every pixel's distance to every object."""
    height, width = mask.shape
    parts: list[list[tuple[int, int]]] = []
    seen = set()
    for y, x in np.ndindex(height, width):
        if (y, x) in seen or mask[y, x] in (0, 255):
            continue
        part, stack = [], [(y, x)]
        seen.add((y, x))
        while stack:
            a, b = stack.pop()
            part.append((a, b))
            for c, d in ((a - 1, b), (a + 1, b), (a, b - 1), (a, b + 1)):
                inside = 0 <= c < height and 0 <= d < width
                if inside and (c, d) not in seen and mask[c, d] == mask[y, x]:
                    seen.add((c, d))
                    stack.append((c, d))
        parts.append(part)
    out = np.zeros(mask.shape)
    for y, x in np.ndindex(height, width):
        near = sorted(min(math.dist((y, x), p) for p in part) for part in parts)
        if mask[y, x] == 0 and len(near) > 1:
            out[y, x] = w0 * math.exp(-((near[0] + near[1]) ** 2) / (2 * sigma**2))
    return out


def slow(name: str, logits: Tensor, masks: Tensor) -> float:
    found = list(pixels(logits, masks))
    n = len(found)
    if name == "cross_entropy":
        return sum(-math.log(p[c]) for _, p, c in found) / n
    if name == "smoothed":
        return sum(-0.9 * math.log(p[c]) - 0.025 * sum(map(math.log, p)) for _, p, c in found) / n
    if name == "weighted":
        return sum(-WEIGHTS[c] * math.log(p[c]) for _, p, c in found) / n
    if name == "focal":
        return sum(-WEIGHTS[c] * (1 - p[c]) ** 2 * math.log(p[c]) for _, p, c in found) / n
    if name == "dice":
        return slow_overlap(logits, masks, 0.5, 0.5, 1.0)
    if name == "jaccard":
        return slow_overlap(logits, masks, 1.0, 1.0, 0.0)
    if name == "tversky":
        return slow_overlap(logits, masks, 0.3, 0.7, 0.5)
    if name == "lovasz":
        return slow_lovasz(found)
    if name == "lovasz_image":
        return sum(slow_lovasz([f for f in found if f[0] == b]) for b in (0, 1)) / 2
    if name == "boundary":
        maps = np.stack([slow_map(m, 10.0, 5.0) for m in masks.numpy()])
        extra = [maps[b, y, x] for b, y, x in np.ndindex(*masks.shape) if masks[b, y, x] != 255]
        each = [
            -math.log(p[c]) * (WEIGHTS[c] + e) for (_, p, c), e in zip(found, extra, strict=True)
        ]
        return sum(each) / n
    return slow("cross_entropy", logits, masks) + 0.5 * slow("dice", logits, masks)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_a_loop(name: str, seed: int) -> None:
    logits, masks = scene(seed)
    assert float(LOSSES[name](logits, masks)) == pytest.approx(slow(name, logits, masks), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_small_differences(name: str) -> None:
    logits, masks = scene(3, (3, 4))
    logits.requires_grad_()
    LOSSES[name](logits, masks).backward()
    rng = np.random.default_rng(0)
    for _ in range(12):
        place = tuple(int(rng.integers(n)) for n in logits.shape)
        step = torch.zeros_like(logits)
        step[place] = 1e-2
        with torch.no_grad():
            up, down = (slow(name, logits + s, masks) for s in (step, -step))
        assert float(logits.grad[place]) == pytest.approx((up - down) / 2e-2, rel=2e-2, abs=2e-4)
    void = (masks == 255)[:, None].expand_as(logits)
    assert not logits.grad[void].any()


@pytest.mark.parametrize("name", LOSSES)
def test_void_alone_gives_zero_and_a_gradient(name: str) -> None:
    logits, masks = scene()
    logits.requires_grad_()
    nothing = LOSSES[name](logits, torch.full_like(masks, 255))
    nothing.backward()
    assert nothing.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()
    half = masks.clone()
    half[1] = 255
    part = LOSSES[name](logits, half)
    assert torch.isfinite(part)
    assert part.item() == pytest.approx(LOSSES[name](logits[:1], half[:1]).item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_half_floats_give_the_loss_of_what_they_say(name: str) -> None:
    logits, masks = scene()
    low = (logits * 8).to(torch.bfloat16)
    got = LOSSES[name](low, masks)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(float(LOSSES[name](low.float(), masks)), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_sure_and_right_network_loses_next_to_nothing(name: str) -> None:
    masks = scene()[1]
    logits = F.one_hot(masks.clamp(max=3), K).permute(0, 3, 1, 2) * 40.0
    assert float(LOSSES[name](logits, masks)) < (3.1 if name == "smoothed" else 1e-4)


def test_an_image_of_class_255_is_no_void_to_a_classifier() -> None:
    logits = torch.zeros(1, 300)
    assert float(CrossEntropy()(logits, torch.tensor([255]))) == pytest.approx(math.log(300))


def test_median_frequency_by_hand() -> None:
    """Shares in the images that have the class: 0.5, 0.1, 0.25 of 100, 100, 40 pixels."""
    weights = median_frequency([50, 10, 10, 0], [100, 100, 40, 0])
    assert weights == pytest.approx([0.5, 2.5, 1.0, 1.0])
    assert median_frequency([0, 0], [0, 0]) == [1.0, 1.0]
    loss = CrossEntropy(class_weights="auto")
    loss.weigh([50, 10, 10, 0], [100, 100, 40, 0])
    assert loss.weights.tolist() == pytest.approx([0.5, 2.5, 1.0, 1.0])
    with pytest.raises(ValueError, match="class_weights=effective is of images; for pixels"):
        CrossEntropy(class_weights="effective").weigh([1], [1])


def test_jaccard_counts_pixels_and_lovasz_is_the_iou_at_the_corners() -> None:
    """Hard predictions: both are one minus the IoU itself."""
    masks = torch.tensor([[[0, 0, 1, 1]]])
    logits = F.one_hot(torch.tensor([[[0, 1, 1, 1]]]), 2).permute(0, 3, 1, 2) * 60.0
    want = 1 - (1 / 2 + 2 / 3) / 2
    for loss in (JaccardLoss(0.0), LovaszLoss()):
        assert float(loss(logits, masks)) == pytest.approx(want)
    assert float(DiceLoss(0.0)(logits, masks)) == pytest.approx(1 - (2 / 3 + 4 / 5) / 2)
    assert lovasz_gradient(torch.tensor([1.0, 0, 0])).sum() == 1


def test_the_gaps_do_not_depend_on_where_in_memory_the_mask_lies() -> None:
    draw = np.random.default_rng(0)
    mask = np.zeros((64, 64), np.int64)
    for label in (1, 2, 3, 1, 2, 3):
        y, x = draw.integers(0, 50, 2)
        mask[y : y + 9, x : x + 7] = label
    loss, kept = BoundaryWeighted(), []
    first = loss.gaps(mask)
    for size in draw.integers(1, 5000, 100):
        kept.append(np.empty(size, np.uint8))  # moves what is allocated next
        assert np.array_equal(loss.gaps(mask.copy()), first)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 9])
def test_the_two_nearest_of_any_number_of_objects(count: int) -> None:
    rng = np.random.default_rng(count)
    parts = np.zeros((20, 23), np.int32)
    for number, place in enumerate(rng.permutation(parts.size)[:count], start=1):
        parts.ravel()[place] = number
    first, second = two_nearest(parts)
    for y, x in np.ndindex(*parts.shape):
        near = sorted(math.dist((y, x), p) for p in np.argwhere(parts))
        near += [math.inf, math.inf]
        assert (first[y, x], second[y, x]) == pytest.approx((near[0], near[1]), rel=1e-5)


def test_the_weight_map_between_two_cells() -> None:
    mask = np.ones((9, 12), np.int64)
    mask[:, 5:7] = 0  # a gap of 2 pixels: 1 and 2 pixels from the cells
    loss = BoundaryWeighted()
    np.testing.assert_allclose(loss.gaps(mask)[:, 5:7], 10 * math.exp(-9 / 50), rtol=1e-5)
    assert not loss.gaps(mask)[:, :5].any()
    assert not loss.gaps(np.where(mask == 1, 0, 1)).any()  # one object: no gap
    assert objects(mask, 0).max() == 2
    mask[:, 0] = 255
    assert not objects(mask, 0)[:, 0].any()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha=-1"):
        TverskyLoss(alpha=-1)
    with pytest.raises(ValueError, match=r"w0=10.0 .* sigma=0 above 0"):
        BoundaryWeighted(sigma=0)
    with pytest.raises(ValueError, match="a sum without parts"):
        SumLoss({})
    with pytest.raises(ValueError, match=r"weights.lovasz: the parts are dice"):
        SumLoss({"dice": DiceLoss()}, {"lovasz": 1.0})
    with pytest.raises(ValueError, match=r"weights.dice=-1 must be at least 0"):
        SumLoss({"dice": DiceLoss()}, {"dice": -1})
    with pytest.raises(ValueError, match="a target without a mask"):
        mask_targets([Target()])


def test_a_sum_names_its_parts() -> None:
    logits, masks = scene()
    loss = SumLoss({"a": CrossEntropy(), "b": DiceLoss()}, {"b": 3.0})
    assert isinstance(loss, nn.Module)
    terms = loss.terms(logits, masks)
    assert list(terms) == ["a_loss", "b_loss"]
    torch.testing.assert_close(terms["b_loss"], 3 * DiceLoss()(logits, masks))
    torch.testing.assert_close(terms["a_loss"] + terms["b_loss"], loss(logits, masks))
