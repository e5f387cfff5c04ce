from __future__ import annotations

import math

import pytest
import torch

from cvtrain.errors import RunError
from cvtrain.tasks.loss_meters import LossSums, TrainingSums


def test_means_weigh_with_the_batch_size_and_counts_add_up() -> None:
    sums = LossSums()
    total = sums.add(
        {"a": torch.tensor(1.0), "b": torch.tensor(2.0), "num_x": torch.tensor(3)}, 4, 0
    )
    assert float(total) == 3.0
    sums.add({"a": torch.tensor(4.0), "b": torch.tensor(2.0), "num_x": torch.tensor(1)}, 2, 1)
    assert sums.means() == {"loss": 4.0, "a": 2.0, "b": 2.0, "num_x": 4.0}
    assert sums.latest == 6.0


def test_the_total_keeps_its_gradient() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    LossSums().add({"a": weight * 3, "num_x": torch.tensor(1.0)}, 1, 0).backward()
    assert weight.grad == 3.0


def test_a_single_term_called_loss_is_not_counted_twice() -> None:
    sums = LossSums()
    sums.add({"loss": torch.tensor(5.0)}, 1, 0)
    assert sums.means() == {"loss": 5.0}


def test_terms_may_come_and_go() -> None:
    sums = LossSums()
    sums.add({"a": torch.tensor(2.0)}, 1, 0)
    sums.add({"a": torch.tensor(2.0), "b": torch.tensor(6.0)}, 1, 1)
    assert sums.means()["a"] == 2.0
    assert sums.means()["loss"] == 5.0


def test_nothing_seen_is_no_number_and_reset_forgets() -> None:
    sums = LossSums()
    assert sums.means() == {}
    sums.add({"a": torch.tensor(1.0)}, 1, 0)
    sums.reset()
    assert sums.means() == {}
    assert math.isnan(sums.latest)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_step_and_term(value: float) -> None:
    sums = TrainingSums()
    sums.add({"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, 1, 6)
    with pytest.raises(RunError) as caught:
        sums.add({"a": torch.tensor(1.0), "b": torch.tensor(value)}, 1, 7)
    message = str(caught.value)
    assert f"step 7 (b={value})" in message
    assert "optimizer.lr" in message
    assert "\n" not in message


def test_validation_goes_on_with_it() -> None:
    sums = LossSums()
    sums.add({"a": torch.tensor(math.nan)}, 1, 0)
    assert math.isnan(sums.means()["loss"])


def test_a_process_without_a_sample_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = LossSums()
    sums.add({"a": torch.tensor(4.0), "num_x": torch.tensor(1)}, 3, 0)
    other = ({"loss": 2.0, "a": 2.0, "num_x": 5.0}, 1, 1)
    gather = "cvtrain.tasks.loss_meters.gather"
    monkeypatch.setattr(gather, lambda value: [({}, 0, 0), value, other])
    assert sums.means() == {"loss": 3.5, "a": 3.5, "num_x": 6.0}
    assert sums.all_finite_samples == 4
