from __future__ import annotations

import pytest
import torch

from cvtrain.engine.device import choose_device
from cvtrain.errors import RunError, UsageError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Pretends that so many GPUs are there."""

    def pretend(count: int, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)

    return pretend


@pytest.mark.parametrize(
    ("count", "bf16", "asked", "accelerator", "processes", "precision"),
    [
        (0, False, {}, "cpu", 1, "32-true"),
        (2, True, {}, "gpu", 1, "bf16-mixed"),
        (2, False, {}, "gpu", 1, "32-true"),
        (2, True, {"accelerator": "cpu", "devices": 3}, "cpu", 3, "32-true"),
        (2, True, {"accelerator": "cuda", "devices": -1}, "gpu", 2, "bf16-mixed"),
        (2, True, {"devices": "2", "precision": "16"}, "gpu", 2, "16-mixed"),
        (0, False, {"precision": "bf16"}, "cpu", 1, "bf16-mixed"),
        (0, False, {"devices": -1}, "cpu", 1, "32-true"),
    ],
)
def test_what_is_chosen(gpus, count, bf16, asked, accelerator, processes, precision) -> None:
    gpus(count, bf16)
    device = choose_device(asked)
    assert device.accelerator == accelerator
    assert (device.processes, device.precision) == (processes, precision)
    assert device.world_size == processes
    kind = "cuda" if accelerator == "gpu" else "cpu"
    assert device.torch_device().type == kind


def test_gpus_that_are_not_there(gpus) -> None:
    gpus(0)
    with pytest.raises(RunError, match=r"trainer\.accelerator=gpu: no GPU"):
        choose_device({"accelerator": "gpu"})
    gpus(2)
    with pytest.raises(RunError, match=r"trainer\.devices=4: this machine has 2"):
        choose_device({"devices": 4})


@pytest.mark.parametrize("key", ["accelerator", "precision", "devices"])
def test_values_that_are_none_of_the_choices(key) -> None:
    with pytest.raises(UsageError, match=f"trainer.{key}=nonsense"):
        choose_device({key: "nonsense"})
