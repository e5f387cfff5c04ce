"""Starting a backbone from a file: what fits, what is said, what is refused."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from cvtrain.errors import CheckpointError, RunError, UsageError
from cvtrain.losses.yolo import YOLOLoss
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.backbones.weights import adapt_channels, load_weights
from cvtrain.models.backbones.yolov1 import YOLOv1Backbone
from cvtrain.models.classification.classifier import Classifier
from cvtrain.models.detection.yolo import YOLO


def tiny(seed: int, **keywords: Any) -> DarknetTiny:
    torch.manual_seed(seed)
    return DarknetTiny(widths=(4, 8), blocks=(1, 2), narrow=None, **keywords)


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items())


def checkpoint(model: nn.Module) -> dict[str, Any]:
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    return {"cvtrain": {"version": 1}, "state_dict": state, "epoch": 3}


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda m: m.state_dict(),
    "state_dict": lambda m: {"state_dict": m.state_dict(), "epoch": 1},
    "model": lambda m: {"model": m.state_dict()},
    "data_parallel": lambda m: {f"module.{k}": v for k, v in m.state_dict().items()},
    "compiled": lambda m: {f"_orig_mod.{k}": v for k, v in m.state_dict().items()},
    "named_backbone": lambda m: {f"backbone.{k}": v for k, v in m.state_dict().items()},
    "checkpoint": lambda m: checkpoint(Classifier(m, nn.CrossEntropyLoss(), 5)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_every_kind_of_file_is_taken(wrap: str, tmp_path: Path) -> None:
    source = tiny(0)
    torch.save(WRAPPED[wrap](source), tmp_path / "a.pth")
    assert not same(tiny(1), source)
    assert same(tiny(1, weights=tmp_path / "a.pth"), source)


def test_safetensors(tmp_path: Path) -> None:
    source = tiny(0)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    assert same(tiny(1, weights=str(tmp_path / "a.safetensors")), source)


def test_a_run_folder_stands_for_its_best_checkpoint(tmp_path: Path) -> None:
    source = tiny(0)
    (tmp_path / "checkpoints").mkdir()
    content = checkpoint(Classifier(source, nn.CrossEntropyLoss(), 5))
    torch.save(content, tmp_path / "checkpoints" / "best.ckpt")
    assert same(tiny(1, weights=tmp_path), source)


def test_a_detector_starts_from_a_classifiers_checkpoint(tmp_path: Path) -> None:
    source = TimmBackbone("resnet18")
    torch.save(checkpoint(Classifier(source, nn.CrossEntropyLoss(), 5)), tmp_path / "a.ckpt")
    taken = YOLO(TimmBackbone("resnet18", weights=tmp_path / "a.ckpt"), YOLOLoss(), 2, 64)
    assert same(taken.backbone, source)


def test_timms_own_file_fits_but_for_its_classifier(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model("resnet18", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with caplog.at_level(logging.INFO):
        taken = TimmBackbone("resnet18", weights=tmp_path / "a.pth")
    assert torch.equal(taken.body.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    assert "2 in the file have no use here (fc.weight, fc.bias)" in caplog.text


def test_the_first_20_layers_of_yolo_come_from_pretraining(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cvtrain.models.backbones.yolov1 as module

    thin = [
        layer if isinstance(layer, str) else (layer[0], layer[1] // 32, layer[2])
        for layer in module.LAYERS
    ]
    monkeypatch.setattr(module, "LAYERS", thin)
    source = YOLOv1Backbone(layers=20)
    torch.save(checkpoint(Classifier(source, nn.CrossEntropyLoss(), 5)), tmp_path / "a.ckpt")
    taken = YOLOv1Backbone(layers=24, weights=tmp_path / "a.ckpt")
    assert all(torch.equal(v, taken.state_dict()[k]) for k, v in source.state_dict().items())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "took 40 of the backbone's 48 tensors" in record.message
    assert "8 keep their random start (convs.conv21.conv.weight, " in record.message


def test_what_has_another_shape_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    torch.save(
        DarknetTiny(widths=(4, 6), blocks=(1, 2), narrow=None).state_dict(), tmp_path / "a.pth"
    )
    backbone = tiny(1)
    loaded = load_weights(backbone, tmp_path / "a.pth")
    assert all(n.startswith("blocks.0.") or "num_batches" in n for n in loaded.taken)
    assert any(n.startswith("blocks.1.") for n in loaded.missing)
    assert set(loaded.taken) | set(loaded.missing) == set(backbone.state_dict())
    assert "blocks.1.0.conv.weight" in caplog.text
    assert "\n" not in loaded.summary


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth matches nothing .* fc.weight.*another"):
        tiny(0, weights=tmp_path / "a.pth")
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth holds no tensors"):
        tiny(0, weights=tmp_path / "b.pth")
    torch.save({"cvtrain": {}, "state_dict": {"model.fc.weight": torch.zeros(1)}}, tmp_path / "c")
    with pytest.raises(CheckpointError, match="a model without a backbone"):
        tiny(0, weights=tmp_path / "c")


def test_counters_alone_are_no_match(tmp_path: Path) -> None:
    counters = {k: v for k, v in tiny(0).state_dict().items() if k.endswith("num_batches_tracked")}
    assert counters
    torch.save(counters, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="matches nothing"):
        tiny(0, weights=tmp_path / "a.pth")


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("it_ran"),))


@pytest.mark.parametrize("raw", [True, False])
def test_a_pickle_payload_is_refused_and_does_not_run(
    raw: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {**tiny(0).state_dict(), "extra": Payload()}
    if raw:
        Path("a.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, "a.pth")
    with pytest.raises(CheckpointError, match="carries more than tensors") as info:
        tiny(0, weights="a.pth")
    assert "\n" not in str(info.value)
    assert not Path("it_ran").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.ckpt"])
@pytest.mark.parametrize("left", [0, 1, 9, 200, -30])
def test_a_truncated_file_is_one_line(name: str, left: int, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(tiny(0).state_dict(), path)
    else:
        torch.save(tiny(0).state_dict(), path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=name) as info:
        tiny(0, weights=path)
    assert "\n" not in str(info.value)


def test_a_missing_file_is_a_wrong_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"backbone.weights=.*nowhere.pt: there is no such file"):
        tiny(0, weights=tmp_path / "nowhere.pt")


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_filters_for_rgb_serve_other_channels(channels: int, tmp_path: Path) -> None:
    torch.save(tiny(0).state_dict(), tmp_path / "a.pth")
    taken = tiny(1, in_channels=channels, weights=tmp_path / "a.pth")
    weight = taken.blocks[0][0].conv.weight  # type: ignore[index, union-attr]
    assert weight.shape[1] == channels


def test_a_gray_image_looks_as_it_did_in_three_channels() -> None:
    filters, gray = torch.randn(4, 3, 3, 3), torch.randn(1, 1, 8, 8)
    as_rgb = nn.functional.conv2d(gray.repeat(1, 3, 1, 1), filters)
    for channels in (1, 3, 6):
        got = nn.functional.conv2d(
            gray.repeat(1, channels, 1, 1), adapt_channels(filters, channels)
        )
        torch.testing.assert_close(got, as_rgb, rtol=1e-4, atol=1e-5)


def test_pretrained_says_what_it_fetches_and_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **keywords: Any) -> nn.Module:
        if pretrained:
            raise ConnectionError("no route")
        return create(name, **keywords)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RunError, match=r"resnet18 .*backbone.weights=FILE") as info:
        TimmBackbone("resnet18", pretrained=True)
    assert "\n" not in str(info.value)
    (line,) = [r.getMessage() for r in caplog.records]
    assert "resnet18" in line
    assert "about 45 MB" in line
    assert "huggingface.co/timm/resnet18" in line
    assert "into " in line


def test_pretrained_weights_are_those_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    source = create("resnet18", num_classes=0)

    def fetched(name: str, pretrained: bool = False, **keywords: Any) -> nn.Module:
        model = create(name, **keywords)
        if pretrained:
            model.load_state_dict(source.state_dict())
        return model

    monkeypatch.setattr(timm, "create_model", fetched)
    assert same(TimmBackbone("resnet18", pretrained=True).body, source)


def test_wrong_choices_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="resnet81 is no model of timm; did you mean resnet"):
        TimmBackbone("resnet81")
    with pytest.raises(UsageError, match="exclude each other"):
        TimmBackbone("resnet18", pretrained=True, weights=tmp_path / "a.pth")
    with pytest.raises(UsageError, match="timm has no weights for resnet26t_gn"):
        raise_without_weights()


def raise_without_weights() -> None:
    with pytest.MonkeyPatch.context() as patch:
        create = timm.create_model

        def bare(name: str, **keywords: Any) -> nn.Module:
            model = create("resnet18", **keywords)
            model.pretrained_cfg = {**model.pretrained_cfg, "hf_hub_id": None, "url": ""}
            return model

        patch.setattr(timm, "create_model", bare)
        patch.setattr(timm, "is_model", lambda name: True)
        patch.setattr(timm, "get_pretrained_cfg", lambda name: None)
        TimmBackbone("resnet26t_gn", pretrained=True)
