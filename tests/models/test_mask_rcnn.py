"""Mask R-CNN: equal to torchvision's on copied weights, the paper's shapes and numbers."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn

from cvtrain.data.shapes import ShapesReader
from cvtrain.errors import CheckpointError
from cvtrain.layers.roi_head import HardRoIs, RandomRoIs
from cvtrain.layers.rpn import RPN
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.base import total_loss
from cvtrain.models.detection.coco_weights import MASK_RCNN
from cvtrain.models.instance.mask_rcnn import MaskRCNN
from cvtrain.structures import Target
from tests.models.test_faster_rcnn import assert_equal_to_reference, copied, reference, scene


@pytest.fixture(scope="module")
def theirs() -> TorchvisionMaskRCNN:
    other = reference(maskrcnn_resnet50_fpn)
    assert isinstance(other, TorchvisionMaskRCNN)
    return other


def masked_scene() -> tuple[Tensor, list[Target]]:
    """Ellipses in the boxes of Faster R-CNN's scene; an image without objects."""
    images, targets = scene()
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for target in targets:
        assert target.boxes is not None
        middle = (target.boxes[:, :2] + target.boxes[:, 2:])[..., None, None] / 2
        half = (target.boxes[:, 2:] - target.boxes[:, :2])[..., None, None] / 2
        place = torch.stack([x, y]) + 0.5
        target.masks = ((place - middle) / half).square().sum(dim=1) <= 1  # (N, H, W)
    return images, targets


def test_equal_to_torchvision_on_copied_weights(theirs: TorchvisionMaskRCNN) -> None:
    mine = copied(MaskRCNN, theirs, half_pixel=False)
    assert_equal_to_reference(theirs, mine, *masked_scene())


def test_the_parameters_of_resnet50_fpn(build_model: Any) -> None:
    words = ("task=instance_segmentation", "model=mask_rcnn", "backbone=resnet50")
    with torch.device("meta"):
        model = build_model(*words, num_classes=90)
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    # torchvision's for 91 classes has frozen batch norms, and a box and a mask of its background.
    count = sum(p.numel() for p in model.parameters())
    norms = sum(
        2 * m.weight.numel() for m in model.backbone.modules() if hasattr(m, "running_mean")
    )
    assert count - norms + 4 * 1025 + 257 == 44_401_393
    assert count + 4 * 1025 + 257 == sum(p.numel() for p in theirs.parameters())
    assert model.mask_pool.size == 14
    assert model.mask_pool.strides == [4, 8, 16, 32]
    assert sum(p.numel() for p in model.masks.parameters()) == (
        4 * (256 * 256 * 9 + 256) + 256 * 256 * 4 + 256 + 90 * 257
    )


def c4(backbone: str = "resnet18", **keywords: Any) -> MaskRCNN:
    torch.manual_seed(0)
    more = {"top": "backbone", "sampling": RandomRoIs(16), **keywords}
    return MaskRCNN(TimmBackbone(backbone), 3, neck="c4", **more)  # type: ignore[arg-type]


def test_the_c4_form_of_figure_4() -> None:
    """14 x 14 x 1024, the last stage to 7 x 7 x 2048, 14 x 14 x 256, a mask of 14 x 14 a class."""
    with torch.device("meta"):
        model = c4("resnet50")
        maps = model.maps(torch.zeros(1, 3, 128, 128))
        boxes = [torch.zeros(3, 4)]
        read = model.pool(maps, boxes)
        x = model.features(maps, boxes)
        up = model.masks.up(x)
        masks = model.masks(x, torch.zeros(3, dtype=torch.int64))
    assert read.shape == (3, 1024, 14, 14)
    assert x.shape == (3, 2048, 7, 7)
    assert up.shape == (3, 256, 14, 14)
    assert masks.shape == (3, 14, 14)
    assert len(model.masks.convs) == 0
    assert model.mask_pool is None


