"""Whole images, tiles, mirrors and sizes: what a network says of images of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cvtrain.data.table import Classes
from cvtrain.errors import RunError, UsageError
from cvtrain.losses.cross_entropy import CrossEntropy
from cvtrain.metrics import metrics_for
from cvtrain.models.segmentation import inference as module
from cvtrain.models.segmentation.base import SegmentationModel
from cvtrain.models.segmentation.inference import Inference, resized
from cvtrain.models.segmentation.unet import UNet
from cvtrain.structures import Batch, ImageInfo, Placement, Prediction, Target
from cvtrain.tasks.semantic_segmentation import SemanticSegmentationTask


class Pixels(SegmentationModel):
    """Logits of a pixel from its own color alone: tiles cannot change them."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(CrossEntropy(), num_classes)
        torch.manual_seed(0)
        self.score = nn.Conv2d(3, num_classes, 1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        return self.score(images.float() / 255)


def pictures(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def masks(images: torch.Tensor, seed: int = 2) -> list[Target]:
    rng = np.random.default_rng(seed)
    shape = images.shape[-2:]
    found = rng.choice(np.array([0, 1, 2, 255], np.uint8), (len(images), *shape))
    return [Target(mask=torch.from_numpy(m)) for m in found]


def test_tiles_with_what_surrounds_them_give_what_the_whole_image_gives_unet() -> None:
    """U-Net's overlap tiles: sizes that halve evenly and others, borders mirrored alike."""
    torch.manual_seed(0)
    model = UNet(CrossEntropy(), 3, width=2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    images = pictures(2, 3, 150, 210)
    whole = Inference("whole").logits(model, images)
    assert torch.equal(whole, torch.stack([p.logits for p in model.predict(images)]))
    for tile, overlap, together in ((68, None, 1), (64, None, 4), ((64, 96), 0.5, 3), (388, 0, 1)):
        tiles = Inference("tiles", tile, overlap, batch_size=together)
        got = tiles.logits(model, images)
        assert torch.allclose(got, whole, atol=1e-5), (tile, overlap)


@pytest.mark.parametrize("size", [(90, 131), (1, 500), (500, 1), (20, 20), (64, 64)])
@pytest.mark.parametrize("overlap", [None, 0.9])
def test_tiles_give_what_the_whole_image_gives_and_its_loss(size, overlap, monkeypatch) -> None:
    model, images = Pixels(), pictures(2, 3, *size)
    truths = masks(images)
    terms, whole = Inference("whole").masks(model, images, ["a", "b"], truths)
    want, predictions = model.loss_and_predict(images, truths)
    assert torch.equal(whole, torch.stack([p.mask for p in predictions]).to(torch.uint8))
    assert terms["pixels"].item() == pytest.approx(want["pixels"].item(), rel=1e-6)
    for strip in (1, module.STRIP):  # narrow panels of a wide image, and one
        monkeypatch.setattr(module, "STRIP", strip)
        monkeypatch.setattr(module, "CHUNK", 1 if strip == 1 else 1 << 20)
        tiles = Inference("tiles", 64, overlap, batch_size=3)
        terms, got = tiles.masks(model, images, ["a", "b"], truths)
        assert torch.equal(got, whole)
        # Pixels that tiles share count as often, in the loss alone.
        assert terms["pixels"].item() == pytest.approx(want["pixels"].item(), rel=0.2)


def test_no_array_of_all_classes_is_as_large_as_the_image(monkeypatch) -> None:
    monkeypatch.setattr(module, "STRIP", 1 << 18)
    monkeypatch.setattr(module, "CHUNK", 1 << 16)
    model, images = Pixels(50), pictures(1, 3, 700, 900)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    with Watch():
        Inference("tiles", 96).masks(model, images, ["a"])
    assert largest < 50 * 700 * 900 * 4 / 20


def test_views_are_the_mean_of_probabilities_at_the_images_own_pixels() -> None:
    torch.manual_seed(0)
    model = Pixels()
    model.score = nn.Conv2d(3, 3, 3, padding=1)  # looks to its sides: mirrors differ
    images = pictures(1, 3, 33, 47)
    sizes = (1.0, 0.5, 1.5)
    want = torch.zeros(1, 3, 33, 47)
    for scale in sizes:
        small = resized(images, scale)
        for flip in (False, True):
            x = small.flip(-1) if flip else small
            logits = torch.stack([p.logits for p in model.predict(x)])
            logits = logits.flip(-1) if flip else logits
            back = nn.functional.interpolate(logits, (33, 47), mode="bilinear")
            want += back.softmax(dim=1) / 6
    for mode in ("fit", "whole"):
        got = Inference(mode, flip=True, scales=sizes).logits(model, images)
        assert torch.allclose(got.exp(), want, atol=1e-5)
    # Tiles: of one view the logits are blended, then the views meet.
    tiles = Inference("tiles", 32, flip=True, scales=sizes).logits(model, images).exp()
    assert (tiles - want).abs().mean() < 0.01
    assert torch.allclose(tiles.sum(dim=1), torch.ones(1, 33, 47), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("scale", [0.3, 0.75, 2.0])
def test_other_sizes_keep_the_type_and_the_mean(dtype, scale) -> None:
    images = pictures(1, 3, 40, 50).float()
    images = (images * 257 if dtype == torch.uint16 else images).to(dtype)
    small = resized(images, scale)
    assert small.dtype == dtype
    assert small.shape == (1, 3, round(40 * scale), round(50 * scale))
    assert small.float().mean().item() == pytest.approx(images.float().mean().item(), rel=0.03)
    assert resized(images, 1.0) is images


def test_the_loss_is_of_the_plain_image_even_where_it_is_no_view() -> None:
    model, images = Pixels(), pictures(1, 3, 70, 80)
    truths = masks(images)
    want = model.loss_and_predict(images, truths)[0]["pixels"].item()
    terms, _ = Inference("whole", scales=[0.5], flip=True).masks(model, images, ["a"], truths)
    assert terms["pixels"].item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("count", [1, 200])
def test_one_class_and_two_hundred(count) -> None:
    model, images = Pixels(count), pictures(1, 3, 70, 90)
    got = Inference("tiles", 32).masks(model, images, ["a"])[1]
    assert torch.equal(got[0].long(), model.predict(images)[0].mask)


def test_an_image_without_any_class_has_a_loss_of_nothing() -> None:
    model, images = Pixels(), pictures(1, 3, 70, 80)
    void = [Target(mask=torch.full((70, 80), 255, dtype=torch.uint8))]
    for mode in ("whole", "tiles"):
        terms, _ = Inference(mode, 32).masks(model, images, ["a"], void)
        assert terms["pixels"].item() == 0


class Fixed(Pixels):
    any_size = False

    def forward(self, images):
        assert images.shape[-2:] == (64, 64)
        return super().forward(images)


@pytest.mark.parametrize("size", [(30, 200), (64, 64), (100, 65)])
def test_a_network_of_one_size_gets_tiles_of_that_size(size) -> None:
    images = pictures(1, 3, *size)
    want = Inference("whole").masks(Pixels(), images, ["a"], masks(images))[1]
    tiles = Inference("tiles", 64)
    terms, got = tiles.masks(Fixed(), images, ["a"], masks(images))
    assert torch.equal(got, want)
    assert torch.isfinite(terms["pixels"])
    with pytest.raises(UsageError, match="mode=whole: Fixed takes images of one size"):
        Inference("whole").check(Fixed())
    with pytest.raises(UsageError, match="scales: Fixed takes"):
        Inference("tiles", 64, scales=[2]).check(Fixed())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mode": "window"}, "mode=window: expected fit | whole | tiles"),
        ({"tile_size": 0}, "tile_size=0"),
        ({"overlap": 1.0}, "overlap=1.0"),
        ({"scales": []}, "scales=\\[\\]"),
        ({"scales": [1, 0]}, "scales=\\[1, 0\\]"),
    ],
)
def test_values_that_cannot_be_are_refused(words, message) -> None:
    with pytest.raises(ValueError, match=message):
        Inference(**words)


def make_task(model, **inference):
    classes = Classes.from_names([str(k) for k in range(model.num_classes)])
    metrics = metrics_for("semantic_segmentation", classes)
    words = ({"name": "sgd", "lr": 0.1}, None, "mIoU", "max", "semantic_segmentation")
    return SemanticSegmentationTask(model, classes, metrics, *words, inference=inference)


def batch_of(images: torch.Tensor) -> Batch:
    height, width = images.shape[-2:]
    place = Placement(1.0, 1.0, 0.0, 0.0, height, width)
    infos = [ImageInfo(k, k, f"{k}.png", height, width, place) for k in range(len(images))]
    truths = masks(images)
    return Batch(images, truths, infos, truths)


@pytest.mark.parametrize("mode", ["fit", "whole", "tiles"])
@pytest.mark.parametrize("flip", [False, True])
def test_every_way_of_looking_scores_alike_where_pixels_speak_for_themselves(mode, flip) -> None:
    task, batch = (
        make_task(Pixels(), mode=mode, tile_size=64, flip=flip),
        batch_of(pictures(2, 3, 90, 131)),
    )
    message = task.validation_step(batch, 0)
    want = [p.mask for p in Pixels().predict(batch.images)]
    for got, mask in zip(message["originals"], want, strict=True):
        assert torch.equal(got.mask.long(), mask)
    assert [p.mask.dtype for p in task.predict_batch(batch)] == [torch.uint8] * 2
    assert task.val_sums.means()["loss"] > 0


def test_models_and_values_that_do_not_fit_say_so() -> None:
    class Decided(Pixels):
        def decode(self, outputs):
            return [Prediction(mask=o.argmax(0)) for o in outputs]

    batch = batch_of(pictures(1, 3, 40, 40))
    with pytest.raises(UsageError, match="Decided gives classes without logits"):
        make_task(Decided(), mode="tiles").predict_batch(batch)
    with pytest.raises(UsageError, match=r"task\.inference: .*windows"):
        make_task(Pixels(), windows=3)
    broken = Pixels()
    nn.init.constant_(broken.score.bias, float("nan"))
    for mode in ("fit", "whole", "tiles"):
        with pytest.raises(RunError, match=r"logits for 0\.png are not finite"):
            make_task(broken, mode=mode).predict_batch(batch)
    boxes = Batch(batch.images, [], batch.infos, None, [torch.zeros(1, 4)])
    with pytest.raises(UsageError, match="mode=fit is what a model"):
        make_task(Pixels(), mode="tiles").predict_batch(boxes)
    with pytest.raises(UsageError, match="flip and scales are not for"):
        make_task(Pixels(), flip=True).predict_batch(boxes)
