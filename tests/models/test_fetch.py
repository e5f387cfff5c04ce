"""backbone.pretrained=true: what is said, what happens without a network."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from cvtrain.errors import RunError, UsageError
from cvtrain.models.backbones import fetch
from cvtrain.models.backbones.timm_backbone import TimmBackbone


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_unreachable", lambda url: None)


def answer(monkeypatch: pytest.MonkeyPatch, source: nn.Module | None) -> list[dict[str, Any]]:
    """timm.create_model with a hub that has ``source``, or that breaks off; the calls it got."""
    create, calls = timm.create_model, []

    def fetched(name: str, pretrained: bool = False, **keywords: Any) -> nn.Module:
        if not pretrained:
            return create(name, **keywords)
        calls.append(keywords)
        if source is None:
            raise ConnectionError("no route")
        keywords.pop("pretrained_cfg_overlay", None)
        model = create(name, **keywords)
        if keywords["in_chans"] == 3:
            model.load_state_dict(source.state_dict())
        return model

    monkeypatch.setattr(timm, "create_model", fetched)
    return calls


def test_what_is_fetched_is_said_before(
    reachable: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = timm.create_model("resnet18", num_classes=0)
    answer(monkeypatch, source)
    taken = TimmBackbone("resnet18", pretrained=True)
    assert torch.equal(taken.body.conv1.weight, source.conv1.weight)
    (line,) = [r.getMessage() for r in caplog.records]
    assert "resnet18 from huggingface.co/timm/resnet18" in line
    assert "about 45 MB" in line
    assert "into " in line


def test_a_fetch_that_breaks_off_names_the_way_out(
    reachable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, None)
    with pytest.raises(RunError, match=r"resnet18 \(ConnectionError\).*backbone.weights=FILE") as e:
        TimmBackbone("resnet18", pretrained=True)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("silent", [True, False])
def test_without_a_network_it_is_one_line_and_soon(
    silent: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def connect(*_: Any, **__: Any) -> socket.socket:
        if silent:
            time.sleep(30)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(fetch, "PATIENCE", 0.2)
    calls = answer(monkeypatch, None)
    started = time.perf_counter()
    with pytest.raises(RunError, match=r"backbone\.weights=FILE") as info:
        TimmBackbone("resnet18", pretrained=True)
    assert time.perf_counter() - started < 10
    assert "huggingface.co does not answer" in str(info.value)
    assert ("nothing came" if silent else "Name or service not known") in str(info.value)
    assert "\n" not in str(info.value)
    assert calls == []
    assert caplog.records == []


def test_a_proxy_is_asked_in_the_servers_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def connect(address: tuple[str, int], **_: Any) -> socket.socket:
        asked.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert fetch._unreachable("https://huggingface.co") == "Connection refused"
    assert asked == [("proxy.example", 3128)]


def test_what_was_fetched_before_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub

    torch.manual_seed(0)
    source = timm.create_model("resnet18", num_classes=1000)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    cached = str(tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: cached)
    monkeypatch.setattr(fetch, "_unreachable", lambda url: pytest.fail("asked the network"))
    with caplog.at_level(logging.INFO, logger="cvtrain"):
        taken = TimmBackbone("resnet18", pretrained=True, in_channels=1)
    torch.testing.assert_close(taken.body.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(taken.body.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    message = [r.getMessage() for r in caplog.records if r.name.startswith("cvtrain")]
    assert message[0] == f"pretrained weights of resnet18: {cached}, fetched before"
    assert "first filters, for images of 3 channels, summed for 1 channel" in message[1]


def test_a_model_without_weights(reachable: None) -> None:
    with (
        pytest.raises(UsageError, match="timm has no weights for darknet17"),
        torch.device("meta"),
    ):
        TimmBackbone("darknet17", pretrained=True)
