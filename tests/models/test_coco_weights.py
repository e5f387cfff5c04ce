"""Starting Faster R-CNN from torchvision's weights: rows of classes, older files, other files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from cvtrain.errors import CheckpointError, RunError, UsageError
from cvtrain.models.backbones import fetch
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.detection.coco_weights import FASTER_RCNN
from cvtrain.models.detection.faster_rcnn import FasterRCNN

SOURCE = FASTER_RCNN.source
CATEGORIES = SOURCE.meta["categories"]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the published one has them: the older names of the pyramid and of the RPN's layer."""
    path = tmp_path_factory.mktemp("coco") / "coco.pth"
    older = {
        k.replace("blocks.0.0.", "blocks.0.")
        .replace("blocks.3.0.", "blocks.3.")
        .replace("conv.0.0.", "conv."): v
        for k, v in state.items()
        if "num_batches" not in k
    }
    torch.save(older, path)
    return path


def build(classes: int, file: Path, **keywords: Any) -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(TimmBackbone("resnet50", **keywords), classes, weights=file)


def test_all_is_taken_and_classes_by_their_names(
    state: dict[str, Tensor], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(3, file)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        model.load_pretrained(["raccoon", "Traffic_Light", "dog"])
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith(f"model.weights={file}: took 291 of the model's 295 tensors; ")
    assert "outputs of the background and of 2 of 3 classes; COCO has no raccoon" in line
    after = model.state_dict()
    for name, theirs in (
        ("backbone.body.layer4.2.conv3.weight", "backbone.body.layer4.2.conv3.weight"),
        ("backbone.body.bn1.running_var", "backbone.body.bn1.running_var"),
        ("neck.pyramid.inner_blocks.3.0.bias", "backbone.fpn.inner_blocks.3.0.bias"),
        ("rpn.conv.weight", "rpn.head.conv.0.0.weight"),
        ("head.connected.1.weight", "roi_heads.box_head.fc7.weight"),
    ):
        assert torch.equal(after[name], state[theirs])
    logits = state["roi_heads.box_predictor.cls_score.weight"]
    codes = state["roi_heads.box_predictor.bbox_pred.weight"]
    light, dog = CATEGORIES.index("traffic light"), CATEGORIES.index("dog")
    mine = after["head.logits.weight"]
    assert torch.equal(mine[[0, 2, 3]], logits[[0, light, dog]])
    assert torch.equal(mine[1], before["head.logits.weight"][1])
    assert torch.equal(after["head.codes.weight"][8:], codes[4 * dog : 4 * dog + 4])
    assert torch.equal(after["head.codes.weight"][:4], before["head.codes.weight"][:4])


def test_other_units_and_channels_keep_their_start(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = FasterRCNN(TimmBackbone("resnet50", in_channels=1), 1, hidden=(64, 1024), weights=file)
    model.load_pretrained(["dog"])
    (line,) = [r.getMessage() for r in caplog.records]
    assert "the layers of the classes keep" not in line
    assert "3 keep their random start (head.connected.0.weight, head.connected.0.bias" in line
    assert "first filters, for images of 3 channels, summed for 1 channel" in line
    other = FasterRCNN(TimmBackbone("resnet50"), 1, hidden=(1024, 64), weights=file)
    other.load_pretrained(["dog"])
    assert "classes keep their random start (model.hidden differs)" in caplog.messages[-1]


def test_files_of_other_networks_are_refused(
    state: dict[str, Tensor], file: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "backbone.pth"
    torch.save({k: v for k, v in state.items() if k.startswith("backbone.body")}, bare)
    with pytest.raises(CheckpointError, match=r"it has no rpn\.conv\.weight\); a backbone's"):
        build(1, bare).load_pretrained(["dog"])
    few = tmp_path / "few.pth"
    name = "roi_heads.box_predictor.cls_score.weight"
    torch.save({**state, name: state[name][:5]}, few)
    with pytest.raises(CheckpointError, match="has 5 outputs where the weights trained on COCO"):
        build(1, few).load_pretrained(["dog"])
    with pytest.raises(UsageError, match=r"model\.weights=.*none\.pth: there is no such file"):
        build(1, tmp_path / "none.pth").load_pretrained(["dog"])


def test_without_a_network_one_line_names_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fetch, "_unreachable", lambda url: "Network is unreachable")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = FasterRCNN(TimmBackbone("resnet50"), 1, pretrained=True)
    with pytest.raises(RunError) as caught:
        model.load_pretrained(["dog"])
    assert str(caught.value) == (
        "could not fetch torchvision's Faster R-CNN weights (download.pytorch.org does not answer: "
        f"Network is unreachable); without a network, copy {SOURCE.url} here and say "
        "model.weights=FILE in place of model.pretrained=true"
    )


def test_a_fetched_file_is_kept_and_checked(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetch, "_unreachable", lambda url: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []

    def download(url: str, path: str, prefix: str, progress: bool) -> None:
        asked.append((url, prefix))
        Path(path).write_bytes(file.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        FasterRCNN(TimmBackbone("resnet50"), 1, pretrained=True).load_pretrained(["dog"])
    assert asked == [(SOURCE.url, "258fb6c6")]
    assert f"from {SOURCE.url}, about 160 MB, into {tmp_path}" in caplog.messages[0]


def test_forms_that_do_not_fit_are_refused_before_anything_is_read() -> None:
    for backbone, keywords, text in (
        ("resnet18", {"pretrained": True}, "this is backbone=resnet18 model.neck=fpn model.top=fc"),
        ("resnet50", {"weights": "a.pth", "neck": "c4"}, "model.neck=c4 model.top=fc"),
        ("resnet50", {"weights": "a.pth", "pretrained": True}, "exclude each other"),
    ):
        with torch.device("meta"), pytest.raises(ValueError, match=text):
            FasterRCNN(TimmBackbone(backbone), 1, **keywords)  # type: ignore[arg-type]