def test_the_last_stage_runs_once_on_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    model = c4().train()
    seen = []
    later = model.backbone.forward_tail

    def counted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return later(x)

    monkeypatch.setattr(model.backbone, "forward_tail", counted)
    images, targets = masked_scene()
    terms = model.loss(images, targets)
    assert terms["num_positives"] > 0
    assert seen == [32]  # 16 regions an image: boxes and masks take the same
    total_loss(terms).backward()
    assert all(p.grad is not None for p in model.parameters())
    found = model.predict(images)
    assert [p.mask_probs.shape[1:] for p in found] == [(14, 14)] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("keywords", "size"),
    [
        ({}, 28),
        ({"neck": "c4"}, 14),
        ({"roi": "pool"}, 28),
        ({"mask_roi_size": 8, "mask_channels": 8, "mask_convs": 1}, 16),
    ],
)
def test_forms_on_any_backbone(keywords: dict[str, Any], size: int) -> None:
    torch.manual_seed(0)
    if keywords.get("neck") != "c4":
        keywords = {"channels": 16, **keywords}
    backbone = DarknetTiny((4, 8, 16, 16), (1,) * 4)
    model = MaskRCNN(backbone, 3, hidden=[8], sampling=RandomRoIs(16), **keywords)
    images, targets = masked_scene()
    total_loss(model.train().loss(images, targets)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.mask_pool is not None
    assert model.mask_pool.method == model.pool.method == keywords.get("roi", "align")
    for prediction in model.predict(images):
        assert prediction.boxes is not None
        assert prediction.mask_probs is not None
        assert prediction.mask_probs.shape == (len(prediction.boxes), size, size)


def test_vggs_connected_layers_leave_no_map() -> None:
    with torch.device("meta"):
        model = c4("vgg11")
    assert model.mask_pool is not None
    assert (model.mask_pool.size, model.mask_pool.strides) == (7, [16])
    assert model.masks.convs[0].in_channels == 512


@pytest.fixture
def small() -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(
        DarknetTiny((4, 8, 16, 16), (1,) * 4),
        3,
        channels=16,
        hidden=[16],
        rpn=partial(RPN, candidates=(200, 200), proposals=(100, 50)),
        sampling=RandomRoIs(32),
    )


@pytest.mark.parametrize("amp", [False, True])
def test_without_objects_every_parameter_still_gets_a_gradient(small: MaskRCNN, amp: bool) -> None:
    images, _ = scene()
    ignored = Target(
        boxes=torch.tensor([[10.0, 20.0, 90.0, 70.0]]),
        labels=torch.tensor([0]),
        ignore=torch.tensor([True]),
        masks=torch.ones(1, *images.shape[-2:], dtype=torch.bool),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        terms = small.train().loss(images, [Target(), ignored])
    assert terms["masks"] == 0
    total_loss(terms).backward()
    assert [n for n, p in small.named_parameters() if p.grad is None] == []


def test_bfloat16_gives_finite_gradients_and_float32_masks(small: MaskRCNN) -> None:
    images, targets = masked_scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = small.train().loss(images, targets)
        total_loss(terms).backward()
        found = small.predict(images)
    assert terms["masks"] > 0
    assert all(torch.isfinite(p.grad).all() for p in small.parameters() if p.grad is not None)
    assert {p.mask_probs.dtype for p in found} == {torch.float32}  # type: ignore[union-attr]


def test_masks_belong_to_the_class_of_their_box(small: MaskRCNN) -> None:
    with torch.no_grad():  # the class's own bias, and nothing else
        small.masks.logits.weight.zero_()
        assert small.masks.logits.bias is not None
        small.masks.logits.bias.copy_(torch.tensor([-9.0, 0.0, 9.0]))
        small.head.logits.bias.normal_(std=0.3)
    for p in small.predict(scene()[0]):
        assert p.labels is not None
        assert p.mask_probs is not None
        wanted = torch.tensor([-9.0, 0.0, 9.0]).sigmoid()[p.labels]
        assert len(wanted) == 100
        torch.testing.assert_close(p.mask_probs, wanted[:, None, None].expand(-1, 28, 28))


def test_no_detections_no_masks(small: MaskRCNN) -> None:
    small.stage.select.min_score = 0.99
    for p in small.predict(scene()[0]):
        assert p.mask_probs is not None
        assert p.mask_probs.shape == (0, 28, 28)


def test_hard_regions_give_masks_too(small: MaskRCNN) -> None:
    small.stage.sampling = HardRoIs(8)
    images, targets = masked_scene()
    total_loss(small.train().loss(images, targets)).backward()
    assert small.masks.up.weight.grad is not None
    assert torch.isfinite(small.masks.up.weight.grad).all()


def test_validation_repeats_itself(small: MaskRCNN) -> None:
    images, targets = masked_scene()
    first, _ = small.train().loss_and_predict(images, targets)
    second, _ = small.loss_and_predict(images, targets)
    assert first == second
    assert small.training


def test_bad_forms_are_refused() -> None:
    for keywords, text in (
        ({"neck": "c4", "top": "backbone", "mask_roi_size": 14}, "mask_roi_size=14 would not be"),
        ({"mask_roi_size": 0}, "size=0 must be at least 1"),
        ({"mask_channels": 0}, "mask_channels=0 must be at least 1"),
        ({"mask_convs": -1}, "mask_convs=-1 at least 0"),
        ({"weights": "a.pth"}, "the weights trained on COCO are for backbone=resnet50"),
    ):
        with torch.device("meta"), pytest.raises(ValueError, match=re.escape(text)):
            MaskRCNN(TimmBackbone("resnet18"), 3, **keywords)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def file(theirs: TorchvisionMaskRCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For COCO's 91, under the older names of the published file."""
    path = tmp_path_factory.mktemp("coco") / "coco.pth"
    torch.manual_seed(1)
    state = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    older = {
        re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", k): v
        for k, v in state.items()
    }
    torch.save(older, path)
    return path


def test_coco_weights_are_taken_masks_by_the_names_of_classes(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = MaskRCNN(TimmBackbone("resnet50"), 2, weights=file)
    before = model.masks.logits.weight.clone()
    with caplog.at_level("INFO"):
        model.load_pretrained(["raccoon", "dog"])
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith(f"model.weights={file}: took 301 of the model's 307 tensors; ")
    assert "outputs of the background and of 1 of 2 classes; COCO has no raccoon" in line
    assert "keep their random start" not in line
    state = torch.load(file, weights_only=True)
    dog = MASK_RCNN.source.meta["categories"].index("dog")
    theirs = state["roi_heads.mask_predictor.mask_fcn_logits.weight"]
    assert torch.equal(model.masks.logits.weight[1], theirs[dog])
    assert torch.equal(model.masks.logits.weight[0], before[0])
    own = model.state_dict()
    for name, layer in (("head.mask_fcn3", "convs.2"), ("predictor.conv5_mask", "up")):
        assert torch.equal(own[f"masks.{layer}.weight"], state[f"roi_heads.mask_{name}.weight"])


def test_other_mask_channels_keep_their_start(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = MaskRCNN(TimmBackbone("resnet50"), 1, mask_channels=64, weights=file)
    model.load_pretrained(["dog"])
    (line,) = [r.getMessage() for r in caplog.records]
    assert "took 291 of the model's 307 tensors" in line
    assert "12 keep their random start (masks.convs.0.weight" in line


def test_a_file_of_faster_rcnn_is_refused(file: Path, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)
    bare = tmp_path / "faster.pth"
    torch.save({k: v for k, v in state.items() if "mask" not in k}, bare)
    model = MaskRCNN(TimmBackbone("resnet50"), 1, weights=bare)
    with pytest.raises(CheckpointError, match=r"holds no Mask R-CNN of torchvision's .*masks\.log"):
        model.load_pretrained(["dog"])


SMALL = ("model=mask_rcnn", "backbone=darknet_tiny", "model.channels=32", "model.hidden=[128,128]")
SMALL = (*SMALL, "model.rpn.candidates=[300,300]")


@pytest.mark.slow
def test_16_drawn_scenes_can_be_learned_by_heart(learn_outlines: Any) -> None:
    reader = ShapesReader("instance_segmentation", num_train=16, scene_size=96)
    table = reader.read("train").table
    # Not 4: of the same images every time, whose mean is not that of all.
    assert learn_outlines(table, *SMALL, size=96, batch=5) >= 0.9
