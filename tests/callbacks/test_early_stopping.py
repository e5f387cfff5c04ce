from __future__ import annotations

import math

import pytest

from cvtrain.callbacks.early_stopping import EarlyStopping, improves
from cvtrain.errors import UsageError

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "best", "mode", "delta", "better"),
    [
        (0.1, None, "max", 0.0, True),
        (NAN, None, "max", 0.0, True),
        (0.2, 0.1, "max", 0.0, True),
        (0.1, 0.1, "max", 0.0, False),
        (0.2, 0.1, "min", 0.0, False),
        (0.1, 0.2, "min", 0.0, True),
        (0.15, 0.1, "max", 0.1, False),
        (0.05, 0.2, "min", 0.1, True),
        (NAN, 0.0, "max", 0.0, False),
        (NAN, 9.0, "min", 0.0, False),
        (0.0, NAN, "max", 0.0, True),
        (NAN, NAN, "max", 0.0, False),
    ],
)
def test_improves(value, best, mode, delta, better) -> None:
    assert improves(value, best, mode, delta) is better


def test_a_run_that_cannot_improve_stops_after_its_patience(make_task, fit) -> None:
    stopper = EarlyStopping(patience=2)
    trainer = fit(make_task(lr=0.0), stopper, epochs=10)
    assert trainer.current_epoch == 3  # one that is best, two that are not
    assert stopper.exhausted


def test_without_patience_it_never_stops(make_task, fit) -> None:
    assert fit(make_task(lr=0.0), EarlyStopping(), epochs=4).current_epoch == 4


def test_epochs_without_validation_do_not_count(make_task, fit) -> None:
    stopper = EarlyStopping(patience=1)
    fit(make_task(lr=0.0), stopper, epochs=4, check_val_every_n_epoch=4)
    assert stopper.waited == 0


def test_its_state_comes_back() -> None:
    first, second = EarlyStopping(patience=3), EarlyStopping(patience=3)
    first.best, first.waited = 0.5, 2
    second.load_state_dict(first.state_dict())
    assert (second.best, second.waited, second.exhausted) == (0.5, 2, False)


@pytest.mark.parametrize(
    ("arguments", "said"), [({"patience": 0}, "patience=0"), ({"min_delta": -1}, "min_delta=-1")]
)
def test_one_line_for_what_is_wrong(arguments, said) -> None:
    with pytest.raises(UsageError, match=said):
        EarlyStopping(**arguments)
