"""Starting a backbone from a file: what fits, what is said, what is refused."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from cvtrain.errors import CheckpointError, UsageError
from cvtrain.losses.yolo import YOLOLoss
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.models.backbones.weights import adapt_channels, load_weights
from cvtrain.models.backbones.weights_file import read_state
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
    config: dict[str, Any] = {"model": {"name": type(model).__name__.lower(), "backbone": {}}}
    backbone = getattr(model, "backbone", None)
    if backbone is not None:
        kind = type(backbone)
        config["model"]["backbone"] = {
            "name": backbone.architecture,
            "_target_": f"{kind.__module__}.{kind.__qualname__}",
        }
    header = {"version": 1, "config": config, "classes": {"names": ["a", "b", "c"], "ids": []}}
    return {"cvtrain": header, "state_dict": state, "epoch": 3}


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
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "took 120 of the backbone's 120 tensors" in record.message
    assert "its classifier layer of 7 classes was left (fc.weight, fc.bias)" in record.message


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
    widths, blocks = (4, 8, 8), (1, 2, 1)
    source = DarknetTiny(widths=widths, blocks=blocks, narrow=6)
    torch.save(checkpoint(Classifier(source, nn.CrossEntropyLoss(), 5)), tmp_path / "a.ckpt")
    backbone = DarknetTiny(widths=widths, blocks=blocks, narrow=5)
    loaded = load_weights(backbone, tmp_path / "a.ckpt")
    assert set(loaded.taken) | set(loaded.missing) == set(backbone.state_dict())
    assert loaded.mismatched == [n for n in loaded.missing if "blocks.2.1." in n]
    assert "blocks.2.1.conv.weight: [6, 8, 1, 1] there, [5, 8, 1, 1] here" in caplog.text
    assert "\n" not in loaded.summary


def test_the_report_says_where_weights_come_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(checkpoint(Classifier(tiny(0), nn.CrossEntropyLoss(), 3)), tmp_path / "a.ckpt")
    with caplog.at_level(logging.INFO):
        tiny(1, weights=tmp_path / "a.ckpt")
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "(model=classifier, epoch 4): took 18 of the backbone's 18 tensors" in record.message
    assert record.message.endswith("; classifier's own layers for 3 classes were left")


ANOTHER = {
    "deeper": ("resnet34", "resnet18", r"it has 80 tensors more .*layer1\.2\.conv1"),
    "shallower": ("resnet18", "resnet34", r"it lacks 48 .*layer1\.2"),
    "wider": ("resnet50", "resnet18", r"17 of 60 weights have another shape .*\[64, 64, 1, 1\]"),
    "other": ("mobilenetv3_small_050", "resnet18", "matches nothing"),
}


@pytest.mark.parametrize("kind", ANOTHER)
@pytest.mark.parametrize("told", [True, False])
def test_weights_of_another_architecture_are_refused(kind: str, told: bool, tmp_path: Path) -> None:
    theirs, ours, why = ANOTHER[kind]
    source = TimmBackbone(theirs)
    if told:
        content = checkpoint(Classifier(source, nn.CrossEntropyLoss(), 5))
        why = f"weights of {theirs}, the backbone is {ours}: write backbone={theirs}"
    else:
        content = source.body.state_dict()
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=why) as info:
        TimmBackbone(ours, weights=tmp_path / "a.pth")
    assert "\n" not in str(info.value)
    assert ours in str(info.value)


def test_timms_training_script_tells_the_architecture(tmp_path: Path) -> None:
    source = timm.create_model("resnet34", num_classes=2)
    torch.save({"arch": "resnet34", "state_dict": source.state_dict()}, tmp_path / "a.pth.tar")
    with pytest.raises(CheckpointError, match="weights of resnet34, the backbone is resnet18"):
        TimmBackbone("resnet18", weights=tmp_path / "a.pth.tar")


def test_other_widths_of_our_own_networks_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = DarknetTiny(widths=(4, 6), blocks=(1, 2), narrow=None)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"another architecture .*\[6, 4, 3, 3\] there"):
        tiny(1, weights=tmp_path / "a.pth")


def test_a_few_names_in_common_are_no_match(tmp_path: Path) -> None:
    state = {f"net.{i}": torch.zeros(2) for i in range(9)} | {"norm.weight": torch.zeros(192)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"another architecture .* has 1 of the backbone's 150"
    ):
        TimmBackbone("vit_tiny_patch16_224", weights=tmp_path / "a.pth")


def test_a_twin_under_another_name_is_taken(tmp_path: Path) -> None:
    source = TimmBackbone("vit_tiny_patch16_224")
    torch.save(checkpoint(Classifier(source, nn.CrossEntropyLoss(), 5)), tmp_path / "a.ckpt")
    assert same(TimmBackbone("deit_tiny_patch16_224", weights=tmp_path / "a.ckpt"), source)


def test_a_run_folder_without_best_gives_its_last(tmp_path: Path) -> None:
    source = tiny(0)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match=r"holds no checkpoints/best\.ckpt"):
        tiny(1, weights=tmp_path)
    content = checkpoint(Classifier(source, nn.CrossEntropyLoss(), 5))
    torch.save(content, tmp_path / "checkpoints" / "last.ckpt")
    assert same(tiny(1, weights=tmp_path), source)


def test_an_unheard_of_prefix_is_found(tmp_path: Path) -> None:
    source = tiny(0)
    state = {f"net.trunk.{k}": v for k, v in source.state_dict().items()}
    torch.save({**state, "net.neck.weight": torch.zeros(2)}, tmp_path / "a.pth")
    assert same(tiny(1, weights=tmp_path / "a.pth"), source)


TORCHVISION = {
    "resnet18": "resnet18",
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "efficientnet_b0": "efficientnet_b0",
    "convnext_tiny": "convnext_tiny",
    "swin_tiny_patch4_window7_224": "swin_t",
    "vgg11": "vgg11",
    "vit_base_patch16_224": "vit_b_16",
}
HEAVY = ("convnext_tiny", "swin_tiny_patch4_window7_224", "vgg11", "vit_base_patch16_224")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in TORCHVISION]
)
def test_torchvisions_files_give_torchvisions_outputs(name: str, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    reference = torchvision.models.get_model(TORCHVISION[name], weights=None).eval()
    for module in reference.modules():  # statistics that a swapped norm would show in
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.8, 1.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.9, 1.1)
    torch.save(reference.state_dict(), tmp_path / "a.pth")
    backbone = TimmBackbone(name)
    loaded = load_weights(backbone, tmp_path / "a.pth")
    assert [k for k in loaded.missing if "num_batches" not in k and "index" not in k] == []
    assert "its classifier layer of 1000 classes was left" in loaded.summary
    last = [m for m in reference.modules() if isinstance(m, nn.Linear)][-1]
    seen = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        reference(x)
        got = backbone.eval().pooled(x)
    # timm's MobileNetV3 has another epsilon in its norms.
    close = 0.02 if name.startswith("mobilenet") else 1e-4
    assert float((got - seen[0]).norm() / seen[0].norm()) < close


def test_position_embeddings_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    backbone = TimmBackbone("vit_tiny_patch16_224")
    loaded = load_weights(backbone, tmp_path / "a.pth")
    assert loaded.missing == []
    assert "through timm's own conversion" in loaded.summary
    assert torch.equal(backbone.body.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)


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


FOREIGN = [
    b"export PATH=$HOME\n",
    b"hello world",
    b"a,b\n1,2\n",
    b"# notes\n",
    b"{}",
    b"Jjj",
    b"\x95",
]
FOREIGN += [bytes([i]) + b"xport 1 2 3\n\n." for i in range(256)]
FOREIGN += [b"\x80\x02" + bytes([i]) + b"port 1 2 3\n\n." for i in range(256)]


def test_any_other_file_is_one_line(tmp_path: Path) -> None:
    for content in FOREIGN:
        (tmp_path / "env.sh").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"env\.sh is ") as info:
            read_state(tmp_path / "env.sh")
        assert "\n" not in str(info.value)
    (tmp_path / "env.sh").write_bytes(FOREIGN[0])
    with pytest.raises(CheckpointError, match=r"env\.sh is no state dict, or carries more"):
        read_state(tmp_path / "env.sh")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_any_protocol_is_refused_without_a_warning(
    protocol: int, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": Payload}, protocol))
        with pytest.raises(CheckpointError, match="is no state dict, or carries more"):
            read_state(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    state = TimmBackbone("resnet10t").state_dict()
    bare = {name.removeprefix("body."): tensor for name, tensor in state.items()}
    bare["fc.weight"] = torch.full((3, 512), value)  # no one takes the classifier
    torch.save(bare, tmp_path / "a.pth")
    TimmBackbone("resnet10t", weights=tmp_path / "a.pth")
    bare["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(bare, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as info:
        TimmBackbone("resnet10t", weights=tmp_path / "a.pth")
    assert str(info.value) == f"{tmp_path / 'a.pth'}: layer1.0.conv1.weight is not finite"


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


SAID = {
    (3, 1): "3 channels, summed for 1 channel",
    (3, 2): "3 channels, cut to the first 2 and scaled by 3/2 for 2 channels",
    (3, 4): "3 channels, repeated and scaled by 3/4 for 4 channels",
    (3, 6): "3 channels, repeated and scaled by 3/6 for 6 channels",
    (1, 3): "1 channel, repeated and scaled by 1/3 for 3 channels",
    (5, 3): "5 channels, cut to the first 3 and scaled by 5/3 for 3 channels",
}


@pytest.mark.parametrize(("there", "here"), SAID)
def test_filters_serve_other_channels_and_it_is_said(
    there: int, here: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(tiny(0, in_channels=there).state_dict(), tmp_path / "a.pth")
    with caplog.at_level(logging.INFO):
        taken = tiny(1, in_channels=here, weights=tmp_path / "a.pth")
    assert taken.blocks[0][0].conv.weight.shape[1] == here  # type: ignore[index, union-attr]
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert f"first filters, for images of {SAID[there, here]}" in record.message


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("channels", [1, 4])
def test_first_filters_of_timm_are_adapted_as_timm_does(
    name: str, channels: int, tmp_path: Path
) -> None:
    from timm.models._manipulate import adapt_input_conv

    source = timm.create_model(name, num_classes=0)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    taken = TimmBackbone(name, in_channels=channels, weights=tmp_path / "a.pth")
    (first,) = taken.input_layers()
    want = adapt_input_conv(channels, source.state_dict()[first.removeprefix("body.")])
    torch.testing.assert_close(taken.state_dict()[first], want)


def test_a_gray_image_looks_as_it_did_in_three_channels() -> None:
    filters, gray = torch.randn(4, 3, 3, 3), torch.randn(1, 1, 8, 8)
    as_rgb = nn.functional.conv2d(gray.repeat(1, 3, 1, 1), filters)
    for channels in (1, 3, 6):
        got = nn.functional.conv2d(
            gray.repeat(1, channels, 1, 1), adapt_channels(filters, channels)
        )
        torch.testing.assert_close(got, as_rgb, rtol=1e-4, atol=1e-5)


def test_wrong_choices_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"resnet81 is no model of timm; did you mean resnet.* or "
    ):
        TimmBackbone("resnet81")
    with pytest.raises(
        UsageError, match=r"resnet18\.a9_in1k is no model of timm: it has resnet18\."
    ):
        TimmBackbone("resnet18.a9_in1k")
    with pytest.raises(UsageError, match="exclude each other"):
        TimmBackbone("resnet18", pretrained=True, weights=tmp_path / "a.pth")


REFUSED = ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "in_chans"]
REFUSED += ["pretrained_strict", "num_classes", "features_only", "feature_cfg", "out_indices"]


@pytest.mark.parametrize("option", [*REFUSED, "cache_dir", "model_name"])
def test_options_that_fetch_or_read_files_are_refused(option: str, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.pth")
    value = str(tmp_path / "a.pth")
    with pytest.raises(UsageError, match=rf"backbone\.options\.{option} is not taken: ") as info:
        TimmBackbone("resnet18", options={option: value})
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["hf-hub:someone/net", "local-dir:/tmp/net", "hf_hub:a/b"])
def test_a_name_fetches_nothing(name: str) -> None:
    with pytest.raises(UsageError, match="no model of timm"):
        TimmBackbone(name)
