"""DeconvNet: the paper's numbers, what a window's scores become, what it may start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cvtrain.errors import CheckpointError, RunError, UsageError
from cvtrain.losses.cross_entropy import CrossEntropy
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.segmentation.deconvnet import DeconvNet, grid
from cvtrain.structures import Target


def make(num_classes: int = 3, **keywords) -> DeconvNet:
    torch.manual_seed(0)
    settings = {"image_size": 64, "width": 4, "hidden": 16, **keywords}
    model = DeconvNet(CrossEntropy(), num_classes, **settings)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    return model.eval()


def pixels(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_the_papers_network_has_252_million_parameters() -> None:
    with torch.device("meta"):
        model = DeconvNet(CrossEntropy(), 21)
    down = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
    down += [(256, 512), *[(512, 512)] * 5]
    up = [(b, a) for a, b in down[:0:-1]] + [(64, 64)]
    want = 0
    for a, b in (*down, *up):
        want += 9 * a * b + b + 2 * b  # kernel, bias, batch norm
    connected = 49 * 512 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 49 * 512 + 512
    want += connected + 2 * (4096 + 4096 + 512) + (64 + 1) * 21
    assert sum(p.numel() for p in model.parameters()) == want == 251_805_653
    kernels = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 4}
    assert kernels["fc6.0.weight"] == (4096, 512, 7, 7)
    assert kernels["unfc6.0.weight"] == (4096, 512, 7, 7)  # transposed: in, out
    assert len(kernels) == 13 + 13 + 3 + 1
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 29, "behind every one but the scores"


def test_maps_are_those_of_table_2() -> None:
    model, sizes = make(image_size=224), []
    for level in (model.fc7, model.unfc6, *model.levels):
        level.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    model(pixels(1, 3, 224, 224))
    want = [(16, 1, 1), (32, 7, 7), (32, 14, 14), (16, 28, 28), (8, 56, 56)]
    assert sizes == [*want, (4, 112, 112), (4, 224, 224)]


@pytest.mark.parametrize(("side", "cells"), [(224, 7), (128, 4), (100, 4), (32, 1), (20, 1)])
def test_the_connected_layers_at_other_sizes(side: int, cells: int) -> None:
    model = make(image_size=side)
    assert model.fc6[0].kernel_size == model.unfc6[0].kernel_size == (cells, cells)
    assert model(pixels(2, 3, side, side)).shape == (2, 3, side, side)


@pytest.mark.parametrize("inference", ["windows", "whole"])
@pytest.mark.parametrize("size", [(64, 64), (30, 95), (1, 130)])
def test_the_output_has_the_size_of_any_image(inference: str, size: tuple[int, int]) -> None:
    model = make(inference=inference)
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    for proposals in (None, [box, box[:0]]):
        prediction = model.predict(pixels(2, 3, *size), proposals)[1]
        assert prediction.logits.shape == (3, *size)
        assert torch.equal(prediction.mask, prediction.logits.argmax(0))


def test_values_are_unpooled_to_where_they_were() -> None:
    """The last level sees values at places alone that were the largest of their 2 x 2."""
    model, seen = make(), {}
    model.levels[-1].register_forward_hook(lambda _, args, __: seen.update(x=args[0]))
    before = {}
    layer = next(m for m in model.features if isinstance(m, torch.nn.MaxPool2d))
    place = list(model.features).index(layer)
    model.features[place - 1].register_forward_hook(lambda _, __, out: before.update(x=out))
    model(pixels(1, 3, 64, 64))
    assert seen["x"].shape == before["x"].shape == (1, 4, 64, 64)
    moved = seen["x"] != 0
    assert moved.any()
    assert (F.avg_pool2d(moved.float(), 2) * 4 <= 1).all(), "one place in each cell"
    largest = before["x"] == F.interpolate(F.max_pool2d(before["x"], 2), scale_factor=2)
    assert largest[moved].all()


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_what_the_windows_say_together(aggregate: str) -> None:
    """Against a loop over windows and pixels."""
    model = make(aggregate=aggregate, max_windows=2)
    images = pixels(1, 3, 60, 90)
    boxes = torch.tensor([[10.0, 5, 40, 25], [50, 30, 95, 70], [0, 0, 9, 9]])
    got = model.predict(images, [boxes])[0].logits
    x = model.normalize(images)
    places = [(0, 0, 60, 90), (3, 7, 27, 43), (26, 45, 60, 90)]  # 1.2 times, inside the image
    maps = np.zeros((3, 3, 60, 90))
    inside = np.zeros((3, 60, 90))
    with torch.no_grad():
        for n, (top, left, bottom, right) in enumerate(places):
            crop = x[..., top:bottom, left:right]
            crop = F.interpolate(crop, (64, 64), mode="bilinear", antialias=True)
            scores = model.network(crop)
            scores = scores - scores.mean(1, keepdim=True)
            size = (bottom - top, right - left)
            scores = F.interpolate(scores, size, mode="bilinear", antialias=True)
            maps[n, :, top:bottom, left:right] = scores[0].numpy()
            inside[n, top:bottom, left:right] = 1
    want = maps.max(axis=0) if aggregate == "max" else maps.sum(axis=0) / inside.sum(axis=0)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-5)


def test_no_window_but_the_image_is_the_image_at_once() -> None:
    images = pixels(2, 3, 64, 64)
    whole = make(inference="whole")(images)
    alone = make(max_windows=0).scan(images, [torch.zeros(1, 4)] * 2)
    torch.testing.assert_close(alone.softmax(1), whole.softmax(1))


def test_without_proposals_windows_cover_the_image_evenly() -> None:
    boxes = grid(60, 90)
    assert boxes.shape == (38, 4)
    assert boxes.min() == 0
    assert boxes[:, 2].max() == 90
    assert boxes[:, 3].max() == 60
    sides = boxes[:, 2:] - boxes[:, :2]
    torch.testing.assert_close(sides[:, 0] / 90, sides[:, 1] / 60)
    model = make()
    images = pixels(1, 3, 64, 64)
    ours = model.predict(images)[0].logits
    given = make(context=1, max_windows=50).predict(images, [grid(64, 64)])[0].logits
    torch.testing.assert_close(ours, given)


def test_windows_of_several_images_do_not_mix() -> None:
    model, images = make(), pixels(2, 3, 64, 64)
    boxes = [torch.tensor([[5.0, 5, 30, 40]]).repeat(n, 1) for n in (20, 3)]
    together = model.predict(images, boxes)
    for i in range(2):
        alone = model.predict(images[i : i + 1], boxes[i : i + 1])[0].logits
        torch.testing.assert_close(together[i].logits, alone, rtol=1e-4, atol=1e-5)


def test_any_number_of_classes_and_gray_images() -> None:
    for count in (1, 2, 90):
        model = DeconvNet(CrossEntropy(), count, image_size=32, width=2, in_channels=1).train()
        target = Target(mask=torch.randint(0, count, (32, 32)))
        terms = model.loss(pixels(2, 1, 32, 32), [target, target])
        assert terms["pixels"].isfinite()
        assert (terms["pixels"].item() == 0) == (count == 1)
        assert model.predict(pixels(2, 1, 32, 32))[0].logits.shape == (count, 32, 32)


def test_one_window_alone_has_no_batch_statistics() -> None:
    model = make().train()
    target = Target(mask=torch.zeros(64, 64, dtype=torch.int64))
    with pytest.raises(RunError, match=r"give data\.batch_size=2 or more"):
        model.loss(pixels(1, 3, 64, 64), [target])


def test_its_convolutions_have_vgg16s_names_and_shapes() -> None:
    with torch.device("meta"):
        own = {k: v.shape for k, v in DeconvNet(CrossEntropy(), 2).state_dict().items()}
        vgg = TimmBackbone("vgg16_bn").body.state_dict()
    names = [name for name in vgg if name.startswith("features.")]
    assert names == [name for name in own if name.startswith("features.")]
    assert all(own[name] == vgg[name].shape for name in names)
    assert own["fc6.0.weight"] == vgg["pre_logits.fc1.weight"].shape


@pytest.mark.slow
def test_it_starts_from_vgg16(tmp_path: Path) -> None:
    torch.manual_seed(1)
    vgg = TimmBackbone("vgg16_bn").body
    small = {k: v[:0] if k.startswith("head") else v for k, v in vgg.state_dict().items()}
    torch.save(small, tmp_path / "timm.pt")
    model = DeconvNet(
        CrossEntropy(), 2, image_size=224, width=64, weights=str(tmp_path / "timm.pt")
    ).eval()
    model.load_pretrained(["a", "b"])
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    vgg.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.features(x), vgg.features(x))
        code = vgg.pre_logits.fc1(vgg.features(x))
        torch.testing.assert_close(model.fc6[0](model.features(x)), code)
    assert torch.equal(model.fc7[0].weight, vgg.pre_logits.fc2.weight)


def test_it_starts_from_files_of_other_forms(tmp_path: Path) -> None:
    model = make()
    state = model.state_dict()
    torchvision = {k: v for k, v in state.items() if k.startswith("features.")}
    torchvision["classifier.0.weight"] = torch.randn(16, 32 * 4)
    torch.save(torchvision, tmp_path / "other.pt")
    again = DeconvNet(
        CrossEntropy(), 3, image_size=64, width=4, hidden=16, weights=str(tmp_path / "other.pt")
    )
    again.load_pretrained(["a", "b", "c"])
    assert torch.equal(again.features[0].weight, model.features[0].weight)
    matrix = torchvision["classifier.0.weight"]
    assert torch.equal(again.fc6[0].weight.flatten(1), matrix)

    run = {"cvtrain": {"config": {}}, "state_dict": {f"model.{k}": v for k, v in state.items()}}
    torch.save(run, tmp_path / "run.ckpt")
    again = make(weights=str(tmp_path / "run.ckpt"))
    again.load_pretrained(["a", "b", "c"])
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    fewer = make(num_classes=2, weights=str(tmp_path / "run.ckpt"))
    fewer.load_pretrained(["a", "b"])
    assert torch.equal(fewer.levels[0][0][0].weight, model.levels[0][0][0].weight)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no VGG-16 with batch norm"):
        make(weights=str(tmp_path / "a.pt")).load_pretrained(["a"])
    torch.save(make(width=8).state_dict(), tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"its first layer has 8 channels, model\.width=4"):
        make(weights=str(tmp_path / "b.pt")).load_pretrained(["a"])
    with pytest.raises(UsageError, match="no"):
        make(weights=str(tmp_path / "none.pt")).load_pretrained(["a"])


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"hidden": 0}, "hidden=0 must be at least 1"),
        ({"max_windows": -1}, "max_windows=-1 must be at least 0"),
        ({"context": 0.5}, "context=0.5 must be at least 1"),
        ({"inference": "tiles"}, r"inference=tiles: expected windows \| whole"),
        ({"aggregate": "sum"}, r"aggregate=sum: expected max \| mean"),
        ({"pretrained": True, "weights": "a"}, "exclude each other"),
    ],
)
def test_wrong_arguments_are_refused(keywords: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**keywords)
