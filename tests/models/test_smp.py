"""smp's decoders on our backbones: its own models' logits, any size, clear refusals."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from cvtrain.losses.cross_entropy import CrossEntropy
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.segmentation.smp import ARCHS, SMP, UNetEncoder


def make(arch: str = "unet", backbone: str = "resnet18", channels: int = 3, **options) -> SMP:
    torch.manual_seed(0)
    body = TimmBackbone(backbone, in_channels=channels)
    return SMP(body, CrossEntropy(), 4, arch, options)


def theirs(arch: str, encoder: str = "resnet18", **keywords) -> nn.Module:
    if arch == "deeplabv3":
        keywords["encoder_output_stride"] = 16
    torch.manual_seed(1)
    model = smp.create_model(arch, f"tu-{encoder}", None, classes=4, **keywords)
    for norm in model.modules():  # running statistics that say something
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


def copied(model: SMP, reference: nn.Module) -> None:
    """smp's weights into ours, every one of them."""
    state = {
        k.replace("encoder.model.", "backbone.body."): v for k, v in reference.state_dict().items()
    }
    own = {k for k in model.state_dict() if not k.startswith(("normalize.", "criterion."))}
    assert own == state.keys()
    model.load_state_dict(state, strict=False)


def photo(*size: int) -> Tensor:
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.manual_seed(3))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_logits_are_those_of_smp_on_copied_weights(arch: str) -> None:
    model, reference = make(arch).eval(), theirs(arch)
    copied(model, reference)
    images = photo(2, 3, 128, 160)
    with torch.no_grad():
        want = reference(model.normalize(images))
        torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-4)


def test_unet_encoder_is_smps_u_net_with_other_widths_attention_and_channels() -> None:
    keywords = {"decoder_channels": (40, 32, 24, 16, 16), "decoder_attention_type": "scse"}
    reference = theirs("unet", in_channels=5, **keywords)
    body = TimmBackbone("resnet18", in_channels=5)
    model = UNetEncoder(body, CrossEntropy(), 4, (40, 32, 24, 16, 16), "scse").eval()
    copied(model, reference)
    images = photo(1, 5, 64, 96)
    with torch.no_grad():
        want = reference(model.normalize(images))
        torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_one_small_image_of_odd_sides_trains_every_parameter(arch: str) -> None:
    """Alone in its batch: pooled to one place, it gives one value a channel."""
    model = make(arch).train()
    images = photo(1, 3, 70, 45)
    out = model(images)
    assert out.shape == (1, 4, 70, 45)
    out.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("backbone", ["convnext_atto", "vit_tiny_patch16_224", "vgg11"])
def test_backbones_with_other_maps(backbone: str) -> None:
    """No map of stride 2; one map in all; one of stride 1 too."""
    for arch in ("unet", "fpn"):
        model = make(arch, backbone).train()
        out = model(photo(2, 3, 64, 64))
        assert out.shape == (2, 4, 64, 64)
        out.square().mean().backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_a_backbone_of_ours_and_layers_behind_its_last_used_map() -> None:
    torch.manual_seed(0)
    assert SMP(DarknetTiny(), CrossEntropy(), 2)(photo(1, 3, 33, 64)).shape == (1, 2, 33, 64)
    model = make("pspnet")
    assert model.backbone.strides == [2, 4, 8]  # as smp's: nothing after stride 8 is kept


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"arch=dpt is not known: expected unet \| .* \| segformer"
    ):
        make("dpt")
    with pytest.raises(ValueError, match=r"options.depth: the decoder of fpn takes pyramid_chan"):
        make("fpn", depth=3)
    with pytest.raises(ValueError, match=r"options=.*'dilation'.*arch=fpn says: .*cat"):
        make("fpn", merge_policy="dilation")
    with pytest.raises(ValueError, match="mobilenetv3_small_100 cannot be dilated, a ResNet"):
        make("deeplabv3plus", "mobilenetv3_small_100")
    with pytest.raises(ValueError, match="needs a map of stride 2, which convnext_atto has not"):
        make("unetplusplus", "convnext_atto")
    with pytest.raises(ValueError, match=r"widths=\[64, 32\]: give 5 numbers"):
        UNetEncoder(TimmBackbone("resnet18"), CrossEntropy(), 2, (64, 32))
    with pytest.raises(ValueError, match="attention=se: expected scse or null"):
        UNetEncoder(TimmBackbone("resnet18"), CrossEntropy(), 2, attention="se")
    with pytest.raises(ValueError, match=r"widths=\[32, 32, 32, 32, 8\] must be at least 16"):
        UNetEncoder(TimmBackbone("resnet18"), CrossEntropy(), 2, (32, 32, 32, 32, 8), "scse")
