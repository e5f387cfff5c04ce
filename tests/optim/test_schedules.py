from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cvtrain.errors import UsageError
from cvtrain.optim.schedules import WARMUP_LIMIT, Schedule

CONF = Path(__file__).parents[2] / "conf" / "scheduler"


def rates(config: dict, steps: int = 1000, epochs: int = 100) -> list[float]:
    schedule = Schedule(config, steps, epochs)
    return [schedule(step) for step in range(steps)]


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_yaml_is_a_schedule_that_reaches_the_full_rate(path: Path) -> None:
    values = rates(yaml.safe_load(path.read_text()))
    assert max(values) == pytest.approx(1.0, abs=1e-3)
    assert min(values) > 0


def test_cosine_by_hand() -> None:
    values = rates(
        {"name": "cosine", "warmup_epochs": 1, "warmup_start": 0.0, "final": 0.1}, 101, 10
    )
    assert values[0] == 0.0  # round(101 / 10) = 10 warm-up steps
    assert values[5] == 0.5
    assert values[10] == 1.0
    assert values[55] == pytest.approx(0.55)  # half way from 10 to 100
    assert values[100] == pytest.approx(0.1)


def test_step_by_hand() -> None:
    config = {"name": "step", "warmup_epochs": 0, "milestones": [0.5, 8], "gamma": 0.1}
    values = rates(config, 100, 10)
    assert values[49] == 1.0
    assert values[50] == pytest.approx(0.1)  # half of the run
    assert values[79] == pytest.approx(0.1)
    assert values[80] == pytest.approx(0.01)  # epoch 8


def test_one_cycle_by_hand() -> None:
    values = rates({"name": "one_cycle", "rise": 0.25, "start": 0.1, "final": 0.01}, 101)
    assert values[0] == pytest.approx(0.1)
    assert values[25] == pytest.approx(1.0)
    assert values[100] == pytest.approx(0.01)
    assert values.index(max(values)) == 25


def test_none_is_constant_after_its_warm_up() -> None:
    assert set(rates({"name": "none"})) == {1.0}
    assert rates({"name": "none", "warmup_epochs": 1})[0] == 0.01
    assert set(rates(None)) == {1.0}


def test_a_warm_up_leaves_short_runs_time_to_train() -> None:
    values = rates({"name": "none", "warmup_epochs": 50}, 100, 100)
    assert values.index(1.0) == WARMUP_LIMIT * 100


def test_the_step_alone_decides_and_the_last_rate_stays() -> None:
    schedule = Schedule({"name": "cosine"}, 10, 2)
    assert schedule(7) == Schedule({"name": "cosine"}, 10, 2)(7)
    assert schedule(99) == schedule(9)
    assert 0 < Schedule({"name": "one_cycle"}, 1, 1)(0) <= 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "cosinus"}, "scheduler.name=cosinus"),
        ({"name": "cosine", "gamma": 0.1}, "scheduler.gamma"),
        ({"name": "cosine", "final": -1}, "scheduler.final=-1"),
        ({"name": "cosine", "final": 2}, "scheduler.final=2"),
        ({"name": "step", "milestones": ["a"]}, "scheduler.milestones"),
        ({"name": "none", "warmup_epochs": True}, "scheduler.warmup_epochs=True"),
    ],
)
def test_one_line_for_what_is_wrong(config: dict, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Schedule(config, 100, 10)
    assert said in str(caught.value)
