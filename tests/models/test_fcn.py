"""FCN: the paper's numbers, any size of image, skips that are added where they belong."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cvtrain.layers.transposed import Upsample
from cvtrain.losses.cross_entropy import CrossEntropy
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.segmentation.fcn import FCN
from cvtrain.structures import Target


def make(name: str = "resnet18", num_classes: int = 3, **keywords) -> FCN:
    torch.manual_seed(0)
    model = FCN(TimmBackbone(name), CrossEntropy(), num_classes, **keywords)
    for score in model.scores:
        torch.nn.init.normal_(score.weight, std=0.1)
    return model.eval()


def test_the_papers_network_has_134_million_parameters() -> None:
    with torch.device("meta"):
        model = FCN(TimmBackbone("vgg16"), CrossEntropy(), 21, stride=8)
    names = dict(model.named_parameters())
    assert names["backbone.body.pre_logits.fc1.weight"].shape == (4096, 512, 7, 7)
    assert names["backbone.body.pre_logits.fc2.weight"].shape == (4096, 4096, 1, 1)
    body = 14_714_688 + (512 * 49 + 1) * 4096 + 4097 * 4096  # VGG-16 without its last layer
    scores = 4097 * 21 + 513 * 21 + 257 * 21
    doublings = 2 * 21 * 21 * 16
    assert sum(p.numel() for p in model.parameters()) == body + scores + doublings == 134_376_863
    assert [s.in_channels for s in model.scores] == [4096, 512, 256]  # fc7, pool4, pool3
    assert [m.stride for m in (*model.doublings, model.enlarge)] == [2, 2, 8]


def test_fc6_and_fc7_slide_over_the_map() -> None:
    """At a place whose 7 x 7 neighborhood is inside they are VGG's own connected layers."""
    torch.manual_seed(0)
    model = FCN(TimmBackbone("vgg16"), CrossEntropy(), 2, stride=32).eval()
    x = torch.randn(1, 512, 8, 9)
    with torch.no_grad():
        dense = model._connected(x)
        one = model.backbone.fc_layers()(x[..., 1:8, 2:9])
    assert dense.shape == (1, 4096, 8, 9)
    torch.testing.assert_close(dense[..., 4, 5], one[..., 0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("size", [(64, 64), (33, 95), (1, 200)])
def test_the_output_has_the_size_of_any_image(stride: int, size: tuple[int, int]) -> None:
    model = make(stride=stride)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    logits = model(images)
    assert logits.shape == (2, 3, *size)
    assert logits.dtype == torch.float32
    prediction = model.predict(images)[1]
    assert prediction.mask.shape == size
    assert torch.equal(prediction.mask, prediction.logits.argmax(0))


def test_what_it_computes() -> None:
    """Scores of strides 32, 16 and 8, enlarged bilinearly and added, on an image of 96 x 64."""
    model = make()
    images = torch.randint(0, 256, (1, 3, 96, 64), dtype=torch.uint8)
    maps = dict(zip(model.backbone.strides, model.backbone(model.normalize(images)), strict=True))
    want = model.scores[0](maps[32])
    for score, stride in zip(list(model.scores)[1:], (16, 8), strict=True):
        want = F.interpolate(want, scale_factor=2, mode="bilinear") + score(maps[stride])
    want = F.interpolate(want, scale_factor=8, mode="bilinear")
    torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-5)


def test_it_starts_undecided_and_the_last_enlargement_is_fixed() -> None:
    torch.manual_seed(0)
    model = FCN(TimmBackbone("resnet18"), CrossEntropy(), 4)
    target = Target(mask=torch.randint(0, 4, (64, 64)))
    terms = model.loss(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), [target])
    assert terms["pixels"].item() == pytest.approx(torch.tensor(4.0).log().item())
    assert "enlarge.weight" in model.state_dict()
    assert "enlarge.weight" not in dict(model.named_parameters())
    learned = FCN(TimmBackbone("resnet18"), CrossEntropy(), 4, learn_last=True)
    assert "enlarge.weight" in dict(learned.named_parameters())


def test_what_fixed_enlargement_can_tell_at_best() -> None:
    """Scores fitted to a mask themselves: finer strides tell more, none tells all of it."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(40, 2, generator=generator) * 64  # a mosaic of small regions
    pixels = torch.cartesian_prod(torch.arange(64.0), torch.arange(64.0))
    mask = (torch.cdist(pixels, centers).argmin(1) % 3).view(1, 64, 64)
    right = []
    for stride in (32, 16, 8):
        enlarge = Upsample(3, stride, learned=False)
        scores = torch.zeros(1, 3, 64 // stride, 64 // stride, requires_grad=True)
        optimizer = torch.optim.Adam([scores], lr=0.5)
        for _ in range(60):
            loss = F.cross_entropy(enlarge(scores), mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right.append(float((enlarge(scores).argmax(1) == mask).float().mean()))
    assert right[0] + 0.05 < right[1]
    assert right[1] + 0.05 < right[2] < 0.97


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stride=4: expected 32 \| 16 \| 8"):
        make(stride=4)
    with pytest.raises(ValueError, match="fc=true: resnet18 has no connected layers"):
        make(fc=True)
    assert make("vgg11", fc=False).backbone.fc_layers() is None
