from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from cvtrain.callbacks.checkpoint import BestAndLast
from cvtrain.callbacks.ema import EMA
from cvtrain.errors import UsageError


class Weights(pl.Callback):
    """The weights after every step, and those that validation saw."""

    def __init__(self) -> None:
        self.steps: list[dict] = []
        self.validated: list[dict] = []

    @staticmethod
    def _copy(module) -> dict:
        return {k: v.clone() for k, v in module.state_dict().items()}

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.steps.append(self._copy(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, *_) -> None:
        self.validated.append(self._copy(pl_module))


def test_the_average_by_hand_is_validated_saved_and_kept(make_task, fit, header, tmp_path) -> None:
    task, weights = make_task(), Weights()
    decay = 0.2  # reached after the warm-up's 1/10 and 2/11
    saver = BestAndLast(tmp_path, header)
    fit(task, EMA(decay), weights, saver, epochs=1)
    wanted = {k: v.clone().double() for k, v in weights.steps[0].items()}  # the first is copied
    for n, step in enumerate(weights.steps[1:], start=1):
        share = min(decay, (1 + n) / (10 + n))
        for name, value in step.items():
            if value.is_floating_point():
                wanted[name] = share * wanted[name] + (1 - share) * value.double()
            else:
                wanted[name] = value
    saved = torch.load(saver.last_path, weights_only=True)
    for name, value in wanted.items():
        torch.testing.assert_close(saved["state_dict"][name].double(), value.double())
        assert torch.equal(weights.validated[-1][name], saved["state_dict"][name])
        assert torch.equal(saved["current_model_state"][name], weights.steps[-1][name])
        assert torch.equal(task.state_dict()[name], saved["state_dict"][name])
    assert not torch.equal(
        wanted["model.head.weight"].float(), weights.steps[-1]["model.head.weight"]
    )


def test_integer_buffers_are_counted_not_averaged(make_task, fit) -> None:
    task = make_task()
    fit(task, EMA(0.999), epochs=2)
    assert int(task.model.norm.num_batches_tracked) == 6


def test_the_counter_stays_on_the_host(make_task, fit) -> None:
    ema = EMA()
    fit(make_task(), ema, epochs=1)
    assert ema._average_model.n_averaged.device.type == "cpu"
    assert int(ema._average_model.n_averaged) == 3


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2])
def test_a_decay_is_a_share(decay: float) -> None:
    with pytest.raises(UsageError, match=f"callbacks.ema.decay={decay}"):
        EMA(decay)
